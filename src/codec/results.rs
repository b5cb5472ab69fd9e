//! Result rows: `city,reading_at,temperature,humidity,wind_speed,heat_index,rolling_heat_index,count,category`.

use std::io::{self, Write};
use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, Int64Array, StringArray};
use arrow_schema::{DataType, Field};

use super::parquet::{Cities, Encoded, Table, city_column, time_column, times};
use super::text::{TextFile, push_csv_text, push_heat_index, push_integer, push_json_text, push_number};
use super::{Compression, Format};
use crate::model::{CityRows, ResultRow};

/// Rows that are held before they are encoded.
const BATCH_ROWS: usize = 8 * 1024;

/// Writes result rows. The file is whole once it is [finished](RowsWriter::finish).
#[derive(Debug)]
pub struct RowsWriter(Inner);

#[derive(Debug)]
enum Inner {
    Csv(TextFile),
    Json(TextFile),
    Parquet(Box<Columns>),
}

impl RowsWriter {
    /// Begins a file. Parquet compresses by itself, whatever `compression` says.
    pub fn new(
        format: Format,
        compression: Compression,
        out: Box<dyn Write + Send>,
    ) -> io::Result<RowsWriter> {
        Ok(RowsWriter(match format {
            Format::Csv => {
                let mut file = TextFile::new(out, compression)?;
                file.line.extend_from_slice(
                    b"city,reading_at,temperature,humidity,wind_speed,heat_index,rolling_heat_index,count,category",
                );
                file.end_line()?;
                Inner::Csv(file)
            }
            Format::Json => Inner::Json(TextFile::new(out, compression)?),
            Format::Parquet => Inner::Parquet(Box::new(Columns::new(out)?)),
        }))
    }

    pub fn write(&mut self, rows: &CityRows<'_>) -> io::Result<()> {
        let mut start = Vec::new();
        match &mut self.0 {
            Inner::Csv(file) => {
                push_csv_text(rows.city, &mut start);
                rows.rows.iter().try_for_each(|row| {
                    push_csv(&start, row, &mut file.line);
                    file.end_line()
                })
            }
            Inner::Json(file) => {
                start.extend_from_slice(b"{\"city\":");
                push_json_text(rows.city, &mut start);
                rows.rows.iter().try_for_each(|row| {
                    push_json(&start, row, &mut file.line);
                    file.end_line()
                })
            }
            Inner::Parquet(columns) => columns.write(rows),
        }
    }

    /// Writes what is left.
    ///
    /// # Errors
    ///
    /// Where not everything could be written: the file is then not whole.
    pub fn finish(self) -> io::Result<()> {
        match self.0 {
            Inner::Csv(file) | Inner::Json(file) => file.finish(),
            Inner::Parquet(columns) => columns.finish(),
        }
    }
}

fn push_csv(city: &[u8], row: &ResultRow, line: &mut Vec<u8>) {
    line.extend_from_slice(city);
    line.push(b',');
    row.reading_at.write_to(line);
    line.push(b',');
    push_number(row.measurement.temperature(), line);
    line.push(b',');
    push_number(row.measurement.humidity(), line);
    line.push(b',');
    if let Some(wind_speed) = row.measurement.wind_speed() {
        push_number(wind_speed, line);
    }
    line.push(b',');
    push_heat_index(row.heat_index, line);
    line.push(b',');
    push_number(row.rolling_heat_index(), line);
    line.push(b',');
    push_integer(i64::from(row.count), line);
    line.push(b',');
    line.extend_from_slice(row.category.name().as_bytes());
}

fn push_json(start: &[u8], row: &ResultRow, line: &mut Vec<u8>) {
    line.extend_from_slice(start);
    line.extend_from_slice(b",\"reading_at\":\"");
    row.reading_at.write_to(line);
    line.extend_from_slice(b"\",\"temperature\":");
    push_number(row.measurement.temperature(), line);
    line.extend_from_slice(b",\"humidity\":");
    push_number(row.measurement.humidity(), line);
    line.extend_from_slice(b",\"wind_speed\":");
    match row.measurement.wind_speed() {
        Some(wind_speed) => push_number(wind_speed, line),
        None => line.extend_from_slice(b"null"),
    }
    line.extend_from_slice(b",\"heat_index\":");
    push_heat_index(row.heat_index, line);
    line.extend_from_slice(b",\"rolling_heat_index\":");
    push_number(row.rolling_heat_index(), line);
    line.extend_from_slice(b",\"count\":");
    push_integer(i64::from(row.count), line);
    line.extend_from_slice(b",\"category\":\"");
    line.extend_from_slice(row.category.name().as_bytes());
    line.extend_from_slice(b"\"}");
}

#[derive(Debug)]
struct Columns {
    table: Table,
    cities: Cities,
    reading_at: Vec<i64>,
    temperature: Vec<f64>,
    humidity: Vec<f64>,
    wind_speed: Vec<Option<f64>>,
    heat_index: Vec<f64>,
    rolling_heat_index: Vec<f64>,
    count: Vec<i64>,
    category: Vec<&'static str>,
}

impl Columns {
    fn new(out: Box<dyn Write + Send>) -> io::Result<Columns> {
        let double = |name: &str| Field::new(name, DataType::Float64, false);
        let table = Table::new(
            out,
            vec![
                (Field::new("city", city_column(), false), Encoded::Few),
                (Field::new("reading_at", time_column(), false), Encoded::Delta),
                (double("temperature"), Encoded::Few),
                (double("humidity"), Encoded::Few),
                (Field::new("wind_speed", DataType::Float64, true), Encoded::Few),
                (double("heat_index"), Encoded::Few),
                (double("rolling_heat_index"), Encoded::Unique),
                (Field::new("count", DataType::Int64, false), Encoded::Delta),
                (Field::new("category", DataType::Utf8, false), Encoded::Few),
            ],
        )?;
        Ok(Columns {
            table,
            cities: Cities::default(),
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
        let mut rest = city.rows;
        while !rest.is_empty() {
            let (rows, after) = rest.split_at(rest.len().min(BATCH_ROWS - self.cities.len()));
            self.cities.push(Some(city.city), rows.len());
            self.reading_at.extend(rows.iter().map(|row| row.reading_at.millis()));
            self.temperature.extend(rows.iter().map(|row| row.measurement.temperature()));
            self.humidity.extend(rows.iter().map(|row| row.measurement.humidity()));
            self.wind_speed.extend(rows.iter().map(|row| row.measurement.wind_speed()));
            self.heat_index.extend(rows.iter().map(|row| row.heat_index.fahrenheit()));
            self.rolling_heat_index.extend(rows.iter().map(|row| row.rolling_heat_index()));
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
        self.table.write(vec![
            self.cities.take()?,
            Arc::new(times(self.reading_at.drain(..).map(Some))),
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
