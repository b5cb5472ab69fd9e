//! Merges the records of a transaction to one net change for each row.
//!
//! A transaction has many epochs, and a row may change in each. The first record of a key says
//! whether the table had the row before, and the last one what it has after. So a key is changed
//! once: a statement cannot change a row twice.
//!
//! The changes of a table come sorted by key, so that transactions lock rows in one order and the
//! index is written from left to right. The tuples of new rows without a key are only concatenated.

use std::collections::BTreeSet;

use super::columns::{PARTITIONED, columns_of};
use super::copy_data::CopyData;
use super::plan::PostgresTable;
use super::record_kind::RecordKind;
use super::row_name::RowName;
use super::tuple::TupleWriter;
use crate::model::EncodedBatch;

/// The records of a transaction so far.
#[derive(Debug, Default)]
pub(super) struct NetChanges {
    /// By the code of the table.
    logs: [RowLog; PostgresTable::ALL.len()],
    /// Rows of tables without a key, all new.
    arrivals: CopyData,
    /// The partitions that the rows belong to, by table and UTC day.
    partitions: BTreeSet<(PostgresTable, i32)>,
    last_partition: Option<(PostgresTable, i32)>,
    /// Rows of days before this one are not written.
    kept_from: Option<i32>,
    /// How many arrivals were not written.
    not_kept: u64,
}

/// The net changes of a table, each list sorted by key.
#[derive(Debug, Default, PartialEq)]
pub(super) struct TableChanges<'a> {
    /// The keys of rows that exist and are gone.
    pub deletes: Vec<&'a [u8]>,
    /// Rows that exist and have changed.
    pub updates: Vec<NewRow<'a>>,
    /// Rows that do not exist.
    pub inserts: Vec<NewRow<'a>>,
    /// Of split cities: the keys of rows that are gone, if they exist, and rows that may exist.
    pub split_deletes: Vec<&'a [u8]>,
    pub upserts: Vec<NewRow<'a>>,
}

/// A row as it is after the transaction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct NewRow<'a> {
    pub key: &'a [u8],
    pub tuple: &'a [u8],
}

/// The records contradict each other, which no retry mends.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    #[error(
        "a record of an unknown table, {0}: the processes of this run are of different versions; run one version"
    )]
    UnknownTable(u8),
    #[error(
        "the cities {0:?} and {1:?} have the same id in the tables, the first 63 bits of the SHA-256 of the name: no database can hold both; \
         rename one of them in what is sent"
    )]
    SameCityId(String, String),
    #[error(
        "a change of {row} in {table} does not fit the one before it: this is a fault of swelter; report it, and start again, which renders the \
         changes anew"
    )]
    Contradiction { table: &'static str, row: RowName },
}

impl NetChanges {
    /// Forgets all records. Rows of days before `kept_from` are not written from now on.
    pub fn clear(&mut self, kept_from: Option<i32>) {
        self.logs.iter_mut().for_each(RowLog::clear);
        self.arrivals.clear();
        self.partitions.clear();
        (self.last_partition, self.kept_from, self.not_kept) = (None, kept_from, 0);
    }

    /// Adds the records of a batch, behind the others.
    pub fn add(&mut self, batch: &EncodedBatch) -> Result<(), RecordError> {
        for record in batch.records() {
            let kind = RecordKind::of_topic(record.topic).ok_or(RecordError::UnknownTable(record.topic))?;
            if PARTITIONED.contains(&kind.table) {
                let day = record.partition as i32;
                if self.kept_from.is_some_and(|from| day < from) {
                    self.not_kept += u64::from(kind.table == PostgresTable::Arrival);
                    continue;
                }
                self.use_partition(kind.table, day);
            }
            match (kind.table, record.key, record.value) {
                (PostgresTable::Arrival, _, tuple) => self.arrivals.push(tuple.unwrap_or_default()),
                (PostgresTable::DeadLetter, key, Some(fields)) => {
                    let log = &mut self.logs[usize::from(PostgresTable::DeadLetter.code())];
                    log.push_dead_letter(kind, key.unwrap_or_default(), batch.epoch, fields);
                }
                (table, key, tuple) => {
                    let log = &mut self.logs[usize::from(table.code())];
                    log.push(kind, key.unwrap_or_default(), tuple);
                }
            }
        }
        Ok(())
    }

    fn use_partition(&mut self, table: PostgresTable, day: i32) {
        // Most rows are of the day of the one before.
        if self.last_partition.replace((table, day)) != Some((table, day)) {
            self.partitions.insert((table, day));
        }
    }

    /// The partitions that the rows belong to, by table and UTC day.
    pub fn partitions(&self) -> &BTreeSet<(PostgresTable, i32)> {
        &self.partitions
    }

    /// How many arrivals are of days that are not kept.
    pub fn not_kept(&self) -> u64 {
        self.not_kept
    }

    /// Takes the new rows of the table without a key.
    pub fn take_arrivals(&mut self) -> CopyData {
        std::mem::take(&mut self.arrivals)
    }

    /// The net changes of a table with a key.
    pub fn table(&mut self, table: PostgresTable) -> Result<TableChanges<'_>, RecordError> {
        self.logs[usize::from(table.code())].net_changes(table)
    }
}

