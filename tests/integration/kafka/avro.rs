//! A topic of Avro, with the schemas of a registry.

use apache_avro::Schema;
use apache_avro::types::Value as Datum;
use apache_avro::writer::datum::GenericDatumWriter;
use serde_json::{Value, json};
use swelter::internals::codec::{READING_SCHEMA, push_wire_header};

use super::broker::{BrokerAccess, shared_broker};
use super::config::KafkaConfig;
use super::topic_reader::{compact_records, read_committed};
use super::topics::{NewRecord, TestProducer};
use crate::support::registry_server::{RegistryServer, ServerHealth};
use crate::support::{Random, get, wait_for};

const MUTATED_RECORDS: usize = 3_000;
const HOUR_MS: i64 = 3_600_000;

/// Fields in another order, one more, and whole numbers where we have any.
const COMPATIBLE_SCHEMA: &str = r#"{"type":"record","name":"Reading","namespace":"swelter","fields":[
    {"name":"humidity","type":"int"},{"name":"station","type":"string"},{"name":"city","type":"string"},
    {"name":"reading_at","type":{"type":"long","logicalType":"timestamp-millis"}},{"name":"temperature","type":"float"}]}"#;
/// No reading.
const INCOMPATIBLE_SCHEMA: &str = r#"{"type":"record","name":"Reading","namespace":"swelter","fields":[
    {"name":"city","type":"string"},{"name":"reading_at","type":"boolean"},{"name":"temperature","type":"double"},
    {"name":"humidity","type":"double"}]}"#;

fn encode_datum(id: u32, schema: &str, fields: Vec<(&str, Datum)>) -> Vec<u8> {
    let schema = Schema::parse_str(schema).unwrap();
    let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let writer = GenericDatumWriter::builder(&schema).build().unwrap();
    let mut value = Vec::new();
    push_wire_header(id, &mut value);
    value.extend(writer.write_value_to_vec(Datum::Record(fields)).unwrap());
    value
}

fn some(value: f64) -> Datum {
    Datum::Union(1, Box::new(Datum::Double(value)))
}

fn none() -> Datum {
    Datum::Union(0, Box::new(Datum::Null))
}

fn swelter_record(id: u32, city: &str, at: i64) -> Vec<u8> {
    let at = Datum::Union(0, Box::new(Datum::TimestampMillis(at)));
    let fields = vec![
        ("city", Datum::String(city.into())),
        ("reading_at", at),
        ("temperature", some(90.0)),
        ("humidity", some(60.0)),
        ("dew_point", none()),
        ("wind_speed", none()),
        ("revision", none()),
        ("deleted", Datum::Boolean(false)),
    ];
    encode_datum(id, READING_SCHEMA, fields)
}

fn compatible_record(id: u32, city: &str, at: i64) -> Vec<u8> {
    let fields = vec![
        ("humidity", Datum::Int(60)),
        ("station", Datum::String("x".into())),
        ("city", Datum::String(city.into())),
        ("reading_at", Datum::TimestampMillis(at)),
        ("temperature", Datum::Float(90.0)),
    ];
    encode_datum(id, COMPATIBLE_SCHEMA, fields)
}

fn incompatible_record(id: u32) -> Vec<u8> {
    let (t, h) = (Datum::Double(90.0), Datum::Double(60.0));
    let fields = vec![
        ("city", Datum::String("unfit".into())),
        ("reading_at", Datum::Boolean(true)),
        ("temperature", t),
        ("humidity", h),
    ];
    encode_datum(id, INCOMPATIBLE_SCHEMA, fields)
}

/// Cut off, or with a byte changed, behind the header or in it.
fn mutate_value(random: &mut Random, mut value: Vec<u8>) -> Vec<u8> {
    let at = random.below(value.len() as u64) as usize;
    match random.below(3) {
        0 => value.truncate(at),
        1 => value[at] ^= 1 << random.below(8),
        _ => value[at] = random.below(256) as u8,
    }
    value
}

fn metric_value(address: &str, metric: &str) -> u64 {
    let metrics = get(address, "/metrics").unwrap().body;
    let lines = metrics.lines().filter(|line| line.starts_with(metric));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
}

