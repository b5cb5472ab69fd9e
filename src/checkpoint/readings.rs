//! Files of readings: by city, as the file of cities has them, then by time.
//!
//! They are for others to query, and to load fast: each column is encoded so that it needs no
//! compression besides, and a loader does not look at the cities, whose numbers of readings it
//! knows.

use std::sync::Arc;

use arrow_array::builder::Int64Builder;
use arrow_array::cast::AsArray as _;
use arrow_array::types::{Int8Type, Int32Type, Int64Type, TimestampMillisecondType};
use arrow_array::{
    Array as _, ArrayRef, DictionaryArray, Int8Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMillisecondArray,
};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::basic::Encoding;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::model::{Category, EventTime, HeatIndex, Revision, StoredReading};

const READING_BATCH_ROWS: usize = 16 * 1024;
const ROW_GROUP_ROWS: usize = 1 << 20;
/// A group has more rows, but for the last one of a file.
const MIN_GROUP_ROWS: u64 = 1 << 16;
/// Of a column in a row group.
const MAX_COLUMN_BYTES: i64 = 1 << 30;
/// What is read of a file to load it.
const LOADED_COLUMNS: [&str; 4] = ["reading_at", "heat_index_e6", "category", "revision"];

pub(super) fn time_column(name: &str, nullable: bool) -> Field {
    Field::new(name, DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), nullable)
}

fn dictionary_type(keys: DataType) -> DataType {
    DataType::Dictionary(keys.into(), DataType::Utf8.into())
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("city", dictionary_type(DataType::Int32), false),
        time_column("reading_at", false),
        Field::new("heat_index_e6", DataType::Int64, false),
        Field::new("category", dictionary_type(DataType::Int8), false),
        Field::new("revision", DataType::Int64, true),
    ]))
}

/// A file that is being written, in memory.
pub(super) struct ReadingsFileWriter {
    writer: ArrowWriter<Vec<u8>>,
    schema: SchemaRef,
    categories: ArrayRef,
    rows: u64,
    cities: Vec<Arc<str>>,
    city: Vec<i32>,
    reading_at: Vec<i64>,
    heat_index: Vec<i64>,
    category: Vec<i8>,
    revision: Int64Builder,
}

impl ReadingsFileWriter {
    pub(super) fn new() -> Result<ReadingsFileWriter, ParquetError> {
        let mut properties = WriterProperties::builder()
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .set_write_batch_size(READING_BATCH_ROWS)
            .set_statistics_enabled(EnabledStatistics::None);
        for name in ["reading_at", "heat_index_e6", "revision"] {
            let path = ColumnPath::from(name);
            properties = properties
                .set_column_dictionary_enabled(path.clone(), false)
                .set_column_encoding(path, Encoding::DELTA_BINARY_PACKED);
        }
        properties = properties.set_column_statistics_enabled("reading_at".into(), EnabledStatistics::Chunk);
        let schema = schema();
        let writer = ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties.build()))?;
        let categories = StringArray::from_iter_values(Category::ALL.map(Category::name));
        Ok(ReadingsFileWriter {
            writer,
            schema,
            categories: Arc::new(categories),
            rows: 0,
            cities: Vec::new(),
            city: Vec::with_capacity(READING_BATCH_ROWS),
            reading_at: Vec::with_capacity(READING_BATCH_ROWS),
            heat_index: Vec::with_capacity(READING_BATCH_ROWS),
            category: Vec::with_capacity(READING_BATCH_ROWS),
            revision: Int64Builder::with_capacity(READING_BATCH_ROWS),
        })
    }

    /// Adds readings of a city.
    pub(super) fn write_city(
        &mut self,
        city: &Arc<str>,
        readings: impl Iterator<Item = StoredReading>,
    ) -> Result<(), ParquetError> {
        if self.cities.last().is_none_or(|last| last != city) {
            self.cities.push(city.clone());
        }
        for reading in readings {
            self.reading_at.push(reading.reading_at.millis());
            self.heat_index.push(reading.heat_index.micros());
            self.category.push(reading.category as i8);
            self.revision.append_option(reading.revision.map(Revision::number));
        }
        self.city.resize(self.reading_at.len(), self.cities.len() as i32 - 1);
        if self.city.len() >= READING_BATCH_ROWS { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), ParquetError> {
        let cities = StringArray::from_iter_values(self.cities.drain(..));
        let city = Int32Array::from(self.city.split_off(0));
        let category = Int8Array::from(self.category.split_off(0));
        let reading_at = TimestampMillisecondArray::from(self.reading_at.split_off(0));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(DictionaryArray::<Int32Type>::try_new(city, Arc::new(cities))?),
            Arc::new(reading_at.with_timezone("UTC")),
            Arc::new(Int64Array::from(self.heat_index.split_off(0))),
            Arc::new(DictionaryArray::<Int8Type>::try_new(category, self.categories.clone())?),
            Arc::new(self.revision.finish()),
        ];
        let batch = RecordBatch::try_new(self.schema.clone(), columns)?;
        self.rows += batch.num_rows() as u64;
        self.writer.write(&batch)
    }

    /// The file and its rows.
    pub(super) fn finish(mut self) -> Result<(Vec<u8>, u64), ParquetError> {
        self.flush()?;
        Ok((self.writer.into_inner()?, self.rows))
    }
}

