//! Rows of a Parquet file.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::File;
use std::sync::Arc;

use arrow_schema::{DataType, Schema, SchemaRef, TimeUnit};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::basic::{Compression, Encoding, Type as PhysicalType};
use parquet::file::metadata::ParquetMetaData;

use super::super::fields::{self, Field, Record, Value};
use super::super::guard::guarded;
use super::super::options::Preparation;
use super::super::{DecodeError, DecodeSettings, Format, LocalTimeCounts, ReadOptions, text};
use super::column::{Column, expected, read_as};
use crate::model::{EventTime, Refusal, Upsert};
use crate::panics::{self, Scope};

/// Few enough for a batch to stay in the cache.
const BATCH_ROWS: usize = 8 * 1024;

pub(in super::super) struct ParquetReader {
    file: File,
    metadata: ArrowReaderMetadata,
    settings: DecodeSettings,
    preparation: Option<Box<Preparation>>,
    batches: ParquetRecordBatchReader,
    fields: Vec<Field>,
    columns: Vec<Column>,
    ignored_columns: u64,
    /// Of the batch at hand: the rows before it, those it has, and those returned.
    before: u64,
    rows: usize,
    returned: usize,
    /// A city that is a number, as text.
    city: String,
    whole_rows: Option<WholeRows>,
    failed: bool,
}

impl ParquetReader {
    pub(in super::super) fn new(file: File, options: &ReadOptions) -> Result<ParquetReader, DecodeError> {
        options.check(Format::Parquet).map_err(DecodeError::Option)?;
        let corrupt = |detail: String| damaged(1, detail);
        let found =
            caught(|| ArrowReaderMetadata::load(&file, ArrowReaderOptions::new())).map_err(corrupt)?;
        check_compression(found.metadata())?;
        let metadata = with_read_types(&found, true)
            .or_else(|| with_read_types(&found, false))
            .ok_or_else(|| corrupt("its columns cannot be read as they are written".into()))?;
        let schema = metadata.schema().clone();
        let of_column = fields::columns(schema.fields().iter().map(|field| field.name().as_str()), options)?;
        for (field, column) in of_column.iter().zip(schema.fields()) {
            if let Some(expected) =
                field.and_then(|field| expected(field, column.data_type(), &options.record))
            {
                let (column, kind) = (column.name().clone(), column.data_type().to_string());
                return Err(DecodeError::UnsupportedColumn { column, kind, expected });
            }
        }
        let needed = (0..of_column.len()).filter(|&column| of_column[column].is_some());
        let batches = caught(|| batches(&file, &metadata, needed, 0)).map_err(corrupt)?;
        let fields: Vec<Field> = of_column.iter().flatten().copied().collect();
        Ok(ParquetReader {
            file,
            metadata,
            settings: options.settings,
            preparation: Preparation::new(options),
            batches,
            ignored_columns: (of_column.len() - fields.len()) as u64,
            fields,
            columns: Vec::new(),
            before: 0,
            rows: 0,
            returned: 0,
            city: String::new(),
            whole_rows: None,
            failed: false,
        })
    }

