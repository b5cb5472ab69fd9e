//! Reads the rows of a Parquet file.

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

use super::super::field::{Field, FieldValue};
use super::super::field_values::FieldValues;
use super::super::file_columns::map_columns;
use super::super::options::RecordNormalizer;
use super::super::panic_guard::catch_decoder_panic;
use super::super::{DecodeError, DecodeSettings, Format, LocalTimeCounts, ReadOptions, text_output};
use super::column::{ValueColumn, arrow_read_type, unsupported_type};
use crate::model::{EventTime, Refusal, Upsert};
use crate::panics::{self, PanicScope};

/// Few enough rows for a batch to stay in the cache.
const BATCH_ROWS: usize = 8 * 1024;

pub(in super::super) struct ParquetReader {
    file: File,
    metadata: ArrowReaderMetadata,
    settings: DecodeSettings,
    preparation: Option<Box<RecordNormalizer>>,
    batches: ParquetRecordBatchReader,
    fields: Vec<Field>,
    columns: Vec<ValueColumn>,
    ignored_columns: u64,
    /// The rows before the current batch, those in it, and those of it that were returned.
    rows_before: u64,
    batch_rows: usize,
    returned: usize,
    /// The text of a city that is a number.
    city: String,
    whole_rows: Option<RowJsonReader>,
    failed: bool,
}

impl ParquetReader {
    pub(in super::super) fn new(file: File, options: &ReadOptions) -> Result<ParquetReader, DecodeError> {
        options.check(Format::Parquet).map_err(DecodeError::Option)?;
        let corrupt = |detail: String| corrupt_error(1, detail);
        let file_metadata =
            catch_parquet_panic(|| ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()))
                .map_err(corrupt)?;
        check_compression(file_metadata.metadata())?;
        let metadata = with_read_types(&file_metadata, true)
            .or_else(|| with_read_types(&file_metadata, false))
            .ok_or_else(|| corrupt("its columns cannot be read as they are written".into()))?;
        let schema = metadata.schema().clone();
        let of_column = map_columns(schema.fields().iter().map(|field| field.name().as_str()), options)?;
        for (field, column) in of_column.iter().zip(schema.fields()) {
            if let Some(expected) =
                field.and_then(|field| unsupported_type(field, column.data_type(), &options.record))
            {
                let (column, kind) = (column.name().clone(), column.data_type().to_string());
                return Err(DecodeError::UnsupportedColumn { column, kind, expected });
            }
        }
        let needed = (0..of_column.len()).filter(|&column| of_column[column].is_some());
        let batches = catch_parquet_panic(|| open_batches(&file, &metadata, needed, 0)).map_err(corrupt)?;
        let fields: Vec<Field> = of_column.iter().flatten().copied().collect();
        Ok(ParquetReader {
            file,
            metadata,
            settings: options.settings,
            preparation: RecordNormalizer::if_needed(options),
            batches,
            ignored_columns: (of_column.len() - fields.len()) as u64,
            fields,
            columns: Vec::new(),
            rows_before: 0,
            batch_rows: 0,
            returned: 0,
            city: String::new(),
            whole_rows: None,
            failed: false,
        })
    }

    #[inline]
    pub(in super::super) fn next(&mut self) -> Result<Option<Result<Upsert<'_>, Refusal>>, DecodeError> {
        if self.returned == self.batch_rows && !self.next_batch()? {
            return Ok(None);
        }
        let row = self.returned;
        self.returned += 1;
        let ParquetReader { fields, columns, city, settings, preparation, .. } = self;
        Ok(Some(catch_decoder_panic(move || {
            city.clear();
            let mut record = FieldValues::new();
            for (&field, column) in fields.iter().zip(&*columns) {
                match (field, column.value(row)) {
                    (Field::City, FieldValue::Integer(_) | FieldValue::Number(_)) => {
                        push_number_city(column, row, city)
                    }
                    // Data frames write NaN for a missing value in a column of floats.
                    (Field::WindSpeed, FieldValue::Number(number)) if number.is_nan() => {}
                    (_, value) => record.set(field, value),
                }
            }
            if !city.is_empty() {
                record.set(Field::City, FieldValue::Text(city));
            }
            if let Some(preparation) = preparation {
                preparation.normalize(&mut record)?;
            }
            record.decode_upsert(settings)
        })))
    }

    #[cold]
    fn next_batch(&mut self) -> Result<bool, DecodeError> {
        self.rows_before += self.batch_rows as u64;
        (self.batch_rows, self.returned) = (0, 0);
        while self.batch_rows == 0 {
            if self.failed {
                return Ok(false);
            }
            let at = self.rows_before + 1;
            match catch_parquet_panic(|| self.batches.next().transpose()) {
                Ok(None) => return Ok(false),
                Err(detail) => {
                    self.failed = true;
                    return Err(corrupt_error(at, detail));
                }
                Ok(Some(batch)) => {
                    // The types of all columns were checked when the file was opened.
                    self.columns = batch.columns().iter().filter_map(ValueColumn::new).collect();
                    self.batch_rows = batch.num_rows();
                }
            }
        }
        Ok(true)
    }

    pub(in super::super) fn row_number(&self) -> u64 {
        self.rows_before + self.returned as u64
    }

    pub(in super::super) fn local_times(&self) -> LocalTimeCounts {
        self.preparation.as_ref().map(|preparation| preparation.local_times()).unwrap_or_default()
    }

    pub(in super::super) fn ignored_fields(&self) -> u64 {
        self.ignored_columns * self.row_number()
    }

    /// The last row as a JSON object, which is read again. Rows are requested in rising order, so
    /// all of them together cost one more pass over the file.
    pub(in super::super) fn raw(&mut self) -> Vec<u8> {
        let Some(row) = self.row_number().checked_sub(1) else { return Vec::new() };
        let mut whole_rows = match self.whole_rows.take() {
            Some(whole_rows) => whole_rows,
            None => match RowJsonReader::new(&self.file, &self.metadata, row) {
                Some(whole_rows) => whole_rows,
                None => return Vec::new(),
            },
        };
        let json = whole_rows.row_json(row);
        self.whole_rows = Some(whole_rows);
        json.unwrap_or_default()
    }
}

