//! Summaries of each city's days, of UTC or of a zone, while an arrival can still change them.

use std::collections::BTreeMap;

use super::chunk::PackedHeat;
use super::store::ReadingStore;
use crate::model::time::{Day, DayZone};
use crate::model::{CityId, DayChange, EventTime, HeatIndex, PeriodSummary};

#[derive(Debug)]
pub struct DaySummaries {
    zone: DayZone,
    /// The day of the last instant; the next instant is mostly of the same day.
    last_day: Day,
    /// By city: the days whose last instant is not older than the lateness allows.
    open_days: Vec<BTreeMap<i32, OpenDay>>,
    /// Days that the current epoch has changed, each once.
    touched_days: Vec<(u32, i32)>,
}

#[derive(Debug, Default)]
struct OpenDay {
    readings: u32,
    sum: i64,
    categories: [u32; 5],
    /// The greatest heat index and its first time; valid unless `stale`.
    max_heat: Option<(i64, i64)>,
    /// The greatest among readings that were retired and cannot change any more.
    retired_max_heat: Option<(i64, i64)>,
    /// The reading with the greatest heat index was corrected or withdrawn.
    max_is_stale: bool,
    touched: bool,
    emitted: Option<PeriodSummary>,
}

impl DaySummaries {
    pub fn new(zone: DayZone) -> DaySummaries {
        DaySummaries { zone, last_day: zone.day_of(0), open_days: Vec::new(), touched_days: Vec::new() }
    }

    #[inline]
    fn day_of(&mut self, millis: i64) -> i32 {
        if !self.last_day.instants.contains(&millis) {
            self.last_day = self.zone.day_of(millis);
        }
        self.last_day.number
    }

    pub fn add_city(&mut self) {
        self.open_days.push(BTreeMap::new());
    }

    #[inline]
    pub fn replace_reading(
        &mut self,
        city: u32,
        millis: i64,
        before: Option<PackedHeat>,
        after: Option<PackedHeat>,
    ) {
        let day = self.day_of(millis);
        let open = self.open_days[city as usize].entry(day).or_default();
        if !std::mem::replace(&mut open.touched, true) {
            self.touched_days.push((city, day));
        }
        if let Some(held) = before {
            open.readings -= 1;
            open.sum -= held.micros();
            open.categories[held.category() as usize] -= 1;
            open.max_is_stale |= open.max_heat.is_some_and(|(_, at)| at == millis);
        }
        if let Some(held) = after {
            open.readings += 1;
            open.sum += held.micros();
            open.categories[held.category() as usize] += 1;
            open.max_heat = greater_heat(open.max_heat, (held.micros(), millis));
        }
    }

    /// Notes a retired reading: its day, if still open, must keep its maximum.
    pub fn retire_reading(&mut self, city: u32, millis: i64, held: PackedHeat) {
        let day = self.day_of(millis);
        if let Some(open) = self.open_days[city as usize].get_mut(&day) {
            open.retired_max_heat = greater_heat(open.retired_max_heat, (held.micros(), millis));
        }
    }

    /// Calls `emit` with the changes of the epoch, and closes the days that cannot change any more.
    pub fn finish_epoch(&mut self, store: &ReadingStore, mut emit: impl FnMut(DayChange)) {
        for (city, day) in self.touched_days.drain(..) {
            let days = &mut self.open_days[city as usize];
            let Some(open) = days.get_mut(&day) else { continue };
            open.touched = false;
            if std::mem::take(&mut open.max_is_stale) {
                let instants = self.zone.day_by_number(day).instants;
                let held = store.peak_in_range(city, instants.start, instants.end - 1);
                open.max_heat =
                    held.map_or(open.retired_max_heat, |held| greater_heat(open.retired_max_heat, held));
            }
            let (before, after) = (open.emitted, open.summary());
            if before != after {
                emit(DayChange { city: CityId(city), day, before, after });
            }
            open.emitted = after;
            if after.is_none() {
                days.remove(&day);
            }
            let oldest_accepted = store.retention.oldest_accepted(store.heads[city as usize].high);
            // A day of this epoch that is still to be emitted is closed when its own turn comes.
            while let Some(entry) = days.first_entry()
                && self.zone.day_by_number(*entry.key()).instants.end <= oldest_accepted
                && !entry.get().touched
            {
                entry.remove();
            }
        }
    }
}

impl OpenDay {
    fn summary(&self) -> Option<PeriodSummary> {
        let (max, max_at) = self.max_heat.filter(|_| self.readings > 0)?;
        Some(PeriodSummary {
            readings: self.readings,
            sum: self.sum,
            max_heat_index: HeatIndex::from_micros(max),
            max_at: EventTime::from_millis(max_at)?,
            categories: self.categories,
        })
    }
}

/// The greater heat index; of equal ones, the earlier.
fn greater_heat(held: Option<(i64, i64)>, (micros, millis): (i64, i64)) -> Option<(i64, i64)> {
    match held {
        Some((max, at)) if max > micros || (max == micros && at <= millis) => held,
        _ => Some((micros, millis)),
    }
}
