//! Writes tables of columns, batch by batch.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, DictionaryArray, Int32Array, RecordBatch, StringArray, TimestampMillisecondArray,
};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::arrow::{ArrowWriter, add_encoded_arrow_schema_to_metadata};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

/// A writer holds the pages of one row group in memory, a few bytes for each value.
const ROW_GROUP_ROWS: usize = 1 << 20;

/// The distribution of a column's values, which decides their encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum ColumnEncoding {
    /// Few different values: a dictionary.
    Dictionary,
    /// Doubles that are nearly all different.
    ByteStreamSplit,
    /// Integers close to the ones before them.
    DeltaPacked,
}

/// The key of a column's unit in its metadata.
const UNIT_METADATA_KEY: &str = "units";

/// A column of doubles with the unit of its values.
pub(in super::super) fn unit_field(name: &str, unit: &str, nullable: bool) -> Field {
    let metadata = HashMap::from([(UNIT_METADATA_KEY.to_owned(), unit.to_owned())]);
    Field::new(name, DataType::Float64, nullable).with_metadata(metadata)
}

/// A Parquet file while it is written.
pub(in super::super) struct ParquetTable {
    writer: ArrowWriter<Box<dyn Write + Send>>,
    schema: SchemaRef,
}

impl ParquetTable {
    /// `metadata` is the file's.
    pub(in super::super) fn new(
        out: Box<dyn Write + Send>,
        columns: Vec<(Field, ColumnEncoding)>,
        metadata: &[(&str, &str)],
    ) -> io::Result<ParquetTable> {
        let pairs = metadata.iter().map(|(key, value)| KeyValue::new((*key).to_owned(), (*value).to_owned()));
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).map_err(io_error)?))
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .set_statistics_enabled(EnabledStatistics::None)
            .set_key_value_metadata(Some(pairs.collect()))
            .set_write_batch_size(8 * 1024);
        for (field, encoded) in &columns {
            let path = ColumnPath::from(field.name().as_str());
            properties = match encoded {
                ColumnEncoding::Dictionary => properties,
                ColumnEncoding::ByteStreamSplit => properties
                    .set_column_dictionary_enabled(path.clone(), false)
                    .set_column_encoding(path, Encoding::BYTE_STREAM_SPLIT),
                ColumnEncoding::DeltaPacked => properties
                    .set_column_dictionary_enabled(path.clone(), false)
                    .set_column_statistics_enabled(path.clone(), EnabledStatistics::Chunk)
                    .set_column_encoding(path, Encoding::DELTA_BINARY_PACKED),
            };
        }
        let fields: Vec<Field> = columns.into_iter().map(|(field, _)| field).collect();
        let schema = Arc::new(Schema::new(fields));
        let mut properties = properties.build();
        // Parquet has no metadata of columns, so units are in the schema that arrow stores beside
        // it; in that schema a city is a string, as readers of the file see it.
        add_encoded_arrow_schema_to_metadata(&with_strings(&schema), &mut properties);
        let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
        let writer = ArrowWriter::try_new_with_options(out, schema.clone(), options).map_err(io_error)?;
        Ok(ParquetTable { writer, schema })
    }

    /// Writes rows, given as columns in the order of the schema.
    pub(in super::super) fn write_columns(&mut self, columns: Vec<ArrayRef>) -> io::Result<()> {
        let batch = RecordBatch::try_new(self.schema.clone(), columns).map_err(io::Error::other)?;
        self.writer.write(&batch).map_err(io_error)
    }

    /// Adds to the metadata of the file.
    pub(in super::super) fn add_metadata(&mut self, key: &str, value: &str) {
        self.writer.append_key_value_metadata(KeyValue::new(key.to_owned(), value.to_owned()));
    }

    pub(in super::super) fn finish(self) -> io::Result<()> {
        let mut writer = self.writer;
        writer.finish().map_err(io_error)?;
        writer.inner_mut().flush()
    }
}

impl std::fmt::Debug for ParquetTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Table")
    }
}

/// The schema with strings in place of dictionaries of strings.
fn with_strings(schema: &Schema) -> Schema {
    let plain = |field: &Arc<Field>| match field.data_type() {
        DataType::Dictionary(_, values) => field.as_ref().clone().with_data_type(values.as_ref().clone()),
        _ => field.as_ref().clone(),
    };
    Schema::new(schema.fields().iter().map(plain).collect::<Vec<_>>())
}

/// The error of the file underneath, if it is one: a full disk is then named as such.
fn io_error(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(inner) => match inner.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(inner) => io::Error::other(inner),
        },
        error => io::Error::other(error),
    }
}

/// The type of a column of instants.
pub(in super::super) fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

pub(in super::super) fn time_array(
    millis: impl IntoIterator<Item = Option<i64>>,
) -> TimestampMillisecondArray {
    TimestampMillisecondArray::from_iter(millis).with_timezone("UTC")
}

/// The type of a column of cities.
pub(in super::super) fn city_type() -> DataType {
    DataType::Dictionary(DataType::Int32.into(), DataType::Utf8.into())
}

/// The cities of rows: a run of rows of one city names it once.
#[derive(Debug, Default)]
pub(in super::super) struct CityColumn {
    keys: Vec<Option<i32>>,
    names: Vec<Box<str>>,
}

impl CityColumn {
    /// Adds `count` rows of one city, or without a city.
    pub(in super::super) fn push(&mut self, city: Option<&str>, count: usize) {
        if let Some(city) = city
            && self.names.last().is_none_or(|last| **last != *city)
        {
            self.names.push(city.into());
        }
        let key = city.map(|_| self.names.len() as i32 - 1);
        self.keys.resize(self.keys.len() + count, key);
    }

    pub(in super::super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Takes the column; the builder is empty then.
    pub(in super::super) fn take_array(&mut self) -> io::Result<ArrayRef> {
        let keys = Int32Array::from(std::mem::take(&mut self.keys));
        let names = StringArray::from_iter_values(self.names.drain(..));
        let cities =
            DictionaryArray::<Int32Type>::try_new(keys, Arc::new(names)).map_err(io::Error::other)?;
        Ok(Arc::new(cities))
    }
}
