"""Writes nyc2013_rolling.csv.gz: the rolling mean of the heat index by pandas, for the tests to compare with.

python3 rolling_pandas.py ../../data/nyc2013.csv nyc2013_rolling.csv.gz     (pandas 3.1.1)
"""
import gzip
import sys

import pandas as pd

log, out = sys.argv[1:]
df = pd.read_csv(log)
# What swelter refuses: a missing value, a wind outside 0 to 260 mph.
df = df.dropna(subset=["temperature_f", "humidity_pct"])
df = df[~(df["wind_speed_mph"] > 260)]
t, r = df["temperature_f"], df["humidity_pct"]
df["heat_index"] = (
    -42.379 + 2.04901523 * t + 10.14333127 * r - 0.22475541 * t * r - 0.00683783 * t * t
    - 0.05481717 * r * r + 0.00122874 * t * t * r + 0.00085282 * t * r * r - 0.00000199 * t * t * r * r
)
df["reading_at"] = pd.to_datetime(df["reading_at"])
df = df.sort_values(["city", "reading_at"]).set_index("reading_at")
rolling = df.groupby("city")["heat_index"].rolling("1D", closed="both")
result = pd.DataFrame({"rolling": rolling.mean(), "count": rolling.count().astype(int)}).reset_index()
result["reading_at"] = result["reading_at"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
with gzip.GzipFile(out, "wb", mtime=0) as file:
    file.write(result.to_csv(index=False, float_format="%.9f").encode())
