//! What leaves the dataflow.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::heat::mean_fahrenheit;
use super::{Category, EventTime, HeatIndex, Measurement};

/// A city's dense number at the worker that owns it. It never leaves the worker and is in no file: [`CityNames`] of the
/// same worker turns it into the city's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CityId(pub u32);

/// The keys of the cities of one worker, by [`CityId`]; shared by everything that runs on that worker.
#[derive(Clone, Debug, Default)]
pub struct CityNames(Rc<RefCell<Vec<Arc<str>>>>);

impl CityNames {
    /// Gives the city the next id.
    pub fn push(&self, name: Arc<str>) -> CityId {
        let mut names = self.0.borrow_mut();
        names.push(name);
        CityId(names.len() as u32 - 1)
    }

    /// The city's key. Ids come from this worker's own [`CityNames::push`], so each has one.
    pub fn get(&self, city: CityId) -> Arc<str> {
        self.0.borrow()[city.0 as usize].clone()
    }

    pub fn len(&self) -> usize {
        self.0.borrow().len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }
}

/// The result for one `(city, reading_at)`. All integers: two rows are the same result only if they are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Row {
    /// Of the reading itself.
    pub heat_index: HeatIndex,
    /// The sum of the heat indexes of the city's readings in `[reading_at - window, reading_at]`, 1e-6 °F.
    pub sum: i64,
    /// How many they are: at least 1.
    pub count: u32,
    pub category: Category,
}

impl Row {
    /// The mean heat index of the window, °F.
    pub fn rolling_heat_index(&self) -> f64 {
        mean_fahrenheit(self.sum, self.count)
    }
}

/// What an epoch did to the row of one key; `before` and `after` differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    pub city: CityId,
    pub reading_at: EventTime,
    pub before: Option<Row>,
    pub after: Option<Row>,
}

/// All that one worker has to say of the epochs in `lower..upper`: final, because the frontier has passed `upper`. The
/// changes come in pieces, each of one epoch, in the order of epochs; of row or day changes, a key has at most one an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<C = Change> {
    pub lower: u64,
    /// The first epoch that is not yet complete; at the end of the input, [`u64::MAX`].
    pub upper: u64,
    pub changes: Vec<(u64, Vec<C>)>,
}

/// The newest servable row of a city.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CurrentRow {
    pub reading_at: EventTime,
    pub row: Row,
    /// The row's rolling heat index less that of the newest servable row an hour or more before it, as the two
    /// `(sum, count)`; where there is none, nothing.
    pub hour_ago: Option<(i64, u32)>,
    /// What was measured, while the operator still holds it.
    pub measurement: Option<Measurement>,
}

impl CurrentRow {
    /// The row's rolling heat index less that of the newest servable row an hour or more before it, °F.
    pub fn trend(&self) -> Option<f64> {
        let (sum, count) = self.hour_ago?;
        Some(self.row.rolling_heat_index() - mean_fahrenheit(sum, count))
    }
}

/// The readings of one city and UTC day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DaySummary {
    pub readings: u32,
    /// Of all heat indexes, 1e-6 °F.
    pub sum: i64,
    pub max_heat_index: HeatIndex,
    /// When the greatest heat index was read first.
    pub max_at: EventTime,
    /// Readings in each [`Category`], in the order of [`Category::ALL`].
    pub categories: [u32; 5],
}

impl DaySummary {
    /// °F.
    pub fn mean_heat_index(&self) -> f64 {
        mean_fahrenheit(self.sum, self.readings)
    }
}

/// What an epoch did to the summary of one day of one city; `before` and `after` differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DayChange {
    pub city: CityId,
    /// Days since 1970-01-01, UTC.
    pub day: i32,
    pub before: Option<DaySummary>,
    pub after: Option<DaySummary>,
}
