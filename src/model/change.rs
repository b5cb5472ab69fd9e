//! Results and changes that leave the dataflow.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::rc::Rc;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::heat::mean_fahrenheit;
use super::time::{DayZone, IanaZone};
use super::{Category, EventTime, HeatIndex, Measurement};

/// A city's dense number at the worker that owns it. It never leaves the worker and is in no file:
/// the [`CityNames`] of the same worker turn it into the city's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CityId(pub u32);

/// The keys of the cities of one worker, by [`CityId`], and which of them are split; shared by
/// everything that runs on that worker.
#[derive(Clone, Debug, Default)]
pub struct CityNames(Rc<RefCell<NamedCities>>);

#[derive(Debug, Default)]
struct NamedCities {
    names: Vec<Arc<str>>,
    split: HashSet<CityId, foldhash::fast::RandomState>,
    time_zones: HashMap<CityId, IanaZone, foldhash::fast::RandomState>,
}

impl CityNames {
    /// Adds a city, and returns its id.
    pub fn push(&self, name: Arc<str>) -> CityId {
        let names = &mut self.0.borrow_mut().names;
        names.push(name);
        CityId(names.len() as u32 - 1)
    }

    /// The city's key. Ids come from this worker's own [`CityNames::push`], so each has one.
    pub fn get(&self, city: CityId) -> Arc<str> {
        self.0.borrow().names[city.0 as usize].clone()
    }

    /// How many cities have an id.
    pub fn len(&self) -> usize {
        self.0.borrow().names.len()
    }

    /// Whether no city has an id.
    pub fn is_empty(&self) -> bool {
        self.0.borrow().names.is_empty()
    }

    /// Sets the zone whose days are summarised for the city beside those of UTC.
    pub(crate) fn set_time_zone(&self, city: CityId, zone: IanaZone) {
        self.0.borrow_mut().time_zones.insert(city, zone);
    }

    /// The zone whose days are summarised for the city beside those of UTC, if there is one.
    pub fn time_zone(&self, city: CityId) -> Option<IanaZone> {
        self.0.borrow().time_zones.get(&city).copied()
    }

    /// Marks a city that was seen in more than one partition. Returns false if it was marked
    /// before.
    pub(crate) fn mark_split(&self, city: CityId) -> bool {
        self.0.borrow_mut().split.insert(city)
    }

    /// Whether the city was seen in more than one partition, in this run or in the ones that it
    /// continues: its results may differ after a restart.
    pub fn is_split(&self, city: CityId) -> bool {
        self.0.borrow().split.contains(&city)
    }
}

/// The result for one `(city, reading_at)`, all integers: two rows are the same result only if they
/// are equal. It takes two words, also in an `Option`: corrections make very many of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Row {
    sum: i64,
    /// From the top: 32 bits of heat index, 3 of category, 29 (`COUNT_BITS`) of count, which is
    /// never 0.
    packed: NonZeroU64,
}

const COUNT_BITS: u32 = 29;

impl Row {
    /// The most readings that a window can hold.
    pub const MAX_COUNT: u32 = (1 << COUNT_BITS) - 1;

    /// The row of a reading with this heat index and category; `sum` adds up the heat indexes, in
    /// 1e-6 °F, of the city's `count` readings in `[reading_at - window, reading_at]`.
    ///
    /// # Panics
    ///
    /// If `count` is 0 or above [`Row::MAX_COUNT`], for which the readings of one city would take 4
    /// GB.
    #[inline(always)]
    pub fn new(heat_index: HeatIndex, category: Category, sum: i64, count: u32) -> Row {
        let count = NonZeroU32::new(count).filter(|count| count.get() <= Self::MAX_COUNT);
        let count = count.expect("a window holds the reading itself, and at most 536,870,911 readings");
        let above = u64::from(heat_index.to_compact()) << 32 | (category as u64) << COUNT_BITS;
        Row { sum, packed: NonZeroU64::from(count) | above }
    }

    /// The heat index of the reading itself.
    #[inline(always)]
    pub fn heat_index(&self) -> HeatIndex {
        HeatIndex::from_compact((self.packed.get() >> 32) as u32)
    }

    /// The category of the reading itself.
    #[inline(always)]
    pub fn category(&self) -> Category {
        Category::ALL[((self.packed.get() >> COUNT_BITS & 7) as usize).min(4)]
    }

    /// The sum of the window's heat indexes, 1e-6 °F.
    #[inline(always)]
    pub fn sum(&self) -> i64 {
        self.sum
    }

    /// How many readings are in the window: at least 1.
    #[inline(always)]
    pub fn count(&self) -> u32 {
        self.packed.get() as u32 & Self::MAX_COUNT
    }

    /// The mean of the window's heat indexes, °F.
    pub fn rolling_heat_index(&self) -> f64 {
        mean_fahrenheit(self.sum, self.count())
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Row")
            .field("heat_index", &self.heat_index())
            .field("category", &self.category())
            .field("sum", &self.sum)
            .field("count", &self.count())
            .finish()
    }
}

