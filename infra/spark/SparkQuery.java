import java.util.List;
import org.apache.spark.sql.Dataset;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.SparkSession;

/** Reads an Iceberg table by its metadata file, runs one query over it as `t`, prints a JSON row a line. */
public class SparkQuery {
  public static void main(String[] arguments) {
    SparkSession spark =
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
            .config("spark.sql.catalog.default_iceberg.warehouse", System.getProperty("java.io.tmpdir"))
            .getOrCreate();
    spark.read().format("iceberg").load(arguments[0]).createOrReplaceTempView("t");
    Dataset<Row> rows = spark.sql(arguments[1]);
    List<String> lines = rows.toJSON().collectAsList();
    lines.forEach(System.out::println);
    spark.stop();
  }
}
