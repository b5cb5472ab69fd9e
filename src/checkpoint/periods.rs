//! The columns of open periods in files of cities: the zone of a city's local days, and a list of
//! its hours and days.

use std::sync::Arc;

use arrow_array::builder::{
    Int32Builder, Int64Builder, StringBuilder, StructBuilder, TimestampMillisecondBuilder, UInt32Builder,
};
use arrow_array::cast::AsArray as _;
use arrow_array::types::{ArrowPrimitiveType, Int32Type, Int64Type, TimestampMillisecondType, UInt32Type};
use arrow_array::{Array as _, ArrayRef, ListArray, RecordBatch, StringArray, StructArray};
use arrow_schema::{DataType, Field, Fields};
use parquet::errors::ParquetError;

use super::list_columns::{list_builder, list_item, push_field};
use super::readings::time_column;
use crate::model::time::IanaZone;
use crate::model::{Category, CityPeriods, EventTime, HeatIndex, PeriodKind, StoredPeriod};

const ZONE_COLUMN: &str = "time_zone";
const PERIODS_COLUMN: &str = "open_periods";
/// Fields of a period: the first category, and the maxima, each followed by its time.
const FIRST_CATEGORY: usize = 6;
const MAX: usize = FIRST_CATEGORY + Category::ALL.len();
const RETIRED_MAX: usize = MAX + 2;

/// The columns, in their order. A city of a run that summarises no periods has null in both.
pub(super) fn period_columns() -> [Field; 2] {
    let periods = DataType::List(list_item(period_fields()));
    [Field::new(ZONE_COLUMN, DataType::Utf8, true), Field::new(PERIODS_COLUMN, periods, true)]
}

fn period_fields() -> Fields {
    let mut fields = vec![
        Field::new("kind", DataType::Utf8, false),
        Field::new("number", DataType::Int32, false),
        time_column("starts", false),
        time_column("ends", false),
        Field::new("readings", DataType::UInt32, false),
        Field::new("sum_e6", DataType::Int64, false),
    ];
    fields.extend(Category::ALL.map(|category| Field::new(category.name(), DataType::UInt32, false)));
    fields.push(Field::new("max_e6", DataType::Int64, false));
    fields.push(time_column("max_at", false));
    fields.push(Field::new("retired_max_e6", DataType::Int64, true));
    fields.push(time_column("retired_max_at", true));
    Fields::from(fields)
}

/// The values of the columns.
pub(super) fn encode_periods<'a>(
    cities: impl Iterator<Item = Option<&'a CityPeriods>>,
) -> Result<[ArrayRef; 2], ParquetError> {
    let (mut zones, mut lists) = (StringBuilder::new(), list_builder(period_fields()));
    for periods in cities {
        zones.append_option(periods.and_then(|periods| periods.zone).map(IanaZone::name));
        for kind in PeriodKind::ALL {
            for period in periods.map_or(&[][..], |periods| periods.of_kind(kind)) {
                push_period(lists.values(), kind, period)?;
            }
        }
        lists.append(periods.is_some());
    }
    Ok([Arc::new(zones.finish()), Arc::new(lists.finish())])
}

fn push_period(row: &mut StructBuilder, kind: PeriodKind, period: &StoredPeriod) -> Result<(), ParquetError> {
    push_field::<StringBuilder>(row, 0, |b| b.append_value(kind.name()))?;
    push_field::<Int32Builder>(row, 1, |b| b.append_value(period.number))?;
    push_field::<TimestampMillisecondBuilder>(row, 2, |b| b.append_value(period.starts))?;
    push_field::<TimestampMillisecondBuilder>(row, 3, |b| b.append_value(period.ends))?;
    push_field::<UInt32Builder>(row, 4, |b| b.append_value(period.readings))?;
    push_field::<Int64Builder>(row, 5, |b| b.append_value(period.sum))?;
    for (category, readings) in period.categories.into_iter().enumerate() {
        push_field::<UInt32Builder>(row, FIRST_CATEGORY + category, |b| b.append_value(readings))?;
    }
    for (field, max) in [(MAX, Some(period.max)), (RETIRED_MAX, period.retired_max)] {
        let (heat_index, at) = (max.map(|max| max.0.micros()), max.map(|max| max.1.millis()));
        push_field::<Int64Builder>(row, field, |b| b.append_option(heat_index))?;
        push_field::<TimestampMillisecondBuilder>(row, field + 1, |b| b.append_option(at))?;
    }
    row.append(true);
    Ok(())
}

/// The columns of a batch; files of format 1 have none.
pub(super) struct PeriodColumns<'a> {
    zones: &'a StringArray,
    periods: &'a ListArray,
}

impl<'a> PeriodColumns<'a> {
    pub(super) fn of_batch(batch: &'a RecordBatch) -> Option<PeriodColumns<'a>> {
        Some(PeriodColumns {
            zones: batch.column_by_name(ZONE_COLUMN)?.as_string::<i32>(),
            periods: batch.column_by_name(PERIODS_COLUMN)?.as_list::<i32>(),
        })
    }

    /// The periods of a city, if the run summarised them; `None` if they are malformed.
    pub(super) fn city_periods(&self, row: usize) -> Option<Option<CityPeriods>> {
        if self.periods.is_null(row) {
            return Some(None);
        }
        let zone = match self.zones.is_valid(row) {
            true => Some(IanaZone::from_name(self.zones.value(row)).ok()?),
            false => None,
        };
        let mut periods = CityPeriods { zone, ..CityPeriods::default() };
        let items = self.periods.value(row);
        let items = items.as_struct();
        for at in 0..items.len() {
            let name = items.column(0).as_string::<i32>().value(at);
            let kind = PeriodKind::ALL.into_iter().find(|kind| kind.name() == name)?;
            let period = read_period(items, at)?;
            let of_kind = periods.of_kind_mut(kind);
            if of_kind.last().is_some_and(|last| last.ends > period.starts) {
                return None;
            }
            of_kind.push(period);
        }
        Some(Some(periods))
    }
}

fn read_period(items: &StructArray, at: usize) -> Option<StoredPeriod> {
    fn value<T: ArrowPrimitiveType>(items: &StructArray, column: usize, at: usize) -> T::Native {
        items.column(column).as_primitive::<T>().value(at)
    }
    let millis = |column| value::<TimestampMillisecondType>(items, column, at);
    let max = |heat_index: usize| {
        let heat = HeatIndex::from_micros(value::<Int64Type>(items, heat_index, at));
        let heat = Some(heat).filter(|heat| (HeatIndex::MIN..=HeatIndex::MAX).contains(heat))?;
        Some((heat, EventTime::from_millis(millis(heat_index + 1))?))
    };
    let period = StoredPeriod {
        number: value::<Int32Type>(items, 1, at),
        starts: millis(2),
        ends: millis(3),
        readings: value::<UInt32Type>(items, 4, at),
        sum: value::<Int64Type>(items, 5, at),
        categories: std::array::from_fn(|category| value::<UInt32Type>(items, FIRST_CATEGORY + category, at)),
        max: max(MAX)?,
        retired_max: match items.column(RETIRED_MAX).is_valid(at) {
            true => Some(max(RETIRED_MAX)?),
            false => None,
        },
    };
    (period.starts < period.ends && period.readings > 0).then_some(period)
}
