//! Writes rows that were read back from a store of results, as Parquet: the columns of the results
//! of a finite run, where a measurement may be unknown.

use std::io::{self, Write};
use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, Int64Array, StringArray};
use arrow_schema::{DataType, Field};

use super::parquet::{
    CityColumn, ColumnEncoding, ParquetTable, city_type, time_array, time_type, unit_field,
};
use crate::model::history_store::ExportedRow;
use crate::model::{Measurement, OutputUnits};

/// The number of rows that are encoded at once.
const BATCH_ROWS: usize = 8 * 1024;

/// Writes rows by city. The file is complete once it is [finished](ExportedRowsWriter::finish).
pub struct ExportedRowsWriter {
    units: OutputUnits,
    table: ParquetTable,
    cities: CityColumn,
    rows: Vec<ExportedRow>,
}

impl ExportedRowsWriter {
    pub fn new(units: OutputUnits, out: Box<dyn Write + Send>) -> io::Result<ExportedRowsWriter> {
        let (unit, wind_unit) = (units.temperature.name(), units.wind.name());
        let columns = vec![
            (Field::new("city", city_type(), false), ColumnEncoding::Dictionary),
            (Field::new("reading_at", time_type(), false), ColumnEncoding::DeltaPacked),
            (unit_field("temperature", unit, true), ColumnEncoding::Dictionary),
            (Field::new("humidity", DataType::Float64, true), ColumnEncoding::Dictionary),
            (unit_field("wind_speed", wind_unit, true), ColumnEncoding::Dictionary),
            (unit_field("heat_index", unit, false), ColumnEncoding::Dictionary),
            (unit_field("rolling_heat_index", unit, false), ColumnEncoding::ByteStreamSplit),
            (Field::new("count", DataType::Int64, false), ColumnEncoding::DeltaPacked),
            (Field::new("category", DataType::Utf8, false), ColumnEncoding::Dictionary),
        ];
        let table = ParquetTable::new(out, columns, &[("units", unit), ("wind_units", wind_unit)])?;
        Ok(ExportedRowsWriter { units, table, cities: CityColumn::default(), rows: Vec::new() })
    }

    pub fn write(&mut self, city: &str, row: ExportedRow) -> io::Result<()> {
        self.cities.push(Some(city), 1);
        self.rows.push(row);
        if self.rows.len() == BATCH_ROWS { self.encode() } else { Ok(()) }
    }

    fn encode(&mut self) -> io::Result<()> {
        let OutputUnits { temperature, wind } = self.units;
        let rows = std::mem::take(&mut self.rows);
        let measured = |value: &dyn Fn(&Measurement) -> Option<f64>| -> ArrayRef {
            let values = rows.iter().map(|row| row.measurement.as_ref().and_then(value));
            Arc::new(Float64Array::from_iter(values))
        };
        let doubles = |value: &dyn Fn(&ExportedRow) -> f64| -> ArrayRef {
            Arc::new(Float64Array::from_iter_values(rows.iter().map(value)))
        };
        self.table.write_columns(vec![
            self.cities.take_array()?,
            Arc::new(time_array(rows.iter().map(|row| Some(row.reading_at.millis())))),
            measured(&|measured| Some(temperature.temperature(measured.temperature()))),
            measured(&|measured| Some(measured.humidity())),
            measured(&|measured| measured.wind_speed().map(|mph| wind.speed(mph))),
            doubles(&|row| temperature.heat_index(row.row.heat_index())),
            doubles(&|row| temperature.mean(row.row.sum(), row.row.count())),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| i64::from(row.row.count())))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.row.category().name()))),
        ])
    }

    /// Writes the remaining rows, and the epoch that all rows are of as metadata of the file.
    ///
    /// # Errors
    ///
    /// If not all of them could be written: the file is then incomplete.
    pub fn finish(mut self, as_of: Option<u64>) -> io::Result<()> {
        self.encode()?;
        if let Some(as_of) = as_of {
            self.table.add_metadata("as_of", &as_of.to_string());
        }
        self.table.finish()
    }
}
