//! Writes readings as a log has them: `city,reading_at,temperature,humidity,wind_speed`, and `op`
//! if it is wanted.

use std::io::{self, Write};
use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, StringArray};
use arrow_schema::{DataType, Field};

use super::parquet::{CityColumn, ColumnEncoding, ParquetTable, city_type, time_array, time_type};
use super::text_output::{
    TextFileWriter, push_csv_text, push_integer, push_json_number, push_json_text, push_number,
};
use super::{Compression, Format};
use crate::model::{EventTime, ReadingEvent, Revision, Upsert};

/// The number of rows that are encoded at once.
const BATCH_ROWS: usize = 8 * 1024;

/// The fields of a record, which need not meet any rule. `None` is blank in CSV, absent in JSON,
/// null in Parquet.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RecordFields<'a> {
    pub city: Option<&'a str>,
    pub reading_at: Option<EventTime>,
    /// °F.
    pub temperature: Option<f64>,
    /// %.
    pub humidity: Option<f64>,
    /// mph.
    pub wind_speed: Option<f64>,
    /// Only single records have one; files have none.
    pub revision: Option<Revision>,
    /// Whether the record is a withdrawal; only if the writer writes operations.
    pub withdrawal: bool,
}

impl<'a> RecordFields<'a> {
    /// The fields of an arrival within the rules.
    pub fn from_event(city: &'a str, reading_at: EventTime, event: &ReadingEvent) -> RecordFields<'a> {
        let key = RecordFields { city: Some(city), reading_at: Some(reading_at), ..RecordFields::default() };
        match event.measurement() {
            Some(measurement) => RecordFields {
                temperature: Some(measurement.temperature()),
                humidity: Some(measurement.humidity()),
                wind_speed: measurement.wind_speed(),
                ..key
            },
            None => RecordFields { withdrawal: true, ..key },
        }
    }

    /// The fields of a decoded arrival.
    pub fn from_upsert(upsert: &Upsert<'a>) -> RecordFields<'a> {
        let Upsert { city, reading_at, ref event, revision } = *upsert;
        RecordFields { revision, ..RecordFields::from_event(city, reading_at, event) }
    }
}

/// Writes a log of readings. The file is complete once it is [finished](ReadingsWriter::finish).
#[derive(Debug)]
pub struct ReadingsWriter {
    ops: bool,
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Csv(TextFileWriter),
    Json(TextFileWriter),
    Parquet(Box<ReadingsParquetColumns>),
}

impl ReadingsWriter {
    /// Begins a file. With `ops` it can hold withdrawals: as a column `op` of `upsert` and
    /// `delete`, in JSON as `"deleted":true`. Parquet compresses by itself, whatever `compression`
    /// says.
    pub fn new(
        format: Format,
        compression: Compression,
        ops: bool,
        out: Box<dyn Write + Send>,
    ) -> io::Result<ReadingsWriter> {
        let inner = match format {
            Format::Csv => {
                let mut file = TextFileWriter::new(out, compression)?;
                file.line.extend_from_slice(b"city,reading_at,temperature,humidity,wind_speed");
                file.line.extend_from_slice(if ops { b",op" } else { b"" });
                file.end_line()?;
                Inner::Csv(file)
            }
            Format::Json => Inner::Json(TextFileWriter::new(out, compression)?),
            Format::Parquet => Inner::Parquet(Box::new(ReadingsParquetColumns::new(ops, out)?)),
        };
        Ok(ReadingsWriter { ops, inner })
    }

    /// Writes one arrival.
    ///
    /// # Errors
    ///
    /// If the file cannot be written, or for a withdrawal in a file without operations.
    pub fn write(&mut self, city: &str, reading_at: EventTime, event: &ReadingEvent) -> io::Result<()> {
        self.write_fields(&RecordFields::from_event(city, reading_at, event))
    }

    /// Writes a record as it is, within the rules or not.
    pub fn write_fields(&mut self, fields: &RecordFields<'_>) -> io::Result<()> {
        if fields.withdrawal && !self.ops {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a withdrawal in a file without operations",
            ));
        }
        match &mut self.inner {
            Inner::Csv(file) => {
                push_csv(fields, self.ops, &mut file.line);
                file.end_line()
            }
            Inner::Json(file) => {
                push_json_record(fields, &mut file.line);
                file.end_line()
            }
            Inner::Parquet(columns) => columns.write(fields),
        }
    }

    /// Writes a line of any bytes, such as one that is no record. Only text formats have lines.
    pub fn write_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.inner {
            Inner::Csv(file) | Inner::Json(file) => {
                file.line.extend_from_slice(bytes);
                file.end_line()
            }
            Inner::Parquet(_) => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "a Parquet file has no lines"))
            }
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

