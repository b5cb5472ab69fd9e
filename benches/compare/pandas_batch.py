"""The rolling heat index of the readings in a file, by pandas: pandas_batch.py INPUT OUTPUT.parquet"""

import sys

import pandas as pd

source, output = sys.argv[1:]
if source.endswith(".csv"):
    # The fastest of its readers, which knows the times by itself.
    number = dict.fromkeys(["temperature", "humidity", "wind_speed"], float)
    readings = pd.read_csv(source, engine="pyarrow", dtype={"city": "category", **number})
else:
    readings = pd.read_parquet(source)
    readings["city"] = readings["city"].astype("category")

t, r = readings["temperature"], readings["humidity"]
readings["heat_index"] = (
    -42.379 + 2.04901523 * t + 10.14333127 * r - 0.22475541 * t * r - 0.00683783 * t * t
    - 0.05481717 * r * r + 0.00122874 * t * t * r + 0.00085282 * t * r * r - 0.00000199 * t * t * r * r
)
rows = readings.sort_values(["city", "reading_at"], ignore_index=True)
rolling = rows.groupby("city", observed=True).rolling("1D", on="reading_at", closed="both")["heat_index"]
rows["rolling_heat_index"] = rolling.mean().to_numpy()
rows["count"] = rolling.count().to_numpy().astype("int32")
rows.to_parquet(output, index=False, compression="zstd", compression_level=1)
