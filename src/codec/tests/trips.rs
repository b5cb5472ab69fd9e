//! Files read back as they were written; damaged ones are refused with every byte accounted for.

use proptest::prelude::*;

use super::*;
use crate::model::{Category, CityRows, HeatIndex, OutputUnits, ResultRow};

const FILES: [(Format, Compression); 7] = [
    (Format::Csv, Compression::None),
    (Format::Csv, Compression::Gzip),
    (Format::Csv, Compression::Zstd),
    (Format::Json, Compression::None),
    (Format::Json, Compression::Gzip),
    (Format::Json, Compression::Zstd),
    (Format::Parquet, Compression::None),
];

fn measurements() -> impl Strategy<Value = Measurement> {
    let number =
        |low: f64, high: f64| prop_oneof![low..=high, (low as i32..=high as i32).prop_map(f64::from)];
    (number(-130.0, 140.0), number(0.0, 105.0), proptest::option::of(number(0.0, 260.0)))
        .prop_map(|(t, h, w)| Measurement::new(t, h, w).unwrap())
}

fn cities() -> impl Strategy<Value = String> {
    prop_oneof!["city_0000[0-9]", "[ -~é京\u{1F30D}]{1,30}"]
}

fn times() -> impl Strategy<Value = EventTime> {
    prop_oneof![EventTime::MIN.millis()..=EventTime::MAX.millis(), (0..1_000_000i64).prop_map(|s| s * 1_000)]
        .prop_map(|ms| EventTime::from_millis(ms).unwrap())
}

fn events() -> impl Strategy<Value = ReadingEvent> {
    prop_oneof![9 => measurements().prop_map(ReadingEvent::Reading), 1 => Just(ReadingEvent::Withdrawal)]
}

fn log() -> impl Strategy<Value = Vec<(String, EventTime, ReadingEvent)>> {
    proptest::collection::vec((cities(), times(), events()), 0..40)
}

fn written(log: &[(String, EventTime, ReadingEvent)], format: Format, compression: Compression) -> Vec<u8> {
    let shared = Shared::default();
    let mut writer = ReadingsWriter::new(format, compression, true, Box::new(shared.clone())).unwrap();
    for (city, reading_at, event) in log {
        writer.write(city, *reading_at, event).unwrap();
    }
    writer.finish().unwrap();
    shared.bytes()
}

fn result_rows() -> impl Strategy<Value = Vec<ResultRow>> {
    let row = (times(), measurements(), -425_000_000..3_600_000_000i64, any::<i32>(), 1..100_000u32);
    let row = row.prop_map(|(reading_at, measurement, heat_index, sum, count)| {
        let heat_index = HeatIndex::from_micros(heat_index);
        let category = Category::of(heat_index);
        ResultRow { reading_at, measurement, heat_index, sum: i64::from(sum), count, category }
    });
    proptest::collection::vec(row, 0..20)
}

/// A result row as a file holds it, with its doubles bit for bit.
type WrittenRow = (String, String, [Option<u64>; 5], i64, String);

fn expected(city: &str, row: &ResultRow) -> WrittenRow {
    let measurement = &row.measurement;
    let numbers = [
        Some(measurement.temperature()),
        Some(measurement.humidity()),
        measurement.wind_speed(),
        Some(row.heat_index.fahrenheit()),
        Some(row.rolling_heat_index()),
    ];
    let numbers = numbers.map(|number| number.map(f64::to_bits));
    (city.into(), row.reading_at.to_string(), numbers, i64::from(row.count), row.category.name().into())
}

const NUMBERS: [&str; 5] = ["temperature", "humidity", "wind_speed", "heat_index", "rolling_heat_index"];

fn rows_of_json(bytes: &[u8]) -> Vec<WrittenRow> {
    let lines = std::str::from_utf8(bytes).unwrap().lines();
    lines
        .map(|line| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let text = |name: &str| row[name].as_str().unwrap().to_string();
            let numbers = NUMBERS.map(|name| row[name].as_f64().map(f64::to_bits));
            (text("city"), text("reading_at"), numbers, row["count"].as_i64().unwrap(), text("category"))
        })
        .collect()
}

