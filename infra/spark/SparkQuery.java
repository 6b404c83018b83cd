import java.util.List;
import org.apache.spark.sql.Dataset;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.SparkSession;

/**
 * Reads an Iceberg table by its metadata file, or by its name in the catalog `rest`, runs one query over it as
 * `t`, prints a JSON row a line. Every variable SPARK_REST_X_Y of the environment is that catalog's property
 * x.y, with two underscores for a dash; secrets are in no process list then.
 */
public class SparkQuery {
  public static void main(String[] arguments) {
    SparkSession.Builder builder =
        SparkSession.builder()
            .master("local[1]")
            .config("spark.ui.enabled", "false")
            .config("spark.sql.session.timeZone", "UTC")
            .config("spark.sql.shuffle.partitions", "1")
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.driver.bindAddress", "127.0.0.1")
            // Tables by path are looked up in this catalog, whose default needs Hive.
            .config("spark.sql.catalog.default_iceberg", "org.apache.iceberg.spark.SparkCatalog")
            .config("spark.sql.catalog.default_iceberg.type", "hadoop")
            .config("spark.sql.catalog.default_iceberg.warehouse", System.getProperty("java.io.tmpdir"));
    System.getenv().forEach((name, value) -> {
      if (name.startsWith("SPARK_REST_")) {
        String key = name.substring("SPARK_REST_".length()).toLowerCase();
        builder.config("spark.sql.catalog.rest." + key.replace("__", "-").replace("_", "."), value);
      }
    });
    if (System.getenv("SPARK_REST_URI") != null) {
      builder.config("spark.sql.catalog.rest", "org.apache.iceberg.spark.SparkCatalog");
    }
    SparkSession spark = builder.getOrCreate();
    Dataset<Row> table =
        arguments[0].startsWith("rest.")
            ? spark.table(arguments[0])
            : spark.read().format("iceberg").load(arguments[0]);
    table.createOrReplaceTempView("t");
    Dataset<Row> rows = spark.sql(arguments[1]);
    List<String> lines = rows.toJSON().collectAsList();
    lines.forEach(System.out::println);
    spark.stop();
  }
}
