//! Appends to a topic, and `swelter produce`.

use std::collections::BTreeMap;
use std::process::{Output, Stdio};
use std::sync::mpsc;

use swelter::internals::codec::DecodeSettings;
use swelter::internals::kafka::KafkaCluster;
use swelter::internals::kafka::partitioner::{Partitioner, partition_for_key};
use swelter::internals::model::{AppendError, AppendReport, Appender, NewRecord as New};
use swelter::internals::sources::kafka::{AppendLimits, AppendPlan, KafkaAppender, RecordWriter};

use super::broker::{BrokerAccess, PrivateBroker, shared_broker};
use super::topic_reader::{ConsumedRecord, read_committed};
use super::topics::{TopicAdmin, unique_name};
use crate::support::{WAIT_TIMEOUT, swelter_command, wait_for};

const LIMITS: AppendLimits = AppendLimits { records: 10_000, bytes: 10_000_000 };

fn new_appender(access: &BrokerAccess, topic: &str, limits: AppendLimits) -> KafkaAppender {
    let cluster = KafkaCluster { brokers: access.address.clone(), properties: BTreeMap::new() };
    let plan = AppendPlan { cluster, topic: topic.into(), partitioner: Partitioner::Murmur2, limits };
    KafkaAppender::new("posted", &plan, RecordWriter::json()).unwrap()
}

fn records(cities: usize, first: usize, count: usize) -> Vec<New> {
    let record = |number: usize| {
        let city = format!("city {}", number % cities);
        New::new(Some(&city), format!("{{\"number\": {number} }}").into_bytes())
    };
    (first..first + count).map(record).collect()
}

type AppendResult = mpsc::Receiver<Result<AppendReport, AppendError>>;

fn append(appender: &KafkaAppender, records: Vec<New>) -> AppendResult {
    let (sender, heard) = mpsc::channel();
    appender.append(records, Box::new(move |result| sender.send(result).unwrap()));
    heard
}

