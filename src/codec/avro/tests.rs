//! Data of any writer: complete, cut off and changed.

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::schema_compatibility::{Compatibility, SchemaCompatibility};
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::codec::{DecodeSettings, JsonRecordDecoder, Moisture, RecordFields};
use crate::model::{
    Category, CurrentRow, EventTime, HeatIndex, LocalTimePolicy, Measurement, ReadingEvent, Revision, Row,
};

/// An upsert that outlives its decoder.
type OwnedUpsert = (String, EventTime, ReadingEvent, Option<Revision>);

fn owned(decoded: Result<crate::model::Upsert<'_>, Refusal>) -> Result<OwnedUpsert, Refusal> {
    decoded.map(|upsert| (upsert.city.into(), upsert.reading_at, upsert.event, upsert.revision))
}

fn decode(schema: &str, datum: &[u8], settings: DecodeSettings) -> Result<OwnedUpsert, Refusal> {
    owned(AvroDecoder::new(schema, settings).unwrap().decode(datum))
}

fn record(fields: &[(&str, serde_json::Value)]) -> String {
    let fields: Vec<_> = fields.iter().map(|(name, kind)| json!({"name": name, "type": kind})).collect();
    json!({"type": "record", "name": "Sensor", "namespace": "org.example", "fields": fields}).to_string()
}

/// A way to write a field: its type, the value, and the value in JSON, or `None` if JSON leaves it
/// out.
type FieldSpelling = (serde_json::Value, Value, Option<serde_json::Value>);

fn nullable(kind: serde_json::Value, value: Value, json: Option<serde_json::Value>) -> [FieldSpelling; 3] {
    [
        (json!(["null", kind]), Value::Union(1, Box::new(value.clone())), json.clone()),
        (json!([kind, "null"]), Value::Union(0, Box::new(value.clone())), json.clone()),
        (kind, value, json),
    ]
}

fn any_of(written: Vec<FieldSpelling>) -> impl Strategy<Value = FieldSpelling> {
    proptest::sample::select(written)
}

fn number(range: std::ops::Range<i32>) -> impl Strategy<Value = FieldSpelling> {
    range.prop_flat_map(|whole| {
        let exact = f64::from(whole) / 4.0;
        let mut ways = Vec::new();
        ways.extend(nullable(json!("double"), Value::Double(exact), Some(json!(exact))));
        ways.extend(nullable(json!("float"), Value::Float(exact as f32), Some(json!(exact))));
        ways.extend(nullable(json!("int"), Value::Int(whole), Some(json!(whole))));
        ways.extend(nullable(json!("long"), Value::Long(whole.into()), Some(json!(whole))));
        ways.push((json!(["null", "double"]), Value::Union(0, Box::new(Value::Null)), None));
        any_of(ways)
    })
}

fn time() -> impl Strategy<Value = FieldSpelling> {
    (-80_000_000_000_000..300_000_000_000_000i64, 0..1_000i64).prop_flat_map(|(ms, finer)| {
        // Outside of the years that have a name, JSON can only have a text that is no time.
        let text = EventTime::from_millis(ms).map_or("none".into(), |time| time.to_string());
        let logical = |name: &str| json!({"type": "long", "logicalType": name});
        let mut ways = Vec::new();
        let json = Some(json!(text));
        ways.extend(nullable(logical("timestamp-millis"), Value::TimestampMillis(ms), json.clone()));
        let micros = Value::TimestampMicros(ms * 1_000 + finer);
        ways.extend(nullable(logical("timestamp-micros"), micros, json.clone()));
        ways.extend(nullable(json!("string"), Value::String(text), json));
        any_of(ways)
    })
}

fn city() -> impl Strategy<Value = FieldSpelling> {
    proptest::sample::select(vec!["x", "New York", "京都", "", "a\nb", "a \"b\""]).prop_flat_map(|city| {
        let mut ways = Vec::new();
        ways.extend(nullable(json!("string"), Value::String(city.into()), Some(json!(city))));
        ways.push((json!("bytes"), Value::Bytes(city.into()), Some(json!(city))));
        any_of(ways)
    })
}

