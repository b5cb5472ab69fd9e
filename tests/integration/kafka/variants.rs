//! Several sources, and sources without a sink.

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use jiff::Timestamp;
use serde_json::Value;
use swelter::internals::codec::{CURRENT_SCHEMA, ROW_SCHEMA};

use super::broker::shared_broker;
use super::case::{KafkaCase, PARTITIONS};
use super::config::KafkaConfig;
use super::topic_reader::{ConsumedRecord, read_committed};
use super::topics::{COMPACT, LOG_APPEND_TIME, NewRecord, TestProducer, TopicAdmin};
use crate::support::registry_server::RegistryServer;
use crate::support::{get, wait_for};

fn produce_values(setup: &KafkaConfig, topic: &str, values: &[(i32, String)]) {
    let producer = TestProducer::to(&setup.access);
    for (partition, value) in values {
        producer.send_record(topic, &NewRecord::new(*partition, "", value));
    }
    producer.flush();
}

fn reading(city: &str) -> String {
    let now = Timestamp::now();
    format!("{{\"city\":\"{city}\",\"reading_at\":\"{now}\",\"temperature\":90,\"humidity\":50}}")
}

fn committed_cities(setup: &KafkaConfig) -> Vec<String> {
    let mut cities: Vec<String> =
        read_committed(&setup.access, &setup.current).iter().map(|record| record.key().to_owned()).collect();
    cities.sort();
    cities
}

fn wait_for_cities(setup: &KafkaConfig, expected: &[&str]) {
    wait_for("the current rows", || (committed_cities(setup) == expected).then_some(()));
}

fn served_city_count(address: &str) -> usize {
    let answer = get(address, "/v1/cities").unwrap();
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    body["cities"].as_array().map_or(0, Vec::len)
}

