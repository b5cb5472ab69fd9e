//! `swelter export`: Parquet files of days, against the recomputation.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float64Type, Int64Type, TimestampMillisecondType};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::replica_case::{ReplicaCase, database_url};
use crate::support::{MINUTE_MS, city_name, swelter_command};

const DAY_MS: i64 = 24 * 60 * MINUTE_MS;

/// Rolling mean and count by city and time.
type Exported = BTreeMap<(String, i64), (f64, i64)>;

fn read_file(path: &Path, rows: &mut Exported) {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let metadata = builder.metadata().file_metadata().key_value_metadata().unwrap().clone();
    let value = |key: &str| metadata.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.clone());
    assert_eq!(value("units").as_deref(), Some("fahrenheit"));
    assert!(value("as_of").unwrap().parse::<u64>().unwrap() > 1_700_000_000_000);
    for batch in builder.build().unwrap() {
        let batch = batch.unwrap();
        let column = |name: &str| batch.column_by_name(name).unwrap();
        let cities = arrow_cast_to_strings(column("city"));
        let times = column("reading_at").as_primitive::<TimestampMillisecondType>();
        let means = column("rolling_heat_index").as_primitive::<Float64Type>();
        let counts = column("count").as_primitive::<Int64Type>();
        assert_eq!(column("temperature").null_count(), 0);
        for (row, city) in cities.into_iter().enumerate() {
            let key = (city, times.value(row));
            assert!(
                rows.insert(key, (means.value(row), counts.value(row))).is_none(),
                "a row is there twice"
            );
        }
    }
}

fn arrow_cast_to_strings(column: &arrow_array::ArrayRef) -> Vec<String> {
    let strings = column.as_string::<i32>();
    strings.iter().map(|city| city.unwrap().to_owned()).collect()
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn exported_days_equal_the_recomputation() {
    let mut case = ReplicaCase::start(78, 1, 60);
    case.post_random(200);
    case.wait_until_replayed();
    let folder = tempfile::tempdir().unwrap();
    let date = |millis: i64| jiff::Timestamp::from_millisecond(millis).unwrap().to_string()[..10].to_owned();
    let expected = case.oracle.rows();
    let first = expected.keys().map(|(_, at)| *at).min().unwrap();
    let (from, to) = (date(first), date(case.now + DAY_MS));
    let url = database_url(&case.replica.url, 0);
    let mut command = swelter_command();
    command.args(["export", "--from", &from, "--to", &to, "--url", &url, "--output"]).arg(folder.path());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut rows = Exported::new();
    let mut files = 0;
    for entry in folder.path().read_dir().unwrap() {
        let path = entry.unwrap().path();
        let before = rows.len();
        read_file(&path, &mut rows);
        assert!(rows.len() > before, "an empty file");
        files += 1;
    }
    assert!(files >= 2, "{files} files");
    let expected: Exported = expected
        .iter()
        .map(|((city, at), row)| {
            ((city_name(*city), *at), (row.rolling_heat_index(), i64::from(row.count())))
        })
        .collect();
    assert_eq!(rows, expected);
    let wrong =
        swelter_command().args(["export", "--from", &to, "--to", &from, "--url", &url, "-o", "."]).output();
    assert_eq!(wrong.unwrap().status.code(), Some(2));
}