/// A value of any type that no reading has.
fn unknown() -> impl Strategy<Value = FieldSpelling> {
    let text = || Value::String("München".into());
    let item = |value| Value::Record(vec![("a".into(), value), ("b".into(), Value::Null)]);
    let kind = json!({"type": "record", "name": "Item", "fields": [{"name": "a", "type": "string"}, {"name": "b", "type": "null"}]});
    any_of(vec![
        (json!("null"), Value::Null, Some(json!(null))),
        (json!("boolean"), Value::Boolean(true), Some(json!(true))),
        (json!("long"), Value::Long(i64::MIN), Some(json!(0))),
        (json!("string"), text(), Some(json!("x"))),
        (json!("bytes"), Value::Bytes(vec![0xFF; 300]), Some(json!("x"))),
        (json!({"type": "fixed", "name": "F", "size": 3}), Value::Fixed(3, vec![1, 2, 3]), Some(json!("x"))),
        (
            json!({"type": "enum", "name": "E", "symbols": ["A", "B"]}),
            Value::Enum(1, "B".into()),
            Some(json!("B")),
        ),
        (json!({"type": "array", "items": "string"}), Value::Array(vec![text(); 3]), Some(json!([]))),
        (
            json!({"type": "map", "values": ["null", "double"]}),
            Value::Map([("k".into(), Value::Union(1, Box::new(Value::Double(1.5))))].into()),
            Some(json!({})),
        ),
        (json!({"type": "array", "items": kind}), Value::Array(vec![item(text()); 2]), Some(json!([]))),
    ])
}

