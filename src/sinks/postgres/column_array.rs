//! Columns of rows as array parameters, in binary format.

use std::error::Error;

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use super::columns::{ColumnType, columns_of};
use super::net_changes::NewRow;
use super::plan::PostgresTable;
use super::row_name::key_values;
use super::tuple::{field_value, sized_fields};

/// An array with the values of one column.
#[derive(Debug)]
pub(super) struct ColumnArray {
    kind: ColumnType,
    count: usize,
    has_null: bool,
    /// Each element as its length and its bytes.
    elements: Vec<u8>,
}

impl ColumnArray {
    fn new(kind: ColumnType, capacity: usize) -> ColumnArray {
        let width = kind.width().unwrap_or_default();
        ColumnArray { kind, count: 0, has_null: false, elements: Vec::with_capacity(capacity * (4 + width)) }
    }

    /// The columns of rows.
    pub fn of_rows(table: PostgresTable, rows: &[NewRow<'_>]) -> Vec<ColumnArray> {
        let columns = columns_of(table).all.iter();
        let mut arrays: Vec<ColumnArray> =
            columns.map(|column| ColumnArray::new(column.kind, rows.len())).collect();
        for row in rows {
            for (array, field) in arrays.iter_mut().zip(sized_fields(row.tuple)) {
                array.count += 1;
                array.has_null |= field_value(field).is_none();
                array.elements.extend_from_slice(field);
            }
        }
        arrays
    }

    /// The columns of keys.
    pub fn of_keys<'a>(table: PostgresTable, keys: impl Iterator<Item = &'a [u8]>) -> Vec<ColumnArray> {
        let columns = columns_of(table).key_columns();
        let mut arrays: Vec<ColumnArray> =
            columns.map(|column| ColumnArray::new(column.kind, keys.size_hint().0)).collect();
        for key in keys {
            for (array, value) in arrays.iter_mut().zip(key_values(table, key)) {
                array.count += 1;
                array.elements.put_i32(value.len() as i32);
                array.elements.extend_from_slice(value);
            }
        }
        arrays
    }

    /// The type of the parameter.
    pub fn array_type(&self) -> Type {
        self.kind.array()
    }
}

impl ToSql for ColumnArray {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let (dimensions, lower_bound) = (1, 1);
        out.put_i32(dimensions);
        out.put_i32(i32::from(self.has_null));
        out.put_u32(self.kind.element().oid());
        out.put_i32(self.count as i32);
        out.put_i32(lower_bound);
        out.put_slice(&self.elements);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// A `timestamptz` as microseconds since 2000-01-01.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PostgresMicros(pub i64);

impl ToSql for PostgresMicros {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_i64(self.0);
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TIMESTAMPTZ
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use tokio_postgres::types::FromSql;

    use super::*;
    use crate::sinks::postgres::tuple::TupleWriter;

    #[test]
    fn arrays_are_decoded_by_client_library() {
        let tuples: Vec<Vec<u8>> = (0..3i64)
            .map(|row| {
                let mut tuple = Vec::new();
                TupleWriter::begin(6, &mut tuple)
                    .bigint(row)
                    .text(Some(&"é".repeat(row as usize)))
                    .int(row as i32 * 7)
                    .boolean(row == 1)
                    .text((row == 2).then_some("UTC"))
                    .bigint(None);
                tuple
            })
            .collect();
        let rows: Vec<NewRow<'_>> = tuples.iter().map(|tuple| NewRow { key: &[], tuple }).collect();
        let arrays = ColumnArray::of_rows(PostgresTable::City, &rows);
        assert_eq!(arrays.len(), 6);
        let mut bytes = BytesMut::new();
        let mut encoded = |index: usize| {
            bytes.clear();
            let array: &ColumnArray = &arrays[index];
            array.to_sql(&array.array_type(), &mut bytes).unwrap();
            (array.array_type(), bytes.to_vec())
        };
        let (kind, array) = encoded(0);
        assert_eq!(Vec::<i64>::from_sql(&kind, &array).unwrap(), [0, 1, 2]);
        let (kind, array) = encoded(1);
        assert_eq!(Vec::<&str>::from_sql(&kind, &array).unwrap(), ["", "é", "éé"]);
        let (kind, array) = encoded(3);
        assert_eq!(Vec::<bool>::from_sql(&kind, &array).unwrap(), [false, true, false]);
        let (kind, array) = encoded(4);
        assert_eq!(Vec::<Option<&str>>::from_sql(&kind, &array).unwrap(), [None, None, Some("UTC")]);
    }

    #[test]
    fn keys_become_arrays() {
        let key = |position: i64| [&3i32.to_be_bytes()[..], &position.to_be_bytes(), b"readings"].concat();
        let keys = [key(5), key(6)];
        let arrays = ColumnArray::of_keys(PostgresTable::DeadLetter, keys.iter().map(Vec::as_slice));
        let mut bytes = BytesMut::new();
        let [partitions, positions, sources] = &arrays[..] else { panic!("{}", arrays.len()) };
        partitions.to_sql(&Type::INT4_ARRAY, &mut bytes).unwrap();
        assert_eq!(Vec::<i32>::from_sql(&Type::INT4_ARRAY, &bytes.split()).unwrap(), [3, 3]);
        positions.to_sql(&Type::INT8_ARRAY, &mut bytes).unwrap();
        assert_eq!(Vec::<i64>::from_sql(&Type::INT8_ARRAY, &bytes.split()).unwrap(), [5, 6]);
        sources.to_sql(&Type::TEXT_ARRAY, &mut bytes).unwrap();
        assert_eq!(Vec::<&str>::from_sql(&Type::TEXT_ARRAY, &bytes.split()).unwrap(), ["readings"; 2]);
    }
}