fn record_text(record: &ConsumedRecord) -> String {
    String::from_utf8(record.value.clone().unwrap()).unwrap()
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn acknowledged_appends_are_in_topic_in_order_per_city() {
    const CITIES: usize = 7;
    let access = shared_broker();
    let topic = unique_name("appender");
    TopicAdmin::of(&access).create(&topic, 3, &[]);
    let appender = new_appender(&access, &topic, LIMITS);
    let heard: Vec<AppendResult> =
        (0..50).map(|at| append(&appender, records(CITIES, at * 20, 20))).collect();
    let mut ends = BTreeMap::new();
    for heard in heard {
        for appended in heard.recv_timeout(WAIT_TIMEOUT).unwrap().unwrap().ranges {
            assert_eq!(&*appended.partition.source, "posted");
            let end: &mut u64 = ends.entry(appended.partition.partition).or_default();
            *end = appended.end.max(*end);
        }
    }
    let log = read_committed(&access, &topic);
    assert_eq!(log.len(), 1000);
    let mut by_city: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for record in &log {
        assert_eq!(record.partition as u32, partition_for_key(record.key().as_bytes(), 3));
        by_city.entry(record.key().to_string()).or_default().push(record_text(record));
    }
    for (at, numbers) in (0..CITIES).zip(by_city.values()) {
        let expected: Vec<String> =
            (at..1000).step_by(CITIES).map(|number| format!("{{\"number\": {number} }}")).collect();
        assert_eq!(*numbers, expected);
    }
    for (partition, end) in ends {
        let last = log.iter().rfind(|record| record.partition as u32 == partition).unwrap();
        assert_eq!(end, last.offset as u64 + 1);
    }
    assert_eq!(append(&appender, Vec::new()).recv().unwrap(), Ok(AppendReport::default()));
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn full_queue_is_busy_and_lost_broker_fails_appends() {
    let mut broker = PrivateBroker::start();
    let topic = unique_name("appender");
    TopicAdmin::of(&broker.access).create(&topic, 1, &[]);
    let appender = new_appender(&broker.access, &topic, AppendLimits { records: 30, ..LIMITS });
    append(&appender, records(1, 0, 1)).recv_timeout(WAIT_TIMEOUT).unwrap().unwrap();
    broker.kill();
    let waiting = append(&appender, records(1, 1, 20));
    assert_eq!(append(&appender, records(1, 21, 20)).recv().unwrap(), Err(AppendError::Busy));
    let Err(AppendError::Failed(error)) = waiting.recv_timeout(WAIT_TIMEOUT).unwrap() else { panic!() };
    assert!(error.contains("has not acknowledged"), "{error}");
    broker.restart();
    // The queue accepts again, even more than its limit if it is empty.
    wait_for("that it goes on", || {
        append(&appender, records(1, 41, 100)).recv_timeout(WAIT_TIMEOUT).unwrap().ok()
    });
    appender.stop();
    assert_eq!(append(&appender, records(1, 0, 1)).recv().unwrap(), Err(AppendError::Stopping));
}

fn run_produce(access: &BrokerAccess, topic: &str, arguments: &[&str]) -> (Output, String) {
    let output = swelter_command()
        .args(["produce", "--brokers", &access.address, "--topic", topic])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    (output, said)
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn produce_writes_files_record_by_record() {
    let access = shared_broker();
    let topic = unique_name("produce");
    TopicAdmin::of(&access).create(&topic, 2, &[]);
    let folder = tempfile::tempdir().unwrap();
    let (csv, json) = (folder.path().join("a.csv"), folder.path().join("b.jsonl"));
    std::fs::write(
        &csv,
        "city,reading_at,temperature,humidity,revision\nx,2025-01-01T00:00:00Z,80,50,3\nx,never,80,50,\n",
    )
    .unwrap();
    let line = r#"{ "reading_at":"2025-01-01T00:00:00Z", "city":"x", "temperature":8e1,"humidity":50 }"#;
    std::fs::write(&json, format!("{line}\n{{\n")).unwrap();
    let (output, said) = run_produce(&access, &topic, &[csv.to_str().unwrap(), json.to_str().unwrap()]);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("a.csv:3: bad_time") && said.contains("3 records acknowledged, 1 refused"),
        "{said}"
    );
    let log = read_committed(&access, &topic);
    let canonical =
        r#"{"city":"x","reading_at":"2025-01-01T00:00:00Z","temperature":80,"humidity":50,"revision":3}"#;
    let of_city: Vec<String> =
        log.iter().filter(|record| record.key.as_deref() == Some(b"x")).map(record_text).collect();
    assert_eq!(of_city, [canonical, line]);
    let bad: Vec<String> = log.iter().filter(|record| record.key.is_none()).map(record_text).collect();
    assert_eq!(bad, ["{"]);
}

/// Options of a file apply to each of its records: 30 °C was once sent as 30 °F.
#[test]
#[ignore = "needs Kafka: scripts/test"]
fn produce_applies_read_options_to_json() {
    let access = shared_broker();
    let topic = unique_name("produce");
    TopicAdmin::of(&access).create(&topic, 1, &[]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    let reading = r#"{"City":"x","reading_at":1735689600,"temperature":30,"humidity":50,"revision":3}"#;
    let withdrawal = r#"{"City":"x","reading_at":1735693200,"deleted":true}"#;
    std::fs::write(&path, format!("{reading}\n{withdrawal}\n{{\n")).unwrap();
    let options = ["--units", "celsius", "--time-format", "seconds", "--columns", "city=city"];
    let (output, said) = run_produce(&access, &topic, &[&[path.to_str().unwrap()], &options[..]].concat());
    assert!(output.status.success() && said.contains("2 records acknowledged, 1 refused"), "{said}");
    let values: Vec<String> = read_committed(&access, &topic).iter().map(record_text).collect();
    let expected = [
        r#"{"city":"x","reading_at":"2025-01-01T00:00:00Z","temperature":86,"humidity":50,"revision":3}"#,
        r#"{"city":"x","reading_at":"2025-01-01T01:00:00Z","deleted":true}"#,
    ];
    assert_eq!(values, expected);
    std::fs::write(&path, "{}\n").unwrap();
    let nothing = [path.to_str().unwrap(), "--units", "celsius"];
    assert_eq!(run_produce(&access, &topic, &nothing).0.status.code(), Some(4));
    assert!(run_produce(&access, &topic, &[&nothing[..], &["--allow-empty"]].concat()).0.status.success());
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn produce_paces_generated_readings() {
    let access = shared_broker();
    let topic = unique_name("produce");
    let made_up = ["--generate", "--cities", "10", "--interval", "1h", "--invalid", "0.1"];
    let (output, said) = run_produce(&access, &topic, &made_up);
    assert!(!output.status.success() && said.contains("does not have topic"), "{said}");
    TopicAdmin::of(&access).create(&topic, 2, &[]);
    let (output, said) = run_produce(&access, &topic, &[&made_up[..], &["--rate", "500/s"]].concat());
    assert!(output.status.success(), "{said}");
    let log = read_committed(&access, &topic);
    assert!(log.len() > 240, "{}", log.len());
    assert!(said.contains(&format!("{} records acknowledged", log.len())), "{said}");
    let seconds = log.iter().map(|record| record.timestamp).max().unwrap()
        - log.iter().map(|record| record.timestamp).min().unwrap();
    assert!(seconds as usize >= (log.len() - 20) * 2, "{seconds} ms for {}", log.len());
    let settings = DecodeSettings::default();
    let mut decoder = swelter::internals::codec::JsonRecordDecoder::new(settings);
    let good = log.iter().filter(|record| decoder.decode(record.value.as_ref().unwrap()).is_ok());
    assert_eq!(good.count(), 240);
}
