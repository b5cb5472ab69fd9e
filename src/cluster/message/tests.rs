//! The bytes of each message, as commit 868f70f wrote them: processes of one version number must understand each other.

use std::collections::BTreeMap;

use super::*;
use crate::model::{AppendHold, ClientId, EventTime, HoldCause, RetryInfo};

fn value() -> Value {
    Value { step: 300, of: ValueName::START.0.into(), bytes: vec![1, 0xFF] }
}

fn record() -> NewRecord {
    NewRecord {
        city: Some("b".into()),
        reading_at: EventTime::from_millis(1_754_049_600_000),
        bytes: (*b"{}").into(),
        retry: Some(Box::new(RetryInfo {
            origin: "journal/1/65".into(),
            attempt: 1,
            first_seen: EventTime::from_millis(-1),
        })),
        client: Some(ClientId(200)),
    }
}

fn held(cause: HoldCause) -> Result<AppendedParts, AppendError> {
    Err(AppendError::OnHold(AppendHold { cause, detail: "d".into(), retry_after_s: 5 }))
}

fn messages() -> Vec<(&'static str, Message)> {
    let name = || PartitionName { source: "journal".into(), partition: 3 };
    let parts =
        AppendedParts { positions: vec![(name(), 128, 130)], refused: vec![(2, 9, "why".to_owned())] };
    let appended = |result| Message::Appended { call: 7, result };
    vec![
        ("value", Message::Value(value())),
        ("alive", Message::Alive),
        ("append", Message::Append { call: 7, records: vec![record(), NewRecord::new(None, *b"x")] }),
        ("appended", appended(Ok(parts))),
        ("appended busy", appended(Err(AppendError::Busy))),
        ("appended stopping", appended(Err(AppendError::Stopping))),
        ("appended failed", appended(Err(AppendError::Failed("f".into())))),
        ("appended clock", appended(held(HoldCause::ClockAhead))),
        ("appended full", appended(held(HoldCause::DeadLettersFull))),
        ("appended share", appended(held(HoldCause::DeadLetterShare))),
        ("congested", Message::Congested(true)),
        ("newest", Message::Newest { epoch: 1_754_049_600_000 }),
        ("reserved", Message::Reserved { upto: 5 }),
        ("refused", Message::Refused(vec![(8, 300)])),
        ("ask schema", Message::AskSchema { call: 1, source: "s".into(), id: 7 }),
        ("schema", Message::Schema { call: 1, answer: Ok("{}".into()) }),
        ("no schema", Message::Schema { call: 1, answer: Err("e".into()) }),
        ("partition", Message::Partition { slot: PartitionIndex(2), name: name(), start: 9 }),
        ("partition known", Message::PartitionKnown { slot: PartitionIndex(2) }),
        ("read partition", Message::ReadPartition { slot: PartitionIndex(2) }),
        (
            "sealed",
            Message::Sealed {
                checkpoint: 4,
                positions: BTreeMap::from([("journal".into(), BTreeMap::from([(0, 1), (1, 300)]))]),
            },
        ),
        ("given up", Message::GivenUp { checkpoint: 4 }),
        ("checkpoint", Message::Checkpoint { checkpoint: 4, part: Ok(vec![91, 93]) }),
        ("no checkpoint", Message::Checkpoint { checkpoint: 4, part: Err("e".into()) }),
        ("follow", Message::Follow(vec![(PartitionIndex(1), 300)])),
        ("take over", Message::TakeOver),
        ("stop", Message::Stop),
        ("failed", Message::Failed { why: "w".into(), taken_over: true }),
        ("bye", Message::Bye),
    ]
}

#[test]
fn messages_have_the_bytes_of_868f70f() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let found: Vec<String> = messages()
        .iter()
        .map(|(name, message)| {
            let bytes = postcard::to_stdvec(message).unwrap();
            assert_eq!(postcard::from_bytes::<Message>(&bytes).unwrap(), *message, "{name}");
            format!("{name}: {}", hex(&bytes))
        })
        .collect();
    let golden: Vec<&str> = include_str!("golden.txt").lines().collect();
    assert_eq!(found, golden);
}

#[test]
fn names_of_values_are_those_of_868f70f() {
    let names = [
        ValueName::NOTHING,
        ValueName::FLAG,
        ValueName::TEXT,
        ValueName::OPTIONAL_TEXT,
        ValueName::LOAD_FAILURE,
        ValueName::TOPICS,
        ValueName::CLAIM,
        ValueName::PROGRESS,
        ValueName::ALL_PROGRESS,
        ValueName::START,
        ValueName::OPENING,
    ];
    let golden: Vec<&str> = include_str!("names.txt").lines().collect();
    assert_eq!(names.map(|name| name.0).as_slice(), golden);
}