fn rows_of_csv(bytes: &[u8]) -> Vec<WrittenRow> {
    let mut reader = csv_core::Reader::new();
    let (mut input, mut rows) = (bytes, Vec::new());
    let (mut text, mut ends) = (vec![0; 4096], [0; 16]);
    loop {
        let (result, read, _, count) = reader.read_record(input, &mut text, &mut ends);
        input = &input[read..];
        match result {
            csv_core::ReadRecordResult::End => break,
            csv_core::ReadRecordResult::InputEmpty => continue,
            other => assert_eq!(other, csv_core::ReadRecordResult::Record),
        }
        let field = |at: usize| {
            let from = if at == 0 { 0 } else { ends[at - 1] };
            std::str::from_utf8(&text[from..ends[at]]).unwrap().to_string()
        };
        assert_eq!(count, 11);
        if field(0) != "city" || field(7) != "count" {
            let number =
                |at: usize| (!field(at).is_empty()).then(|| field(at).parse::<f64>().unwrap().to_bits());
            let numbers = [2, 3, 4, 5, 6].map(number);
            rows.push((field(0), field(1), numbers, field(7).parse().unwrap(), field(8)));
        }
    }
    rows
}

fn rows_of_parquet(bytes: Vec<u8>) -> Vec<WrittenRow> {
    use arrow_array::cast::AsArray;
    use arrow_array::types::{Float64Type, Int64Type, TimestampMillisecondType};
    use arrow_array::{Array, RecordBatchReader};
    use std::io::Write;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let batches = ::parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(file, 1000).unwrap();
    let schema = batches.schema();
    assert_eq!(
        schema.field(1).data_type(),
        &arrow_schema::DataType::Timestamp(arrow_schema::TimeUnit::Millisecond, Some("UTC".into()))
    );
    let mut rows = Vec::new();
    for batch in batches {
        let batch = batch.unwrap();
        for at in 0..batch.num_rows() {
            let city = batch["city"].as_string::<i32>().value(at).to_string();
            let ms = batch["reading_at"].as_primitive::<TimestampMillisecondType>().value(at);
            let numbers = NUMBERS.map(|name| {
                let array = batch[name].as_primitive::<Float64Type>();
                array.is_valid(at).then(|| array.value(at).to_bits())
            });
            let count = batch["count"].as_primitive::<Int64Type>().value(at);
            let category = batch["category"].as_string::<i32>().value(at).to_string();
            rows.push((city, EventTime::from_millis(ms).unwrap().to_string(), numbers, count, category));
        }
    }
    rows
}

/// Checks that the records' bytes are the input's, in order, with only line ends and blank lines
/// between them.
fn assert_accounted_for(mut input: &[u8], records: &[DecodedRecord]) {
    let mut line = 1;
    let blank = |line: &[u8]| line.trim_ascii().is_empty();
    for (at, raw, _) in records {
        while line < *at {
            let end = input.iter().position(|&byte| byte == b'\n').unwrap();
            assert!(blank(&input[..end]), "line {line} is lost");
            input = &input[end + 1..];
            line += 1;
        }
        assert!(input.starts_with(raw), "line {line}");
        line += 1 + raw.iter().filter(|&&byte| byte == b'\n').count() as u64;
        input = &input[raw.len()..];
        if raw.len() == MAX_RECORD_BYTES {
            let end = input.iter().position(|&byte| byte == b'\n').unwrap_or(input.len());
            input = &input[end..];
        }
        input = input.strip_prefix(b"\r").unwrap_or(input);
        assert!(input.is_empty() || input[0] == b'\n', "line {line}");
        input = input.get(1..).unwrap_or_default();
    }
    assert!(input.split(|&byte| byte == b'\n').all(blank), "the end is lost");
}

const HEADER: &[u8] = b"city,reading_at,temperature,humidity,wind_speed,op\n";

fn csv_is_accounted_for(body: &[u8]) {
    let input = [HEADER, body].concat();
    let (records, _) =
        decode_with(&input, Format::Csv, Compression::None, DecodeSettings::default()).unwrap();
    let records: Vec<_> = records.into_iter().map(|(line, raw, result)| (line - 1, raw, result)).collect();
    assert_accounted_for(body, &records);
}

fn json_is_accounted_for(input: &[u8]) {
    let decoded = decode_with(input, Format::Json, Compression::None, DecodeSettings::default());
    if !is_one_record_per_line(input) || matches!(decoded, Err((_, DecodeError::Foreign { .. }))) {
        return;
    }
    let (records, _) = decoded.unwrap();
    assert_accounted_for(input.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(input), &records);
}

fn mutated(mut bytes: Vec<u8>, mutations: &[(usize, u8, u8)]) -> Vec<u8> {
    for &(at, kind, byte) in mutations {
        if bytes.is_empty() {
            break;
        }
        let at = at % bytes.len();
        match kind % 4 {
            0 => bytes[at] = byte,
            1 => bytes[at] = b"\",\n\r{}\\ "[usize::from(byte % 8)],
            2 => bytes.insert(at, byte),
            _ => drop(bytes.remove(at)),
        }
    }
    bytes
}