/// A writer's record: its schema, the datum, and the same reading in JSON.
fn written() -> impl Strategy<Value = (String, Vec<u8>, String)> {
    let long = any_of(nullable(json!("long"), Value::Long(7), Some(json!(7))).into());
    let boolean = proptest::bool::weighted(0.2)
        .prop_flat_map(|b| any_of(nullable(json!("boolean"), Value::Boolean(b), Some(json!(b))).into()));
    let fields = [
        ("city", city().boxed()),
        ("reading_at", time().boxed()),
        ("temperature", number(-600..640).boxed()),
        ("humidity", number(-4..424).boxed()),
        ("wind_speed", number(-4..1_000).boxed()),
        ("revision", long.boxed()),
        ("deleted", boolean.boxed()),
        ("station", unknown().boxed()),
    ];
    let fields = fields.map(|(name, field)| (Just(name), field, proptest::bool::weighted(0.95)));
    Vec::from(fields).prop_shuffle().prop_map(|fields| {
        let fields: Vec<_> = fields.into_iter().filter(|(.., there)| *there).collect();
        let kinds: Vec<_> = fields.iter().map(|(name, (kind, ..), _)| (*name, kind.clone())).collect();
        let schema = record(&kinds);
        let values = fields.iter().map(|(name, (_, value, _), _)| (name.to_string(), value.clone()));
        let parsed = Schema::parse_str(&schema).unwrap();
        let writer = GenericDatumWriter::builder(&parsed).build().unwrap();
        let datum = writer.write_value_to_vec(Value::Record(values.collect()));
        let json: serde_json::Map<_, _> =
            fields.into_iter().filter_map(|(name, (.., json), _)| Some((name.to_string(), json?))).collect();
        (schema, datum.unwrap(), serde_json::Value::Object(json).to_string())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_writer_schema_decodes_like_json((schema, datum, json) in written()) {
        let mut decoder = AvroDecoder::new(&schema, DecodeSettings::default()).unwrap();
        let avro = owned(decoder.decode(&datum));
        let json = owned(JsonRecordDecoder::new(DecodeSettings::default()).decode(json.as_bytes()));
        match (&avro, &json) {
            (Ok(avro), Ok(json)) => prop_assert_eq!(avro, json),
            (Err(avro), Err(json)) => prop_assert_eq!(avro.reason, json.reason),
            _ => prop_assert!(false, "{avro:?} is not {json:?}"),
        }
        let unknown = u64::from(schema.contains("station"));
        prop_assert_eq!(decoder.unknown_fields_per_record(), unknown);
    }

    #[test]
    fn truncated_or_trailing_data_is_refused((schema, mut datum, _) in written()) {
        let mut decoder = AvroDecoder::new(&schema, DecodeSettings::default()).unwrap();
        for end in 0..datum.len() {
            let refusal = decoder.decode(&datum[..end]).unwrap_err();
            prop_assert_eq!(refusal.reason, Reason::NotDecodable);
        }
        datum.push(0);
        prop_assert_eq!(decoder.decode(&datum).unwrap_err().reason, Reason::NotDecodable);
    }

    #[test]
    fn mutated_data_never_panics(
        (schema, datum, _) in written(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut changed = datum;
        for (at, byte) in changes {
            if !changed.is_empty() {
                let at = at.index(changed.len());
                changed[at] = byte;
            }
        }
        // The library can read every accepted datum, but for text in ignored fields: that it is
        // UTF-8 is not checked.
        let taken = decode(&schema, &changed, DecodeSettings::default());
        if taken.is_ok() && !schema.contains("station") {
            let schema = Schema::parse_str(&schema).unwrap();
            let reader = GenericDatumReader::builder(&schema).build().unwrap();
            prop_assert!(reader.read_value(&mut &changed[..]).is_ok(), "{changed:?}");
        }
    }

    #[test]
    fn arbitrary_schema_text_parses_or_errors(
        (schema, ..) in written(),
        at in any::<prop::sample::Index>(),
        text in "[\\[\\]{}\",:a-z0-9]{0,4}",
    ) {
        let at = at.index(schema.len());
        let changed = format!("{}{text}{}", &schema[..at], &schema[at + 1..]);
        let _ = AvroDecoder::new(&changed, DecodeSettings::default());
    }
}

/// The settings with which a field of that name is one of a reading's.
fn read_as(field: &str) -> DecodeSettings {
    let moisture = if field == "dew_point" { Moisture::DewPoint } else { Moisture::Humidity };
    DecodeSettings { moisture, ..DecodeSettings::default() }
}

#[test]
fn schema_resolution_agrees_with_avro_library() {
    let time = |name: &str| json!({"type": "long", "logicalType": name});
    let types = [
        json!("null"),
        json!("boolean"),
        json!("int"),
        json!("long"),
        json!("float"),
        json!("double"),
        json!("string"),
        json!("bytes"),
        time("timestamp-millis"),
        time("timestamp-micros"),
        json!({"type": "array", "items": "double"}),
        json!({"type": "map", "values": "string"}),
        json!(["string", "long"]),
    ];
    let Schema::Record(reader) = Schema::parse_str(READING_SCHEMA).unwrap() else { panic!("no record") };
    for field in &reader.fields {
        for kind in &types {
            let writer = Schema::parse_str(&kind.to_string()).unwrap();
            let by_library = SchemaCompatibility::can_read(&writer, &field.schema).is_ok();
            let schema = record(&[(&field.name, kind.clone())]);
            let ours = AvroDecoder::new(&schema, read_as(&field.name)).is_ok();
            let expected = match (&*field.name, &writer) {
                // Every record lacks the field, and is refused for it.
                (_, Schema::Null) => true,
                // A plain number has no unit of time: it is not read as a time, nor a time as a
                // number.
                ("reading_at", Schema::Int | Schema::Long) => false,
                (name, Schema::TimestampMillis | Schema::TimestampMicros) => name == "reading_at",
                _ => by_library,
            };
            assert_eq!(ours, expected, "{} as {kind}", field.name);
        }
    }
}

#[test]
fn incompatible_schema_error_names_reason() {
    for (schema, why) in [
        ("{", "not an Avro schema"),
        ("\"string\"", "not a record"),
        (&record(&[("city", json!("long"))]), "field city"),
        (&record(&[("reading_at", json!("long"))]), "timestamp-millis"),
        (&record(&[("temperature", json!("string"))]), "a number"),
        (&record(&[("temperature", json!("int")), ("temperature_f", json!("int"))]), "more than one field"),
        (&record(&[("x", json!("Elsewhere"))]), "not an Avro schema"),
    ] {
        let error = AvroDecoder::new(schema, DecodeSettings::default()).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    let deep = (0..200).fold(json!("int"), |kind, _| json!({"type": "array", "items": kind}));
    assert!(AvroDecoder::new(&record(&[("x", deep)]), DecodeSettings::default()).is_err());
}

#[test]
fn huge_claimed_lengths_end_soon() {
    let nulls = json!({"type": "array", "items": "null"});
    let mut list = vec![0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01];
    list.push(0);
    for (kind, datum) in [(nulls, list.clone()), (json!("bytes"), list.clone()), (json!("string"), vec![1])] {
        let refusal = decode(&record(&[("x", kind)]), &datum, DecodeSettings::default()).unwrap_err();
        assert_eq!(refusal.reason, Reason::NotDecodable, "{refusal}");
    }
    // A record that contains itself without end, and one whose values double at each level.
    let endless = json!({"type": "record", "name": "L", "fields": [{"name": "next", "type": "L"}]});
    let refusal = decode(&record(&[("x", endless)]), &[], DecodeSettings::default()).unwrap_err();
    assert!(refusal.detail.contains("nested too deep"), "{refusal}");
    let field = |name: &str, kind: serde_json::Value| json!({"name": name, "type": kind});
    let doubling = (0..30).fold(json!("null"), |below, at| {
        let name = format!("D{at}");
        let again = if at == 0 { json!("null") } else { json!(format!("D{}", at - 1)) };
        json!({"type": "record", "name": name, "fields": [field("a", below), field("b", again)]})
    });
    let refusal = decode(&record(&[("x", doubling)]), &[], DecodeSettings::default()).unwrap_err();
    assert!(refusal.detail.contains("too many values"), "{refusal}");
    let long = vec![0; crate::codec::MAX_RECORD_BYTES + 1];
    let refusal = decode(READING_SCHEMA, &long, DecodeSettings::default()).unwrap_err();
    assert!(refusal.detail.contains("longer than"), "{refusal}");
}

#[test]
fn referenced_and_recursive_types_are_resolved() {
    let place = json!({"type": "record", "name": "Place", "namespace": "geo", "fields": [
        {"name": "name", "type": "string"}, {"name": "in", "type": ["null", "geo.Place"]}]});
    let schema = record(&[("at", json!("geo.Place")), ("city", json!("string"))]);
    assert!(AvroDecoder::new(&schema, DecodeSettings::default()).is_err());
    let references = [place.to_string()];
    let mut decoder = AvroDecoder::with_references(&schema, &references, DecodeSettings::default()).unwrap();
    // Two nested records, and the city.
    let refusal = decoder.decode(b"\x02a\x02\x02b\x00\x02x").unwrap_err();
    assert_eq!((refusal.reason, &*refusal.detail), (Reason::MissingField, "reading_at is missing"));
}

#[test]
fn local_timestamp_needs_an_offset() {
    let local = json!({"type": "long", "logicalType": "local-timestamp-millis"});
    let schema = record(&[("city", json!("string")), ("reading_at", local), ("deleted", json!("boolean"))]);
    let datum = b"\x02x\x00\x01";
    let refusal = decode(&schema, datum, DecodeSettings::default()).unwrap_err();
    assert_eq!(refusal.reason, Reason::NoOffset);
    let local_time = LocalTimePolicy::Offset(jiff::tz::offset(-1));
    let taken = decode(&schema, datum, DecodeSettings { local_time, ..DecodeSettings::default() });
    assert_eq!(taken.unwrap().1.to_string(), "1970-01-01T01:00:00Z");
}

/// Decimals as databases write them: an integer in bytes or in a fixed number of them, and a scale.
#[test]
fn decimals_decode_as_numbers() {
    let decimal =
        |scale: u32| json!({"type": "bytes", "logicalType": "decimal", "precision": 38, "scale": scale});
    let fixed = json!({"type": "fixed", "name": "F", "size": 33, "logicalType": "decimal", "precision": 70, "scale": 60});
    let of = |temperature: serde_json::Value, humidity: serde_json::Value| {
        let time = json!({"type": "long", "logicalType": "timestamp-millis"});
        record(&[
            ("city", json!("string")),
            ("reading_at", time),
            ("temperature", temperature),
            ("humidity", humidity),
        ])
    };
    let plain = DecodeSettings::default();
    let taken = |schema: &str, values: &[u8]| {
        let datum = [b"\x02x\x00", values].concat();
        decode(schema, &datum, plain).map(|taken| taken.2)
    };
    let reading = |t, h| ReadingEvent::Reading(Measurement::new(t, h, None).unwrap());
    let schema = of(decimal(1), json!(["null", decimal(2)]));
    // 705 and 5025; -1 with leading sign bytes, and 0.
    assert_eq!(taken(&schema, b"\x04\x02\xC1\x02\x04\x13\xA1").unwrap(), reading(70.5, 50.25));
    assert_eq!(taken(&schema, b"\x06\xFF\xFF\xFF\x02\x02\x00").unwrap(), reading(-0.1, 0.0));
    // 40 sign bytes before 705 change nothing; 40 bytes of digits are too many.
    let padded = [b"\x54", &[0; 40][..], b"\x02\xC1\x02\x02\x00"].concat();
    assert_eq!(taken(&schema, &padded).unwrap(), reading(70.5, 0.0));
    let long = [b"\x54", &[7; 42][..], b"\x02\x02\x00"].concat();
    let sign_lost = [b"\x42\x00\xFF", &[0; 31][..], b"\x02\x02\x00"].concat();
    for values in [&long[..], &sign_lost, b"\x00\x02\x02\x00"] {
        assert_eq!(taken(&schema, values).unwrap_err().reason, Reason::BadNumber);
    }
    // 33 bytes with 60 digits behind the point: 70.5e60, rounded once.
    let schema = of(fixed, decimal(0));
    let mut wide = vec![0; 33];
    let unscaled = "70500000000000000000000000000000000000000000000000000000000000";
    for digit in unscaled.bytes() {
        let mut carry = u32::from(digit - b'0');
        for byte in wide.iter_mut().rev() {
            carry += u32::from(*byte) * 10;
            *byte = carry as u8;
            carry >>= 8;
        }
    }
    wide.extend(b"\x02\x32");
    assert_eq!(taken(&schema, &wide).unwrap(), reading(70.5, 50.0));
    let negative = json!({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": -1});
    assert!(AvroDecoder::new(&of(negative, json!("double")), plain).is_err(), "a negative scale is refused");
}

fn library(schema: &str, datum: &[u8]) -> serde_json::Value {
    let mut rest = datum;
    let schema = Schema::parse_str(schema).unwrap();
    let value = GenericDatumReader::builder(&schema).build().unwrap().read_value(&mut rest).unwrap();
    assert!(rest.is_empty(), "bytes are left over");
    value.try_into().unwrap()
}

#[test]
fn avro_library_reads_encoded_records() {
    let reading_at = EventTime::from_millis(1_735_689_600_123).unwrap();
    let measurement = Measurement::new(86.4, 63.1, Some(5.0)).unwrap();
    let heat_index = HeatIndex::from_micros(-91_283_411);
    let mut out = Vec::new();
    for category in Category::ALL {
        let row = Row::new(heat_index, category, 252_038_190_000, 3001);
        out.clear();
        row_to_avro("京都", reading_at, &row, &mut out);
        let mean = row.rolling_heat_index();
        let mut expected = json!({"city": "京都", "reading_at": 1_735_689_600_123i64, "heat_index": -91.283411,
            "rolling_heat_index": mean, "count": 3001, "category": category.name()});
        assert_eq!(library(ROW_SCHEMA, &out), expected);
        for (hour_ago, measurement) in [(None, None), (Some((1_000_000, 2)), Some(measurement))] {
            let current = CurrentRow { reading_at, row, hour_ago, measurement };
            out.clear();
            current_to_avro("京都", &current, &mut out);
            expected["trend"] = json!(current.trend());
            for (name, value) in [("temperature", 86.4), ("humidity", 63.1), ("wind_speed", 5.0)] {
                expected[name] = json!(measurement.map(|_| value));
            }
            assert_eq!(library(CURRENT_SCHEMA, &out), expected);
        }
    }
    for event in [ReadingEvent::Reading(measurement), ReadingEvent::Withdrawal] {
        out.clear();
        reading_to_avro(&RecordFields::from_event("x", reading_at, &event), &mut out);
        library(READING_SCHEMA, &out);
        let read = decode(READING_SCHEMA, &out, DecodeSettings::default()).unwrap();
        assert_eq!(read, ("x".into(), reading_at, event, None));
    }
    out.clear();
    reading_to_avro(&RecordFields::default(), &mut out);
    library(READING_SCHEMA, &out);
    assert_eq!(decode(READING_SCHEMA, &out, DecodeSettings::default()).unwrap_err().reason, Reason::BadCity);
}

#[test]
fn schemas_are_compatible_with_every_published_version() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/published");
    let mut seen = [0; 3];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let names = ["reading", "row", "current"];
        let which = names.iter().position(|&own| name.split('-').next() == Some(own)).unwrap();
        let now = Schema::parse_str([READING_SCHEMA, ROW_SCHEMA, CURRENT_SCHEMA][which]).unwrap();
        let published = Schema::parse_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let both = SchemaCompatibility::mutual_read(&now, &published);
        assert_eq!(both, Ok(Compatibility::Full), "{name}");
        seen[which] += 1;
    }
    assert!(seen.iter().all(|&versions| versions > 0), "{seen:?}");
}

#[test]
fn confluent_header_names_schema_id() {
    let mut value = Vec::new();
    push_wire_header(0x0102_0304, &mut value);
    value.push(9);
    assert_eq!(value, [0, 1, 2, 3, 4, 9]);
    assert_eq!(split_wire_header(&value), Ok((0x0102_0304, &[9][..])));
    for bad in [&b""[..], b"\0", b"\0\0\0\0", b"\x01\0\0\0\x01", b"{\"city\":1}"] {
        assert_eq!(split_wire_header(bad).unwrap_err().reason, Reason::NotDecodable);
    }
}