/// Dead letters of a source without a sink have a progress topic of their own.
#[test]
#[ignore = "needs Kafka: scripts/test"]
fn source_without_sink_writes_dead_letters_once() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 71, 2_000);
    let own = format!("{}.progress", case.setup.input);
    TopicAdmin::of(&access).create(&own, 1, &[COMPACT]);
    case.setup.has_sink = false;
    let letters = |case: &KafkaCase| {
        let expected: usize = case.log.letters.iter().map(Vec::len).sum();
        let setup = &case.setup;
        wait_for("the dead letters", || {
            (read_committed(&setup.access, &setup.dead_letter_topic()).len() >= expected).then_some(())
        });
    };
    for _ in 0..3 {
        case.produce_records(200);
        let mut swelter = case.start_swelter(2).wait_until_ready();
        case.produce_records(100);
        letters(&case);
        assert!(served_city_count(&swelter.wait_for_address()) > 0, "{}", swelter.log());
        swelter.kill();
    }
    case.start_swelter(1).wait_until_ready().terminate();
    case.check_dead_letters();
    assert!(read_committed(&access, &case.setup.results).is_empty());

    // Another progress topic would not know what was recorded here.
    let mut with_sink = case.setup.clone();
    with_sink.has_sink = true;
    let said = with_sink.service(case.data.path(), 1).spawn().wait_for_failure();
    assert!(said.contains(&own) && said.contains("begin anew"), "{said}");
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn removed_sink_refuses_start() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 72, 500);
    TopicAdmin::of(&access).create(&format!("{}.progress", case.setup.input), 1, &[COMPACT]);
    case.produce_records(300);
    let swelter = case.start_swelter(1).wait_until_ready();
    case.wait_for_results();
    swelter.terminate();
    assert!(case.check_dead_letters() > 0);
    case.setup.has_sink = false;
    let said = case.start_swelter(1).wait_for_failure();
    assert!(said.contains(&case.setup.dead_letter_topic()) && said.contains("sink"), "{said}");
    case.setup.has_sink = true;
    case.start_swelter(1).wait_until_ready().terminate();
    case.check_exactly_once();
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn avro_results_match_their_registered_schemas() {
    let access = shared_broker();
    let registry = RegistryServer::start(None);
    let mut case = KafkaCase::new(&access, 73, 500);
    case.setup.sink += &format!("format = \"avro\"\nschema_registry = \"{}\"\n", registry.url());
    let now = Timestamp::now();
    produce_values(&case.setup, &case.setup.input, &[(0, reading("a")), (1, reading("b"))]);
    let swelter = case.start_swelter(2).wait_until_ready();
    let topics = [(&case.setup.results, ROW_SCHEMA), (&case.setup.current, CURRENT_SCHEMA)];
    for (id, (topic, schema)) in (1u32..).zip(topics) {
        let records = wait_for("the results", || {
            Some(read_committed(&access, topic)).filter(|records: &Vec<ConsumedRecord>| records.len() == 2)
        });
        let schema = Schema::parse_str(schema).unwrap();
        let reader = GenericDatumReader::builder(&schema).build().unwrap();
        for record in records {
            let value = record.value.unwrap();
            assert_eq!(value[..5], [&[0][..], &id.to_be_bytes()].concat());
            let mut datum = &value[5..];
            let row: Value = reader.read_value(&mut datum).unwrap().try_into().unwrap();
            assert!(datum.is_empty(), "{} bytes are left of {row}", datum.len());
            let city = row["city"].as_str().unwrap();
            assert!(["a", "b"].contains(&city), "{row}");
            assert_eq!(
                (row["count"].as_i64(), row["heat_index"].as_f64()),
                (Some(1), row["rolling_heat_index"].as_f64())
            );
            let index = row["heat_index"].as_f64().unwrap();
            assert!((90.0..100.0).contains(&index), "{row} at {now}");
        }
        assert!(registry.requested_paths().iter().any(|path| path.contains(&format!("{topic}-value"))));
    }
    swelter.terminate();
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn latest_offset_is_fixed_at_first_start() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 74, 1);
    case.setup.source = "start = \"latest\"\n".into();
    let input = case.setup.input.clone();
    produce_values(&case.setup, &input, &[(0, reading("before")), (1, reading("before too"))]);
    let swelter = case.start_swelter(1).wait_until_ready();
    produce_values(&case.setup, &input, &[(0, reading("behind"))]);
    wait_for_cities(&case.setup, &["behind"]);
    swelter.kill();
    produce_values(&case.setup, &input, &[(1, reading("meanwhile"))]);
    let swelter = case.start_swelter(2).wait_until_ready();
    wait_for_cities(&case.setup, &["behind", "meanwhile"]);
    swelter.kill();
    let mut swelter = case.start_swelter(1).wait_until_ready();
    produce_values(&case.setup, &input, &[(2, reading("last"))]);
    wait_for_cities(&case.setup, &["behind", "last", "meanwhile"]);
    assert_eq!(served_city_count(&swelter.wait_for_address()), 3);
    swelter.terminate();
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn two_topics_feed_one_result() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 75, 1_000);
    let second = format!("{}-second", case.setup.input);
    let topics = TopicAdmin::of(&access);
    for name in [second.clone(), format!("{second}.failed.1"), format!("{second}.failed.2")] {
        topics.create(&name, 2, &[LOG_APPEND_TIME]);
    }
    case.setup.source = format!(
        "[[sources]]\ntype = \"kafka\"\nbrokers = \"{}\"\ntopic = \"{second}\"\nformat = \"json\"\n",
        access.address
    );
    let setup = case.setup.clone();
    for round in 0..3 {
        produce_values(
            &setup,
            &setup.input,
            &[(0, reading(&format!("a{round}"))), (PARTITIONS as i32 - 1, "bad".into())],
        );
        let swelter = case.start_swelter(1 + round % 2).wait_until_ready();
        produce_values(&setup, &second, &[(1, reading(&format!("b{round}"))), (0, "bad".into())]);
        wait_for("the results of both", || {
            (committed_cities(&setup).len() == 2 * (round as usize + 1)).then_some(())
        });
        swelter.kill();
    }
    let swelter = case.start_swelter(2).wait_until_ready();
    wait_for_cities(&setup, &["a0", "a1", "a2", "b0", "b1", "b2"]);
    for letters in [setup.dead_letter_topic(), format!("{second}.failed.1")] {
        wait_for("the dead letters", || (read_committed(&access, &letters).len() == 3).then_some(()));
    }
    swelter.terminate();
    assert_eq!(committed_cities(&setup).len(), 6);
}
