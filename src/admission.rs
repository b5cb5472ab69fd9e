//! Which readings are admitted, decided reading by reading, in log order, where the log is read. So
//! a replay decides the same, whatever the epochs, workers and batch sizes.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast;

use crate::model::{
    Arrival, CityIntroduction, CityKey, EventTime, Millis, ReadingEvent, Reason, Refusal, Upsert,
};

/// The rules that depend on more than the reading itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmissionRules {
    /// How much older than its city's newest reading an arrival may be.
    pub lateness: Millis,
    /// How much newer than its arrival a reading may be, if the log knows when it arrived.
    pub max_ahead: Option<Millis>,
    /// How many cities the partition may have: each is remembered for good.
    pub max_cities: u32,
}

impl AdmissionRules {
    /// Rules with a lateness and no other limit.
    pub fn new(lateness: Millis) -> AdmissionRules {
        AdmissionRules { lateness, max_ahead: None, max_cities: u32::MAX }
    }
}

/// The admission of one log partition: `high` of each of its cities, and the numbers by which the
/// dataflow knows them.
///
/// ```
/// use swelter::{Admission, AdmissionRules, EventTime, Measurement, Millis, ReadingEvent, Reason, Upsert};
///
/// let mut admission = Admission::new(0, AdmissionRules::new(Millis::DAY));
/// let reading = |time: &str| Upsert {
///     city: "JFK",
///     reading_at: time.parse::<EventTime>().unwrap(),
///     event: ReadingEvent::Reading(Measurement::new(80.0, 60.0, None).unwrap()),
///     revision: None,
/// };
/// assert!(admission.admit(&reading("2013-07-18T12:00:00Z"), None).unwrap().is_new);
/// assert!(!admission.admit(&reading("2013-07-17T12:00:00Z"), None).unwrap().is_new);
/// let refusal = admission.admit(&reading("2013-07-17T11:59:59Z"), None).unwrap_err();
/// assert_eq!(refusal.reason, Reason::TooLate);
/// ```
#[derive(Debug)]
pub struct Admission {
    rules: AdmissionRules,
    source: u16,
    /// By number.
    cities: Vec<CityAdmission>,
    numbers: HashMap<Arc<str>, u32, fast::RandomState>,
    /// The number of the last arrival's city.
    last_city: u32,
}

#[derive(Debug)]
struct CityAdmission {
    name: Arc<str>,
    hash: u32,
    /// The city that followed this one the last time. Logs repeat their order, so the guess is
    /// mostly right and saves a lookup.
    likely_next: u32,
    /// The newest `reading_at` of an admitted reading; `None` if only withdrawals were admitted.
    high: Option<EventTime>,
    /// An estimate of the arrivals admitted at `estimate_since` and later: over one to two
    /// latenesses, so that it follows the city's rate.
    admitted_estimate: u32,
    estimate_since: EventTime,
    /// The city's name was sent to the dataflow.
    is_introduced: bool,
}

/// The city of an admitted arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmittedArrival {
    /// The number of the city in the dataflow.
    pub city: CityKey,
    /// The first arrival of the city in this run: the dataflow must learn its name.
    pub is_new: bool,
    /// An estimate of the rows that the arrival changes: 1 for a city's newest reading; for another
    /// one the city's later readings, on average.
    pub estimated_rows: u32,
}

impl AdmittedArrival {
    /// The message that introduces the city to the dataflow.
    pub fn introduction(&self, name: &str) -> CityIntroduction {
        CityIntroduction { key: self.city, name: name.into() }
    }

    /// The admitted upsert as an arrival. `position` comes back in its
    /// [`ArrivalOutcome`](crate::model::ArrivalOutcome).
    #[inline(always)]
    pub fn arrival(&self, upsert: &Upsert<'_>, position: u64) -> Arrival {
        let Upsert { reading_at, event, revision, .. } = *upsert;
        Arrival::new(self.city, reading_at, event, revision, position)
    }
}

impl Admission {
    /// The admission of a partition; `source` keeps its city numbers apart from those of others.
    pub fn new(source: u16, rules: AdmissionRules) -> Admission {
        Admission { rules, source, cities: Vec::new(), numbers: HashMap::default(), last_city: 0 }
    }

    /// Restores a city's state at the position from which the log is read: its newest `reading_at`,
    /// and an estimate of its stored readings at `first` and later.
    pub fn resume_city(&mut self, name: &str, high: Option<EventTime>, readings: u32, first: EventTime) {
        if !self.numbers.contains_key(name) {
            let number = self.add_city(name, first);
            let city = &mut self.cities[number as usize];
            (city.high, city.admitted_estimate) = (high, readings);
        }
    }

