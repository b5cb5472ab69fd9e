//! Properties of decoders that hold for any bytes: a result without a panic, with every record
//! accounted for.
//!
//! `cargo fuzz` searches for bytes that break one ([`TARGETS`] are its targets, in `fuzz/`), and
//! the tests here mutate valid inputs. A function panics if the decoder panics or a property does
//! not hold. It returns whether the bytes passed the decoder's first stage, such as the syntax of
//! JSON or the footer of Parquet.

#[cfg(test)]
mod mutate;
#[cfg(test)]
mod seeds;
#[cfg(test)]
mod tests;

use std::io::Cursor;

use crate::codec::{
    AvroDecoder, CURRENT_SCHEMA, Compression, DecodeSettings, FileDecoder, Format, InputTemperatureUnit,
    JsonRecordDecoder, MAX_RECORD_BYTES, Moisture, READING_SCHEMA, ROW_SCHEMA, RecordFields,
    is_one_record_per_line, push_json_record,
};
use crate::model::{LocalTimePolicy, ReadingEvent, Reason, Refusal, Upsert};

/// A decoder, by the name of its target.
pub struct FuzzTarget {
    pub name: &'static str,
    pub run: fn(&[u8]) -> bool,
}

pub const TARGETS: [FuzzTarget; 9] = [
    FuzzTarget { name: "json", run: fuzz_json },
    FuzzTarget { name: "json_lines", run: fuzz_json_lines },
    FuzzTarget { name: "csv", run: fuzz_csv },
    FuzzTarget { name: "parquet", run: fuzz_parquet },
    FuzzTarget { name: "avro", run: fuzz_avro },
    FuzzTarget { name: "avro_schema", run: fuzz_avro_schema },
    FuzzTarget { name: "tokens", run: fuzz_tokens },
    FuzzTarget { name: "handshake", run: crate::cluster::handshake::fuzz_line },
    FuzzTarget { name: "manifest", run: crate::checkpoint::fuzz_manifest },
];

/// Runs the target of a name.
#[cfg(fuzzing)]
pub fn run(name: &str, bytes: &[u8]) -> bool {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of that name");
    (target.run)(bytes)
}

/// Settings of each kind, since they lead to different branches of the rules.
fn settings_for_choice(choice: u8) -> DecodeSettings {
    DecodeSettings {
        local_time: if choice & 1 == 1 {
            LocalTimePolicy::Offset(jiff::tz::Offset::constant(-5))
        } else {
            LocalTimePolicy::Refuse
        },
        temperature_unit: if choice & 2 == 2 {
            InputTemperatureUnit::Celsius
        } else {
            InputTemperatureUnit::Fahrenheit
        },
        moisture: if choice & 4 == 4 { Moisture::DewPoint } else { Moisture::Humidity },
        ..DecodeSettings::default()
    }
}

/// Whether the record has the format: it is accepted, or refused by a rule.
fn is_decodable(refusal: Option<&Refusal>) -> bool {
    refusal.is_none_or(|refusal| refusal.reason != Reason::NotDecodable)
}

fn check_refusal(refusal: &Refusal) {
    assert!(!refusal.detail.is_empty() && refusal.detail.len() <= 2_048, "{} bytes", refusal.detail.len());
}

/// Writes an accepted record as JSON and decodes it again: it must be the same.
fn check_upsert(upsert: &Upsert<'_>) {
    let fields = RecordFields {
        revision: upsert.revision,
        ..RecordFields::from_event(upsert.city, upsert.reading_at, &upsert.event)
    };
    let mut written = Vec::new();
    push_json_record(&fields, &mut written);
    let mut decoder = JsonRecordDecoder::new(DecodeSettings::default());
    let read = decoder.decode(&written).expect("what was accepted is written so that it is accepted");
    assert_eq!(
        (read.city, read.reading_at, read.event, read.revision),
        (upsert.city, upsert.reading_at, upsert.event, upsert.revision)
    );
}

fn check_decoded(decoded: Result<Upsert<'_>, Refusal>) -> Option<Refusal> {
    match decoded {
        Ok(upsert) => {
            check_upsert(&upsert);
            None
        }
        Err(refusal) => {
            check_refusal(&refusal);
            Some(refusal)
        }
    }
}

/// A record that was posted or is in a topic, and the key of a tombstone.
pub fn fuzz_json(bytes: &[u8]) -> bool {
    let mut passed = false;
    for choice in 0..8 {
        let mut decoder = JsonRecordDecoder::new(settings_for_choice(choice));
        passed |= is_decodable(check_decoded(decoder.decode(bytes)).as_ref());
        if let Ok(upsert) = decoder.decode_tombstone_key(bytes) {
            assert_eq!(upsert.event, ReadingEvent::Withdrawal);
        }
    }
    passed
}

pub fn fuzz_json_lines(bytes: &[u8]) -> bool {
    let body = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    match is_one_record_per_line(bytes) {
        true => check_lines(bytes, body, 1, Format::Json),
        false => decode_all(bytes, Format::Json, &mut |_, _| ()).unwrap_or(false),
    }
}

/// A file with a header.
pub fn fuzz_csv(bytes: &[u8]) -> bool {
    // The header is the first line that is not blank.
    let (mut header, mut first_line) = (0, 1);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        header += line.len();
        first_line += 1;
        if !line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line).trim_ascii().is_empty() {
            break;
        }
    }
    match bytes[..header].contains(&b'"') {
        true => decode_all(bytes, Format::Csv, &mut |_, _| ()).unwrap_or(false),
        false => check_lines(bytes, &bytes[header..], first_line, Format::Csv),
    }
}

