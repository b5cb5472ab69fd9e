//! What a record costs to read and a row to write, per format: 2,880 readings or rows of each city,
//! as a week of 3.5-minute readings is.

use std::hint::black_box;
use std::io::{self, Cursor, Write};
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use parking_lot::Mutex;
use swelter::internals::codec::{
    AvroDecoder, Compression, DecodeSettings, FileDecoder, Format, JsonRecordDecoder, READING_SCHEMA,
    ReadingsWriter, RecordFields, ResultRowsWriter, push_json_record, push_row_json, reading_to_avro,
    row_to_avro,
};
use swelter::internals::model::{
    Category, CityRows, EventTime, HeatIndex, Measurement, OutputUnits, ReadingEvent, ResultRow, Row,
};

const CITIES: u64 = 1_000;
const READINGS_PER_CITY: u64 = 288;
const RECORDS: u64 = CITIES * READINGS_PER_CITY;

/// The same numbers on every machine.
fn measurement(at: u64) -> Measurement {
    let noise = (at + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
    let (temperature, humidity, wind) = (40 + noise % 51, noise / 64 % 101, noise / 8192 % 41);
    Measurement::new(temperature as f64, humidity as f64, Some(wind as f64)).expect("within the ranges")
}

fn time(step: u64) -> EventTime {
    EventTime::from_millis(1_735_689_600_000 + 30_000 * step as i64).expect("within the years")
}

#[derive(Clone, Default)]
struct SharedBuffer(Arc<Mutex<Vec<u8>>>);

impl Write for SharedBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A log by time, all cities at each step.
fn encoded_log(format: Format, compression: Compression) -> Vec<u8> {
    let shared = SharedBuffer::default();
    let mut writer =
        ReadingsWriter::new(format, compression, false, Box::new(shared.clone())).expect("a writer");
    for step in 0..READINGS_PER_CITY {
        for city in 0..CITIES {
            let event = ReadingEvent::Reading(measurement(step * CITIES + city));
            writer.write(&format!("city_{city:05}"), time(step), &event).expect("memory takes it");
        }
    }
    writer.finish().expect("memory takes it");
    shared.0.lock().clone()
}

fn bench_decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("read");
    group.throughput(Throughput::Elements(RECORDS)).sample_size(20);
    for (format, compression) in [
        (Format::Csv, Compression::None),
        (Format::Csv, Compression::Gzip),
        (Format::Csv, Compression::Zstd),
        (Format::Json, Compression::None),
        (Format::Parquet, Compression::None),
    ] {
        let bytes = encoded_log(format, compression);
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), bytes).expect("the disk takes it");
        group.bench_function(format!("{format:?}/{compression:?}"), |bencher| {
            bencher.iter(|| {
                let settings = DecodeSettings::default();
                let mut decoder =
                    FileDecoder::open(file.path(), format, compression, settings).expect("a decoder");
                let mut taken = 0;
                while let Some(record) = decoder.next().expect("a whole file") {
                    taken += u64::from(black_box(record).is_ok());
                }
                assert_eq!(taken, RECORDS);
            });
        });
    }
    group.finish();
}

fn bench_encode(criterion: &mut Criterion) {
    let rows: Vec<ResultRow> = (0..RECORDS)
        .map(|at| {
            let measurement = measurement(at);
            let micros = (measurement.temperature() * 1.1e6 + measurement.humidity() * 12_345.0) as i64;
            let heat_index = HeatIndex::from_micros(micros);
            let count = (at % READINGS_PER_CITY + 1) as u32;
            let sum = i64::from(count) * micros + (at * 7_919 % 100_003) as i64;
            let category = Category::of(heat_index);
            ResultRow {
                reading_at: time(at % READINGS_PER_CITY),
                measurement,
                heat_index,
                sum,
                count,
                category,
            }
        })
        .collect();
    let cities: Vec<String> = (0..CITIES).map(|city| format!("city_{city:05}")).collect();
    let mut group = criterion.benchmark_group("write");
    group.throughput(Throughput::Elements(RECORDS)).sample_size(20);
    for (format, compression) in [
        (Format::Csv, Compression::None),
        (Format::Csv, Compression::Zstd),
        (Format::Json, Compression::None),
        (Format::Parquet, Compression::None),
    ] {
        group.bench_function(format!("{format:?}/{compression:?}"), |bencher| {
            bencher.iter_batched(
                || Box::new(Cursor::new(Vec::with_capacity(1 << 26))),
                |out| {
                    let mut writer = ResultRowsWriter::new(format, compression, OutputUnits::STORED, out)
                        .expect("a writer");
                    for (city, rows) in cities.iter().zip(rows.chunks(READINGS_PER_CITY as usize)) {
                        writer.write(&CityRows { city, rows }).expect("memory takes it");
                    }
                    writer.finish().expect("memory takes it");
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// Readings that come one by one, as from a topic, and rows that go there.
fn bench_single_records(criterion: &mut Criterion) {
    let events: Vec<_> =
        (0..READINGS_PER_CITY).map(|at| (time(at), ReadingEvent::Reading(measurement(at)))).collect();
    let encoded = |encode: fn(&RecordFields<'_>, &mut Vec<u8>)| -> Vec<Vec<u8>> {
        let each = events.iter().map(|(reading_at, event)| {
            let mut out = Vec::new();
            encode(&RecordFields::from_event("city_00001", *reading_at, event), &mut out);
            out
        });
        each.collect()
    };
    let mut group = criterion.benchmark_group("record");
    group.throughput(Throughput::Elements(READINGS_PER_CITY));
    let records = encoded(push_json_record);
    let mut decoder = JsonRecordDecoder::new(DecodeSettings::default());
    group.bench_function("read/Json", |bencher| {
        bencher.iter(|| assert!(records.iter().all(|record| black_box(decoder.decode(record)).is_ok())));
    });
    let records = encoded(reading_to_avro);
    let mut decoder = AvroDecoder::new(READING_SCHEMA, DecodeSettings::default()).expect("our own schema");
    group.bench_function("read/Avro", |bencher| {
        bencher.iter(|| assert!(records.iter().all(|record| black_box(decoder.decode(record)).is_ok())));
    });
    let row = |at: u64| {
        let micros = 71_283_411 + 7_919 * at as i64;
        let (count, category) = (at as u32 + 1, Category::ALL[at as usize % 5]);
        (time(at), Row::new(HeatIndex::from_micros(micros), category, micros * i64::from(count) - 31, count))
    };
    let rows: Vec<_> = (0..READINGS_PER_CITY).map(row).collect();
    let mut out = Vec::with_capacity(1 << 20);
    group.bench_function("write/Json", |bencher| {
        bencher.iter(|| {
            out.clear();
            rows.iter()
                .for_each(|(at, row)| push_row_json(&mut out, "city_00001", *at, row, OutputUnits::STORED));
            black_box(out.len())
        });
    });
    group.bench_function("write/Avro", |bencher| {
        bencher.iter(|| {
            out.clear();
            rows.iter().for_each(|(at, row)| row_to_avro("city_00001", *at, row, &mut out));
            black_box(out.len())
        });
    });
    group.finish();
}

criterion_group!(benches, bench_decode, bench_encode, bench_single_records);
criterion_main!(benches);