    /// Decides about the next arrival of the log; `arrived` is the time at which the log appended
    /// it, if known.
    pub fn admit(
        &mut self,
        upsert: &Upsert<'_>,
        arrived: Option<EventTime>,
    ) -> Result<AdmittedArrival, Refusal> {
        let is_reading = upsert.event != ReadingEvent::Withdrawal;
        let at = upsert.reading_at;
        if let (Some(max_ahead), Some(arrived)) = (self.rules.max_ahead, arrived)
            && at.millis() - arrived.millis() > max_ahead.millis()
        {
            let detail = format!("reading_at {at} is more than {max_ahead} after its arrival at {arrived}");
            return Err(Refusal::new(Reason::InTheFuture, detail));
        }
        let existing = self.find_city(upsert.city);
        if existing.is_none() && self.cities.len() >= self.rules.max_cities as usize {
            let detail = format!("the partition has {} cities, and may not have more", self.cities.len());
            return Err(Refusal::new(Reason::TooManyCities, detail));
        }
        let number = existing.unwrap_or_else(|| self.add_city(upsert.city, at));
        let city = &mut self.cities[number as usize];
        let oldest = city.high.map(|high| high.millis() - self.rules.lateness.millis());
        if oldest.is_some_and(|oldest| at.millis() < oldest) {
            return Err(too_late_refusal(at, city.high, self.rules.lateness));
        }
        city.admitted_estimate = city.admitted_estimate.saturating_add(1);
        let rows = match city.high {
            Some(high) if at <= high => city.rows_since(at, high),
            _ => 1,
        };
        if is_reading {
            city.advance(at, self.rules.lateness);
        }
        let is_new = !std::mem::replace(&mut city.is_introduced, true);
        let city = CityKey { source: self.source, number, hash: city.hash };
        Ok(AdmittedArrival { city, is_new, estimated_rows: rows })
    }

    #[inline]
    fn find_city(&mut self, name: &str) -> Option<u32> {
        let last = self.cities.get(self.last_city as usize)?;
        let guess = last.likely_next;
        let number = match &*self.cities[guess as usize].name == name {
            true => guess,
            false => *self.numbers.get(name)?,
        };
        self.cities[self.last_city as usize].likely_next = number;
        self.last_city = number;
        Some(number)
    }

    fn add_city(&mut self, name: &str, first: EventTime) -> u32 {
        let number = self.cities.len() as u32;
        let name: Arc<str> = name.into();
        let hash = CityKey::hash(&name);
        let (name_of, introduced) = (Arc::clone(&name), false);
        let city = CityAdmission {
            name: name_of,
            hash,
            likely_next: 0,
            high: None,
            admitted_estimate: 0,
            estimate_since: first,
            is_introduced: introduced,
        };
        self.cities.push(city);
        self.numbers.insert(name, number);
        number
    }

    /// How many cities the partition has.
    pub fn city_count(&self) -> usize {
        self.cities.len()
    }
}

impl CityAdmission {
    #[inline]
    fn advance(&mut self, at: EventTime, lateness: Millis) {
        if self.high.is_some_and(|high| at <= high) {
            return;
        }
        let (first, span) = (self.estimate_since.millis(), lateness.millis());
        match self.high {
            Some(high) if at.millis() - high.millis() <= span => {
                if at.millis() - first > span.saturating_mul(2) {
                    self.shrink_estimate(at, span);
                }
            }
            // No earlier reading can still change.
            _ => (self.estimate_since, self.admitted_estimate) = (at, 1),
        }
        self.high = Some(at);
    }

    /// Reduces the estimate to the newest lateness.
    #[cold]
    fn shrink_estimate(&mut self, high: EventTime, span: i64) {
        let share = span as f64 / (high.millis() - self.estimate_since.millis()) as f64;
        self.admitted_estimate = (f64::from(self.admitted_estimate) * share) as u32;
        self.estimate_since = EventTime::from_millis(high.millis() - span).unwrap_or(high);
    }

    #[cold]
    fn rows_since(&self, at: EventTime, high: EventTime) -> u32 {
        let (since, all) = (high.millis() - at.millis(), high.millis() - self.estimate_since.millis());
        let share = since as f64 / all.max(since).max(1) as f64;
        ((f64::from(self.admitted_estimate) * share) as u32).saturating_add(1)
    }
}

