"""The rolling heat index of the readings in a file, by DuckDB: duckdb_batch.py INPUT OUTPUT.parquet"""

import sys

import duckdb

source, output = sys.argv[1:]
if source.endswith(".csv"):
    columns = "{city: VARCHAR, reading_at: TIMESTAMP, temperature: DOUBLE, humidity: DOUBLE, wind_speed: DOUBLE}"
    reading_at = "reading_at"
    readings = f"read_csv('{source}', header = true, delim = ',', columns = {columns})"
else:
    reading_at = "make_timestamp(epoch_us(reading_at))"
    readings = f"read_parquet('{source}')"

# Zones are an extension that would have to be fetched; times without one are as good, since all are in UTC.
db = duckdb.connect(config={"threads": 1, "autoinstall_known_extensions": False})
db.execute(f"""
COPY (
    WITH readings AS (
        SELECT city, {reading_at} AS reading_at, temperature AS t, humidity AS r, wind_speed FROM {readings}
    ), indexed AS (
        SELECT city, reading_at, t AS temperature, r AS humidity, wind_speed,
            -42.379 + 2.04901523 * t + 10.14333127 * r - 0.22475541 * t * r - 0.00683783 * t * t
            - 0.05481717 * r * r + 0.00122874 * t * t * r + 0.00085282 * t * r * r - 0.00000199 * t * t * r * r
            AS heat_index
        FROM readings
    )
    SELECT *, avg(heat_index) OVER day AS rolling_heat_index, count(*) OVER day AS count
    FROM indexed
    WINDOW day AS (
        PARTITION BY city ORDER BY reading_at RANGE BETWEEN INTERVAL 1 DAY PRECEDING AND CURRENT ROW
    )
    ORDER BY city, reading_at
) TO '{output}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)
""")
