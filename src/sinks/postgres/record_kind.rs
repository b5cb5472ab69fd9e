//! What a record that was rendered for the tables says of a row: its kind is the topic of the
//! record.
//!
//! The partition of a record is the UTC day of the row if the table is partitioned, as the number of
//! days since 1970-01-01. Its key has the columns of the primary key as big-endian numbers, and then
//! the text if one of them is a text; an arrival has no key. Its value is the row as a tuple, absent
//! if the row is gone.

use super::plan::PostgresTable;

const ROW_EXISTED: u8 = 0x40;
const CITY_IS_SPLIT: u8 = 0x80;

/// The table of a row, and what is known of the row before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordKind {
    pub table: PostgresTable,
    /// The table had a row of this key before.
    pub existed: bool,
    /// The city was seen in two partitions, so `existed` may be wrong after a restart.
    pub is_split: bool,
}

impl RecordKind {
    pub fn topic(self) -> u8 {
        let existed = if self.existed { ROW_EXISTED } else { 0 };
        let split = if self.is_split { CITY_IS_SPLIT } else { 0 };
        self.table.code() | existed | split
    }

    /// The kind of a record's topic.
    pub fn of_topic(topic: u8) -> Option<RecordKind> {
        let code = topic & !(ROW_EXISTED | CITY_IS_SPLIT);
        let table = PostgresTable::ALL.get(usize::from(code)).copied()?;
        Some(RecordKind { table, existed: topic & ROW_EXISTED != 0, is_split: topic & CITY_IS_SPLIT != 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_of_a_record_fits_its_topic() {
        for table in PostgresTable::ALL {
            for (existed, is_split) in [(false, false), (false, true), (true, false), (true, true)] {
                let kind = RecordKind { table, existed, is_split };
                assert_eq!(RecordKind::of_topic(kind.topic()), Some(kind));
            }
        }
        assert_eq!(RecordKind::of_topic(8), None);
    }
}