fn push_csv(fields: &RecordFields<'_>, ops: bool, line: &mut Vec<u8>) {
    push_csv_text(fields.city.unwrap_or_default(), line);
    line.push(b',');
    if let Some(reading_at) = fields.reading_at {
        reading_at.write_to(line);
    }
    for number in [fields.temperature, fields.humidity, fields.wind_speed] {
        line.push(b',');
        if let Some(number) = number {
            push_number(number, line);
        }
    }
    if ops {
        line.extend_from_slice(if fields.withdrawal { b",delete" } else { b",upsert" });
    }
}

/// Appends a record as one JSON object, for a log that takes records one by one.
pub fn push_json_record(fields: &RecordFields<'_>, line: &mut Vec<u8>) {
    line.push(b'{');
    if let Some(city) = fields.city {
        line.extend_from_slice(b"\"city\":");
        push_json_text(city, line);
        line.push(b',');
    }
    if let Some(reading_at) = fields.reading_at {
        line.extend_from_slice(b"\"reading_at\":\"");
        reading_at.write_to(line);
        line.extend_from_slice(b"\",");
    }
    for (name, number) in [
        ("\"temperature\":", fields.temperature),
        ("\"humidity\":", fields.humidity),
        ("\"wind_speed\":", fields.wind_speed),
    ] {
        if let Some(number) = number {
            line.extend_from_slice(name.as_bytes());
            push_json_number(number, line);
            line.push(b',');
        }
    }
    if let Some(revision) = fields.revision {
        line.extend_from_slice(b"\"revision\":");
        push_integer(revision.number(), line);
        line.push(b',');
    }
    if fields.withdrawal {
        line.extend_from_slice(b"\"deleted\":true,");
    }
    line.pop_if(|last| *last == b',');
    line.push(b'}');
}

#[derive(Debug)]
struct ReadingsParquetColumns {
    table: ParquetTable,
    cities: CityColumn,
    reading_at: Vec<Option<i64>>,
    temperature: Vec<Option<f64>>,
    humidity: Vec<Option<f64>>,
    wind_speed: Vec<Option<f64>>,
    ops: Option<Vec<&'static str>>,
}

impl ReadingsParquetColumns {
    fn new(ops: bool, out: Box<dyn Write + Send>) -> io::Result<ReadingsParquetColumns> {
        let double = |name: &str| (Field::new(name, DataType::Float64, true), ColumnEncoding::Dictionary);
        let mut columns = vec![
            (Field::new("city", city_type(), true), ColumnEncoding::Dictionary),
            (Field::new("reading_at", time_type(), true), ColumnEncoding::DeltaPacked),
            double("temperature"),
            double("humidity"),
            double("wind_speed"),
        ];
        if ops {
            columns.push((Field::new("op", DataType::Utf8, false), ColumnEncoding::Dictionary));
        }
        Ok(ReadingsParquetColumns {
            table: ParquetTable::new(out, columns, &[])?,
            cities: CityColumn::default(),
            reading_at: Vec::new(),
            temperature: Vec::new(),
            humidity: Vec::new(),
            wind_speed: Vec::new(),
            ops: ops.then(Vec::new),
        })
    }

    fn write(&mut self, fields: &RecordFields<'_>) -> io::Result<()> {
        self.cities.push(fields.city, 1);
        self.reading_at.push(fields.reading_at.map(EventTime::millis));
        self.temperature.push(fields.temperature);
        self.humidity.push(fields.humidity);
        self.wind_speed.push(fields.wind_speed);
        if let Some(ops) = &mut self.ops {
            ops.push(if fields.withdrawal { "delete" } else { "upsert" });
        }
        if self.cities.len() == BATCH_ROWS { self.encode() } else { Ok(()) }
    }

    fn encode(&mut self) -> io::Result<()> {
        let doubles = |values: &mut Vec<Option<f64>>| -> ArrayRef {
            Arc::new(Float64Array::from_iter(values.drain(..)))
        };
        let mut columns = vec![
            self.cities.take_array()?,
            Arc::new(time_array(self.reading_at.drain(..))),
            doubles(&mut self.temperature),
            doubles(&mut self.humidity),
            doubles(&mut self.wind_speed),
        ];
        if let Some(ops) = &mut self.ops {
            columns.push(Arc::new(StringArray::from_iter_values(ops.drain(..))));
        }
        self.table.write_columns(columns)
    }

    fn finish(mut self) -> io::Result<()> {
        self.encode()?;
        self.table.finish()
    }
}
