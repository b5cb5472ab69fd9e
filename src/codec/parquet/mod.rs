//! Parquet, by way of arrow.

mod column;
mod read;
mod write;

pub(super) use self::read::ParquetReader;
pub(super) use self::write::{Cities, Encoded, Table, city_column, time_column, times, unit_column};
