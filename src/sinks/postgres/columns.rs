//! The columns that are written of each table, and their types.
//!
//! The order is that of the fields in a tuple. Statements name all columns, so a table may have
//! more.

use tokio_postgres::types::Type;

use super::plan::PostgresTable;

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ColumnType {
    Bigint,
    Int,
    Smallint,
    Double,
    Timestamptz,
    Date,
    Text,
    Bytea,
    Boolean,
}

impl ColumnType {
    /// The type of one value.
    pub fn element(self) -> Type {
        match self {
            ColumnType::Bigint => Type::INT8,
            ColumnType::Int => Type::INT4,
            ColumnType::Smallint => Type::INT2,
            ColumnType::Double => Type::FLOAT8,
            ColumnType::Timestamptz => Type::TIMESTAMPTZ,
            ColumnType::Date => Type::DATE,
            ColumnType::Text => Type::TEXT,
            ColumnType::Bytea => Type::BYTEA,
            ColumnType::Boolean => Type::BOOL,
        }
    }

    /// The type of an array of values.
    pub fn array(self) -> Type {
        match self {
            ColumnType::Bigint => Type::INT8_ARRAY,
            ColumnType::Int => Type::INT4_ARRAY,
            ColumnType::Smallint => Type::INT2_ARRAY,
            ColumnType::Double => Type::FLOAT8_ARRAY,
            ColumnType::Timestamptz => Type::TIMESTAMPTZ_ARRAY,
            ColumnType::Date => Type::DATE_ARRAY,
            ColumnType::Text => Type::TEXT_ARRAY,
            ColumnType::Bytea => Type::BYTEA_ARRAY,
            ColumnType::Boolean => Type::BOOL_ARRAY,
        }
    }

    /// The bytes of a value in a key; `None` if the value takes the rest of the key.
    pub fn width(self) -> Option<usize> {
        match self {
            ColumnType::Bigint | ColumnType::Double | ColumnType::Timestamptz => Some(8),
            ColumnType::Int | ColumnType::Date => Some(4),
            ColumnType::Smallint => Some(2),
            ColumnType::Boolean => Some(1),
            ColumnType::Text | ColumnType::Bytea => None,
        }
    }
}

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub name: &'static str,
    pub kind: ColumnType,
}

const fn column(name: &'static str, kind: ColumnType) -> Column {
    Column { name, kind }
}

/// The columns of a table.
#[derive(Debug)]
pub(super) struct TableColumns {
    pub all: &'static [Column],
    /// The columns of the primary key, as indexes of `all`, in the order of a record's key. A text
    /// comes last, because its length is not in the key. Empty for a table that is only appended
    /// to.
    pub key: &'static [usize],
    /// The columns that are set if a row of a split city exists already.
    pub upsert: &'static [usize],
}

impl TableColumns {
    pub fn key_columns(&self) -> impl Iterator<Item = Column> {
        self.key.iter().map(|index| self.all[*index])
    }
}

/// The columns of a table.
pub(super) fn columns_of(table: PostgresTable) -> &'static TableColumns {
    match table {
        PostgresTable::City => &CITY,
        PostgresTable::Reading => &READING,
        PostgresTable::Arrival => &ARRIVAL,
        PostgresTable::Now => &NOW,
        PostgresTable::Hour => &HOUR,
        PostgresTable::Day => &DAY,
        PostgresTable::RollingRow => &ROLLING_ROW,
        PostgresTable::DeadLetter => &DEAD_LETTER,
    }
}

/// The tables with a partition for each UTC day of `reading_at`.
pub(super) const PARTITIONED: [PostgresTable; 3] =
    [PostgresTable::Reading, PostgresTable::Arrival, PostgresTable::RollingRow];

use self::ColumnType::{Bigint, Boolean, Bytea, Date, Double, Int, Smallint, Text, Timestamptz};

const CITY: TableColumns = TableColumns {
    all: &[
        column("city_id", Bigint),
        column("name", Text),
        column("shard", Int),
        column("exact", Boolean),
        column("zone", Text),
        column("begins", Timestamptz),
    ],
    key: &[0],
    // Zone and beginning stay as they were at the first arrival.
    upsert: &[3],
};