    #[inline]
    pub(in super::super) fn next(&mut self) -> Result<Option<Result<Upsert<'_>, Refusal>>, DecodeError> {
        if self.returned == self.rows && !self.next_batch()? {
            return Ok(None);
        }
        let row = self.returned;
        self.returned += 1;
        let ParquetReader { fields, columns, city, settings, preparation, .. } = self;
        Ok(Some(guarded(move || {
            city.clear();
            let mut record = Record::new();
            for (&field, column) in fields.iter().zip(&*columns) {
                match (field, column.value(row)) {
                    (Field::City, Value::Integer(_) | Value::Number(_)) => city_of_number(column, row, city),
                    // How data frames write that a column of floats has nothing there.
                    (Field::WindSpeed, Value::Number(number)) if number.is_nan() => {}
                    (_, value) => record.set(field, value),
                }
            }
            if !city.is_empty() {
                record.set(Field::City, Value::Text(city));
            }
            if let Some(preparation) = preparation {
                preparation.apply(&mut record)?;
            }
            record.upsert(settings)
        })))
    }

    #[cold]
    fn next_batch(&mut self) -> Result<bool, DecodeError> {
        self.before += self.rows as u64;
        (self.rows, self.returned) = (0, 0);
        while self.rows == 0 {
            if self.failed {
                return Ok(false);
            }
            let at = self.before + 1;
            match caught(|| self.batches.next().transpose()) {
                Ok(None) => return Ok(false),
                Err(detail) => {
                    self.failed = true;
                    return Err(damaged(at, detail));
                }
                Ok(Some(batch)) => {
                    // Every column has one of the types that were checked.
                    self.columns = batch.columns().iter().filter_map(Column::new).collect();
                    self.rows = batch.num_rows();
                }
            }
        }
        Ok(true)
    }

    pub(in super::super) fn row(&self) -> u64 {
        self.before + self.returned as u64
    }

    pub(in super::super) fn local_times(&self) -> LocalTimeCounts {
        self.preparation.as_ref().map(|preparation| preparation.local_times()).unwrap_or_default()
    }

    pub(in super::super) fn ignored_fields(&self) -> u64 {
        self.ignored_columns * self.row()
    }

    /// The row last returned as a JSON object, read a second time. Rows are asked for in rising order, so that all
    /// together cost one more pass over the file and no more.
    pub(in super::super) fn raw(&mut self) -> Vec<u8> {
        let Some(row) = self.row().checked_sub(1) else { return Vec::new() };
        let mut whole_rows = match self.whole_rows.take() {
            Some(whole_rows) => whole_rows,
            None => match WholeRows::new(&self.file, &self.metadata, row) {
                Some(whole_rows) => whole_rows,
                None => return Vec::new(),
            },
        };
        let json = whole_rows.json(row);
        self.whole_rows = Some(whole_rows);
        json.unwrap_or_default()
    }
}

/// An integer is a fine key: its decimal text.
#[cold]
fn city_of_number(column: &Column, row: usize, city: &mut String) {
    city.clear();
    // Writing to a string cannot fail.
    let _ = match column {
        Column::Unsigned(array) => write!(city, "{}", array.value(row)),
        Column::Decimal(array, _) => write!(city, "{}", array.value(row)),
        Column::WideDecimal(array, _) => write!(city, "{}", array.value(row)),
        column => write!(city, "{}", column.value(row)),
    };
}

/// Reads all columns of types that JSON has, for [`ParquetReader::raw`].
struct WholeRows {
    /// Gone after an error.
    batches: Option<ParquetRecordBatchReader>,
    schema: SchemaRef,
    columns: Vec<(usize, Column)>,
    before: u64,
    rows: u64,
}

impl WholeRows {
    fn new(file: &File, metadata: &ArrowReaderMetadata, from: u64) -> Option<WholeRows> {
        let schema = metadata.schema();
        let flat = (0..schema.fields().len()).filter(|&at| !schema.field(at).data_type().is_nested());
        let selected: Vec<usize> = flat.clone().collect();
        let batches = caught(|| batches(file, metadata, flat, from as usize)).ok()?;
        let schema = Arc::new(schema.project(&selected).ok()?);
        Some(WholeRows { batches: Some(batches), schema, columns: Vec::new(), before: from, rows: 0 })
    }

    fn json(&mut self, row: u64) -> Option<Vec<u8>> {
        while row >= self.before + self.rows {
            let mut batches = self.batches.take()?;
            let batch = caught(|| batches.next().transpose()).ok()??;
            self.batches = Some(batches);
            self.before += self.rows;
            self.rows = batch.num_rows() as u64;
            let columns = batch.columns().iter().enumerate();
            self.columns = columns.filter_map(|(at, array)| Some((at, Column::new(array)?))).collect();
        }
        let row = row.checked_sub(self.before)? as usize;
        let mut json = vec![b'{'];
        for (at, column) in &self.columns {
            if json.len() > 1 {
                json.push(b',');
            }
            text::push_json_text(self.schema.field(*at).name(), &mut json);
            json.push(b':');
            push_json(column.value(row), &mut json);
        }
        json.push(b'}');
        Some(json)
    }
}

