//! The statements of a transaction with their data.

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use super::column_array::{ColumnArray, PostgresMicros};
use super::columns::PARTITIONED;
use super::copy_data::CopyData;
use super::net_changes::{NetChanges, NewRow, RecordError, TableChanges};
use super::plan::PostgresTable;
use super::row_name::key_values;
use super::statements::TableStatements;

/// So many new rows of a table are worth a COPY, which takes two round trips more and less of the
/// server's time.
const MIN_COPY_ROWS: usize = 64;

/// What a transaction has written, in rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WrittenRows {
    pub inserted: u64,
    pub updated: u64,
    pub deleted: u64,
    /// Arrivals of days that are not kept.
    pub not_kept: u64,
}

/// All statements that change tables of results.
pub(super) struct TransactionWrites<'a> {
    pub arrays: Vec<ArrayWrite<'a>>,
    pub copies: Vec<CopyWrite<'a>>,
}

/// New rows that are copied.
pub(super) struct CopyWrite<'a> {
    pub table: PostgresTable,
    pub statement: &'a str,
    pub data: CopyData,
}

/// A statement whose parameters are the columns of rows or keys.
pub(super) struct ArrayWrite<'a> {
    pub table: PostgresTable,
    pub operation: Operation,
    /// How many rows it must change; `None` if a row of a split city may or may not exist.
    pub expected: Option<u64>,
    statement: &'a str,
    arrays: Vec<ColumnArray>,
    /// The times of the rows, if the table is partitioned.
    range: Option<[PostgresMicros; 2]>,
}

/// What a statement does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Insert,
    Update,
    Delete,
}

impl<'a> TransactionWrites<'a> {
    pub fn of_changes(
        changes: &mut NetChanges,
        statements: &'a [TableStatements],
    ) -> Result<TransactionWrites<'a>, RecordError> {
        let mut writes = TransactionWrites { arrays: Vec::new(), copies: Vec::new() };
        for (table, statements) in PostgresTable::ALL.into_iter().zip(statements) {
            if table == PostgresTable::Arrival {
                writes.add_arrivals(changes.take_arrivals(), statements);
            } else {
                writes.add_changes(table, changes.table(table)?, statements);
            }
        }
        Ok(writes)
    }

    /// Deletes come first, so that no statement finds the row of another one.
    fn add_changes(
        &mut self,
        table: PostgresTable,
        changes: TableChanges<'_>,
        statements: &'a TableStatements,
    ) {
        let TableChanges { deletes, updates, inserts, split_deletes, upserts } = changes;
        let keyed = |operation, statement, keys: &[&[u8]]| ArrayWrite {
            table,
            operation,
            expected: None,
            statement,
            arrays: ColumnArray::of_keys(table, keys.iter().copied()),
            range: time_range(table, keys.iter().copied()),
        };
        let rows = |operation, statement, rows: &[NewRow<'_>]| ArrayWrite {
            table,
            operation,
            expected: None,
            statement,
            arrays: ColumnArray::of_rows(table, rows),
            range: None,
        };
        if !deletes.is_empty() {
            let write = keyed(Operation::Delete, &statements.delete, &deletes);
            self.arrays.push(ArrayWrite { expected: Some(deletes.len() as u64), ..write });
        }
        if !split_deletes.is_empty() {
            self.arrays.push(keyed(Operation::Delete, &statements.delete, &split_deletes));
        }
        if !updates.is_empty() {
            let range = time_range(table, updates.iter().map(|row| row.key));
            let write = rows(Operation::Update, &statements.update, &updates);
            self.arrays.push(ArrayWrite { expected: Some(updates.len() as u64), range, ..write });
        }
        if !upserts.is_empty() {
            self.arrays.push(rows(Operation::Insert, &statements.upsert, &upserts));
        }
        match inserts.len() {
            0 => {}
            few if few < MIN_COPY_ROWS => {
                let write = rows(Operation::Insert, &statements.insert, &inserts);
                self.arrays.push(ArrayWrite { expected: Some(few as u64), ..write });
            }
            _ => self.copies.push(CopyWrite {
                table,
                statement: &statements.copy,
                data: inserts.iter().map(|row| row.tuple).collect(),
            }),
        }
    }

    fn add_arrivals(&mut self, data: CopyData, statements: &'a TableStatements) {
        let (table, count) = (PostgresTable::Arrival, data.rows());
        if count >= MIN_COPY_ROWS as u64 {
            self.copies.push(CopyWrite { table, statement: &statements.copy, data });
        } else if count > 0 {
            let rows: Vec<NewRow<'_>> = data.tuples().map(|tuple| NewRow { key: &[], tuple }).collect();
            self.arrays.push(ArrayWrite {
                table,
                operation: Operation::Insert,
                expected: Some(count),
                statement: &statements.insert,
                arrays: ColumnArray::of_rows(table, &rows),
                range: None,
            });
        }
    }
}

/// The times of rows by their keys, if the table is partitioned by time. The second column of such
/// a key is the time.
fn time_range<'k>(table: PostgresTable, keys: impl Iterator<Item = &'k [u8]>) -> Option<[PostgresMicros; 2]> {
    if !PARTITIONED.contains(&table) {
        return None;
    }
    let time = |key| key_values(table, key).nth(1)?.try_into().ok().map(i64::from_be_bytes);
    let widen = |range: Option<[i64; 2]>, time: i64| match range {
        Some([from, to]) => Some([from.min(time), to.max(time)]),
        None => Some([time, time]),
    };
    keys.filter_map(time).fold(None, widen).map(|range| range.map(PostgresMicros))
}

impl ArrayWrite<'_> {
    pub async fn execute(&self, client: &Client) -> Result<u64, Error> {
        let mut parameters: Vec<_> = self.arrays.iter().map(ArrayWrite::parameter).collect();
        let range = self.range.iter().flatten();
        parameters.extend(range.map(|at| (at as &(dyn ToSql + Sync), Type::TIMESTAMPTZ)));
        client.execute_typed(self.statement, &parameters).await
    }

    /// An array as a parameter of a statement.
    pub fn parameter(array: &ColumnArray) -> (&(dyn ToSql + Sync), Type) {
        (array, array.array_type())
    }

    /// Counts the rows that the statement has changed.
    pub fn count(&self, changed: u64, rows: &mut WrittenRows) {
        match self.operation {
            Operation::Insert => rows.inserted += changed,
            Operation::Update => rows.updated += changed,
            Operation::Delete => rows.deleted += changed,
        }
    }
}
