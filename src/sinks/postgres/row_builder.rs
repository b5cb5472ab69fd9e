//! Writes the record of one row of a city.

use super::columns::columns_of;
use super::record_kind::RecordKind;
use super::tuple::{TupleWriter, postgres_day, postgres_micros};
use crate::model::{BatchBuilder, Shard};

/// Writes one row of a city.
pub(super) struct RowBuilder<'a> {
    pub epoch: u64,
    pub shard: Shard,
    /// The id of the city.
    pub id: i64,
    pub out: &'a mut BatchBuilder,
}

/// The columns of a key besides the city.
pub(super) enum RowKey<'a> {
    /// The table has no key.
    None,
    City,
    /// The instant in ms.
    Time(i64),
    /// The day is a number of days since 1970-01-01.
    Day {
        day: i32,
        zone: &'a str,
    },
}

impl RowBuilder<'_> {
    /// Writes the row. `day` is the UTC day if the table is partitioned.
    #[inline]
    pub fn write(
        self,
        kind: RecordKind,
        day: Option<i32>,
        key: RowKey<'_>,
        fields: impl FnOnce(i64, &mut TupleWriter<'_>),
    ) {
        let partition = day.unwrap_or_default() as u32;
        let mut record = self.out.begin_record(self.epoch, self.shard, kind.topic(), partition);
        if key.push(self.id, record.buffer()) {
            record.end_key();
        }
        let mut tuple = TupleWriter::begin(columns_of(kind.table).all.len(), record.buffer());
        fields(self.id, &mut tuple);
        record.end_value();
    }

    /// Writes that the row of a key is gone.
    pub fn remove(self, kind: RecordKind, day: Option<i32>, key: RowKey<'_>) {
        let partition = day.unwrap_or_default() as u32;
        let mut record = self.out.begin_record(self.epoch, self.shard, kind.topic(), partition);
        key.push(self.id, record.buffer());
        record.end_key();
    }

    /// Writes the row, or that it is gone.
    pub fn write_or_remove<T>(
        self,
        kind: RecordKind,
        day: Option<i32>,
        key: RowKey<'_>,
        row: Option<&T>,
        fields: impl FnOnce(i64, &T, &mut TupleWriter<'_>),
    ) {
        match row {
            Some(row) => self.write(kind, day, key, |id, tuple| fields(id, row, tuple)),
            None => self.remove(kind, day, key),
        }
    }
}

impl RowKey<'_> {
    /// Appends the key. Returns false if the table has none.
    #[inline]
    fn push(&self, city: i64, out: &mut Vec<u8>) -> bool {
        if matches!(self, RowKey::None) {
            return false;
        }
        out.extend_from_slice(&city.to_be_bytes());
        match self {
            RowKey::None | RowKey::City => {}
            RowKey::Time(ms) => out.extend_from_slice(&postgres_micros(*ms).to_be_bytes()),
            RowKey::Day { day, zone } => {
                out.extend_from_slice(&postgres_day(*day).to_be_bytes());
                out.extend_from_slice(zone.as_bytes());
            }
        }
        true
    }
}
