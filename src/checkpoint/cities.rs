//! Files of cities: all of their state but the readings.

use std::sync::Arc;

use arrow_array::builder::{
    Float64Builder, Int64Builder, StringBuilder, TimestampMillisecondBuilder, UInt32Builder, UInt64Builder,
};
use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    ArrowPrimitiveType, Float64Type, Int64Type, TimestampMillisecondType, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, BooleanArray, ListArray, PrimitiveArray, RecordBatch, StructArray};
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use super::format::{FIRST_MANIFEST_FORMAT, MANIFEST_FORMAT};
use super::list_columns::{list_builder, list_item, push_field};
use super::periods::{PeriodColumns, encode_periods, period_columns};
use super::readings::{check_footer_sizes, time_column};
use crate::model::reading::check_city_key;
use crate::model::{CityPeriods, CitySnapshot, EventTime, Measurement, PartitionName, Revision};

const CITY_BATCH_ROWS: usize = 4 * 1024;

/// A city without its readings.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct CityRecord {
    pub name: Arc<str>,
    pub partition: PartitionName,
    pub high: Option<EventTime>,
    pub since: EventTime,
    /// How many are in the file of readings.
    pub readings: u64,
    pub tombstones: Vec<(EventTime, Option<Revision>)>,
    pub measurements: Vec<(EventTime, Measurement)>,
    pub is_split: bool,
    pub periods: Option<CityPeriods>,
}

impl CityRecord {
    pub(super) fn from_state(state: &CitySnapshot, partition: PartitionName) -> CityRecord {
        CityRecord {
            name: state.name.clone(),
            partition,
            high: state.high,
            since: state.changed_since,
            readings: state.blocks.iter().map(|block| block.len() as u64).sum(),
            tombstones: state.tombstones.clone(),
            measurements: state.measurements.clone(),
            is_split: state.is_split,
            periods: state.periods.clone(),
        }
    }
}

fn tombstone_fields() -> Fields {
    Fields::from(vec![time_column("reading_at", false), Field::new("revision", DataType::Int64, true)])
}

fn measurement_fields() -> Fields {
    Fields::from(vec![
        time_column("reading_at", false),
        Field::new("temperature", DataType::Float64, false),
        Field::new("humidity", DataType::Float64, false),
        Field::new("wind_speed", DataType::Float64, true),
    ])
}

/// The columns of manifest format 1.
fn first_columns() -> Vec<Field> {
    vec![
        Field::new("city", DataType::Utf8, false),
        Field::new("source", DataType::Utf8, false),
        Field::new("partition", DataType::UInt32, false),
        time_column("high", true),
        // Of an increment that does not have all readings of the city.
        time_column("since", true),
        Field::new("readings", DataType::UInt64, false),
        Field::new("withdrawn", DataType::List(list_item(tombstone_fields())), false),
        Field::new("measured", DataType::List(list_item(measurement_fields())), false),
    ]
}

/// What a file says of its cities beside the columns of format 1. Each column costs space, so it is
/// only in files that need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AddedColumns {
    split: bool,
    periods: bool,
}

impl AddedColumns {
    const ALL: [AddedColumns; 4] = [
        AddedColumns { split: false, periods: false },
        AddedColumns { split: true, periods: false },
        AddedColumns { split: false, periods: true },
        AddedColumns { split: true, periods: true },
    ];

    fn of_cities(cities: &[CityRecord]) -> AddedColumns {
        AddedColumns {
            split: cities.iter().any(|city| city.is_split),
            periods: cities.iter().any(|city| city.periods.is_some()),
        }
    }

    fn schema(self) -> SchemaRef {
        let mut columns = first_columns();
        if self.split {
            columns.push(Field::new("split", DataType::Boolean, false));
        }
        if self.periods {
            columns.extend(period_columns());
        }
        Arc::new(Schema::new(columns))
    }
}

/// A file of these cities, and the manifest format that its readers must know.
pub(super) fn encode_cities(cities: &[CityRecord]) -> Result<(Vec<u8>, u32), ParquetError> {
    let added = AddedColumns::of_cities(cities);
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?));
    let mut writer = ArrowWriter::try_new(Vec::new(), added.schema(), Some(properties.build()))?;
    for cities in cities.chunks(CITY_BATCH_ROWS) {
        writer.write(&record_batch(cities, added)?)?;
    }
    let is_first_format = added == AddedColumns { split: false, periods: false };
    Ok((writer.into_inner()?, if is_first_format { FIRST_MANIFEST_FORMAT } else { MANIFEST_FORMAT }))
}