/// The records of a table with a key, in order.
#[derive(Debug, Default)]
struct RowLog {
    /// Keys and tuples, one behind the other.
    bytes: Vec<u8>,
    entries: Vec<LogEntry>,
}

/// A record: its key, then its tuple if it has one.
#[derive(Clone, Copy, Debug)]
struct LogEntry {
    /// The first bytes of the key, as a number that sorts as they do.
    prefix: u128,
    key_at: usize,
    key_length: u32,
    /// `None` if the row is gone.
    tuple_length: Option<u32>,
    kind: RecordKind,
}

const PREFIX_BYTES: usize = size_of::<u128>();

fn key_prefix(key: &[u8]) -> u128 {
    let mut prefix = [0; PREFIX_BYTES];
    let length = key.len().min(PREFIX_BYTES);
    prefix[..length].copy_from_slice(&key[..length]);
    u128::from_be_bytes(prefix)
}

impl RowLog {
    fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
    }

    fn push(&mut self, kind: RecordKind, key: &[u8], tuple: Option<&[u8]>) {
        let write = tuple.map(|tuple| |out: &mut Vec<u8>| out.extend_from_slice(tuple));
        self.push_with(kind, key, write);
    }

    /// A dead letter is rendered before its epoch is known, without the first field.
    fn push_dead_letter(&mut self, kind: RecordKind, key: &[u8], epoch: u64, fields: &[u8]) {
        let columns = columns_of(PostgresTable::DeadLetter).all.len();
        let write = |out: &mut Vec<u8>| {
            TupleWriter::begin(columns, out).bigint(epoch as i64);
            out.extend_from_slice(fields);
        };
        self.push_with(kind, key, Some(write));
    }

    fn push_with(&mut self, kind: RecordKind, key: &[u8], write_tuple: Option<impl FnOnce(&mut Vec<u8>)>) {
        let key_at = self.bytes.len();
        self.bytes.extend_from_slice(key);
        let tuple_at = self.bytes.len();
        let tuple_length = write_tuple.map(|write| {
            write(&mut self.bytes);
            (self.bytes.len() - tuple_at) as u32
        });
        let (prefix, key_length) = (key_prefix(key), key.len() as u32);
        self.entries.push(LogEntry { prefix, key_at, key_length, tuple_length, kind });
    }

    /// Sorts the records by key, and those of a key by their order.
    fn sort(&mut self) {
        let RowLog { bytes, entries } = self;
        let rest = |entry: &LogEntry| {
            &bytes[entry.key_at..][..entry.key_length as usize][PREFIX_BYTES.min(entry.key_length as usize)..]
        };
        entries.sort_unstable_by(|a, b| {
            let keys = a.prefix.cmp(&b.prefix).then_with(|| rest(a).cmp(rest(b)));
            keys.then_with(|| a.key_length.cmp(&b.key_length)).then_with(|| a.key_at.cmp(&b.key_at))
        });
    }

    fn key(&self, entry: &LogEntry) -> &[u8] {
        &self.bytes[entry.key_at..][..entry.key_length as usize]
    }

    fn tuple(&self, entry: &LogEntry) -> Option<&[u8]> {
        let at = entry.key_at + entry.key_length as usize;
        entry.tuple_length.map(|length| &self.bytes[at..][..length as usize])
    }

    fn net_changes(&mut self, table: PostgresTable) -> Result<TableChanges<'_>, RecordError> {
        self.sort();
        let log = &*self;
        let mut changes = TableChanges::default();
        for records in log.entries.chunk_by(|a, b| log.key(a) == log.key(b)) {
            let [first, ..] = records else { continue };
            let is_split = records.iter().any(|record| record.kind.is_split);
            if !is_split {
                log.check_records(table, records)?;
            }
            let key = log.key(first);
            let after = records.last().and_then(|last| log.tuple(last));
            match (is_split, first.kind.existed, after) {
                (true, _, Some(tuple)) => changes.upserts.push(NewRow { key, tuple }),
                (true, _, None) => changes.split_deletes.push(key),
                (false, true, Some(tuple)) => changes.updates.push(NewRow { key, tuple }),
                (false, true, None) => changes.deletes.push(key),
                (false, false, Some(tuple)) => changes.inserts.push(NewRow { key, tuple }),
                (false, false, None) => {}
            }
        }
        Ok(changes)
    }

    /// Checks that each record of a row says of the row before it what the record before has made
    /// of it.
    fn check_records(&self, table: PostgresTable, records: &[LogEntry]) -> Result<(), RecordError> {
        for pair in records.windows(2) {
            let [before, record] = pair else { continue };
            if record.kind.existed == before.tuple_length.is_some() {
                continue;
            }
            let names = [before, record].map(|entry| self.tuple(entry).and_then(RowName::city_of_tuple));
            if let (PostgresTable::City, [Some(one), Some(other)]) = (table, names) {
                return Err(RecordError::SameCityId(one.to_owned(), other.to_owned()));
            }
            let row = RowName::of_key(table, self.key(record));
            return Err(RecordError::Contradiction { table: table.name(), row });
        }
        Ok(())
    }
}