fn push_json(value: Value<'_>, json: &mut Vec<u8>) {
    match value {
        Value::Missing | Value::Other(_) => json.extend_from_slice(b"null"),
        Value::Untyped(text) | Value::Text(text) => text::push_json_text(text, json),
        Value::Number(number) => text::push_json_number(number, json),
        Value::Integer(number) => text::push_integer(number, json),
        Value::Boolean(boolean) => json.extend_from_slice(if boolean { b"true" } else { b"false" }),
        Value::Instant(ms) | Value::Local(ms) => match EventTime::from_millis(ms) {
            Some(time) => {
                json.push(b'"');
                time.write_to(json);
                if matches!(value, Value::Local(_)) {
                    json.pop();
                }
                json.push(b'"');
            }
            None => text::push_integer(ms, json),
        },
    }
}

/// The rows of some of the file's columns, by the columns' places, without the first `skipped`.
fn batches(
    file: &File,
    metadata: &ArrowReaderMetadata,
    columns: impl Iterator<Item = usize>,
    skipped: usize,
) -> parquet::errors::Result<ParquetRecordBatchReader> {
    let projection = ProjectionMask::roots(metadata.parquet_schema(), columns);
    ParquetRecordBatchReaderBuilder::new_with_metadata(file.try_clone()?, metadata.clone())
        .with_projection(projection)
        .with_batch_size(BATCH_ROWS)
        .with_offset(skipped)
        .build()
}

/// The file with its columns read as this needs them, if it takes that: those of strings as [`read_as`] says, where asked;
/// times of 96 bits in milliseconds, since in nanoseconds those outside 1677 to 2262 would wrap.
fn with_read_types(found: &ArrowReaderMetadata, strings: bool) -> Option<ArrowReaderMetadata> {
    let in_dictionary = columns_in_dictionary(found.metadata());
    let wide_times = columns_of_wide_times(found.metadata());
    let fields: Vec<_> = found
        .schema()
        .fields()
        .iter()
        .map(|field| {
            let (name, kind) = (field.name().as_str(), field.data_type());
            let read = match kind {
                DataType::Timestamp(_, zone) if wide_times.contains(name) => {
                    Some(DataType::Timestamp(TimeUnit::Millisecond, zone.clone()))
                }
                _ => read_as(kind, in_dictionary.contains(name)).filter(|_| strings),
            };
            read.map_or_else(|| field.clone(), |kind| Arc::new(field.as_ref().clone().with_data_type(kind)))
        })
        .collect();
    let schema = Arc::new(Schema::new_with_metadata(fields, found.schema().metadata().clone()));
    let options = ArrowReaderOptions::new().with_schema(schema);
    ArrowReaderMetadata::try_new(found.metadata().clone(), options).ok()
}

/// The names of the columns that begin with a dictionary.
fn columns_in_dictionary(metadata: &ParquetMetaData) -> HashSet<&str> {
    let is_dictionary =
        |encoding: Encoding| matches!(encoding, Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY);
    let chunks = metadata.row_groups().first().into_iter().flat_map(|group| group.columns());
    chunks
        .filter(|chunk| chunk.encodings().any(is_dictionary))
        .filter_map(|chunk| match chunk.column_path().parts() {
            [name] => Some(name.as_str()),
            _ => None,
        })
        .collect()
}

/// The names of the columns whose times have 96 bits: a day, and the nanoseconds of it.
fn columns_of_wide_times(metadata: &ParquetMetaData) -> HashSet<&str> {
    let columns = metadata.file_metadata().schema_descr().columns();
    columns
        .iter()
        .filter(|column| column.physical_type() == PhysicalType::INT96)
        .filter_map(|column| match column.path().parts() {
            [name] => Some(name.as_str()),
            _ => None,
        })
        .collect()
}

fn check_compression(metadata: &ParquetMetaData) -> Result<(), DecodeError> {
    for chunk in metadata.row_groups().iter().flat_map(|group| group.columns()) {
        match chunk.compression() {
            Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::GZIP(_) | Compression::ZSTD(_) => {
            }
            other => return Err(DecodeError::UnsupportedCompression(other.to_string())),
        }
    }
    Ok(())
}

/// What the parquet crate says of a file, panics included: it has some for damage that it does not expect.
fn caught<T, E: std::fmt::Display>(read: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    // No reader is asked again after a panic.
    match panics::catch(Scope::Record, read) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the reader of Parquet did not expect what it holds".into()),
    }
}

fn damaged(at: u64, error: impl std::fmt::Display) -> DecodeError {
    DecodeError::Corrupt { at, detail: error.to_string() }
}
