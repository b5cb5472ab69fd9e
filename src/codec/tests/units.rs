//! Files in other units name them, and hold the same numbers in every format.

use super::*;
use crate::model::{
    Category, ChangeLine, CityRows, DayLine, HeatIndex, OutputUnits, PeriodSummary, ResultRow, Row,
    TemperatureUnit, WindUnit,
};

const UNITS: OutputUnits =
    OutputUnits { temperature: TemperatureUnit::Celsius, wind: WindUnit::MetresPerSecond };

fn row(fahrenheit: f64, micros: i64, sum: i64, count: u32, wind: Option<f64>) -> ResultRow {
    ResultRow {
        reading_at: EventTime::from_millis(1_500).unwrap(),
        measurement: Measurement::new(fahrenheit, 63.1, wind).unwrap(),
        heat_index: HeatIndex::from_micros(micros),
        sum,
        count,
        category: Category::Caution,
    }
}

fn rows() -> [ResultRow; 3] {
    [
        row(86.18, 91_283_411, 252_038_190_000, 3001, Some(8.05546)),
        row(-57.82, HeatIndex::MIN.micros(), HeatIndex::MIN.micros() * 7, 7, None),
        row(32.0, HeatIndex::MAX.micros(), HeatIndex::MAX.micros() * 3, 3, Some(0.0)),
    ]
}

fn written(format: Format) -> Vec<u8> {
    let shared = Shared::default();
    let mut writer =
        ResultRowsWriter::new(format, Compression::None, UNITS, Box::new(shared.clone())).unwrap();
    writer.write(&CityRows { city: "x", rows: &rows() }).unwrap();
    writer.finish().unwrap();
    shared.bytes()
}

const CSV: &str = "\
city,reading_at,temperature,humidity,wind_speed,heat_index,rolling_heat_index,count,category,units,wind_units
x,1970-01-01T00:00:01.5Z,30.1,63.1,3.6011128384,32.935228333333335,28.880408382391053,3001,caution,celsius,m/s
x,1970-01-01T00:00:01.5Z,-49.9,63.1,,-253.88888888888889,-253.88888888888889,7,caution,celsius,m/s
x,1970-01-01T00:00:01.5Z,0,63.1,0,1982.2222222222222,1982.2222222222222,3,caution,celsius,m/s
";

#[test]
fn celsius_rows_are_equal_in_every_format() {
    assert_eq!(String::from_utf8(written(Format::Csv)).unwrap(), CSV);
    let numbers = |line: &str| -> Vec<Option<f64>> {
        line.split(',').skip(2).take(5).map(|field| field.parse().ok()).collect()
    };
    let expected: Vec<_> = CSV.lines().skip(1).map(numbers).collect();
    let columns = ["temperature", "humidity", "wind_speed", "heat_index", "rolling_heat_index"];
    let json = String::from_utf8(written(Format::Json)).unwrap();
    let found = json.lines().map(|line| {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!((&row["units"], &row["wind_units"]), (&"celsius".into(), &"m/s".into()));
        columns.map(|column| row[column].as_f64()).to_vec()
    });
    assert_eq!(found.collect::<Vec<_>>(), expected);
    assert_eq!(parquet_numbers(&columns), expected);
}

/// The columns of the Parquet file, row by row; their units are checked.
fn parquet_numbers(columns: &[&str]) -> Vec<Vec<Option<f64>>> {
    use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    use arrow_array::Array as _;
    use arrow_array::cast::AsArray as _;
    use arrow_array::types::Float64Type;
    use std::io::Write as _;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&written(Format::Parquet)).unwrap();
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let pairs = builder.metadata().file_metadata().key_value_metadata().unwrap().clone();
    let pair = |key: &str| pairs.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.clone());
    assert_eq!((pair("units").as_deref(), pair("wind_units").as_deref()), (Some("celsius"), Some("m/s")));
    let schema = builder.schema().clone();
    let unit = |column: &str| schema.field_with_name(column).unwrap().metadata().get("units").cloned();
    assert_eq!(unit("wind_speed").as_deref(), Some("m/s"));
    assert_eq!(unit("humidity"), None);
    for column in ["temperature", "heat_index", "rolling_heat_index"] {
        assert_eq!(unit(column).as_deref(), Some("celsius"), "{column}");
    }
    assert_eq!(schema.field(0).data_type(), &arrow_schema::DataType::Utf8);
    let batch = builder.build().unwrap().next().unwrap().unwrap();
    let value = |column: &str, row: usize| {
        let column = batch.column_by_name(column).unwrap().as_primitive::<Float64Type>();
        column.is_valid(row).then(|| column.value(row))
    };
    (0..batch.num_rows()).map(|row| columns.iter().map(|column| value(column, row)).collect()).collect()
}

#[test]
fn celsius_reports_name_their_unit() {
    let row = Row::new(HeatIndex::from_micros(86_180_000), Category::Caution, 131_720_000, 2);
    let at = EventTime::from_millis(1_500).unwrap();
    let shared = Shared::default();
    let mut writer =
        ChangesWriter::new(Compression::None, TemperatureUnit::Celsius, Box::new(shared.clone())).unwrap();
    writer
        .write(&ChangeLine { as_of: 7, city: "x", reading_at: at, before: Some(row), after: None })
        .unwrap();
    writer.finish().unwrap();
    assert_eq!(
        String::from_utf8(shared.bytes()).unwrap(),
        "{\"as_of\":7,\"city\":\"x\",\"reading_at\":\"1970-01-01T00:00:01.5Z\",\"before\":{\"heat_index\":30.1,\"rolling_heat_index\":18.81111111111111,\"count\":2,\"category\":\"caution\"},\"after\":null,\"units\":\"celsius\"}\n"
    );
    let summary = PeriodSummary {
        readings: 2,
        sum: 131_720_000,
        max_heat_index: HeatIndex::from_micros(-40_000_000),
        max_at: at,
        categories: [0, 2, 0, 0, 0],
    };
    for (format, end) in [
        (Format::Csv, "x,1970-01-01,2,18.81111111111111,-40,1970-01-01T00:00:01.5Z,0,2,0,0,0,celsius\n"),
        (Format::Json, ",\"extreme_danger\":0,\"units\":\"celsius\"}\n"),
    ] {
        let shared = Shared::default();
        let out = Box::new(shared.clone());
        let mut writer = DailyWriter::new(format, Compression::None, TemperatureUnit::Celsius, out).unwrap();
        writer.write(&DayLine { city: "x", day: 0, summary }).unwrap();
        writer.finish().unwrap();
        let text = String::from_utf8(shared.bytes()).unwrap();
        assert!(text.ends_with(end), "{text}");
    }
}
