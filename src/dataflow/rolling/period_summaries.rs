//! Summaries of each city's hours and days while an arrival can still change them.
//!
//! A period is open while its end is not older than the lateness allows. Its number of readings,
//! sum and categories are kept up to date by each change of a reading; its greatest heat index is
//! searched in the store again only if the reading that had it was replaced or withdrawn.

use std::collections::BTreeMap;

use super::chunk::PackedHeat;
use super::store::ReadingStore;
use crate::model::time::{Day, DayZone, IanaZone};
use crate::model::{
    CityId, CityPeriods, DayChange, EventTime, HeatIndex, HourChange, PeriodKind, PeriodSummary, StoredPeriod,
};

const HOUR_MS: i64 = 3_600_000;

/// Summaries of periods of one or several kinds.
#[derive(Debug)]
pub struct PeriodSummaries {
    series: Vec<PeriodSeries>,
    /// Whether periods are emitted again when they become final.
    emits_final: bool,
    /// Cities whose newest time the current epoch may have advanced, each once.
    touched_cities: Vec<u32>,
    is_touched: Vec<bool>,
}

/// The periods of one kind.
#[derive(Debug)]
struct PeriodSeries {
    calendar: Calendar,
    /// By city: the open periods by their first instants.
    open_periods: Vec<BTreeMap<i64, OpenPeriod>>,
    /// Periods that the current epoch has changed, each once.
    touched: Vec<TouchedPeriod>,
}

/// How time is divided.
#[derive(Debug)]
enum Calendar {
    UtcHours,
    Days(DayZone),
    /// By city: the zone of its days, if it has one.
    LocalDays(Vec<Option<IanaZone>>),
}

#[derive(Debug)]
struct OpenPeriod {
    number: i32,
    ends: i64,
    readings: u32,
    sum: i64,
    categories: [u32; 5],
    /// The greatest heat index and its first time; valid unless `max_is_stale`.
    max_heat: Option<(i64, i64)>,
    /// The greatest among readings that were retired and cannot change any more.
    retired_max_heat: Option<(i64, i64)>,
    /// The reading with the greatest heat index was corrected or withdrawn.
    max_is_stale: bool,
    touched: bool,
}

#[derive(Debug)]
struct TouchedPeriod {
    city: u32,
    starts: i64,
    before: Option<PeriodSummary>,
}

/// The change of an hour or a day.
#[derive(Clone, Copy, Debug)]
pub enum PeriodChange {
    Hour(HourChange),
    Day(DayChange),
}

impl PeriodSummaries {
    /// Summaries of the days of a zone. No day is emitted again when it becomes final.
    pub fn of_days(zone: DayZone) -> PeriodSummaries {
        PeriodSummaries::new([Calendar::Days(zone)], false)
    }

    /// Summaries of UTC hours and days, and of the local days of cities with a zone.
    pub fn of_hours_and_days() -> PeriodSummaries {
        let calendars = [Calendar::UtcHours, Calendar::Days(DayZone::Utc), Calendar::LocalDays(Vec::new())];
        PeriodSummaries::new(calendars, true)
    }

    fn new(calendars: impl IntoIterator<Item = Calendar>, emits_final: bool) -> PeriodSummaries {
        let series = calendars.into_iter().map(PeriodSeries::new).collect();
        PeriodSummaries { series, emits_final, touched_cities: Vec::new(), is_touched: Vec::new() }
    }

    /// Adds a city with the zone of its local days.
    pub fn add_city(&mut self, zone: Option<IanaZone>) {
        self.is_touched.push(false);
        self.series.iter_mut().for_each(|series| series.add_city(zone));
    }

    /// Notes that the epoch may advance the city's newest time.
    #[inline]
    pub fn touch_city(&mut self, city: u32) {
        if !std::mem::replace(&mut self.is_touched[city as usize], true) {
            self.touched_cities.push(city);
        }
    }

    #[inline]
    pub fn replace_reading(
        &mut self,
        city: u32,
        millis: i64,
        before: Option<PackedHeat>,
        after: Option<PackedHeat>,
    ) {
        self.series.iter_mut().for_each(|series| series.replace_reading(city, millis, before, after));
    }

    /// Notes a retired reading: its periods, if still open, must keep their maximum.
    pub fn retire_reading(&mut self, city: u32, millis: i64, held: PackedHeat) {
        self.series.iter_mut().for_each(|series| series.retire_reading(city, millis, held));
    }

    /// Calls `emit` with the changes of the epoch, and closes the periods that cannot change any
    /// more.
    pub fn finish_epoch(&mut self, store: &ReadingStore, mut emit: impl FnMut(PeriodChange)) {
        for series in &mut self.series {
            series.emit_touched(store, self.emits_final, &mut emit);
            for city in &self.touched_cities {
                series.close_final_periods(*city, store, self.emits_final, &mut emit);
            }
        }
        for city in self.touched_cities.drain(..) {
            self.is_touched[city as usize] = false;
        }
    }