/// Records of three schemas and of an unknown one, many of them mutated.
fn mixed_values(ids: [u32; 3], at: i64) -> Vec<Vec<u8>> {
    let mut random = Random::new(7);
    let mut values = vec![
        swelter_record(ids[0], "ours", at),
        compatible_record(ids[1], "other", at),
        incompatible_record(ids[2]),
        swelter_record(999, "unknown", at),
    ];
    let mutated = |_| mutate_value(&mut random, swelter_record(ids[0], "mutated", at));
    values.extend((0..MUTATED_RECORDS).map(mutated));
    values.push(swelter_record(ids[0], "last", at));
    values
}

fn produce_values(access: &BrokerAccess, topic: &str, values: &[Vec<u8>]) {
    let producer = TestProducer::to(access);
    for value in values {
        let (key, value) = (None, Some(value.clone()));
        producer.send_record(topic, &NewRecord { partition: 0, key, value, headers: Vec::new() });
    }
    producer.flush();
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn invalid_avro_becomes_dead_letter_byte_for_byte_and_valid_is_applied() {
    let access = shared_broker();
    let registry = RegistryServer::start(None);
    let mut setup = KafkaConfig::new(&access);
    setup.format = "avro";
    setup.source = format!("schema_registry = \"{}\"\n", registry.url());
    setup.create_topics(1);
    let ids = [("a", READING_SCHEMA), ("b", COMPATIBLE_SCHEMA), ("c", INCOMPATIBLE_SCHEMA)]
        .map(|(subject, schema)| registry.add_schema(subject, schema, json!([])));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    let at = now - now % HOUR_MS - HOUR_MS;

    let values = mixed_values(ids, at);
    produce_values(&access, &setup.input, &values);

    // While the registry is down no record is decided; then all are.
    registry.set_health(ServerHealth::Errors);
    let data = tempfile::tempdir().unwrap();
    let mut swelter = setup.service(data.path(), 2).spawn();
    let address = swelter.wait_for_address();
    wait_for("a question", || (!registry.requested_paths().is_empty()).then_some(()));
    assert_eq!(
        metric_value(&address, "swelter_refused_total") + metric_value(&address, "swelter_readings_total"),
        0
    );
    registry.set_health(ServerHealth::Up);
    let swelter = swelter.wait_until_ready();
    let letters = wait_for("every record", || {
        let letters = read_committed(&access, &setup.dead_letter_topic());
        let taken = metric_value(&address, "swelter_readings_total");
        (letters.len() as u64 + taken == values.len() as u64).then_some(letters)
    });
    assert!((MUTATED_RECORDS / 4..MUTATED_RECORDS).contains(&letters.len()), "{}", letters.len());
    let mut left = values.iter();
    for letter in &letters {
        assert!(
            left.any(|value| Some(value) == letter.value.as_ref()),
            "not as it came, or not in order: {letter:?}"
        );
    }
    let reason = |value: &Vec<u8>| {
        let letter = letters.iter().find(|letter| letter.value.as_ref() == Some(value));
        letter.map(|letter| letter.headers["swelter-reason"].clone())
    };
    assert_eq!(reason(&values[2]).as_deref(), Some("not_decodable"));
    assert_eq!(reason(&values[3]).as_deref(), Some("unknown_schema"));
    let rows = || read_committed(&access, &setup.results);
    let of = |city: &str| -> Option<Value> {
        let rows = rows();
        let row = compact_records(&rows).into_values().find(|row| row["city"] == city);
        row.map(|row| row["heat_index"].clone())
    };
    wait_for("the last result", || of("last"));
    assert_eq!((of("ours"), of("other")), (of("last"), of("last")));
    swelter.terminate();

    // Responses are recorded: the next start does not ask the registry.
    registry.set_health(ServerHealth::Closes);
    let before = (
        registry.requested_paths().len(),
        read_committed(&access, &setup.dead_letter_topic()).len(),
        rows().len(),
    );
    let swelter = setup.service(data.path(), 1).spawn().wait_until_ready();
    swelter.terminate();
    assert_eq!(
        (
            registry.requested_paths().len(),
            read_committed(&access, &setup.dead_letter_topic()).len(),
            rows().len()
        ),
        before
    );
}
