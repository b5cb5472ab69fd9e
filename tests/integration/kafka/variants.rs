//! Other sources and sinks than one of each.

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use jiff::Timestamp;
use serde_json::Value;
use swelter::codec::{CURRENT_SCHEMA, ROW_SCHEMA};

use super::broker::shared;
use super::case::{Case, PARTITIONS};
use super::reading::{Record, committed};
use super::swelter::{Setup, Swelter};
use super::topics::{COMPACT, LOG_APPEND_TIME, NewRecord, Producer, Topics};
use crate::process::{get, wait_for};
use crate::registry::server::Server;

fn write(setup: &Setup, topic: &str, values: &[(i32, String)]) {
    let producer = Producer::to(&setup.access);
    for (partition, value) in values {
        producer.send(topic, &NewRecord::new(*partition, "", value));
    }
    producer.flush();
}

fn reading(city: &str) -> String {
    let now = Timestamp::now();
    format!("{{\"city\":\"{city}\",\"reading_at\":\"{now}\",\"temperature\":90,\"humidity\":50}}")
}

fn cities(setup: &Setup) -> Vec<String> {
    let mut cities: Vec<String> =
        committed(&setup.access, &setup.current).iter().map(|record| record.key().to_owned()).collect();
    cities.sort();
    cities
}

fn waits_for(setup: &Setup, expected: &[&str]) {
    wait_for("the current rows", || (cities(setup) == expected).then_some(()));
}

fn served(address: &str) -> usize {
    let answer = get(address, "/v1/cities").unwrap();
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    body["cities"].as_array().map_or(0, Vec::len)
}

/// Its dead letters have a progress topic of their own, which says what was written of them.
#[test]
fn a_source_without_a_sink_writes_its_dead_letters_once() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 71, 2_000);
    let own = format!("{}.progress", case.setup.input);
    Topics::of(&access).create(&own, 1, &[COMPACT]);
    case.setup.has_sink = false;
    let letters = |case: &Case| {
        let expected: usize = case.log.letters.iter().map(Vec::len).sum();
        let setup = &case.setup;
        wait_for("the dead letters", || {
            (committed(&setup.access, &setup.letters()).len() >= expected).then_some(())
        });
    };
    for _ in 0..3 {
        case.produce(200);
        let mut swelter = case.start(2).ready();
        case.produce(100);
        letters(&case);
        assert!(served(&swelter.address()) > 0, "{}", swelter.log());
        swelter.kill();
    }
    case.start(1).ready().terminate();
    case.check_letters();
    assert!(committed(&access, &case.setup.results).is_empty());

    // What it knows would be forgotten where another progress topic had it.
    let mut with_sink = case.setup.clone();
    with_sink.has_sink = true;
    let said = Swelter::start(&with_sink, case.data.path(), 1).fails();
    assert!(said.contains(&own) && said.contains("begin anew"), "{said}");
}

#[test]
fn a_sink_that_is_removed_is_missed() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 72, 500);
    Topics::of(&access).create(&format!("{}.progress", case.setup.input), 1, &[COMPACT]);
    case.produce(300);
    let swelter = case.start(1).ready();
    case.wait_for_results();
    swelter.terminate();
    assert!(case.check_letters() > 0);
    case.setup.has_sink = false;
    let said = case.start(1).fails();
    assert!(said.contains(&case.setup.letters()) && said.contains("sink"), "{said}");
    case.setup.has_sink = true;
    case.start(1).ready().terminate();
    case.check_exactly_once();
}

#[test]
fn results_in_avro_are_by_the_schemas_that_they_name() {
    let Some(access) = shared() else { return };
    let registry = Server::start(None);
    let mut case = Case::new(&access, 73, 500);
    case.setup.sink += &format!("format = \"avro\"\nschema_registry = \"{}\"\n", registry.url());
    let now = Timestamp::now();
    write(&case.setup, &case.setup.input, &[(0, reading("a")), (1, reading("b"))]);
    let swelter = case.start(2).ready();
    let topics = [(&case.setup.results, ROW_SCHEMA), (&case.setup.current, CURRENT_SCHEMA)];
    for (id, (topic, schema)) in (1u32..).zip(topics) {
        let records = wait_for("the results", || {
            Some(committed(&access, topic)).filter(|records: &Vec<Record>| records.len() == 2)
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
        assert!(registry.asked().iter().any(|path| path.contains(&format!("{topic}-value"))));
    }
    swelter.terminate();
}

#[test]
fn latest_means_the_same_at_every_start() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 74, 1);
    case.setup.source = "start = \"latest\"\n".into();
    let input = case.setup.input.clone();
    write(&case.setup, &input, &[(0, reading("before")), (1, reading("before too"))]);
    let swelter = case.start(1).ready();
    write(&case.setup, &input, &[(0, reading("behind"))]);
    waits_for(&case.setup, &["behind"]);
    swelter.kill();
    write(&case.setup, &input, &[(1, reading("meanwhile"))]);
    let swelter = case.start(2).ready();
    waits_for(&case.setup, &["behind", "meanwhile"]);
    swelter.kill();
    let mut swelter = case.start(1).ready();
    write(&case.setup, &input, &[(2, reading("last"))]);
    waits_for(&case.setup, &["behind", "last", "meanwhile"]);
    assert_eq!(served(&swelter.address()), 3);
    swelter.terminate();
}

#[test]
fn two_topics_go_into_one_result() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 75, 1_000);
    let second = format!("{}-second", case.setup.input);
    let topics = Topics::of(&access);
    for name in [second.clone(), format!("{second}.failed.1"), format!("{second}.failed.2")] {
        topics.create(&name, 2, &[LOG_APPEND_TIME]);
    }
    case.setup.source = format!(
        "[[sources]]\ntype = \"kafka\"\nbrokers = \"{}\"\ntopic = \"{second}\"\nformat = \"json\"\n",
        access.address
    );
    let setup = case.setup.clone();
    for round in 0..3 {
        write(
            &setup,
            &setup.input,
            &[(0, reading(&format!("a{round}"))), (PARTITIONS as i32 - 1, "bad".into())],
        );
        let swelter = case.start(1 + round % 2).ready();
        write(&setup, &second, &[(1, reading(&format!("b{round}"))), (0, "bad".into())]);
        wait_for("the results of both", || (cities(&setup).len() == 2 * (round as usize + 1)).then_some(()));
        swelter.kill();
    }
    let swelter = case.start(2).ready();
    waits_for(&setup, &["a0", "a1", "a2", "b0", "b1", "b2"]);
    for letters in [setup.letters(), format!("{second}.failed.1")] {
        wait_for("the dead letters", || (committed(&access, &letters).len() == 3).then_some(()));
    }
    swelter.terminate();
    assert_eq!(cities(&setup).len(), 6);
}