/// Compares what a footer says with what is known of the file, before anything is decoded by it.
pub(super) fn check_footer_sizes(footer: &ParquetMetaData, rows: u64) -> Result<(), ParquetError> {
    let counted = footer.row_groups().iter().map(|group| u64::try_from(group.num_rows()).unwrap_or(u64::MAX));
    let groups = footer.num_row_groups() as u64;
    let is_so = counted.fold(0, u64::saturating_add) == rows && groups <= rows / MIN_GROUP_ROWS + 1;
    let is_small = |column: &ColumnChunkMetaData| {
        let sizes = [column.uncompressed_size(), column.compressed_size()];
        sizes.iter().all(|size| (0..=MAX_COLUMN_BYTES).contains(size))
    };
    match is_so && footer.row_groups().iter().flat_map(|group| group.columns()).all(is_small) {
        true => Ok(()),
        false => Err(ParquetError::General("its footer does not have the sizes of its rows".into())),
    }
}

/// A file that is being read, in the order in which it was written.
pub(super) struct ReadingsFileReader {
    batches: ParquetRecordBatchReader,
    batch: Option<ReadingColumns>,
    at: usize,
}

struct ReadingColumns {
    reading_at: TimestampMillisecondArray,
    heat_index: Int64Array,
    category: Int8Array,
    categories: Vec<Option<Category>>,
    /// Nothing where no reading has one.
    revision: Option<Int64Array>,
}

impl ReadingsFileReader {
    /// `rows` are those that it must have.
    pub(super) fn open(file: Bytes, rows: u64) -> Result<ReadingsFileReader, ParquetError> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file)?;
        check_footer_sizes(builder.metadata(), rows)?;
        if !builder.schema().fields().iter().eq(schema().fields().iter()) {
            return Err(ParquetError::General("its columns are not those of a file of readings".into()));
        }
        let columns = ProjectionMask::columns(builder.parquet_schema(), LOADED_COLUMNS);
        let batches = builder.with_projection(columns).with_batch_size(READING_BATCH_ROWS).build()?;
        Ok(ReadingsFileReader { batches, batch: None, at: 0 })
    }

    /// Gives the next `count` readings: all of a city. They are right and in order, or there is an
    /// error.
    pub(super) fn read_city(
        &mut self,
        count: u64,
        mut each: impl FnMut(StoredReading),
    ) -> Result<(), ParquetError> {
        let mut remaining = count;
        let mut before = i64::MIN;
        while remaining > 0 {
            let rows = self.batch.as_ref().map_or(0, |batch| batch.heat_index.len());
            if self.at == rows {
                self.at = 0;
                self.batch = Some(match self.batches.next() {
                    Some(batch) => ReadingColumns::from_batch(&batch?)?,
                    None => {
                        return Err(ParquetError::General(
                            "it has fewer readings than its cities declare".into(),
                        ));
                    }
                });
                continue;
            }
            let Some(batch) = &self.batch else { continue };
            let end = rows.min(self.at.saturating_add(remaining as usize));
            for row in self.at..end {
                let millis = batch.reading_at.value(row);
                let reading = batch.reading(row, millis).filter(|_| millis > before);
                before = millis;
                each(reading.ok_or_else(|| ParquetError::General("it has an invalid reading".into()))?);
            }
            remaining -= (end - self.at) as u64;
            self.at = end;
        }
        Ok(())
    }
}

impl ReadingColumns {
    fn from_batch(batch: &RecordBatch) -> Result<ReadingColumns, ParquetError> {
        let column = |name: &str| {
            batch
                .column_by_name(name)
                .ok_or_else(|| ParquetError::General(format!("it has no column {name}")))
        };
        let category = column("category")?.as_dictionary::<Int8Type>();
        let names = category.values().as_string::<i32>();
        let category_of = |category_name: Option<&str>| {
            Category::ALL.into_iter().find(|category| category_name == Some(category.name()))
        };
        let revision = column("revision")?.as_primitive::<Int64Type>();
        Ok(ReadingColumns {
            reading_at: column("reading_at")?.as_primitive::<TimestampMillisecondType>().clone(),
            heat_index: column("heat_index_e6")?.as_primitive::<Int64Type>().clone(),
            category: category.keys().clone(),
            categories: names.iter().map(category_of).collect(),
            revision: Some(revision.clone()).filter(|revision| revision.null_count() < revision.len()),
        })
    }

    #[inline]
    fn reading(&self, row: usize, millis: i64) -> Option<StoredReading> {
        let heat_index = HeatIndex::from_micros(self.heat_index.value(row));
        let revision = match &self.revision {
            Some(revision) if revision.is_valid(row) => Some(Revision::new(revision.value(row))?),
            _ => None,
        };
        Some(StoredReading {
            reading_at: EventTime::from_millis(millis)?,
            heat_index: Some(heat_index).filter(|hi| (HeatIndex::MIN..=HeatIndex::MAX).contains(hi))?,
            category: (*self.categories.get(usize::try_from(self.category.value(row)).ok()?)?)?,
            revision,
        })
    }
}
