import java.net.InetSocketAddress;
import java.util.Map;
import java.util.TreeMap;
import org.apache.hadoop.conf.Configuration;
import org.apache.iceberg.CatalogUtil;
import org.apache.iceberg.catalog.Catalog;
import org.apache.iceberg.rest.RESTCatalogAdapter;
import org.apache.iceberg.rest.RESTCatalogServlet;
import org.eclipse.jetty.ee10.servlet.ServletContextHandler;
import org.eclipse.jetty.ee10.servlet.ServletHolder;
import org.eclipse.jetty.server.Server;

/**
 * Iceberg's own REST adapter over its JDBC catalog, on the loopback: a server for trying out and for
 * tests. It knows no log-in. Every variable CATALOG_X_Y of the environment is the catalog's property
 * x.y, with two underscores for a dash.
 */
public class CatalogServer {
  public static void main(String[] arguments) throws Exception {
    Map<String, String> properties = new TreeMap<>();
    System.getenv().forEach((name, value) -> {
      if (name.startsWith("CATALOG_")) {
        String key = name.substring("CATALOG_".length()).toLowerCase();
        properties.put(key.replace("__", "-").replace("_", "."), value);
      }
    });
    Catalog catalog = CatalogUtil.buildIcebergCatalog("shredlake", properties, new Configuration());
    ServletContextHandler context = new ServletContextHandler(ServletContextHandler.NO_SESSIONS);
    context.addServlet(new ServletHolder(new RESTCatalogServlet(new RESTCatalogAdapter(catalog))), "/*");
    Server server = new Server(new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[0])));
    server.setHandler(context);
    server.start();
    server.join();
  }
}
