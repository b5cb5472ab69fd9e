//! Writers of changes, daily summaries and dead letters.

use std::io::{self, Write};
use std::sync::Arc;

use arrow_array::{ArrayRef, Date32Array, Float64Array, Int64Array};
use arrow_schema::{DataType, Field};

use super::parquet::{
    CityColumn, ColumnEncoding, ParquetTable, city_type, time_array, time_type, unit_field,
};
use super::row_json::push_degrees;
use super::text_output::{TextFileWriter, push_csv_text, push_integer, push_json_text, push_number};
use super::{Compression, Format};
use crate::model::time::civil_from_days;
use crate::model::{Category, ChangeLine, DayLine, DeadLetterLine, Row, TemperatureUnit};

/// Writes changes of rows as JSON lines. The file is complete once it is
/// [finished](ChangesWriter::finish).
#[derive(Debug)]
pub struct ChangesWriter {
    file: TextFileWriter,
    unit: TemperatureUnit,
}

impl ChangesWriter {
    /// Heat indexes are written in `unit`, which each line names.
    pub fn new(
        compression: Compression,
        unit: TemperatureUnit,
        out: Box<dyn Write + Send>,
    ) -> io::Result<ChangesWriter> {
        Ok(ChangesWriter { file: TextFileWriter::new(out, compression)?, unit })
    }

    pub fn write(&mut self, change: &ChangeLine<'_>) -> io::Result<()> {
        let (line, unit) = (&mut self.file.line, self.unit);
        line.extend_from_slice(b"{\"as_of\":");
        let _ = write!(line, "{}", change.as_of);
        line.extend_from_slice(b",\"city\":");
        push_json_text(change.city, line);
        line.extend_from_slice(b",\"reading_at\":\"");
        change.reading_at.write_to(line);
        line.extend_from_slice(b"\",\"before\":");
        push_row(change.before.as_ref(), unit, line);
        line.extend_from_slice(b",\"after\":");
        push_row(change.after.as_ref(), unit, line);
        push_unit(unit, line);
        line.push(b'}');
        self.file.end_line()
    }

    pub fn finish(self) -> io::Result<()> {
        self.file.finish()
    }
}

fn push_row(row: Option<&Row>, unit: TemperatureUnit, line: &mut Vec<u8>) {
    let Some(row) = row else { return line.extend_from_slice(b"null") };
    line.extend_from_slice(b"{\"heat_index\":");
    push_degrees(row.heat_index(), unit, line);
    line.extend_from_slice(b",\"rolling_heat_index\":");
    push_number(unit.mean(row.sum(), row.count()), line);
    line.extend_from_slice(b",\"count\":");
    push_integer(i64::from(row.count()), line);
    line.extend_from_slice(b",\"category\":\"");
    line.extend_from_slice(row.category().name().as_bytes());
    line.extend_from_slice(b"\"}");
}

/// Appends the last member of an object: `,"units":"celsius"`.
fn push_unit(unit: TemperatureUnit, line: &mut Vec<u8>) {
    line.extend_from_slice(b",\"units\":\"");
    line.extend_from_slice(unit.name().as_bytes());
    line.push(b'"');
}

/// Writes dead letters as JSON lines. The file is complete once it is
/// [finished](DeadLettersWriter::finish).
#[derive(Debug)]
pub struct DeadLettersWriter(TextFileWriter);

impl DeadLettersWriter {
    pub fn new(compression: Compression, out: Box<dyn Write + Send>) -> io::Result<DeadLettersWriter> {
        TextFileWriter::new(out, compression).map(DeadLettersWriter)
    }

    pub fn write(&mut self, letter: &DeadLetterLine<'_>) -> io::Result<()> {
        serde_json::to_writer(&mut self.0.line, letter)?;
        self.0.end_line()
    }

    pub fn finish(self) -> io::Result<()> {
        self.0.finish()
    }
}

/// Writes summaries of days: `city,day,readings,mean_heat_index,max_heat_index,max_at` and the
/// number of readings in each category, in `unit`, which CSV and JSON name in each line and Parquet
/// in its metadata. The file is complete once it is [finished](DailyWriter::finish).
#[derive(Debug)]
pub struct DailyWriter {
    unit: TemperatureUnit,
    inner: DailyFormat,
}

#[derive(Debug)]
enum DailyFormat {
    Csv(TextFileWriter),
    Json(TextFileWriter),
    Parquet(Box<DailyParquetColumns>),
}

impl DailyWriter {
    /// Begins a file. Parquet compresses by itself, whatever `compression` says.
    pub fn new(
        format: Format,
        compression: Compression,
        unit: TemperatureUnit,
        out: Box<dyn Write + Send>,
    ) -> io::Result<DailyWriter> {
        let inner = match format {
            Format::Csv => {
                let mut file = TextFileWriter::new(out, compression)?;
                file.line.extend_from_slice(b"city,day,readings,mean_heat_index,max_heat_index,max_at");
                for category in Category::ALL {
                    let _ = write!(file.line, ",{}", category.name());
                }
                file.line.extend_from_slice(b",units");
                file.end_line()?;
                DailyFormat::Csv(file)
            }
            Format::Json => DailyFormat::Json(TextFileWriter::new(out, compression)?),
            Format::Parquet => DailyFormat::Parquet(Box::new(DailyParquetColumns::new(unit, out)?)),
        };
        Ok(DailyWriter { unit, inner })
    }

    pub fn write(&mut self, day: &DayLine<'_>) -> io::Result<()> {
        match &mut self.inner {
            DailyFormat::Csv(file) => {
                push_csv_day(day, self.unit, &mut file.line);
                file.end_line()
            }
            DailyFormat::Json(file) => {
                push_json_day(day, self.unit, &mut file.line);
                file.end_line()
            }
            DailyFormat::Parquet(columns) => columns.write(day),
        }
    }