/// Checks that each line is a record, blank, or the rest of one that was cut off.
fn check_lines(bytes: &[u8], body: &[u8], first_line: u64, format: Format) -> bool {
    let (mut rest, mut line) = (body, first_line);
    let passed = decode_all(bytes, format, &mut |at, raw| {
        while line < at {
            let end = rest.iter().position(|byte| *byte == b'\n').expect("a blank line has an end");
            assert!(rest[..end].trim_ascii().is_empty(), "line {line} is lost");
            rest = &rest[end + 1..];
            line += 1;
        }
        assert!(rest.starts_with(raw), "line {line} is not what was read");
        line += 1 + raw.iter().filter(|byte| **byte == b'\n').count() as u64;
        rest = &rest[raw.len()..];
        if raw.len() == MAX_RECORD_BYTES {
            rest = &rest[rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len())..];
        }
        rest = rest.strip_prefix(b"\r").unwrap_or(rest);
        assert!(rest.is_empty() || rest[0] == b'\n', "line {line} goes on");
        rest = rest.get(1..).unwrap_or_default();
    });
    if passed.is_some() {
        let is_blank = |line: &[u8]| line.trim_ascii().is_empty();
        assert!(rest.split(|byte| *byte == b'\n').all(is_blank), "bytes at the end are lost");
    }
    passed.unwrap_or(false)
}

/// The header of a file of dew points says so.
fn settings_for_file(bytes: &[u8]) -> DecodeSettings {
    let has_dew_points = bytes.windows(9).take(100).any(|window| window == b"dew_point");
    settings_for_choice((bytes.len() as u8 & 3) | if has_dew_points { 4 } else { 0 })
}

/// Calls `give` with the line and the bytes of each record. If the file was read to its end,
/// returns whether any record had the format.
fn decode_all(bytes: &[u8], format: Format, give: &mut dyn FnMut(u64, &[u8])) -> Option<bool> {
    let reader = Box::new(Cursor::new(bytes.to_vec()));
    let Ok(mut decoder) =
        FileDecoder::from_reader(reader, format, Compression::None, settings_for_file(bytes))
    else {
        return None;
    };
    let mut is_one_decodable = false;
    loop {
        match decoder.next() {
            Ok(None) => return Some(is_one_decodable),
            Ok(Some(decoded)) => is_one_decodable |= is_decodable(check_decoded(decoded).as_ref()),
            Err(error) => {
                assert!(!error.to_string().is_empty());
                assert!(decoder.next().is_ok_and(|next| next.is_none()), "a record follows an error");
                return None;
            }
        }
        let line = decoder.line();
        give(line, &decoder.raw());
    }
}

pub fn fuzz_parquet(bytes: &[u8]) -> bool {
    let (reader, settings) = (Box::new(Cursor::new(bytes.to_vec())), settings_for_file(&[]));
    let Ok(mut decoder) = FileDecoder::from_reader(reader, Format::Parquet, Compression::None, settings)
    else {
        return false;
    };
    let mut rows = 0u64;
    while let Ok(Some(decoded)) = decoder.next() {
        rows += 1;
        let refused = check_decoded(decoded).is_some();
        assert_eq!(decoder.line(), rows, "a row is missing or comes twice");
        if refused && rows < 100 {
            let raw = decoder.raw();
            assert!(raw.is_empty() || serde_json::from_slice::<serde_json::Value>(&raw).is_ok());
        }
    }
    true
}

/// All fields in unions, nested and beside others: a reading as some writers have it.
const UNION_SCHEMA: &str = r#"{"type":"record","name":"Sensor","fields":[
    {"name":"note","type":["null","string",{"type":"map","values":{"type":"array","items":"long"}}]},
    {"name":"city","type":["string","bytes","int"]},
    {"name":"kind","type":{"type":"enum","name":"Kind","symbols":["a","b"]}},
    {"name":"reading_at","type":["null",{"type":"long","logicalType":"timestamp-micros"},"string"]},
    {"name":"temperature","type":["null","double","float","int","long"]},
    {"name":"humidity","type":["double","null"]},
    {"name":"id","type":{"type":"fixed","name":"Id","size":3}},
    {"name":"wind_speed","type":["null","float"],"default":null},
    {"name":"revision","type":["null","long"],"default":null},
    {"name":"deleted","type":["boolean","null"]}]}"#;

/// The first byte chooses the writer's schema; the rest is the datum.
pub fn fuzz_avro(bytes: &[u8]) -> bool {
    let Some((choice, datum)) = bytes.split_first() else { return false };
    let schema = if choice & 1 == 0 { READING_SCHEMA } else { UNION_SCHEMA };
    let Ok(mut decoder) = AvroDecoder::new(schema, settings_for_choice(choice >> 1 & 3)) else {
        return false;
    };
    is_decodable(check_decoded(decoder.decode(datum)).as_ref())
}

/// A writer's schema from a registry, and data that fit it or not.
pub fn fuzz_avro_schema(bytes: &[u8]) -> bool {
    let Ok(schema) = std::str::from_utf8(bytes) else { return false };
    let references = [ROW_SCHEMA, CURRENT_SCHEMA];
    match AvroDecoder::with_references(schema, &references, settings_for_choice(bytes.len() as u8 & 3)) {
        Ok(mut decoder) => {
            for datum in [&[][..], &[0; 64], &[2; 64], &[0x80; 64], bytes] {
                let _ = check_decoded(decoder.decode(datum));
            }
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

/// A file or a variable of tokens. No error may contain a part of a line, which may be a secret.
pub fn fuzz_tokens(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    match crate::config::tokens_from_variable(text) {
        Ok(tokens) => {
            for token in &tokens {
                assert!(token.read || token.ingest);
                assert!((1..=512).contains(&token.secret.len()));
            }
            !tokens.is_empty()
        }
        Err(problems) => {
            assert!(!problems.is_empty());
            false
        }
    }
}
