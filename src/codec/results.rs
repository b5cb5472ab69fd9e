//! Writes result rows:
//! `city,reading_at,temperature,humidity,wind_speed,heat_index,rolling_heat_index,count,category`,
//! and their units: in CSV and JSON in each row, in Parquet in the metadata of columns and file.

use std::io::{self, Write};
use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, Int64Array, StringArray};
use arrow_schema::{DataType, Field};

use super::parquet::{
    CityColumn, ColumnEncoding, ParquetTable, city_type, time_array, time_type, unit_field,
};
use super::row_json::{push_degrees, push_units};
use super::text_output::{TextFileWriter, push_csv_text, push_integer, push_json_text, push_number};
use super::{Compression, Format};
use crate::model::{CityRows, OutputUnits, ResultRow};

/// The number of rows that are encoded at once.
const BATCH_ROWS: usize = 8 * 1024;

/// Writes result rows. The file is complete once it is [finished](ResultRowsWriter::finish).
#[derive(Debug)]
pub struct ResultRowsWriter {
    units: OutputUnits,
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Csv(TextFileWriter),
    Json(TextFileWriter),
    Parquet(Box<ResultsParquetColumns>),
}

impl ResultRowsWriter {
    /// Begins a file. Parquet compresses by itself, whatever `compression` says.
    pub fn new(
        format: Format,
        compression: Compression,
        units: OutputUnits,
        out: Box<dyn Write + Send>,
    ) -> io::Result<ResultRowsWriter> {
        let inner = match format {
            Format::Csv => {
                let mut file = TextFileWriter::new(out, compression)?;
                file.line.extend_from_slice(
                    b"city,reading_at,temperature,humidity,wind_speed,heat_index,rolling_heat_index,count,category,units,wind_units",
                );
                file.end_line()?;
                Inner::Csv(file)
            }
            Format::Json => Inner::Json(TextFileWriter::new(out, compression)?),
            Format::Parquet => Inner::Parquet(Box::new(ResultsParquetColumns::new(units, out)?)),
        };
        Ok(ResultRowsWriter { units, inner })
    }

    pub fn write(&mut self, rows: &CityRows<'_>) -> io::Result<()> {
        let (mut start, units) = (Vec::new(), self.units);
        match &mut self.inner {
            Inner::Csv(file) => {
                push_csv_text(rows.city, &mut start);
                rows.rows.iter().try_for_each(|row| {
                    push_csv_row(&start, row, units, &mut file.line);
                    file.end_line()
                })
            }
            Inner::Json(file) => {
                start.extend_from_slice(b"{\"city\":");
                push_json_text(rows.city, &mut start);
                rows.rows.iter().try_for_each(|row| {
                    push_json_row(&start, row, units, &mut file.line);
                    file.end_line()
                })
            }
            Inner::Parquet(columns) => columns.write(rows),
        }
    }

    /// Writes the remaining rows.
    ///
    /// # Errors
    ///
    /// If not all of them could be written: the file is then incomplete.
    pub fn finish(self) -> io::Result<()> {
        match self.inner {
            Inner::Csv(file) | Inner::Json(file) => file.finish(),
            Inner::Parquet(columns) => columns.finish(),
        }
    }
}

fn push_csv_row(city: &[u8], row: &ResultRow, units: OutputUnits, line: &mut Vec<u8>) {
    let OutputUnits { temperature, wind } = units;
    line.extend_from_slice(city);
    line.push(b',');
    row.reading_at.write_to(line);
    line.push(b',');
    push_number(temperature.temperature(row.measurement.temperature()), line);
    line.push(b',');
    push_number(row.measurement.humidity(), line);
    line.push(b',');
    if let Some(wind_speed) = row.measurement.wind_speed() {
        push_number(wind.speed(wind_speed), line);
    }
    line.push(b',');
    push_degrees(row.heat_index, temperature, line);
    line.push(b',');
    push_number(temperature.mean(row.sum, row.count), line);
    line.push(b',');
    push_integer(i64::from(row.count), line);
    line.push(b',');
    line.extend_from_slice(row.category.name().as_bytes());
    for name in [temperature.name(), wind.name()] {
        line.push(b',');
        line.extend_from_slice(name.as_bytes());
    }
}

fn push_json_row(start: &[u8], row: &ResultRow, units: OutputUnits, line: &mut Vec<u8>) {
    let OutputUnits { temperature, wind } = units;
    line.extend_from_slice(start);
    line.extend_from_slice(b",\"reading_at\":\"");
    row.reading_at.write_to(line);
    line.extend_from_slice(b"\",\"temperature\":");
    push_number(temperature.temperature(row.measurement.temperature()), line);
    line.extend_from_slice(b",\"humidity\":");
    push_number(row.measurement.humidity(), line);
    line.extend_from_slice(b",\"wind_speed\":");
    match row.measurement.wind_speed() {
        Some(wind_speed) => push_number(wind.speed(wind_speed), line),
        None => line.extend_from_slice(b"null"),
    }
    line.extend_from_slice(b",\"heat_index\":");
    push_degrees(row.heat_index, temperature, line);
    line.extend_from_slice(b",\"rolling_heat_index\":");
    push_number(temperature.mean(row.sum, row.count), line);
    line.extend_from_slice(b",\"count\":");
    push_integer(i64::from(row.count), line);
    line.extend_from_slice(b",\"category\":\"");
    line.extend_from_slice(row.category.name().as_bytes());
    line.extend_from_slice(b"\",");
    push_units(line, units);
    line.push(b'}');
}

