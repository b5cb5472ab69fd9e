//! Encodes a refused record as a row of the table `dead_letter`.

use super::plan::PostgresTable;
use super::record_kind::RecordKind;
use super::tuple::TupleWriter;
use crate::model::{BatchBuilder, EventTime, PartitionName, RawRecord, Refusal, Shard};

/// A refused record.
#[derive(Clone, Copy, Debug)]
pub struct RefusedRecord<'a> {
    pub partition: &'a PartitionName,
    pub position: u64,
    /// When the log appended it.
    pub arrived_at: Option<EventTime>,
    pub refusal: &'a Refusal,
    pub raw: RawRecord<'a>,
}

/// Writes the row without its first column, the epoch, which is not known before the epoch is
/// closed. The shard adds it.
pub fn render_dead_letter(record: &RefusedRecord<'_>, shard: Shard, out: &mut BatchBuilder) {
    let RefusedRecord { partition: name, position, arrived_at, refusal, raw } = *record;
    let kind = RecordKind { table: PostgresTable::DeadLetter, existed: false, is_split: false };
    let mut row = out.begin_undated_record(shard, kind.topic(), 0);
    let (partition, position) = (name.partition as i32, position as i64);
    row.buffer().extend_from_slice(&partition.to_be_bytes());
    row.buffer().extend_from_slice(&position.to_be_bytes());
    row.buffer().extend_from_slice(name.source.as_bytes());
    row.end_key();
    // PostgreSQL refuses NUL in a text. The record itself is in `value`.
    let detail = refusal.detail.replace('\0', "\u{fffd}");
    let retry = raw.retry;
    TupleWriter::resume(row.buffer())
        .text(Some(&name.source))
        .int(partition)
        .bigint(position)
        .timestamptz(arrived_at)
        .text(Some(refusal.reason.code()))
        .text(Some(&detail))
        .int(retry.map_or(0, |retry| retry.attempt as i32))
        .text(retry.map(|retry| &*retry.origin))
        .timestamptz(retry.and_then(|retry| retry.first_seen))
        .bytea(raw.key)
        .bytea(raw.value);
    row.end_value();
}
