//! Valid inputs of every target.

use std::io::{self, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use crate::codec::{
    CURRENT_SCHEMA, Compression, Format, READING_SCHEMA, ROW_SCHEMA, ReadingsWriter, RecordFields,
    reading_to_avro,
};
use crate::model::{EventTime, Measurement, ReadingEvent};

#[derive(Clone, Default)]
struct SharedBytes(Arc<Mutex<Vec<u8>>>);

impl Write for SharedBytes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn sample_events() -> Vec<(String, EventTime, ReadingEvent)> {
    let cities = ["5128581", "São Paulo", "a \"quoted\", city", "x"];
    let arrival = |at: usize| {
        let time = EventTime::from_millis(1_735_689_600_000 + 61_001 * at as i64).unwrap();
        let wind = (!at.is_multiple_of(3)).then_some(at as f64 / 3.0);
        let measurement = Measurement::new(40.0 + at as f64 * 1.7, 66.0 + at as f64 / 7.0, wind).unwrap();
        let event = if at % 7 == 6 { ReadingEvent::Withdrawal } else { ReadingEvent::Reading(measurement) };
        (cities[at % cities.len()].to_owned(), time, event)
    };
    (0..24).map(arrival).collect()
}

fn sample_file(format: Format, records: usize) -> Vec<u8> {
    let memory = SharedBytes::default();
    let mut writer = ReadingsWriter::new(format, Compression::None, true, Box::new(memory.clone())).unwrap();
    for (city, time, event) in &sample_events()[..records] {
        writer.write(city, *time, event).unwrap();
    }
    writer.finish().unwrap();
    memory.0.lock().clone()
}

fn owned_bytes(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

pub fn seeds_of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "json" => {
            let mut seeds = owned_bytes(&[
                r#"{"city":"5128581","reading_at":"2025-07-24T16:00:00Z","temperature":91.4,"humidity":58}"#,
                r#"{"city":"x","reading_at":"2025-07-24T16:00:00.123456789-05:00","temperature_f":91.4,"humidity_pct":58,"wind_speed_mph":7.5,"revision":12}"#,
                r#"{"city":"S\u00e3o Paulo","reading_at":"2025-07-24T16:00:00","temperature":31,"dew_point":20,"note":{"a":[1,2,{"b":null}]}}"#,
                r#"{"city":"x","reading_at":"2025-07-24T16:00:00Z","deleted":true,"revision":-4}"#,
            ]);
            let lines = sample_file(Format::Json, 24);
            seeds.extend(
                lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec),
            );
            seeds
        }
        "json_lines" => vec![
            sample_file(Format::Json, 1),
            sample_file(Format::Json, 8),
            [b"\xEF\xBB\xBF".to_vec(), sample_file(Format::Json, 3)].concat(),
        ],
        "csv" => {
            let plain = "city,reading_at,temperature,humidity\nx,2025-07-24T16:00:00Z,91.4,58\ny,2025-07-24T16:00:00Z,,58\n\nz,2025-07-24,1,2\n";
            let dew =
                "reading_at,dew_point,city,temperature,revision\r\n2025-07-24T16:00:00Z,12.5,x,20.25,7\r\n";
            [vec![sample_file(Format::Csv, 2), sample_file(Format::Csv, 12)], owned_bytes(&[plain, dew])]
                .concat()
        }
        "parquet" => vec![sample_file(Format::Parquet, 1), sample_file(Format::Parquet, 24)],
        "avro" => {
            let mut seeds = Vec::new();
            for (at, (city, time, event)) in sample_events().iter().enumerate() {
                for choice in 0..4u8 {
                    let mut datum = vec![(choice << 1) | u8::from(at.is_multiple_of(5))];
                    if at.is_multiple_of(5) {
                        // In the order of the union schema: null, city, a, time, temperature,
                        // humidity, id, wind, revision, deleted.
                        datum.extend(b"\0\0\x02x\0\x02\x80\x80\xde\xef\xf5\xe5\xa6\x06\x02\0\0\0\0\0\0\x54\x40\0\0\0\0\0\0\0\x49\x40abc\0\0\0\0");
                    } else {
                        reading_to_avro(&RecordFields::from_event(city, *time, event), &mut datum);
                    }
                    seeds.push(datum);
                }
            }
            seeds
        }
        "avro_schema" => owned_bytes(&[READING_SCHEMA, ROW_SCHEMA, CURRENT_SCHEMA, super::UNION_SCHEMA]),
        "tokens" => owned_bytes(&[
            "read abc",
            "read,ingest a-b.c_d~e+f;ingest 12345",
            "# people\nread abc\n\ningest xyz\n",
        ]),
        "handshake" => owned_bytes(&[
            r#"{"magic":"swelter cluster 2","version":"0.1.0","topology":{"processes":2,"process":1,"workers":1},"to":0,"purpose":"link","nonce":"00ff"}"#,
            r#"{"magic":"swelter cluster 2","version":"0.1.0","topology":{"processes":2,"process":1,"workers":1},"to":0,"purpose":{"data":{"generation":"7-ab"}},"nonce":"00ff"}"#,
            r#"{"challenge":{"nonce":"00ff"}}"#,
            r#"{"proven":{"proof":"abcdef0123456789"}}"#,
            r#"{"proof":"abcdef0123456789"}"#,
            r#"{"verdict":{"refused":"x"}}"#,
            r#"{"results.formula":"nws","workers":"2"}"#,
        ]),
        "manifest" => vec![manifest_with_checksum(MANIFEST_JSON.as_bytes())],
        other => panic!("{other} has no seeds"),
    }
}

pub const MANIFEST_JSON: &str = r#"{"format":1,"program":"0.1.0","generation":"17-9f2c41d06b3e8a55","epoch":1764000000000,"created_at":"2025-11-24T16:00:00Z","identity":{"results.formula":"nws","source a":"file"},"positions":{"journal":{"0":100,"1":7}},"logs":{"journal":{"id":"00ff","before":{"0":{"position":99,"digest":"00000000000000ff","leader_epoch":null}}}},"state_shards":64,"adds_to":null,"chain":{"increments":0,"full_bytes":100,"increment_bytes":0},"cities":2,"readings":3,"segments":[{"shard":0,"cities":{"path":"data/x/cities-00.parquet","bytes":4,"rows":2,"xxh3":"0123456789abcdef"},"readings":{"path":"data/x/readings-00.parquet","bytes":4,"rows":3,"xxh3":"0123456789abcdef"}}]}"#;

/// With its checksum, as an intact store would hold it.
pub fn manifest_with_checksum(json: &[u8]) -> Vec<u8> {
    let sum = format!("\n{:016x}\n", xxh3_64(json));
    [json, sum.as_bytes()].concat()
}
