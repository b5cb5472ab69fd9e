//! The current row of each city: its newest servable row, with the trend and the measurement.

use super::epoch_changes::{EpochChanges, TouchedCity};
use super::hour_ago::HourAgo;
use super::store::ReadingStore;
use crate::model::{CityId, CurrentRow, EventTime, Measurement, Row};

/// How many of its newest measurements a city keeps.
const MAX_MEASUREMENTS: usize = 4;
/// How long before the newest row the base of its trend may be, both ends included.
const TREND_MIN_AGE_MS: i64 = 3_600_000;
const TREND_MAX_AGE_MS: i64 = 7_200_000;

#[derive(Debug)]
pub struct CurrentRows {
    cities: Vec<CurrentCity>,
    /// Whether touched cities are collected with their newest times.
    collect_highs: bool,
    /// Cities that the current epoch has changed, each once.
    touched: Vec<u32>,
}

#[derive(Debug, Default)]
struct CurrentCity {
    emitted_row: Option<CurrentRow>,
    /// The newest measurements by time, at most [`MAX_MEASUREMENTS`]. A withdrawn one is removed
    /// and not replaced.
    measurements: Vec<(i64, Measurement)>,
    hour_ago: Option<Box<HourAgo>>,
    touched: bool,
    /// The newest time of an admitted reading after the last epoch that touched the city.
    high: Option<EventTime>,
}

impl CurrentRows {
    /// With `collect_highs`, an epoch also collects the newest times of the cities that it touches.
    pub fn new(collect_highs: bool) -> CurrentRows {
        CurrentRows { cities: Vec::new(), collect_highs, touched: Vec::new() }
    }

    pub fn add_city(&mut self) {
        self.cities.push(CurrentCity::default());
    }

    /// The city's newest measurements, by time.
    pub fn measurements(&self, city: u32) -> &[(i64, Measurement)] {
        &self.cities[city as usize].measurements
    }

    pub fn restore_city(&mut self, city: u32, measured: Vec<(i64, Measurement)>) {
        self.cities[city as usize].measurements = measured;
        self.touch_city(city);
    }

    /// Notes that the epoch may change the city's current row.
    #[inline]
    pub fn touch_city(&mut self, city: u32) {
        if !std::mem::replace(&mut self.cities[city as usize].touched, true) {
            self.touched.push(city);
        }
    }

    /// Records an accepted reading (`Some`) or a withdrawal, in log order, so the measurements
    /// depend on the log alone.
    pub fn record_measurement(&mut self, city: u32, millis: i64, measurement: Option<Measurement>) {
        let state = &mut self.cities[city as usize];
        let index = state.measurements.binary_search_by_key(&millis, |(at, _)| *at);
        match (index, measurement) {
            (Ok(index), Some(measurement)) => state.measurements[index].1 = measurement,
            (Ok(index), None) => drop(state.measurements.remove(index)),
            (Err(_), None) => {}
            (Err(index), Some(measurement)) => {
                state.measurements.insert(index, (millis, measurement));
                if state.measurements.len() > MAX_MEASUREMENTS {
                    state.measurements.remove(0);
                }
            }
        }
    }

    /// Collects the changed current rows of the epoch: the old row with -1, the new row with 1.
    /// With `all`, also the rows that were touched without a change.
    pub fn finish_epoch(&mut self, store: &mut ReadingStore, all: bool, changed: &mut EpochChanges) {
        for city in self.touched.drain(..) {
            let state = &mut self.cities[city as usize];
            state.touched = false;
            let after = newest_row(store, city, &mut state.hour_ago);
            let after = after.map(|(reading_at, row, hour_ago)| CurrentRow {
                reading_at,
                row,
                hour_ago,
                measurement: state
                    .measurements
                    .iter()
                    .find(|(at, _)| *at == reading_at.millis())
                    .map(|(_, measurement)| *measurement),
            });
            let high = EventTime::from_millis(store.heads[city as usize].high);
            let high_before = std::mem::replace(&mut state.high, high);
            if self.collect_highs {
                let (city, before) = (CityId(city), state.emitted_row);
                changed.touched_cities.push(TouchedCity { city, before, after, high_before, high });
            }
            if all || state.emitted_row != after {
                if all && state.emitted_row.is_none() && after.is_none() {
                    changed.cities_without_row.push(CityId(city));
                }
                changed.current.extend(state.emitted_row.map(|before| (CityId(city), before, -1)));
                changed.current.extend(after.map(|after| (CityId(city), after, 1)));
                state.emitted_row = after;
            }
        }
    }
}

/// The sum and the count of a window.
type WindowSum = (i64, u32);

/// The newest servable row and the window, as `(sum, count)`, of the newest servable one from one
/// to two hours before it.
fn newest_row(
    store: &mut ReadingStore,
    city: u32,
    hour_ago: &mut Option<Box<HourAgo>>,
) -> Option<(EventTime, Row, Option<WindowSum>)> {
    store.seal_tail(city);
    let (last, held) = store.newest_reading(city)?;
    let head = &store.heads[city as usize];
    let oldest_servable = store.retention.oldest_servable(head.high);
    if last < oldest_servable {
        return None;
    }
    let row = Row::new(held.heat_index(), held.category(), head.window_sum, head.window_count);
    let limit = last - TREND_MIN_AGE_MS;
    hour_ago.take_if(|hour_ago| !hour_ago.can_advance_to(store, city, limit));
    store.index[city as usize].first_changed_part = u64::MAX;
    let hour_ago = hour_ago.get_or_insert_with(|| Box::new(HourAgo::find(store, city, limit)));
    hour_ago.advance_to(store, city, limit);
    Some((EventTime::from_millis(last)?, row, hour_ago.window(oldest_servable.max(last - TREND_MAX_AGE_MS))))
}
