//! Appends to a topic, and `swelter produce`.

use std::collections::BTreeMap;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;

use swelter::codec::DecodeSettings;
use swelter::kafka::Cluster;
use swelter::kafka::partitioner::{Partitioner, partition_of};
use swelter::model::{AppendError, AppendReport, Appender, NewRecord as New};
use swelter::sources::kafka::{AppendLimits, AppendPlan, KafkaAppender, RecordWriter};

use super::broker::{Access, OwnBroker, shared};
use super::reading::{Record, committed};
use super::topics::{Topics, unique};
use crate::process::{DEADLINE, wait_for};

const LIMITS: AppendLimits = AppendLimits { records: 10_000, bytes: 10_000_000 };

fn appender(access: &Access, topic: &str, limits: AppendLimits) -> KafkaAppender {
    let cluster = Cluster { brokers: access.address.clone(), properties: BTreeMap::new() };
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

type Heard = mpsc::Receiver<Result<AppendReport, AppendError>>;

fn append(appender: &KafkaAppender, records: Vec<New>) -> Heard {
    let (sender, heard) = mpsc::channel();
    appender.append(records, Box::new(move |result| sender.send(result).unwrap()));
    heard
}

fn text(record: &Record) -> String {
    String::from_utf8(record.value.clone().unwrap()).unwrap()
}

#[test]
fn appends_are_in_the_log_when_they_are_acknowledged_and_in_order_of_each_city() {
    const CITIES: usize = 7;
    let Some(access) = shared() else { return };
    let topic = unique("appender");
    Topics::of(&access).create(&topic, 3, &[]);
    let appender = appender(&access, &topic, LIMITS);
    let heard: Vec<Heard> = (0..50).map(|at| append(&appender, records(CITIES, at * 20, 20))).collect();
    let mut ends = BTreeMap::new();
    for heard in heard {
        for appended in heard.recv_timeout(DEADLINE).unwrap().unwrap().positions {
            assert_eq!(&*appended.partition.source, "posted");
            let end: &mut u64 = ends.entry(appended.partition.partition).or_default();
            *end = appended.end.max(*end);
        }
    }
    let log = committed(&access, &topic);
    assert_eq!(log.len(), 1000);
    let mut by_city: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for record in &log {
        assert_eq!(record.partition as u32, partition_of(record.key().as_bytes(), 3));
        by_city.entry(record.key().to_string()).or_default().push(text(record));
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
fn a_full_log_is_busy_and_one_that_stays_away_has_failed() {
    let Some(mut broker) = OwnBroker::start() else { return };
    let topic = unique("appender");
    Topics::of(&broker.access).create(&topic, 1, &[]);
    let appender = appender(&broker.access, &topic, AppendLimits { records: 30, ..LIMITS });
    append(&appender, records(1, 0, 1)).recv_timeout(DEADLINE).unwrap().unwrap();
    broker.kill();
    let waiting = append(&appender, records(1, 1, 20));
    assert_eq!(append(&appender, records(1, 21, 20)).recv().unwrap(), Err(AppendError::Busy));
    let Err(AppendError::Failed(error)) = waiting.recv_timeout(DEADLINE).unwrap() else { panic!() };
    assert!(error.contains("has not acknowledged"), "{error}");
    broker.start_again();
    // There is room again, more than its limit where nothing else waits.
    wait_for("that it goes on", || {
        append(&appender, records(1, 41, 100)).recv_timeout(DEADLINE).unwrap().ok()
    });
    appender.stop();
    assert_eq!(append(&appender, records(1, 0, 1)).recv().unwrap(), Err(AppendError::Stopping));
}

fn produce(access: &Access, topic: &str, arguments: &[&str]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_swelter"))
        .args(["produce", "--brokers", &access.address, "--topic", topic])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    (output, said)
}

#[test]
fn files_are_produced_record_by_record() {
    let Some(access) = shared() else { return };
    let topic = unique("produce");
    Topics::of(&access).create(&topic, 2, &[]);
    let folder = tempfile::tempdir().unwrap();
    let (csv, json) = (folder.path().join("a.csv"), folder.path().join("b.jsonl"));
    std::fs::write(
        &csv,
        "city,reading_at,temperature,humidity,revision\nx,2025-01-01T00:00:00Z,80,50,3\nx,never,80,50,\n",
    )
    .unwrap();
    let line = r#"{ "reading_at":"2025-01-01T00:00:00Z", "city":"x", "temperature":8e1,"humidity":50 }"#;
    std::fs::write(&json, format!("{line}\n{{\n")).unwrap();
    let (output, said) = produce(&access, &topic, &[csv.to_str().unwrap(), json.to_str().unwrap()]);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("a.csv:3: bad_time") && said.contains("3 records acknowledged, 1 refused"),
        "{said}"
    );
    let log = committed(&access, &topic);
    let canonical =
        r#"{"city":"x","reading_at":"2025-01-01T00:00:00Z","temperature":80,"humidity":50,"revision":3}"#;
    let of_city: Vec<String> =
        log.iter().filter(|record| record.key.as_deref() == Some(b"x")).map(text).collect();
    assert_eq!(of_city, [canonical, line]);
    let bad: Vec<String> = log.iter().filter(|record| record.key.is_none()).map(text).collect();
    assert_eq!(bad, ["{"]);
}

/// What options say of a file holds for each of its records: 30 °C was once sent as 30 °F.
#[test]
fn files_of_json_are_produced_as_options_say() {
    let Some(access) = shared() else { return };
    let topic = unique("produce");
    Topics::of(&access).create(&topic, 1, &[]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    let reading = r#"{"City":"x","reading_at":1735689600,"temperature":30,"humidity":50,"revision":3}"#;
    let withdrawal = r#"{"City":"x","reading_at":1735693200,"deleted":true}"#;
    std::fs::write(&path, format!("{reading}\n{withdrawal}\n{{\n")).unwrap();
    let options = ["--units", "celsius", "--time-format", "seconds", "--columns", "city=city"];
    let (output, said) = produce(&access, &topic, &[&[path.to_str().unwrap()], &options[..]].concat());
    assert!(output.status.success() && said.contains("2 records acknowledged, 1 refused"), "{said}");
    let values: Vec<String> = committed(&access, &topic).iter().map(text).collect();
    let expected = [
        r#"{"city":"x","reading_at":"2025-01-01T00:00:00Z","temperature":86,"humidity":50,"revision":3}"#,
        r#"{"city":"x","reading_at":"2025-01-01T01:00:00Z","deleted":true}"#,
    ];
    assert_eq!(values, expected);
    std::fs::write(&path, "{}\n").unwrap();
    let nothing = [path.to_str().unwrap(), "--units", "celsius"];
    assert_eq!(produce(&access, &topic, &nothing).0.status.code(), Some(4));
    assert!(produce(&access, &topic, &[&nothing[..], &["--allow-empty"]].concat()).0.status.success());
}

#[test]
fn made_up_readings_are_produced_and_paced() {
    let Some(access) = shared() else { return };
    let topic = unique("produce");
    let made_up = ["--generate", "--cities", "10", "--interval", "1h", "--invalid", "0.1"];
    let (output, said) = produce(&access, &topic, &made_up);
    assert!(!output.status.success() && said.contains("does not have topic"), "{said}");
    Topics::of(&access).create(&topic, 2, &[]);
    let (output, said) = produce(&access, &topic, &[&made_up[..], &["--rate", "500/s"]].concat());
    assert!(output.status.success(), "{said}");
    let log = committed(&access, &topic);
    assert!(log.len() > 240, "{}", log.len());
    assert!(said.contains(&format!("{} records acknowledged", log.len())), "{said}");
    let seconds = log.iter().map(|record| record.timestamp).max().unwrap()
        - log.iter().map(|record| record.timestamp).min().unwrap();
    assert!(seconds as usize >= (log.len() - 20) * 2, "{seconds} ms for {}", log.len());
    let settings = DecodeSettings::default();
    let mut decoder = swelter::codec::RecordDecoder::new(settings);
    let good = log.iter().filter(|record| decoder.decode(record.value.as_ref().unwrap()).is_ok());
    assert_eq!(good.count(), 240);
}