fn record_batch(cities: &[CityRecord], added: AddedColumns) -> Result<RecordBatch, ParquetError> {
    let mut text = [StringBuilder::new(), StringBuilder::new()];
    let mut partition = UInt32Builder::new();
    let mut times = [TimestampMillisecondBuilder::new(), TimestampMillisecondBuilder::new()];
    let mut readings = UInt64Builder::new();
    let (mut withdrawn, mut measured) =
        (list_builder(tombstone_fields()), list_builder(measurement_fields()));
    for city in cities {
        text[0].append_value(&city.name);
        text[1].append_value(&city.partition.source);
        partition.append_value(city.partition.partition);
        times[0].append_option(city.high.map(EventTime::millis));
        times[1].append_option(Some(city.since.millis()).filter(|_| city.since > EventTime::MIN));
        readings.append_value(city.readings);
        for (at, revision) in &city.tombstones {
            let row = withdrawn.values();
            push_field::<TimestampMillisecondBuilder>(row, 0, |b| b.append_value(at.millis()))?;
            push_field::<Int64Builder>(row, 1, |b| b.append_option(revision.map(Revision::number)))?;
            row.append(true);
        }
        withdrawn.append(true);
        for (at, measurement) in &city.measurements {
            let row = measured.values();
            push_field::<TimestampMillisecondBuilder>(row, 0, |b| b.append_value(at.millis()))?;
            push_field::<Float64Builder>(row, 1, |b| b.append_value(measurement.temperature()))?;
            push_field::<Float64Builder>(row, 2, |b| b.append_value(measurement.humidity()))?;
            push_field::<Float64Builder>(row, 3, |b| b.append_option(measurement.wind_speed()))?;
            row.append(true);
        }
        measured.append(true);
    }
    let [mut city, mut source] = text;
    let [high, since] = times.map(|mut times| Arc::new(times.finish().with_timezone("UTC")));
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(city.finish()),
        Arc::new(source.finish()),
        Arc::new(partition.finish()),
        high,
        since,
        Arc::new(readings.finish()),
        Arc::new(withdrawn.finish()),
        Arc::new(measured.finish()),
    ];
    if added.split {
        columns.push(Arc::new(BooleanArray::from_iter(cities.iter().map(|city| Some(city.is_split)))));
    }
    if added.periods {
        columns.extend(encode_periods(cities.iter().map(|city| city.periods.as_ref()))?);
    }
    Ok(RecordBatch::try_new(added.schema(), columns)?)
}

/// The cities of a file, or what is wrong. `rows` are those that it must have.
pub(super) fn decode_cities(file: Bytes, rows: u64) -> Result<Vec<CityRecord>, ParquetError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file)?;
    check_footer_sizes(builder.metadata(), rows)?;
    if !AddedColumns::ALL.iter().any(|added| builder.schema().fields() == added.schema().fields()) {
        return Err(ParquetError::General("its columns are not those of a file of cities".into()));
    }
    let mut cities = Vec::new();
    for batch in builder.with_batch_size(CITY_BATCH_ROWS).build()? {
        read_batch(&batch?, &mut cities)
            .ok_or_else(|| ParquetError::General(format!("its city {} is invalid", cities.len() + 1)))?;
    }
    Ok(cities)
}

fn read_batch(batch: &RecordBatch, cities: &mut Vec<CityRecord>) -> Option<()> {
    let column = |name: &str| batch.column_by_name(name);
    let (name, source) = (column("city")?.as_string::<i32>(), column("source")?.as_string::<i32>());
    let partition = column("partition")?.as_primitive::<UInt32Type>();
    let high = column("high")?.as_primitive::<TimestampMillisecondType>();
    let since = column("since")?.as_primitive::<TimestampMillisecondType>();
    let readings = column("readings")?.as_primitive::<UInt64Type>();
    let split = column("split").map(|split| split.as_boolean());
    let periods = PeriodColumns::of_batch(batch);
    let (withdrawn, measured) = (column("withdrawn")?.as_list::<i32>(), column("measured")?.as_list::<i32>());
    let mut last: Option<Arc<str>> = None;
    for row in 0..batch.num_rows() {
        check_city_key(name.value(row)).ok()?;
        // Of a source there are few names.
        let source = match last.take() {
            Some(last) if *last == *source.value(row) => last,
            _ => source.value(row).into(),
        };
        last = Some(source.clone());
        let time = |times: &PrimitiveArray<TimestampMillisecondType>| match value_or_null(times, row) {
            Some(millis) => Some(Some(EventTime::from_millis(millis)?)),
            None => Some(None),
        };
        cities.push(CityRecord {
            name: name.value(row).into(),
            partition: PartitionName { source, partition: partition.value(row) },
            high: time(high)?,
            since: time(since)?.unwrap_or(EventTime::MIN),
            readings: readings.value(row),
            tombstones: list_items(withdrawn, row, |items, at| {
                let revision = match value_or_null(items.column(1).as_primitive::<Int64Type>(), at) {
                    Some(number) => Some(Revision::new(number)?),
                    None => None,
                };
                Some((event_time_at(items, at)?, revision))
            })?,
            measurements: list_items(measured, row, |items, at| {
                let number =
                    |column: usize| value_or_null(items.column(column).as_primitive::<Float64Type>(), at);
                let measurement = Measurement::new(number(1)?, number(2)?, number(3)).ok()?;
                Some((event_time_at(items, at)?, measurement))
            })?,
            is_split: split.is_some_and(|split| split.value(row)),
            periods: match &periods {
                Some(periods) => periods.city_periods(row)?,
                None => None,
            },
        });
    }
    Some(())
}

fn value_or_null<T: ArrowPrimitiveType>(array: &PrimitiveArray<T>, row: usize) -> Option<T::Native> {
    array.is_valid(row).then(|| array.value(row))
}

fn event_time_at(items: &StructArray, at: usize) -> Option<EventTime> {
    EventTime::from_millis(items.column(0).as_primitive::<TimestampMillisecondType>().value(at))
}

fn list_items<T>(
    list: &ListArray,
    row: usize,
    item: impl Fn(&StructArray, usize) -> Option<T>,
) -> Option<Vec<T>> {
    let items = list.value(row);
    let items = items.as_struct();
    (0..items.len()).map(|at| item(items, at)).collect()
}