const READING: TableColumns = TableColumns {
    all: &[
        column("city_id", Bigint),
        column("reading_at", Timestamptz),
        column("temperature", Double),
        column("humidity", Double),
        column("wind_speed", Double),
        column("heat_index_e6", Bigint),
        column("category", Smallint),
        column("revision", Bigint),
    ],
    key: &[0, 1],
    upsert: &[2, 3, 4, 5, 6, 7],
};

const ARRIVAL: TableColumns = TableColumns {
    all: &[
        column("as_of", Bigint),
        column("city_id", Bigint),
        column("seq", Int),
        column("reading_at", Timestamptz),
        column("source", Text),
        column("partition", Int),
        column("position", Bigint),
        column("arrived_at", Timestamptz),
        column("temperature", Double),
        column("humidity", Double),
        column("wind_speed", Double),
        column("revision", Bigint),
        column("outcome", Smallint),
        column("heat_index_e6", Bigint),
        column("category", Smallint),
        column("heat_index_before_e6", Bigint),
        column("category_before", Smallint),
    ],
    key: &[],
    upsert: &[],
};

const NOW: TableColumns = TableColumns {
    all: &[
        column("city_id", Bigint),
        column("high", Timestamptz),
        column("as_of", Bigint),
        column("reading_at", Timestamptz),
        column("temperature", Double),
        column("humidity", Double),
        column("wind_speed", Double),
        column("heat_index_e6", Bigint),
        column("sum_e6", Bigint),
        column("count", Int),
        column("category", Smallint),
    ],
    key: &[0],
    upsert: &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
};

const HOUR: TableColumns = TableColumns {
    all: &[
        column("city_id", Bigint),
        column("hour_at", Timestamptz),
        column("readings", Int),
        column("sum_e6", Bigint),
        column("max_e6", Bigint),
        column("max_at", Timestamptz),
        column("c0", Int),
        column("c1", Int),
        column("c2", Int),
        column("c3", Int),
        column("c4", Int),
        column("final", Boolean),
    ],
    key: &[0, 1],
    upsert: &[2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
};

const DAY: TableColumns = TableColumns {
    all: &[
        column("city_id", Bigint),
        column("day", Date),
        column("zone", Text),
        column("starts", Timestamptz),
        column("ends", Timestamptz),
        column("readings", Int),
        column("sum_e6", Bigint),
        column("max_e6", Bigint),
        column("max_at", Timestamptz),
        column("c0", Int),
        column("c1", Int),
        column("c2", Int),
        column("c3", Int),
        column("c4", Int),
        column("final", Boolean),
    ],
    key: &[0, 1, 2],
    upsert: &[3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14],
};

const ROLLING_ROW: TableColumns = TableColumns {
    all: &[
        column("city_id", Bigint),
        column("reading_at", Timestamptz),
        column("heat_index_e6", Bigint),
        column("sum_e6", Bigint),
        column("count", Int),
        column("category", Smallint),
        column("as_of", Bigint),
    ],
    key: &[0, 1],
    upsert: &[2, 3, 4, 5, 6],
};

const DEAD_LETTER: TableColumns = TableColumns {
    all: &[
        column("as_of", Bigint),
        column("source", Text),
        column("partition", Int),
        column("position", Bigint),
        column("arrived_at", Timestamptz),
        column("reason", Text),
        column("detail", Text),
        column("attempt", Int),
        column("origin", Text),
        column("first_seen_at", Timestamptz),
        column("key", Bytea),
        column("value", Bytea),
    ],
    key: &[2, 3, 1],
    upsert: &[],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_column_of_a_key_has_no_width() {
        for table in PostgresTable::ALL {
            let columns = columns_of(table);
            let widths: Vec<_> = columns.key_columns().map(|column| column.kind.width()).collect();
            let fixed = widths.iter().rev().skip(1);
            assert!(fixed.into_iter().all(Option::is_some), "{}", table.name());
            assert!(columns.upsert.iter().all(|index| !columns.key.contains(index)), "{}", table.name());
        }
    }
}
