"""Whether files of results say the same: agree.py RESULTS.parquet OTHER.parquet..."""

import sys

import pandas as pd

KEYS = ["city", "reading_at"]
COLUMNS = [*KEYS, "temperature", "humidity", "wind_speed", "heat_index", "rolling_heat_index", "count"]


def read(path):
    rows = pd.read_parquet(path)
    if list(rows.columns) != COLUMNS:
        sys.exit(f"{path} has the columns {list(rows.columns)}")
    rows["city"] = rows["city"].astype("str")
    rows["reading_at"] = pd.to_datetime(rows["reading_at"], utc=True).dt.as_unit("ms")
    return rows


results = read(sys.argv[1])
furthest = 0
for path in sys.argv[2:]:
    other = read(path)
    if len(results) != len(other):
        sys.exit(f"{path} has {len(other):,} rows, not {len(results):,}")
    # Row by row, so that the orders agree as well.
    for column in [*KEYS, "temperature", "humidity", "wind_speed", "count"]:
        if not (results[column] == other[column]).all():
            sys.exit(f"{path} differs in {column}")
    apart = [(results[column] - other[column]).abs().max() for column in ["heat_index", "rolling_heat_index"]]
    if not all(difference <= 1e-6 for difference in apart):
        sys.exit(f"{path} is {apart[0]} apart in heat_index and {apart[1]} in rolling_heat_index")
    furthest = max(furthest, apart[1])
print(f"all agree on {len(results):,} rows; the rolling means are at most {furthest:.1e} apart")
