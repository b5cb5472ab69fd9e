//! Net changes against a map that the records are applied to one by one.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use crate::model::{BatchBuilder, EncodedBatch, Shard};
use crate::sinks::postgres::net_changes::{NetChanges, NewRow, RecordError, TableChanges};
use crate::sinks::postgres::plan::PostgresTable;
use crate::sinks::postgres::record_kind::RecordKind;
use crate::sinks::postgres::tuple::TupleWriter;

type Key = Vec<u8>;
type Rows = BTreeMap<Key, Vec<u8>>;

fn push(kind: RecordKind, day: i32, key: &[u8], tuple: Option<&[u8]>, out: &mut BatchBuilder) {
    let mut record = out.begin_record(7, Shard(0), kind.topic(), day as u32);
    record.buffer().extend_from_slice(key);
    record.end_key();
    if let Some(tuple) = tuple {
        record.buffer().extend_from_slice(tuple);
        record.end_value();
    }
}

fn net_changes(kept_from: Option<i32>, mut out: BatchBuilder) -> NetChanges {
    let batches: Vec<EncodedBatch> = out.take_batches();
    let mut changes = NetChanges::default();
    changes.clear(kept_from);
    batches.iter().for_each(|batch| changes.add(batch).unwrap());
    changes
}

/// Applies net changes, each to a row that is there or is not, as a statement would find it.
fn apply(changes: &TableChanges<'_>, rows: &mut Rows) {
    for key in &changes.deletes {
        assert!(rows.remove(*key).is_some());
    }
    for NewRow { key, tuple } in &changes.updates {
        assert!(rows.insert(key.to_vec(), tuple.to_vec()).is_some());
    }
    for NewRow { key, tuple } in &changes.inserts {
        assert!(rows.insert(key.to_vec(), tuple.to_vec()).is_none());
    }
    for key in &changes.split_deletes {
        rows.remove(*key);
    }
    for NewRow { key, tuple } in &changes.upserts {
        rows.insert(key.to_vec(), tuple.to_vec());
    }
}

fn keys_of<'a>(changes: &TableChanges<'a>) -> Vec<Vec<&'a [u8]>> {
    let keys = |rows: &[NewRow<'a>]| rows.iter().map(|row| row.key).collect::<Vec<_>>();
    let TableChanges { deletes, updates, inserts, split_deletes, upserts } = changes;
    vec![deletes.clone(), split_deletes.clone(), keys(updates), keys(inserts), keys(upserts)]
}

/// Keys of up to 20 bytes, of which many share the first 16.
fn key_of(number: u8) -> Key {
    let mut key = vec![3; 15];
    key.extend(match number % 3 {
        0 => vec![number],
        1 => vec![0, number],
        _ => vec![0, 0, number, 0, 0],
    });
    key
}

