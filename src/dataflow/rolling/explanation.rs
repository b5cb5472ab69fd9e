//! Explains a row: its sum and count, and the measurements of its window that are held.

use super::state::Rolling;
use super::store::ReadingStore;
use crate::model::{CityId, EventTime, ExplainedRow, Row};

impl Rolling {
    /// The servable row of a city at a time, with the measurements of its window.
    pub fn explain_row(&mut self, CityId(city): CityId, reading_at: EventTime) -> ExplainedRow {
        self.store.seal_tail(city);
        let row = self.store.servable_row(city, reading_at.millis());
        let to = reading_at.millis();
        let from = to.saturating_sub(self.store.retention.window.millis());
        let held = self.current.as_ref().map_or(&[][..], |current| current.measurements(city));
        let in_window = held.iter().filter(|(at, _)| (from..=to).contains(at));
        let measurements = in_window.filter_map(|(at, held)| Some((EventTime::from_millis(*at)?, *held)));
        ExplainedRow { row, measurements: measurements.collect() }
    }

    /// The newest admitted time of a city.
    pub fn newest_admitted(&self, CityId(city): CityId) -> Option<EventTime> {
        EventTime::from_millis(self.store.heads[city as usize].high)
    }
}

impl ReadingStore {
    /// The row at `millis`, if it is servable. The city must be sealed.
    fn servable_row(&self, city: u32, millis: i64) -> Option<Row> {
        if millis < self.retention.oldest_servable(self.heads[city as usize].high) {
            return None;
        }
        let at = self.seek_row(city, millis);
        if at.part >= self.index[city as usize].parts.len() {
            return None;
        }
        let part = self.part_view(city, at.part);
        if part.millis(at.row) != millis {
            return None;
        }
        let held = part.packed_heat(at.row);
        let low = self.seek_row(city, millis.saturating_sub(self.retention.window.millis()));
        let (sum, count) = self.sum_window(city, low, self.seek_row(city, millis.saturating_add(1)));
        Some(Row::new(held.heat_index(), held.category(), sum, count))
    }
}