fn mutations() -> impl Strategy<Value = Vec<(usize, u8, u8)>> {
    proptest::collection::vec((any::<usize>(), any::<u8>(), any::<u8>()), 1..12)
}

proptest! {
    #[test]
    fn readings_round_trip(log in log()) {
        for (format, compression) in FILES {
            let bytes = written(&log, format, compression);
            let (records, ignored) =
                decode_with(&bytes, format, compression, DecodeSettings::default()).unwrap();
            prop_assert_eq!(ignored, 0);
            let read: Vec<_> = records
                .into_iter()
                .map(|(_, _, result)| result.map(|(city, at, event, revision)| {
                    assert_eq!(revision, None);
                    (city, at, event)
                }))
                .collect::<Result<_, _>>()
                .unwrap();
            prop_assert_eq!(&read, &log, "{:?} {:?}", format, compression);
        }
    }

    #[test]
    fn single_records_round_trip(log in log()) {
        let mut decoder = JsonRecordDecoder::new(DecodeSettings::default());
        for (city, at, event) in &log {
            let mut bytes = Vec::new();
            push_json_record(&RecordFields::from_event(city, *at, event), &mut bytes);
            let upsert = decoder.decode(&bytes).unwrap();
            prop_assert_eq!((upsert.city, upsert.reading_at, upsert.event), (city.as_str(), *at, *event));
        }
    }

    #[test]
    fn result_rows_round_trip_bit_for_bit(cities in proptest::collection::btree_map(cities(), result_rows(), 0..5)) {
        let all: Vec<_> =
            cities.iter().flat_map(|(city, rows)| rows.iter().map(|row| expected(city, row))).collect();
        let written = |format: Format| {
            let shared = Shared::default();
            let out = Box::new(shared.clone());
            let mut writer = ResultRowsWriter::new(format, Compression::None, OutputUnits::STORED, out).unwrap();
            for (city, rows) in &cities {
                writer.write(&CityRows { city, rows }).unwrap();
            }
            writer.finish().unwrap();
            shared.bytes()
        };
        prop_assert_eq!(&rows_of_csv(&written(Format::Csv)), &all);
        prop_assert_eq!(&rows_of_json(&written(Format::Json)), &all);
        prop_assert_eq!(&rows_of_parquet(written(Format::Parquet)), &all);
    }

    #[test]
    fn arbitrary_bytes_are_accounted_for(bytes: Vec<u8>) {
        csv_is_accounted_for(&bytes);
        json_is_accounted_for(&bytes);
    }

    #[test]
    fn arbitrary_structure_is_accounted_for(text in "[\",\r\nx {}:1\\\\]{0,80}") {
        csv_is_accounted_for(text.as_bytes());
        json_is_accounted_for(text.as_bytes());
    }

    #[test]
    fn damaged_text_is_accounted_for(log in log(), mutations in mutations()) {
        let bytes = written(&log, Format::Csv, Compression::None);
        csv_is_accounted_for(&mutated(bytes[HEADER.len()..].to_vec(), &mutations));
        json_is_accounted_for(&mutated(written(&log, Format::Json, Compression::None), &mutations));
    }

    #[test]
    fn damaged_parquet_reads_or_errors(log in log(), mutations in mutations(), cut in any::<Option<usize>>()) {
        let mut bytes = mutated(written(&log, Format::Parquet, Compression::None), &mutations);
        if let Some(cut) = cut {
            bytes.truncate(cut % (bytes.len() + 1));
        }
        let _ = decode_with(&bytes, Format::Parquet, Compression::None, DecodeSettings::default());
    }
}

/// The bytes of a file with one reading and many further columns; without a humidity it is refused.
fn wide_parquet(notes: usize, has_humidity: bool) -> Vec<u8> {
    use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray};
    let text = |value: &str| Arc::new(StringArray::from(vec![value])) as ArrayRef;
    let number = |value: f64| Arc::new(Float64Array::from(vec![value])) as ArrayRef;
    let mut columns = vec![
        ("city".to_owned(), text("x")),
        ("reading_at".to_owned(), text("2025-01-01T00:00:00Z")),
        ("temperature".to_owned(), number(45.0)),
    ];
    columns.extend((0..notes).map(|at| (format!("note_{at}"), text("y"))));
    columns.extend(has_humidity.then(|| ("humidity".to_owned(), number(66.0))));
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ::parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn wide_parquet_is_read_in_linear_time() {
    let read = |notes: usize| {
        let bytes = wide_parquet(notes, true);
        let started = std::time::Instant::now();
        let (records, ignored) =
            decode_with(&bytes, Format::Parquet, Compression::None, DecodeSettings::default()).unwrap();
        assert!(records[0].2.is_ok() && ignored == notes as u64);
        started.elapsed()
    };
    let few = (0..5).map(|_| read(2_500)).max().unwrap();
    // Twenty times as many columns: four hundred times as long if each column were compared with
    // all.
    let many = read(50_000);
    assert!(many < few * 100, "{many:?} after {few:?}");
}