    /// The open periods of a city, for a checkpoint.
    pub fn city_periods(&self, city: u32) -> CityPeriods {
        let mut periods = CityPeriods::default();
        for series in &self.series {
            if let Calendar::LocalDays(zones) = &series.calendar {
                periods.zone = zones[city as usize];
            }
            let open = &series.open_periods[city as usize];
            periods
                .of_kind_mut(series.kind())
                .extend(open.iter().filter_map(|(starts, open)| open.to_stored(*starts)));
        }
        periods
    }

    /// Restores the periods of a city that was added.
    pub fn restore_city(&mut self, city: u32, periods: &CityPeriods) {
        for series in &mut self.series {
            let stored = periods.of_kind(series.kind());
            series.open_periods[city as usize]
                .extend(stored.iter().map(|stored| (stored.starts, OpenPeriod::from_stored(stored))));
        }
    }

    /// Adds a reading of a restored city whose periods were not stored, if they end after
    /// `oldest_accepted`.
    pub fn count_held_reading(&mut self, city: u32, millis: i64, held: PackedHeat, oldest_accepted: i64) {
        for series in &mut self.series {
            if let Some(period) = series.calendar.period_of(city, millis)
                && period.instants.end > oldest_accepted
            {
                let open = series.open_periods[city as usize]
                    .entry(period.instants.start)
                    .or_insert_with(|| OpenPeriod::new(&period));
                open.add_reading(millis, held);
            }
        }
    }
}

impl Calendar {
    /// The period of an instant; `None` if the city has no such periods.
    fn period_of(&self, city: u32, millis: i64) -> Option<Day> {
        match self {
            Calendar::UtcHours => {
                let number = millis.div_euclid(HOUR_MS);
                let starts = number * HOUR_MS;
                Some(Day { number: number as i32, instants: starts..starts + HOUR_MS })
            }
            Calendar::Days(zone) => Some(zone.day_of(millis)),
            Calendar::LocalDays(zones) => zones[city as usize].map(|zone| DayZone::Zone(zone).day_of(millis)),
        }
    }

    fn has_periods_of(&self, city: u32) -> bool {
        match self {
            Calendar::UtcHours | Calendar::Days(_) => true,
            Calendar::LocalDays(zones) => zones[city as usize].is_some(),
        }
    }

    fn change(&self, city: u32, starts: i64, open: &OpenPeriod, values: ChangedValues) -> PeriodChange {
        let ChangedValues { before, after, is_final } = values;
        let (id, &OpenPeriod { number, ends, .. }) = (CityId(city), open);
        let day = |zone| DayChange { city: id, zone, day: number, starts, ends, before, after, is_final };
        match self {
            Calendar::UtcHours => {
                PeriodChange::Hour(HourChange { city: id, starts, before, after, is_final })
            }
            Calendar::Days(zone) => PeriodChange::Day(day(*zone)),
            Calendar::LocalDays(zones) => {
                PeriodChange::Day(day(zones[city as usize].map_or(DayZone::Utc, DayZone::Zone)))
            }
        }
    }
}

/// The summary of a period before and after an epoch.
struct ChangedValues {
    before: Option<PeriodSummary>,
    after: Option<PeriodSummary>,
    is_final: bool,
}

impl PeriodSeries {
    fn new(calendar: Calendar) -> PeriodSeries {
        PeriodSeries { calendar, open_periods: Vec::new(), touched: Vec::new() }
    }

    fn kind(&self) -> PeriodKind {
        match self.calendar {
            Calendar::UtcHours => PeriodKind::UtcHour,
            Calendar::Days(_) => PeriodKind::UtcDay,
            Calendar::LocalDays(_) => PeriodKind::LocalDay,
        }
    }

    fn add_city(&mut self, zone: Option<IanaZone>) {
        self.open_periods.push(BTreeMap::new());
        if let Calendar::LocalDays(zones) = &mut self.calendar {
            zones.push(zone);
        }
    }

    #[inline]
    fn replace_reading(
        &mut self,
        city: u32,
        millis: i64,
        before: Option<PackedHeat>,
        after: Option<PackedHeat>,
    ) {
        if !self.calendar.has_periods_of(city) {
            return;
        }
        let PeriodSeries { calendar, open_periods, touched } = self;
        let periods = &mut open_periods[city as usize];
        let known = open_period_of(periods, millis).map(|(starts, _)| *starts);
        let (starts, open) = match known.and_then(|starts| Some((starts, periods.get_mut(&starts)?))) {
            Some(found) => found,
            None => {
                let Some(period) = calendar.period_of(city, millis) else { return };
                let starts = period.instants.start;
                (starts, periods.entry(starts).or_insert_with(|| OpenPeriod::new(&period)))
            }
        };
        if !open.touched {
            touched.push(TouchedPeriod { city, starts, before: open.summary() });
            open.touched = true;
        }
        if let Some(held) = before {
            open.remove_reading(millis, held);
        }
        if let Some(held) = after {
            open.add_reading(millis, held);
        }
    }