#[derive(Debug)]
struct ResultsParquetColumns {
    units: OutputUnits,
    table: ParquetTable,
    cities: CityColumn,
    reading_at: Vec<i64>,
    temperature: Vec<f64>,
    humidity: Vec<f64>,
    wind_speed: Vec<Option<f64>>,
    heat_index: Vec<f64>,
    rolling_heat_index: Vec<f64>,
    count: Vec<i64>,
    category: Vec<&'static str>,
}

impl ResultsParquetColumns {
    fn new(units: OutputUnits, out: Box<dyn Write + Send>) -> io::Result<ResultsParquetColumns> {
        let (unit, wind_unit) = (units.temperature.name(), units.wind.name());
        let degrees = |name: &str| unit_field(name, unit, false);
        let table = ParquetTable::new(
            out,
            vec![
                (Field::new("city", city_type(), false), ColumnEncoding::Dictionary),
                (Field::new("reading_at", time_type(), false), ColumnEncoding::DeltaPacked),
                (degrees("temperature"), ColumnEncoding::Dictionary),
                (Field::new("humidity", DataType::Float64, false), ColumnEncoding::Dictionary),
                (unit_field("wind_speed", wind_unit, true), ColumnEncoding::Dictionary),
                (degrees("heat_index"), ColumnEncoding::Dictionary),
                (degrees("rolling_heat_index"), ColumnEncoding::ByteStreamSplit),
                (Field::new("count", DataType::Int64, false), ColumnEncoding::DeltaPacked),
                (Field::new("category", DataType::Utf8, false), ColumnEncoding::Dictionary),
            ],
            &[("units", unit), ("wind_units", wind_unit)],
        )?;
        Ok(ResultsParquetColumns {
            units,
            table,
            cities: CityColumn::default(),
            reading_at: Vec::new(),
            temperature: Vec::new(),
            humidity: Vec::new(),
            wind_speed: Vec::new(),
            heat_index: Vec::new(),
            rolling_heat_index: Vec::new(),
            count: Vec::new(),
            category: Vec::new(),
        })
    }

    fn write(&mut self, city: &CityRows<'_>) -> io::Result<()> {
        let OutputUnits { temperature, wind } = self.units;
        let mut rest = city.rows;
        while !rest.is_empty() {
            let (rows, after) = rest.split_at(rest.len().min(BATCH_ROWS - self.cities.len()));
            self.cities.push(Some(city.city), rows.len());
            self.reading_at.extend(rows.iter().map(|row| row.reading_at.millis()));
            self.temperature
                .extend(rows.iter().map(|row| temperature.temperature(row.measurement.temperature())));
            self.humidity.extend(rows.iter().map(|row| row.measurement.humidity()));
            let speed = |row: &ResultRow| row.measurement.wind_speed().map(|mph| wind.speed(mph));
            self.wind_speed.extend(rows.iter().map(speed));
            self.heat_index.extend(rows.iter().map(|row| temperature.heat_index(row.heat_index)));
            self.rolling_heat_index.extend(rows.iter().map(|row| temperature.mean(row.sum, row.count)));
            self.count.extend(rows.iter().map(|row| i64::from(row.count)));
            self.category.extend(rows.iter().map(|row| row.category.name()));
            if self.cities.len() == BATCH_ROWS {
                self.encode()?;
            }
            rest = after;
        }
        Ok(())
    }

    fn encode(&mut self) -> io::Result<()> {
        fn doubles(values: &mut Vec<f64>) -> ArrayRef {
            Arc::new(Float64Array::from(std::mem::replace(values, Vec::with_capacity(BATCH_ROWS))))
        }
        self.table.write_columns(vec![
            self.cities.take_array()?,
            Arc::new(time_array(self.reading_at.drain(..).map(Some))),
            doubles(&mut self.temperature),
            doubles(&mut self.humidity),
            Arc::new(Float64Array::from_iter(self.wind_speed.drain(..))),
            doubles(&mut self.heat_index),
            doubles(&mut self.rolling_heat_index),
            Arc::new(Int64Array::from(std::mem::replace(&mut self.count, Vec::with_capacity(BATCH_ROWS)))),
            Arc::new(StringArray::from_iter_values(self.category.drain(..))),
        ])
    }

    fn finish(mut self) -> io::Result<()> {
        self.encode()?;
        self.table.finish()
    }
}