/// An integer is a city's key in decimal digits.
#[cold]
fn push_number_city(column: &ValueColumn, row: usize, city: &mut String) {
    city.clear();
    // Writing to a string cannot fail.
    let _ = match column {
        ValueColumn::Unsigned(array) => write!(city, "{}", array.value(row)),
        ValueColumn::Decimal(array, _) => write!(city, "{}", array.value(row)),
        ValueColumn::WideDecimal(array, _) => write!(city, "{}", array.value(row)),
        column => write!(city, "{}", column.value(row)),
    };
}

/// Reads all columns whose types JSON has, for [`ParquetReader::raw`].
struct RowJsonReader {
    /// `None` after an error.
    batches: Option<ParquetRecordBatchReader>,
    schema: SchemaRef,
    columns: Vec<(usize, ValueColumn)>,
    before: u64,
    rows: u64,
}

impl RowJsonReader {
    fn new(file: &File, metadata: &ArrowReaderMetadata, from: u64) -> Option<RowJsonReader> {
        let schema = metadata.schema();
        let flat = (0..schema.fields().len()).filter(|&at| !schema.field(at).data_type().is_nested());
        let selected: Vec<usize> = flat.clone().collect();
        let batches = catch_parquet_panic(|| open_batches(file, metadata, flat, from as usize)).ok()?;
        let schema = Arc::new(schema.project(&selected).ok()?);
        Some(RowJsonReader { batches: Some(batches), schema, columns: Vec::new(), before: from, rows: 0 })
    }