    fn retire_reading(&mut self, city: u32, millis: i64, held: PackedHeat) {
        if let Some((_, open)) = open_period_of(&mut self.open_periods[city as usize], millis) {
            open.retired_max_heat = greater_heat(open.retired_max_heat, (held.micros(), millis));
        }
    }

    fn emit_touched(&mut self, store: &ReadingStore, emits_final: bool, emit: &mut impl FnMut(PeriodChange)) {
        for TouchedPeriod { city, starts, before } in self.touched.drain(..) {
            let periods = &mut self.open_periods[city as usize];
            let Some(open) = periods.get_mut(&starts) else { continue };
            if std::mem::take(&mut open.max_is_stale) {
                let held = store.peak_in_range(city, starts, open.ends - 1);
                open.max_heat =
                    held.map_or(open.retired_max_heat, |held| greater_heat(open.retired_max_heat, held));
            }
            let (after, is_final) = (open.summary(), open.ends <= oldest_accepted(store, city));
            if before != after || (emits_final && is_final && after.is_some()) {
                let values = ChangedValues { before, after, is_final };
                emit(self.calendar.change(city, starts, open, values));
            }
            // A final period is not emitted again when it is closed.
            open.touched = is_final;
            if after.is_none() {
                periods.remove(&starts);
            }
        }
    }

    /// Closes the periods of a city that no accepted arrival can change any more.
    fn close_final_periods(
        &mut self,
        city: u32,
        store: &ReadingStore,
        emits_final: bool,
        emit: &mut impl FnMut(PeriodChange),
    ) {
        let oldest_accepted = oldest_accepted(store, city);
        while let Some(entry) = self.open_periods[city as usize].first_entry()
            && entry.get().ends <= oldest_accepted
        {
            let (starts, open) = entry.remove_entry();
            if emits_final && !open.touched {
                let summary = open.summary();
                let values = ChangedValues { before: summary, after: summary, is_final: true };
                emit(self.calendar.change(city, starts, &open, values));
            }
        }
    }
}

fn oldest_accepted(store: &ReadingStore, city: u32) -> i64 {
    store.retention.oldest_accepted(store.heads[city as usize].high)
}

/// The open period that holds an instant.
#[inline]
fn open_period_of(periods: &mut BTreeMap<i64, OpenPeriod>, millis: i64) -> Option<(&i64, &mut OpenPeriod)> {
    periods.range_mut(..=millis).next_back().filter(|(_, open)| millis < open.ends)
}

impl OpenPeriod {
    fn new(period: &Day) -> OpenPeriod {
        OpenPeriod {
            number: period.number,
            ends: period.instants.end,
            readings: 0,
            sum: 0,
            categories: [0; 5],
            max_heat: None,
            retired_max_heat: None,
            max_is_stale: false,
            touched: false,
        }
    }

    #[inline]
    fn add_reading(&mut self, millis: i64, held: PackedHeat) {
        self.readings += 1;
        self.sum += held.micros();
        self.categories[held.category() as usize] += 1;
        self.max_heat = greater_heat(self.max_heat, (held.micros(), millis));
    }

    #[inline]
    fn remove_reading(&mut self, millis: i64, held: PackedHeat) {
        self.readings -= 1;
        self.sum -= held.micros();
        self.categories[held.category() as usize] -= 1;
        self.max_is_stale |= self.max_heat.is_some_and(|(_, at)| at == millis);
    }

    /// The summary, unless there is no reading. It must not be stale.
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

    fn to_stored(&self, starts: i64) -> Option<StoredPeriod> {
        let PeriodSummary { readings, sum, max_heat_index, max_at, categories } = self.summary()?;
        let retired_max = self.retired_max_heat.and_then(|(micros, millis)| {
            Some((HeatIndex::from_micros(micros), EventTime::from_millis(millis)?))
        });
        Some(StoredPeriod {
            number: self.number,
            starts,
            ends: self.ends,
            readings,
            sum,
            categories,
            max: (max_heat_index, max_at),
            retired_max,
        })
    }

    fn from_stored(stored: &StoredPeriod) -> OpenPeriod {
        let heat = |(heat_index, at): (HeatIndex, EventTime)| (heat_index.micros(), at.millis());
        OpenPeriod {
            number: stored.number,
            ends: stored.ends,
            readings: stored.readings,
            sum: stored.sum,
            categories: stored.categories,
            max_heat: Some(heat(stored.max)),
            retired_max_heat: stored.retired_max.map(heat),
            max_is_stale: false,
            touched: false,
        }
    }
}

/// The greater heat index; of equal ones, the earlier.
fn greater_heat(held: Option<(i64, i64)>, (micros, millis): (i64, i64)) -> Option<(i64, i64)> {
    match held {
        Some((max, at)) if max > micros || (max == micros && at <= millis) => held,
        _ => Some((micros, millis)),
    }
}