/// Refuses a reading that is too late by its city's newest one.
#[cold]
pub fn too_late_refusal(at: EventTime, high: Option<EventTime>, lateness: Millis) -> Refusal {
    let high = high.map_or(String::new(), |high| high.to_string());
    let detail = format!("reading_at {at} is more than {lateness} older than {high}, the newest of its city");
    Refusal::new(Reason::TooLate, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Measurement;

    fn at(millis: i64) -> EventTime {
        EventTime::from_millis(millis).unwrap()
    }

    fn upsert(city: &str, millis: i64, event: ReadingEvent) -> Upsert<'_> {
        Upsert { city, reading_at: at(millis), event, revision: None }
    }

    fn admission(lateness: i64) -> Admission {
        let max_ahead = Millis::from_millis(5);
        let lateness = Millis::from_millis(lateness).unwrap();
        Admission::new(3, AdmissionRules { lateness, max_ahead, max_cities: 2 })
    }

    fn reading() -> ReadingEvent {
        ReadingEvent::Reading(Measurement::new(80.0, 50.0, None).unwrap())
    }

    #[test]
    fn event_time_bounds_are_inclusive() {
        let mut admission = admission(10);
        assert!(admission.admit(&upsert("a", 105, reading()), Some(at(100))).is_ok());
        let ahead = admission.admit(&upsert("a", 106, reading()), Some(at(100)));
        assert_eq!(ahead.unwrap_err().reason, Reason::InTheFuture);
        assert!(admission.admit(&upsert("a", 95, reading()), Some(at(100))).is_ok());
        let late = admission.admit(&upsert("a", 94, ReadingEvent::Withdrawal), Some(at(100)));
        assert_eq!(late.unwrap_err().reason, Reason::TooLate);
        assert!(
            admission.admit(&upsert("b", 0, reading()), Some(at(100))).is_ok(),
            "each city has its own high"
        );
    }

    #[test]
    fn refused_readings_do_not_advance_newest_event_time() {
        let mut admission = admission(10);
        admission.admit(&upsert("a", 1000, ReadingEvent::Withdrawal), None).unwrap();
        admission.admit(&upsert("a", 0, reading()), None).unwrap();
        assert!(admission.admit(&upsert("a", 500, reading()), Some(at(100))).is_err());
        assert!(admission.admit(&upsert("a", -10, reading()), None).is_ok());
    }

    #[test]
    fn city_numbers_are_dense_and_refused_city_gets_none() {
        let mut admission = admission(10);
        assert!(admission.admit(&upsert("x", 500, reading()), Some(at(0))).is_err());
        let keys: Vec<_> = ["a", "b", "a"]
            .map(|city| admission.admit(&upsert(city, 0, reading()), None).unwrap())
            .iter()
            .map(|admitted| (admitted.city.source, admitted.city.number, admitted.is_new))
            .collect();
        assert_eq!(keys, [(3, 0, true), (3, 1, true), (3, 0, false)]);
    }

    #[test]
    fn estimated_rows_of_late_reading_are_readings_since() {
        let mut admission = admission(1000);
        for at in 0..=100 {
            assert_eq!(admission.admit(&upsert("a", at, reading()), None).unwrap().estimated_rows, 1);
        }
        for (at, rows) in [(100, 1), (50, 50), (0, 100), (-100, 100)] {
            let admitted = admission.admit(&upsert("a", at, reading()), None).unwrap();
            assert!(admitted.estimated_rows.abs_diff(rows) < 10, "{at}: {}", admitted.estimated_rows);
        }
    }

    #[test]
    fn estimated_rows_follow_reading_rate() {
        let mut admission = admission(1000);
        let rows = |admission: &mut Admission, at| {
            admission.admit(&upsert("a", at, reading()), None).unwrap().estimated_rows
        };
        // One early time, then a slow sensor, then a fast one.
        rows(&mut admission, -1_000_000_000_000);
        (0..1000).for_each(|i| assert_eq!(rows(&mut admission, i * 100), 1));
        let slow = rows(&mut admission, 99_400);
        assert!(slow.abs_diff(6) <= 2, "{slow}");
        (0..6000).for_each(|i| assert_eq!(rows(&mut admission, 100_000 + i), 1));
        let fast = rows(&mut admission, 105_499);
        assert!(fast.abs_diff(500) < 50, "{fast}");
    }

    #[test]
    fn estimated_rows_are_capped() {
        let mut admission = Admission::new(0, AdmissionRules::new(Millis::MAX));
        admission.resume_city("a", Some(at(1000)), u32::MAX, at(0));
        assert_eq!(admission.admit(&upsert("a", 0, reading()), None).unwrap().estimated_rows, u32::MAX);
    }

    #[test]
    fn cities_are_limited() {
        let mut admission = admission(10);
        for (city, admitted) in [("a", true), ("b", true), ("c", false), ("a", true)] {
            let result = admission.admit(&upsert(city, 0, reading()), None);
            assert_eq!(result.is_ok(), admitted, "{city}");
            assert!(result.is_ok() || result.is_err_and(|refusal| refusal.reason == Reason::TooManyCities));
        }
    }

    #[test]
    fn unlimited_lateness_accepts_all_event_times() {
        let rules = AdmissionRules::new(Millis::MAX);
        let mut admission = Admission::new(0, rules);
        for time in [EventTime::MAX, EventTime::MIN] {
            assert!(admission.admit(&Upsert { reading_at: time, ..upsert("a", 0, reading()) }, None).is_ok());
        }
    }
}
