//! How messages name a row.

use std::fmt;

use super::columns::{ColumnType, columns_of};
use super::plan::PostgresTable;
use super::tuple::{field_value, sized_fields, time_of_micros};
use crate::model::EventTime;
use crate::model::time::civil_from_days;

/// The columns of a key, as a person would write them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RowName {
    /// The name of the city, once it is known.
    pub city: Option<String>,
    city_id: Option<i64>,
    /// The other columns.
    rest: String,
}

impl RowName {
    /// The row of a record's key.
    pub fn of_key(table: PostgresTable, key: &[u8]) -> RowName {
        let mut name = RowName { city: None, city_id: None, rest: String::new() };
        for (column, value) in columns_of(table).key_columns().zip(key_values(table, key)) {
            match (column.name, number(value)) {
                ("city_id", Some(id)) => name.city_id = Some(id),
                _ => name.rest.push_str(&format!(" {} {}", column.name, value_text(column.kind, value))),
            }
        }
        name
    }

    /// The name of the city in a tuple of the table `city`.
    pub fn city_of_tuple(tuple: &[u8]) -> Option<&str> {
        std::str::from_utf8(field_value(sized_fields(tuple).nth(1)?)?).ok()
    }
}

impl fmt::Display for RowName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.city, self.city_id) {
            (Some(city), _) => write!(f, "city {city:?}{}", self.rest),
            (None, Some(id)) => write!(f, "city_id {id}{}", self.rest),
            (None, None) => f.write_str(self.rest.trim_start()),
        }
    }
}

/// The values of a key's columns, as bytes.
pub(super) fn key_values(table: PostgresTable, key: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = key;
    columns_of(table).key_columns().map(move |column| {
        let length = column.kind.width().unwrap_or(rest.len()).min(rest.len());
        let (value, after) = rest.split_at(length);
        rest = after;
        value
    })
}

fn number(value: &[u8]) -> Option<i64> {
    match value.len() {
        8 => value.try_into().ok().map(i64::from_be_bytes),
        4 => value.try_into().ok().map(|bytes| i32::from_be_bytes(bytes).into()),
        _ => None,
    }
}

fn value_text(kind: ColumnType, value: &[u8]) -> String {
    match (kind, number(value)) {
        (ColumnType::Timestamptz, Some(micros)) => {
            time_of_micros(micros).map_or_else(|| micros.to_string(), |time: EventTime| time.to_string())
        }
        (ColumnType::Date, Some(day)) => {
            let (year, month, day) = civil_from_days(day + i64::from(super::tuple::POSTGRES_EPOCH_DAY));
            format!("{year:04}-{month:02}-{day:02}")
        }
        (ColumnType::Bigint | ColumnType::Int, Some(number)) => number.to_string(),
        _ => String::from_utf8_lossy(value).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::postgres::tuple::{postgres_day, postgres_micros};

    #[test]
    fn rows_are_named_by_their_key() {
        let time: EventTime = "2013-07-18T12:00:00.5Z".parse().unwrap();
        let micros = postgres_micros(time.millis()).to_be_bytes();
        let key = [&7i64.to_be_bytes()[..], &micros].concat();
        let mut name = RowName::of_key(PostgresTable::Reading, &key);
        assert_eq!(name.to_string(), "city_id 7 reading_at 2013-07-18T12:00:00.5Z");
        name.city = Some("Oslo".to_owned());
        assert_eq!(name.to_string(), "city \"Oslo\" reading_at 2013-07-18T12:00:00.5Z");
        let day = postgres_day(time.utc_day()).to_be_bytes();
        let key = [&7i64.to_be_bytes()[..], &day, b"Europe/Oslo"].concat();
        let name = RowName::of_key(PostgresTable::Day, &key);
        assert_eq!(name.to_string(), "city_id 7 day 2013-07-18 zone Europe/Oslo");
        let key = [&3i32.to_be_bytes()[..], &1017i64.to_be_bytes(), b"readings"].concat();
        let name = RowName::of_key(PostgresTable::DeadLetter, &key);
        assert_eq!(name.to_string(), "partition 3 position 1017 source readings");
    }
}
