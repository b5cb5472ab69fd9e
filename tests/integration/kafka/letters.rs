//! Dead letters of topics, sent once more by the built program.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use swelter::kafka::Cluster;
use swelter::kafka::letters::LettersError;
use swelter::kafka::retry::{Retrier, Wanted};
use tempfile::TempDir;

use super::broker::{Access, shared};
use super::reading::{Record, committed, uncommitted};
use super::topics::{NewRecord, Producer, Topics, unique};
use crate::process::wait_for;

const PARTITIONS: i32 = 3;

/// A topic with its dead letters, and a configuration that names it.
struct Rig {
    access: Access,
    folder: TempDir,
    topic: String,
    letters: Producer,
}

impl Rig {
    fn new() -> Option<Rig> {
        let access = shared()?;
        let (topics, topic) = (Topics::of(&access), unique("letters"));
        for name in [topic.clone(), format!("{topic}.failed.1"), format!("{topic}.failed.2")] {
            topics.create(&name, PARTITIONS, &[("cleanup.policy", "delete")]);
        }
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "[[sources]]\ntype = 'kafka'\nname = 'readings'\nbrokers = '{}'\ntopic = '{topic}'\nformat = 'json'\n",
            access.address
        );
        fs::write(folder.path().join("config.toml"), config).unwrap();
        let letters = Producer::to(&access);
        Some(Rig { access, folder, topic, letters })
    }

    /// Writes a dead letter as the service does.
    fn refuse(&self, partition: i32, offset: u64, reason: &str, value: Option<&[u8]>) {
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
        self.letters.send(&format!("{}.failed.1", self.topic), &NewRecord { partition, key, value, headers });
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_swelter"));
        command.arg("dead-letters").args(args).arg("--config").arg(self.folder.path().join("config.toml"));
        command.stdin(Stdio::null());
        command
    }

    fn said(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn sent(&self) -> Vec<Record> {
        committed(&self.access, &self.topic)
    }
}

#[test]
fn letters_go_back_byte_for_byte_and_each_once() {
    let Some(rig) = Rig::new() else { return };
    let bytes: &[u8] = &[b'{', 0xFF, 0, b'\n'];
    rig.refuse(1, 17, "not_decodable", Some(bytes));
    rig.refuse(2, 5, "in_the_future", Some(b"{\"city\":\"x\"}"));
    rig.refuse(2, 6, "too_late", Some(b"late"));
    rig.refuse(0, 7, "in_the_future", Some(b"{\"deleted\": true}"));
    rig.refuse(0, 8, "bad_time", None);
    rig.letters.flush();
    let list = rig.said(&["list"]);
    for line in ["1  readings         not_decodable    0", "2  readings         in_the_future    0"] {
        assert!(list.contains(line), "{line} is not in {list}");
    }
    let shown = rig.said(&["show", "readings/1/17"]);
    assert!(shown.contains("detail      what is wrong") && shown.contains("e/8ACg=="), "{shown}");

    assert!(rig.said(&["retry", "--reason", "in_the_future"]).contains("sent 1 dead letters"));
    let sent = rig.sent();
    assert_eq!(sent.len(), 1);
    let said = rig.said(&["retry"]);
    assert!(said.contains("sent 1 dead letters\n  not_decodable: 1"), "{said}");
    assert!(said.contains("were sent before") && said.contains("are withdrawals"), "{said}");
    assert!(rig.said(&["retry"]).contains("sent 0 dead letters"));
    assert!(rig.said(&["retry", "--reason", "too_late", "--source", "readings"]).contains("sent 1"));
    assert!(rig.said(&["retry", "--reason", "too_late"]).contains("sent 0"));
    let sent = rig.sent();
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
fn what_was_edited_arrives_anew_at_its_citys_partition() {
    let Some(rig) = Rig::new() else { return };
    rig.refuse(1, 17, "not_decodable", Some(b"{"));
    rig.letters.flush();
    let out = rig.path("letters.jsonl");
    rig.said(&["export", "--out", out.to_str().unwrap()]);
    let mut line: serde_json::Value = serde_json::from_str(&fs::read_to_string(&out).unwrap()).unwrap();
    let raw = r#"{"city":"foobar","reading_at":"2025-01-01T00:00:00Z","temperature":80,"humidity":50}"#;
    line["raw"] = raw.into();
    fs::write(&out, line.to_string()).unwrap();
    assert_eq!(rig.said(&["resubmit", out.to_str().unwrap()]), "resubmitted 1 records\n");
    let sent = rig.sent();
    assert_eq!((sent.len(), sent[0].key(), sent[0].value.as_deref()), (1, "foobar", Some(raw.as_bytes())));
    // Kafka's murmur2 of it is -790332482.
    assert_eq!(sent[0].partition, ((-790_332_482i32) & 0x7FFF_FFFF) % PARTITIONS);
    assert!(sent[0].headers.is_empty());
}

#[test]
fn a_killed_retry_sends_nothing_twice() {
    let Some(rig) = Rig::new() else { return };
    let letters = 6_000;
    for number in 0..letters {
        let reason = ["bad_time", "in_the_future", "bad_number"][number as usize % 3];
        rig.refuse(number % PARTITIONS, number as u64, reason, Some(number.to_string().as_bytes()));
    }
    rig.letters.flush();
    // Killed as soon as some more of it can be read, committed or not.
    let read = || uncommitted(&rig.access, &rig.topic).len();
    for _ in 0..3 {
        let before = read();
        let mut command = rig.command(&["retry"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for("that it sends", || (read() > before || child.try_wait().unwrap().is_some()).then_some(()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    rig.said(&["retry"]);
    let mut sent: Vec<i32> = rig
        .sent()
        .iter()
        .map(|record| std::str::from_utf8(record.value.as_deref().unwrap()).unwrap().parse().unwrap())
        .collect();
    sent.sort_unstable();
    assert!(sent.iter().copied().eq(0..letters), "{} of {letters}", sent.len());
}

#[test]
fn a_later_retrier_ends_the_one_before() {
    let Some(rig) = Rig::new() else { return };
    let cluster = Cluster { brokers: rig.access.address.clone(), properties: BTreeMap::new() };
    let progress = format!("{}.progress", rig.topic);
    rig.refuse(0, 1, "bad_time", Some(b"x"));
    rig.letters.flush();
    let mut first = Retrier::open(&cluster, &progress).unwrap();
    let mut second = Retrier::open(&cluster, &progress).unwrap();
    let ended = first.send(&rig.topic, &Wanted::default()).unwrap_err();
    assert!(matches!(ended, LettersError::Fenced(_)), "{ended}");
    let young = Wanted { before: Some(0), ..Wanted::default() };
    assert_eq!(second.send(&rig.topic, &young).unwrap().total(), 0);
    // It goes on where it was, and finds what has come since.
    assert_eq!(second.send(&rig.topic, &Wanted::default()).unwrap().total(), 1);
    rig.refuse(0, 2, "bad_time", Some(b"y"));
    rig.letters.flush();
    assert_eq!(second.send(&rig.topic, &Wanted::default()).unwrap().total(), 1);
    assert_eq!(second.send(&rig.topic, &Wanted::default()).unwrap().total(), 0);
    assert_eq!(rig.sent().len(), 2);
}