    fn row_json(&mut self, row: u64) -> Option<Vec<u8>> {
        while row >= self.before + self.rows {
            let mut batches = self.batches.take()?;
            let batch = catch_parquet_panic(|| batches.next().transpose()).ok()??;
            self.batches = Some(batches);
            self.before += self.rows;
            self.rows = batch.num_rows() as u64;
            let columns = batch.columns().iter().enumerate();
            self.columns = columns.filter_map(|(at, array)| Some((at, ValueColumn::new(array)?))).collect();
        }
        let row = row.checked_sub(self.before)? as usize;
        let mut json = vec![b'{'];
        for (at, column) in &self.columns {
            if json.len() > 1 {
                json.push(b',');
            }
            text_output::push_json_text(self.schema.field(*at).name(), &mut json);
            json.push(b':');
            push_json(column.value(row), &mut json);
        }
        json.push(b'}');
        Some(json)
    }
}

fn push_json(value: FieldValue<'_>, json: &mut Vec<u8>) {
    match value {
        FieldValue::Missing | FieldValue::Other(_) => json.extend_from_slice(b"null"),
        FieldValue::Untyped(text) | FieldValue::Text(text) => text_output::push_json_text(text, json),
        FieldValue::Number(number) => text_output::push_json_number(number, json),
        FieldValue::Integer(number) => text_output::push_integer(number, json),
        FieldValue::Boolean(boolean) => json.extend_from_slice(if boolean { b"true" } else { b"false" }),
        FieldValue::Instant(ms) | FieldValue::Local(ms) => match EventTime::from_millis(ms) {
            Some(time) => {
                json.push(b'"');
                time.write_to(json);
                if matches!(value, FieldValue::Local(_)) {
                    json.pop();
                }
                json.push(b'"');
            }
            None => text_output::push_integer(ms, json),
        },
    }
}

/// Reads the rows of some columns, by their indexes, without the first `skipped`.
fn open_batches(
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

/// The metadata with other types to read columns as, if the file allows it: strings as
/// [`arrow_read_type`] says, if `strings` is set; times of 96 bits in milliseconds, since in
/// nanoseconds those outside 1677 to 2262 would wrap.
fn with_read_types(file_metadata: &ArrowReaderMetadata, strings: bool) -> Option<ArrowReaderMetadata> {
    let in_dictionary = dictionary_columns(file_metadata.metadata());
    let wide_times = int96_columns(file_metadata.metadata());
    let fields: Vec<_> = file_metadata
        .schema()
        .fields()
        .iter()
        .map(|field| {
            let (name, kind) = (field.name().as_str(), field.data_type());
            let read = match kind {
                DataType::Timestamp(_, zone) if wide_times.contains(name) => {
                    Some(DataType::Timestamp(TimeUnit::Millisecond, zone.clone()))
                }
                _ => arrow_read_type(kind, in_dictionary.contains(name)).filter(|_| strings),
            };
            read.map_or_else(|| field.clone(), |kind| Arc::new(field.as_ref().clone().with_data_type(kind)))
        })
        .collect();
    let schema = Arc::new(Schema::new_with_metadata(fields, file_metadata.schema().metadata().clone()));
    let options = ArrowReaderOptions::new().with_schema(schema);
    ArrowReaderMetadata::try_new(file_metadata.metadata().clone(), options).ok()
}

/// The names of the columns that begin with a dictionary.
fn dictionary_columns(metadata: &ParquetMetaData) -> HashSet<&str> {
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

/// The names of the columns whose times have 96 bits: a day, and the nanoseconds in it.
fn int96_columns(metadata: &ParquetMetaData) -> HashSet<&str> {
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

/// Returns the parquet crate's error, or its panic as an error: it panics for some kinds of damage.
fn catch_parquet_panic<T, E: std::fmt::Display>(read: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    // The reader is not used again after a panic.
    match panics::catch_panic(PanicScope::Record, read) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the reader of Parquet did not expect what it holds".into()),
    }
}

fn corrupt_error(at: u64, error: impl std::fmt::Display) -> DecodeError {
    DecodeError::Corrupt { at, detail: error.to_string() }
}