proptest! {
    #[test]
    fn net_changes_equal_records_one_by_one(
        present in prop::collection::btree_set(0u8..12, 0..12),
        records in prop::collection::vec((0u8..12, prop::option::of(0u8..4)), 0..80),
        split in prop::collection::btree_set(0u8..12, 0..3),
    ) {
        let mut rows: Rows = present.iter().map(|number| (key_of(*number), vec![255])).collect();
        let before = rows.clone();
        let mut out = BatchBuilder::default();
        for (number, value) in &records {
            let key = key_of(*number);
            let is_split = split.contains(number);
            // Of a split city nobody knows.
            let existed = if is_split { *number % 2 == 0 } else { rows.contains_key(&key) };
            let kind = RecordKind { table: PostgresTable::Day, existed, is_split };
            let tuple = value.map(|value| vec![value]);
            push(kind, 0, &key, tuple.as_deref(), &mut out);
            match tuple {
                Some(tuple) => rows.insert(key, tuple),
                None => rows.remove(&key),
            };
        }
        let mut changes = net_changes(None, out);
        let net = changes.table(PostgresTable::Day).unwrap();
        for keys in keys_of(&net) {
            prop_assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
        }
        let all: Vec<&[u8]> = keys_of(&net).concat();
        prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "a key is changed twice");
        let mut after = before;
        apply(&net, &mut after);
        prop_assert_eq!(after, rows);
        for other in [PostgresTable::Reading, PostgresTable::City] {
            prop_assert_eq!(changes.table(other).unwrap(), TableChanges::default());
        }
    }

    #[test]
    fn rows_of_days_that_are_not_kept_are_left_out(
        days in prop::collection::vec(-5i32..5, 0..40),
        kept_from in prop::option::of(-5i32..5),
    ) {
        let mut out = BatchBuilder::default();
        for (number, day) in days.iter().enumerate() {
            let key = number.to_be_bytes();
            for table in [PostgresTable::Reading, PostgresTable::Arrival, PostgresTable::Now] {
                let kind = RecordKind { table, existed: false, is_split: false };
                push(kind, *day, &key, Some(&key), &mut out);
            }
        }
        let mut changes = net_changes(kept_from, out);
        let kept: BTreeSet<i32> =
            days.iter().copied().filter(|day| kept_from.is_none_or(|from| *day >= from)).collect();
        let count = days.iter().filter(|day| kept.contains(day)).count();
        prop_assert_eq!(changes.table(PostgresTable::Reading).unwrap().inserts.len(), count);
        prop_assert_eq!(changes.table(PostgresTable::Now).unwrap().inserts.len(), days.len());
        prop_assert_eq!(changes.not_kept(), (days.len() - count) as u64);
        let partitions = [PostgresTable::Reading, PostgresTable::Arrival]
            .into_iter()
            .flat_map(|table| kept.iter().map(move |day| (table, *day)));
        prop_assert_eq!(changes.partitions(), &partitions.collect::<BTreeSet<_>>());
        prop_assert_eq!(changes.take_arrivals().rows(), count as u64);
    }
}

#[test]
fn cities_of_one_id_are_both_named() {
    let mut out = BatchBuilder::default();
    for name in ["Oslo", "Lima"] {
        let mut tuple = Vec::new();
        TupleWriter::begin(6, &mut tuple)
            .bigint(5)
            .text(Some(name))
            .int(0)
            .boolean(true)
            .text(None)
            .bigint(None);
        let kind = RecordKind { table: PostgresTable::City, existed: false, is_split: false };
        push(kind, 0, &5i64.to_be_bytes(), Some(&tuple), &mut out);
    }
    let error = net_changes(None, out).table(PostgresTable::City).unwrap_err();
    assert_eq!(error, RecordError::SameCityId("Oslo".into(), "Lima".into()));
    assert!(error.to_string().contains("\"Oslo\" and \"Lima\" have the same id"), "{error}");
}

#[test]
fn record_that_contradicts_the_one_before_is_an_error() {
    let mut out = BatchBuilder::default();
    let key = [5i64.to_be_bytes(), 0i64.to_be_bytes()].concat();
    let kind = RecordKind { table: PostgresTable::Reading, existed: false, is_split: false };
    push(kind, 0, &key, Some(b"a"), &mut out);
    push(kind, 0, &key, Some(b"b"), &mut out);
    let error = net_changes(None, out).table(PostgresTable::Reading).unwrap_err().to_string();
    assert!(error.contains("city_id 5 reading_at 2000-01-01T00:00:00Z in reading"), "{error}");
}

#[test]
fn dead_letter_gets_the_epoch_of_its_batch() {
    let mut out = BatchBuilder::default();
    let kind = RecordKind { table: PostgresTable::DeadLetter, existed: false, is_split: false };
    push(kind, 0, b"key", Some(b"fields"), &mut out);
    let mut changes = net_changes(None, out);
    let net = changes.table(PostgresTable::DeadLetter).unwrap();
    let expected = [&[0, 12, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 7][..], b"fields"].concat();
    assert_eq!(net.inserts, [NewRow { key: b"key", tuple: &expected }]);
}