/// The change of one key's row in an epoch; `before` and `after` differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowChange {
    /// The city of the row.
    pub city: CityId,
    /// The event time of the row.
    pub reading_at: EventTime,
    /// The row before the epoch; `None` if there was none.
    pub before: Option<Row>,
    /// The row after the epoch; `None` if there is none any more.
    pub after: Option<Row>,
}

/// All changes of one worker in the epochs `lower..upper`: final, because the frontier has passed
/// `upper`. The changes come in lists, each of one epoch, in the order of epochs; in an epoch a key
/// has at most one row change and one day change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<C = RowChange> {
    /// The first epoch of the batch: the `upper` of the batch before.
    pub lower: u64,
    /// The first epoch that is not yet complete; at the end of the input, [`u64::MAX`].
    pub upper: u64,
    /// Epochs and their changes.
    pub changes: Vec<(u64, Vec<C>)>,
}

/// The newest servable row of a city.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CurrentRow {
    /// The event time of the row.
    pub reading_at: EventTime,
    /// The result.
    pub row: Row,
    /// The window, as `(sum, count)`, of the newest servable row in `[reading_at - 2 h, reading_at
    /// - 1 h]`, if there is one.
    pub hour_ago: Option<(i64, u32)>,
    /// The measurement, while the operator still holds it.
    pub measurement: Option<Measurement>,
}

impl CurrentRow {
    /// The change of the rolling mean over the last hour, °F: the row's rolling heat index less
    /// that of the newest servable row in `[reading_at - 2 h, reading_at - 1 h]`.
    pub fn trend(&self) -> Option<f64> {
        let (sum, count) = self.hour_ago?;
        Some(self.row.rolling_heat_index() - mean_fahrenheit(sum, count))
    }
}

/// A city's current row and newest time before and after an epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CurrentChange<'a> {
    /// The city of the row.
    pub city: CityId,
    /// The current row before the epoch; `None` if no row was servable.
    pub before: Option<&'a CurrentRow>,
    /// The current row after the epoch; `None` if no row is servable.
    pub after: Option<&'a CurrentRow>,
    /// The newest `reading_at` of the city's admitted readings before the epoch, whether or not
    /// they won; `None` if there was none. Valid only if a sink wants it.
    pub high_before: Option<EventTime>,
    /// The same after the epoch.
    pub high: Option<EventTime>,
}

/// The summary of the readings of one city in a period, such as a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeriodSummary {
    /// How many readings the period has: at least 1.
    pub readings: u32,
    /// The sum of all heat indexes, 1e-6 °F.
    pub sum: i64,
    /// The highest heat index of the period.
    pub max_heat_index: HeatIndex,
    /// The time of the first reading with the greatest heat index.
    pub max_at: EventTime,
    /// Readings in each [`Category`], in the order of [`Category::ALL`].
    pub categories: [u32; 5],
}

/// The change of the summary of one city and day in an epoch: `before` and `after` differ, or
/// `is_final` has become true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DayChange {
    /// The city of the day.
    pub city: CityId,
    /// Whose clocks the day is of.
    pub zone: DayZone,
    /// The number of its date: days since 1970-01-01.
    pub day: i32,
    /// The first instant of the day, in ms. A day begins when the clocks first show its date.
    pub starts: i64,
    /// The first instant of the next day, in ms.
    pub ends: i64,
    /// The summary before the epoch; `None` if the day had no reading.
    pub before: Option<PeriodSummary>,
    /// The summary after the epoch; `None` if the day has no reading any more.
    pub after: Option<PeriodSummary>,
    /// No accepted arrival can change the day any more.
    pub is_final: bool,
}

/// The change of the summary of one city and UTC hour in an epoch: `before` and `after` differ, or
/// `is_final` has become true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HourChange {
    /// The city of the hour.
    pub city: CityId,
    /// The first instant of the hour, in ms.
    pub starts: i64,
    /// The summary before the epoch; `None` if the hour had no reading.
    pub before: Option<PeriodSummary>,
    /// The summary after the epoch; `None` if the hour has no reading any more.
    pub after: Option<PeriodSummary>,
    /// No accepted arrival can change the hour any more.
    pub is_final: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_packs_values_into_16_bytes() {
        assert_eq!((size_of::<Row>(), size_of::<Option<Row>>()), (16, 16));
        for heat_index in [HeatIndex::MIN, HeatIndex::default(), HeatIndex::MAX] {
            for category in Category::ALL {
                for count in [1, Row::MAX_COUNT] {
                    let row = Row::new(heat_index, category, -7, count);
                    let values = (row.heat_index(), row.category(), row.sum(), row.count());
                    assert_eq!(values, (heat_index, category, -7, count));
                }
            }
        }
    }
}
