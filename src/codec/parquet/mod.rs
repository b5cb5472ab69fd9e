//! Parquet, by the crates parquet and arrow.

mod column;
mod read;
mod write;

pub(super) use self::read::ParquetReader;
pub(super) use self::write::{
    CityColumn, ColumnEncoding, ParquetTable, city_type, time_array, time_type, unit_field,
};
