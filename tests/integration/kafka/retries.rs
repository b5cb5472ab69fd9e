//! Dead letters of the service, and their retry.

use std::thread;
use std::time::Duration;

use jiff::Timestamp;

use super::broker::shared_broker;
use super::case::KafkaCase;
use super::config::KafkaConfig;
use super::topic_reader::{ConsumedRecord, read_committed};
use super::topics::{NewRecord, TestProducer};
use crate::support::wait_for;

/// How far ahead a reading may be dated, and how far ahead those are that are refused for it.
const MAX_AHEAD_CONFIG: &str = "max_ahead = \"2s\"\n";
const AHEAD_MS: i64 = 6_000;

fn millis(time: i64) -> Timestamp {
    Timestamp::from_millisecond(time).unwrap()
}

fn reading(city: &str, at: i64, temperature: i64) -> NewRecord {
    let (at, humidity) = (millis(at), 50);
    let value = format!(
        "{{\"city\":\"{city}\",\"reading_at\":\"{at}\",\"temperature\":{temperature},\"humidity\":{humidity}}}"
    );
    NewRecord::new(1, city, &value)
}

fn produce_records(setup: &KafkaConfig, records: &[&NewRecord]) {
    let producer = TestProducer::to(&setup.access);
    records.iter().for_each(|record| producer.send_record(&setup.input, record));
    producer.flush();
}

/// Waits until a record with this date is accepted.
fn wait_until_clock_reaches(at: i64) {
    let left = at - Timestamp::now().as_millisecond();
    thread::sleep(Duration::from_millis(u64::try_from(left).unwrap_or(0)));
}

fn wait_for_dead_letters(setup: &KafkaConfig, number: u8, count: usize) -> Vec<ConsumedRecord> {
    let topic = format!("{}.failed.{number}", setup.input);
    wait_for("dead letters", || {
        let letters = read_committed(&setup.access, &topic);
        (letters.len() >= count).then_some(letters)
    })
}

/// All values that a city's rows have had.
fn row_values(setup: &KafkaConfig, city: &str) -> Vec<serde_json::Value> {
    let rows = read_committed(&setup.access, &setup.results);
    rows.iter().filter_map(ConsumedRecord::json).filter(|row| row["city"] == city).collect()
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn retried_record_counts_once_and_only_if_nothing_newer_arrived() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 61, 1);
    case.setup.rules = MAX_AHEAD_CONFIG.into();
    let setup = case.setup.clone();
    let swelter = case.start_swelter(2).wait_until_ready();
    let at = Timestamp::now().as_millisecond() + AHEAD_MS;
    let (early, beaten) = (reading("early", at, 90), reading("beaten", at, 90));
    let bad = NewRecord::new(1, "bad", "not JSON");
    produce_records(&setup, &[&early, &bad, &beaten]);
    let first = wait_for_dead_letters(&setup, 1, 3);
    for (offset, (letter, (record, reason))) in first
        .iter()
        .zip([(&early, "in_the_future"), (&bad, "not_decodable"), (&beaten, "in_the_future")])
        .enumerate()
    {
        let place = format!("{}/1/{offset}", setup.input);
        assert_eq!((&letter.key, &letter.value), (&record.key, &record.value));
        assert_eq!((letter.partition, &*letter.headers["swelter-reason"]), (1, reason));
        assert_eq!(
            (&letter.headers["swelter-position"], &letter.headers["swelter-origin"]),
            (&place, &place)
        );
        assert_eq!(letter.headers["swelter-attempt"], "0");
        let seen: Timestamp = letter.headers["swelter-first-seen"].parse().unwrap();
        assert!((seen.as_millisecond() - (at - AHEAD_MS)).abs() < 60_000, "{seen}");
    }

    wait_until_clock_reaches(at);
    produce_records(&setup, &[&reading("beaten", at, 70)]);
    let before = wait_for("a result", || Some(row_values(&setup, "beaten")).filter(|rows| !rows.is_empty()));
    assert!(setup.retry_dead_letters().contains("sent 3 dead letters"));
    wait_for("the result of what was sent again", || (!row_values(&setup, "early").is_empty()).then_some(()));
    let second = wait_for_dead_letters(&setup, 2, 1);
    let headers = &second[0].headers;
    assert_eq!((second.len(), &second[0].value), (1, &bad.value));
    assert_eq!(headers["swelter-origin"], format!("{}/1/1", setup.input));
    assert_eq!((&*headers["swelter-attempt"], &*headers["swelter-reason"]), ("1", "not_decodable"));
    assert_eq!(headers["swelter-first-seen"], first[1].headers["swelter-first-seen"]);
    assert_ne!(headers["swelter-position"], headers["swelter-origin"]);

    assert!(setup.retry_dead_letters().contains("sent 0 dead letters"));
    // Behind all of that, of the same partition.
    produce_records(&setup, &[&reading("last", at, 70)]);
    wait_for("the last result", || (!row_values(&setup, "last").is_empty()).then_some(()));
    assert_eq!(row_values(&setup, "early").len(), 1);
    assert_eq!(row_values(&setup, "beaten"), before, "what came meanwhile counts");
    let sent = read_committed(&setup.access, &setup.input);
    assert_eq!(sent.iter().filter(|record| record.headers.contains_key("swelter-attempt")).count(), 3);
    assert_eq!(
        (wait_for_dead_letters(&setup, 1, 3).len(), wait_for_dead_letters(&setup, 2, 1).len()),
        (3, 1)
    );
    swelter.terminate();
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn automatic_retry_skips_too_late_dead_letters() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 62, 1);
    case.setup.rules = MAX_AHEAD_CONFIG.into();
    case.setup.source = "retry_after = \"5s\"\n".into();
    let setup = case.setup.clone();
    let swelter = case.start_swelter(1).wait_until_ready();
    let now = Timestamp::now().as_millisecond();
    let late = reading("early", now - 24 * 3_600_000, 70);
    produce_records(&setup, &[&reading("early", now, 80), &late, &reading("early", now + AHEAD_MS, 90)]);
    let first = wait_for_dead_letters(&setup, 1, 2);
    let reasons: Vec<&str> = first.iter().map(|letter| &*letter.headers["swelter-reason"]).collect();
    assert_eq!(reasons, ["too_late", "in_the_future"]);
    wait_for("the result of what was sent again", || (row_values(&setup, "early").len() == 2).then_some(()));
    let again = |records: &[ConsumedRecord]| {
        let again = records.iter().filter(|record| record.headers.contains_key("swelter-attempt"));
        again.map(|record| record.headers["swelter-origin"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(again(&read_committed(&access, &setup.input)), [format!("{}/1/2", setup.input)]);
    // The one that is too late came first, so it would have been sent with it.
    let said = setup.retry_dead_letters();
    assert!(said.contains("sent 0 dead letters"), "{said}");
    swelter.terminate();
}
