//! Dead letters of topics, retried by the built program.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use swelter::internals::kafka::KafkaCluster;
use swelter::internals::kafka::dead_letter_retry::{DeadLetterFilter, DeadLetterRetrier};
use swelter::internals::kafka::dead_letter_topic::DlqTopicError;
use tempfile::TempDir;

use super::broker::{BrokerAccess, shared_broker};
use super::topic_reader::{ConsumedRecord, read_committed, read_uncommitted};
use super::topics::{NewRecord, TestProducer, TopicAdmin, unique_name};
use crate::support::{swelter_command, wait_for};

const PARTITIONS: i32 = 3;

/// A topic with its dead letters, and a configuration that names it.
struct RetryCase {
    access: BrokerAccess,
    folder: TempDir,
    topic: String,
    letters: TestProducer,
}

impl RetryCase {
    fn new() -> RetryCase {
        let access = shared_broker();
        let (topics, topic) = (TopicAdmin::of(&access), unique_name("letters"));
        for name in [topic.clone(), format!("{topic}.failed.1"), format!("{topic}.failed.2")] {
            topics.create(&name, PARTITIONS, &[("cleanup.policy", "delete")]);
        }
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "[[sources]]\ntype = 'kafka'\nname = 'readings'\nbrokers = '{}'\ntopic = '{topic}'\nformat = 'json'\n",
            access.address
        );
        fs::write(folder.path().join("config.toml"), config).unwrap();
        let letters = TestProducer::to(&access);
        RetryCase { access, folder, topic, letters }
    }

    /// Writes a dead letter as the service does.
    fn write_dead_letter(&self, partition: i32, offset: u64, reason: &str, value: Option<&[u8]>) {
        let place = format!("{}/{partition}/{offset}", self.topic);
        let header = |name: &str, value: &str| (format!("swelter-{name}"), value.to_owned());
        let headers = vec![
            header("position", &place),
            header("origin", &place),
            header("attempt", "0"),
            header("reason", reason),
            header("detail", "what is wrong"),
            header("first-seen", "2025-01-01T00:00:00.007Z"),
        ];
        let (key, value) = (Some(vec![0xFE, offset as u8]), value.map(<[u8]>::to_vec));
        self.letters
            .send_record(&format!("{}.failed.1", self.topic), &NewRecord { partition, key, value, headers });
    }

    fn dead_letters_command(&self, args: &[&str]) -> Command {
        let mut command = swelter_command();
        command.arg("dead-letters").args(args).arg("--config").arg(self.folder.path().join("config.toml"));
        command.stdin(Stdio::null());
        command
    }

    fn run_command(&self, args: &[&str]) -> String {
        let output = self.dead_letters_command(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn sent_records(&self) -> Vec<ConsumedRecord> {
        read_committed(&self.access, &self.topic)
    }
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn retry_returns_dead_letters_byte_for_byte_and_once() {
    let rig = RetryCase::new();
    let bytes: &[u8] = &[b'{', 0xFF, 0, b'\n'];
    rig.write_dead_letter(1, 17, "not_decodable", Some(bytes));
    rig.write_dead_letter(2, 5, "in_the_future", Some(b"{\"city\":\"x\"}"));
    rig.write_dead_letter(2, 6, "too_late", Some(b"late"));
    rig.write_dead_letter(0, 7, "in_the_future", Some(b"{\"deleted\": true}"));
    rig.write_dead_letter(0, 8, "bad_time", None);
    rig.letters.flush();
    let list = rig.run_command(&["list"]);
    for line in ["1  readings         not_decodable    0", "2  readings         in_the_future    0"] {
        assert!(list.contains(line), "{line} is not in {list}");
    }
    let shown = rig.run_command(&["show", "readings/1/17"]);
    assert!(shown.contains("detail      what is wrong") && shown.contains("e/8ACg=="), "{shown}");

    assert!(rig.run_command(&["retry", "--reason", "in_the_future"]).contains("sent 1 dead letters"));
    let sent = rig.sent_records();
    assert_eq!(sent.len(), 1);
    let said = rig.run_command(&["retry"]);
    assert!(said.contains("sent 1 dead letters\n  not_decodable: 1"), "{said}");
    assert!(said.contains("were sent by an earlier retry") && said.contains("are withdrawals"), "{said}");
    assert!(rig.run_command(&["retry"]).contains("sent 0 dead letters"));
    assert!(rig.run_command(&["retry", "--reason", "too_late", "--source", "readings"]).contains("sent 1"));
    assert!(rig.run_command(&["retry", "--reason", "too_late"]).contains("sent 0"));
    let sent = rig.sent_records();
    let values: Vec<_> =
        sent.iter().map(|record| (record.partition, record.value.as_deref().unwrap())).collect();
    assert_eq!(values, [(1, bytes), (2, &b"{\"city\":\"x\"}"[..]), (2, b"late")]);
    assert_eq!(sent[0].key.as_deref(), Some(&[0xFE, 17][..]));
    let expected = BTreeMap::from([
        ("swelter-origin".to_owned(), format!("{}/1/17", rig.topic)),
        ("swelter-attempt".to_owned(), "1".to_owned()),
        ("swelter-first-seen".to_owned(), "2025-01-01T00:00:00.007Z".to_owned()),
    ]);
    assert_eq!(sent[0].headers, expected);
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn edited_dead_letter_is_sent_to_partition_of_its_city() {
    let rig = RetryCase::new();
    rig.write_dead_letter(1, 17, "not_decodable", Some(b"{"));
    rig.letters.flush();
    let out = rig.path("letters.jsonl");
    rig.run_command(&["export", "--out", out.to_str().unwrap()]);
    let mut line: serde_json::Value = serde_json::from_str(&fs::read_to_string(&out).unwrap()).unwrap();
    let raw = r#"{"city":"foobar","reading_at":"2025-01-01T00:00:00Z","temperature":80,"humidity":50}"#;
    line["raw"] = raw.into();
    fs::write(&out, line.to_string()).unwrap();
    assert_eq!(rig.run_command(&["resubmit", out.to_str().unwrap()]), "resubmitted 1 records\n");
    let sent = rig.sent_records();
    assert_eq!((sent.len(), sent[0].key(), sent[0].value.as_deref()), (1, "foobar", Some(raw.as_bytes())));
    // Kafka's murmur2 of it is -790332482.
    assert_eq!(sent[0].partition, ((-790_332_482i32) & 0x7FFF_FFFF) % PARTITIONS);
    assert!(sent[0].headers.is_empty());
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn killed_retry_sends_nothing_twice() {
    let rig = RetryCase::new();
    let letters = 6_000;
    for number in 0..letters {
        let reason = ["bad_time", "in_the_future", "bad_number"][number as usize % 3];
        rig.write_dead_letter(
            number % PARTITIONS,
            number as u64,
            reason,
            Some(number.to_string().as_bytes()),
        );
    }
    rig.letters.flush();
    // Killed as soon as some more of it can be read, committed or not.
    let read = || read_uncommitted(&rig.access, &rig.topic).len();
    for _ in 0..3 {
        let before = read();
        let mut command = rig.dead_letters_command(&["retry"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for("that it sends", || (read() > before || child.try_wait().unwrap().is_some()).then_some(()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    rig.run_command(&["retry"]);
    let mut sent: Vec<i32> = rig
        .sent_records()
        .iter()
        .map(|record| std::str::from_utf8(record.value.as_deref().unwrap()).unwrap().parse().unwrap())
        .collect();
    sent.sort_unstable();
    assert!(sent.iter().copied().eq(0..letters), "{} of {letters}", sent.len());
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn later_retry_fences_earlier_one() {
    let rig = RetryCase::new();
    let cluster = KafkaCluster { brokers: rig.access.address.clone(), properties: BTreeMap::new() };
    let progress = format!("{}.progress", rig.topic);
    rig.write_dead_letter(0, 1, "bad_time", Some(b"x"));
    rig.letters.flush();
    let mut first = DeadLetterRetrier::open(&cluster, &progress).unwrap();
    let mut second = DeadLetterRetrier::open(&cluster, &progress).unwrap();
    let ended = first.retry_topic(&rig.topic, &DeadLetterFilter::default()).unwrap_err();
    assert!(matches!(ended, DlqTopicError::Fenced(_)), "{ended}");
    let young = DeadLetterFilter { written_before_ms: Some(0), ..DeadLetterFilter::default() };
    assert_eq!(second.retry_topic(&rig.topic, &young).unwrap().total_sent(), 0);
    // It continues at its offset and finds the newer records.
    assert_eq!(second.retry_topic(&rig.topic, &DeadLetterFilter::default()).unwrap().total_sent(), 1);
    rig.write_dead_letter(0, 2, "bad_time", Some(b"y"));
    rig.letters.flush();
    assert_eq!(second.retry_topic(&rig.topic, &DeadLetterFilter::default()).unwrap().total_sent(), 1);
    assert_eq!(second.retry_topic(&rig.topic, &DeadLetterFilter::default()).unwrap().total_sent(), 0);
    assert_eq!(rig.sent_records().len(), 2);
}