#[test]
fn error_lists_a_bounded_number_of_columns() {
    let refused = decode_with(
        &wide_parquet(50_000, false),
        Format::Parquet,
        Compression::None,
        DecodeSettings::default(),
    );
    let error = refused.unwrap_err().1.to_string();
    assert!(error.contains("humidity") && error.contains("49963 more") && error.len() < 1_000, "{error}");
}

/// Also the sign bits of all offsets and lengths.
#[test]
fn parquet_with_any_flipped_bit_reads_or_errors() {
    let measurement = Measurement::new(86.0, 66.0, Some(4.0)).unwrap();
    let log =
        ["x", "y"].map(|city| (city.to_owned(), EventTime::default(), ReadingEvent::Reading(measurement)));
    let bytes = written(&log, Format::Parquet, Compression::None);
    for bit in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let _ = decode_with(&bytes, Format::Parquet, Compression::None, DecodeSettings::default());
    }
}

#[test]
fn long_files_are_accounted_for() {
    let mut body = Vec::new();
    for at in 0..40_000usize {
        let quote = if at % 7_919 == 0 { "\"" } else { "" };
        body.extend_from_slice(format!("{quote}x,2025-01-01T00:00:00Z,{},66,,\r\n", at % 100).as_bytes());
        if at % 9_000 == 0 {
            body.extend(std::iter::repeat_n(b'y', at * 20));
            body.extend_from_slice(b"\n\n");
        }
    }
    csv_is_accounted_for(&body);
}

#[test]
fn out_of_range_records_can_be_written() {
    let fields = [
        (
            RecordFields { city: Some("x"), temperature: Some(999.0), ..RecordFields::default() },
            Reason::MissingField,
        ),
        (
            RecordFields {
                city: Some("x"),
                reading_at: Some(EventTime::default()),
                temperature: Some(999.0),
                humidity: Some(5.0),
                ..RecordFields::default()
            },
            Reason::OutOfRange,
        ),
        (
            RecordFields { reading_at: Some(EventTime::default()), ..RecordFields::default() },
            Reason::MissingField,
        ),
        (
            RecordFields {
                city: Some("x"),
                reading_at: Some(EventTime::default()),
                temperature: Some(f64::NAN),
                ..RecordFields::default()
            },
            Reason::BadNumber,
        ),
    ];
    for (format, compression) in FILES {
        let shared = Shared::default();
        let mut writer = ReadingsWriter::new(format, compression, false, Box::new(shared.clone())).unwrap();
        for (record, _) in &fields {
            writer.write_fields(record).unwrap();
        }
        assert!(writer.write("x", EventTime::default(), &ReadingEvent::Withdrawal).is_err());
        assert_eq!(writer.write_raw(b"not a record").is_ok(), format != Format::Parquet);
        writer.finish().unwrap();
        let (records, _) =
            decode_with(&shared.bytes(), format, compression, DecodeSettings::default()).unwrap();
        let reasons: Vec<_> = records.iter().map(|record| record.2.as_ref().unwrap_err().reason).collect();
        let mut expected: Vec<_> = fields.iter().map(|(_, reason)| *reason).collect();
        if format == Format::Parquet {
            assert_eq!(
                std::str::from_utf8(&records[1].1).unwrap(),
                r#"{"city":"x","reading_at":"1970-01-01T00:00:00Z","temperature":999,"humidity":5,"wind_speed":null}"#
            );
        } else {
            expected.push(Reason::NotDecodable);
        }
        assert_eq!(reasons, expected, "{format:?} {compression:?}");
    }
}

#[test]
fn full_disk_is_a_write_error() {
    let row = ResultRow {
        reading_at: EventTime::default(),
        measurement: Measurement::new(45.0, 66.0, None).unwrap(),
        heat_index: HeatIndex::default(),
        sum: 1,
        count: 3,
        category: Category::None,
    };
    for (format, compression) in FILES {
        let begun = ResultRowsWriter::new(format, compression, OutputUnits::STORED, Box::new(FullDisk(30)));
        let failed = begun.and_then(|mut writer| {
            writer.write(&CityRows { city: "x", rows: &[row; 100] })?;
            writer.finish()
        });
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull, "{format:?} {compression:?}");
    }
}