    /// Writes the remaining rows.
    ///
    /// # Errors
    ///
    /// If not all of them could be written: the file is then incomplete.
    pub fn finish(self) -> io::Result<()> {
        match self.inner {
            DailyFormat::Csv(file) | DailyFormat::Json(file) => file.finish(),
            DailyFormat::Parquet(columns) => columns.finish(),
        }
    }
}

/// `YYYY-MM-DD`.
fn push_day(day: i32, line: &mut Vec<u8>) {
    let (year, month, day) = civil_from_days(day.into());
    // Writing to a `Vec` cannot fail.
    let _ = write!(line, "{year:04}-{month:02}-{day:02}");
}

fn push_csv_day(day: &DayLine<'_>, unit: TemperatureUnit, line: &mut Vec<u8>) {
    push_csv_text(day.city, line);
    line.push(b',');
    push_day(day.day, line);
    line.push(b',');
    push_integer(i64::from(day.summary.readings), line);
    line.push(b',');
    push_number(unit.mean(day.summary.sum, day.summary.readings), line);
    line.push(b',');
    push_degrees(day.summary.max_heat_index, unit, line);
    line.push(b',');
    day.summary.max_at.write_to(line);
    for readings in day.summary.categories {
        line.push(b',');
        push_integer(i64::from(readings), line);
    }
    line.push(b',');
    line.extend_from_slice(unit.name().as_bytes());
}

fn push_json_day(day: &DayLine<'_>, unit: TemperatureUnit, line: &mut Vec<u8>) {
    line.extend_from_slice(b"{\"city\":");
    push_json_text(day.city, line);
    line.extend_from_slice(b",\"day\":\"");
    push_day(day.day, line);
    line.extend_from_slice(b"\",\"readings\":");
    push_integer(i64::from(day.summary.readings), line);
    line.extend_from_slice(b",\"mean_heat_index\":");
    push_number(unit.mean(day.summary.sum, day.summary.readings), line);
    line.extend_from_slice(b",\"max_heat_index\":");
    push_degrees(day.summary.max_heat_index, unit, line);
    line.extend_from_slice(b",\"max_at\":\"");
    day.summary.max_at.write_to(line);
    line.push(b'"');
    for (category, readings) in Category::ALL.iter().zip(day.summary.categories) {
        let _ = write!(line, ",\"{}\":{readings}", category.name());
    }
    push_unit(unit, line);
    line.push(b'}');
}

#[derive(Debug)]
struct DailyParquetColumns {
    unit: TemperatureUnit,
    table: ParquetTable,
    cities: CityColumn,
    day: Vec<i32>,
    max_at: Vec<i64>,
    doubles: [Vec<f64>; 2],
    /// The numbers of readings: all, then those of each category.
    counts: [Vec<i64>; 6],
}

impl DailyParquetColumns {
    const BATCH_ROWS: usize = 8 * 1024;

    fn new(unit: TemperatureUnit, out: Box<dyn Write + Send>) -> io::Result<DailyParquetColumns> {
        let count = |name: &str| (Field::new(name, DataType::Int64, false), ColumnEncoding::DeltaPacked);
        let mut columns = vec![
            (Field::new("city", city_type(), false), ColumnEncoding::Dictionary),
            (Field::new("day", DataType::Date32, false), ColumnEncoding::DeltaPacked),
            count("readings"),
            (unit_field("mean_heat_index", unit.name(), false), ColumnEncoding::ByteStreamSplit),
            (unit_field("max_heat_index", unit.name(), false), ColumnEncoding::Dictionary),
            (Field::new("max_at", time_type(), false), ColumnEncoding::DeltaPacked),
        ];
        columns.extend(Category::ALL.iter().map(|category| count(category.name())));
        Ok(DailyParquetColumns {
            unit,
            table: ParquetTable::new(out, columns, &[("units", unit.name())])?,
            cities: CityColumn::default(),
            day: Vec::new(),
            max_at: Vec::new(),
            doubles: Default::default(),
            counts: Default::default(),
        })
    }

    fn write(&mut self, line: &DayLine<'_>) -> io::Result<()> {
        let summary = &line.summary;
        self.cities.push(Some(line.city), 1);
        self.day.push(line.day);
        self.max_at.push(summary.max_at.millis());
        self.doubles[0].push(self.unit.mean(summary.sum, summary.readings));
        self.doubles[1].push(self.unit.heat_index(summary.max_heat_index));
        let counts = std::iter::once(summary.readings).chain(summary.categories);
        self.counts.iter_mut().zip(counts).for_each(|(column, count)| column.push(i64::from(count)));
        if self.cities.len() == Self::BATCH_ROWS { self.encode() } else { Ok(()) }
    }

    fn encode(&mut self) -> io::Result<()> {
        let take = std::mem::take::<Vec<f64>>;
        let [mean, max] = &mut self.doubles;
        let [readings, categories @ ..] = &mut self.counts;
        let count =
            |column: &mut Vec<i64>| -> ArrayRef { Arc::new(Int64Array::from(std::mem::take(column))) };
        let mut columns: Vec<ArrayRef> = vec![
            self.cities.take_array()?,
            Arc::new(Date32Array::from(std::mem::take(&mut self.day))),
            count(readings),
            Arc::new(Float64Array::from(take(mean))),
            Arc::new(Float64Array::from(take(max))),
            Arc::new(time_array(self.max_at.drain(..).map(Some))),
        ];
        columns.extend(categories.iter_mut().map(count));
        self.table.write_columns(columns)
    }

    fn finish(mut self) -> io::Result<()> {
        self.encode()?;
        self.table.finish()
    }
}
