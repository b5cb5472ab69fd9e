//! A made-up log that is written as time goes by: a past at the start, and then readings when they are due.

use std::sync::Arc;
use std::thread::Thread;
use std::time::{Duration as Wait, Instant};

use super::{Cursor, Delivery, Generator, GeneratorPlan, HeldUp, PlanError, Record};
use crate::codec::{DecodeSettings, RecordDecoder};
use crate::model::clock::wall_clock_ms;
use crate::model::{Duration, Event, EventTime, Raw, Upsert};
use crate::sources::weather::WeatherKind;
use crate::sources::{Next, Partition, Place, Polled, Source, SourceError, Take, mix, unit};

/// What to make up, from `history` before the start on and without an end. Shares are those of [`GeneratorPlan`].
#[derive(Clone, Debug, PartialEq)]
pub struct PacedPlan {
    pub cities: u32,
    /// Between two readings of a city. The cities take turns.
    pub interval: Duration,
    /// How much past there is at the start.
    pub history: Duration,
    /// Between two readings of a city in the past. Where it differs from `interval`, the past has no faults, and corrections
    /// and withdrawals are of readings of the past, of the given share of what is read, and come at once: a steady load.
    pub history_interval: Duration,
    pub late: f64,
    pub corrections: f64,
    pub withdrawals: f64,
    pub duplicates: f64,
    pub invalid: f64,
    pub weather: WeatherKind,
    pub seed: u64,
}

/// A log of a plan and a start. It is the same whenever it is read.
#[derive(Debug)]
pub struct Paced {
    name: Box<str>,
    past: Option<Generator>,
    live: Generator,
    plan: PacedPlan,
}

/// No log is played longer than this, in ms: 20 years.
const LONGEST_MS: i64 = 20 * 365 * 86_400_000;

/// Of the past, the oldest part of this many is not corrected: it soon is too old for it.
const SPARED_PART: u64 = 8;

impl Paced {
    /// The first city reads at multiples of the interval.
    pub fn new(name: &str, plan: PacedPlan, start: EventTime) -> Result<Paced, PlanError> {
        let grid = plan.interval.millis().max(1);
        let start = EventTime::from_millis(start.millis() - start.millis().rem_euclid(grid));
        let start = start.ok_or(PlanError::EndOfTime)?;
        let moved = |ms: i64| EventTime::from_millis(start.millis() + ms).ok_or(PlanError::EndOfTime);
        let from = moved(-plan.history.millis())?;
        let whole = GeneratorPlan {
            cities: plan.cities,
            interval: plan.interval,
            staggered: true,
            from,
            to: moved(LONGEST_MS)?,
            late: plan.late,
            corrections: plan.corrections,
            withdrawals: plan.withdrawals,
            duplicates: plan.duplicates,
            invalid: plan.invalid,
            weather: plan.weather,
            seed: plan.seed,
        };
        let (past, live) = if plan.history_interval == plan.interval || from == start {
            (None, whole)
        } else {
            let clean = GeneratorPlan { corrections: 0.0, withdrawals: 0.0, ..whole };
            let interval = plan.history_interval;
            let (late, duplicates, invalid) = (0.0, 0.0, 0.0);
            let past = GeneratorPlan { interval, to: start, late, duplicates, invalid, ..clean.clone() };
            (Some(past), GeneratorPlan { from: start, ..clean })
        };
        let past = past.map(Generator::new).transpose()?;
        Ok(Paced { name: name.into(), past, live: Generator::new(live)?, plan })
    }

    /// The log from its beginning.
    pub(super) fn log(&self) -> Log {
        let past = self.past.as_ref().map(|_| Cursor::default());
        Log { past, live: Cursor::default(), correction: None, records: 0 }
    }

    pub(super) fn deliver(&self, due: Due) -> Delivery<'_> {
        let past = self.past.as_ref().unwrap_or(&self.live);
        match due {
            Due::Past(due) => past.deliver(due),
            Due::Live(due) => self.live.deliver(due),
            Due::Correction { city, step, arrives_at, withdrawal } => {
                let at = past.time(step, city);
                let event = match withdrawal {
                    true => Event::Withdrawal,
                    false => Event::Reading(past.corrected(city, at)),
                };
                let record = Record::Upsert { city: past.weather.city_key(city), at, event };
                Delivery { arrives_at, record }
            }
        }
    }

    /// The correction of the past that comes with the record of this number, if one does.
    fn correction(&self, number: u64, arrives_at: EventTime) -> Option<Due> {
        let past = self.past.as_ref()?;
        let hash = mix(mix(self.plan.seed) ^ number);
        let drawn = unit(hash);
        if drawn >= self.plan.corrections + self.plan.withdrawals {
            return None;
        }
        let city = (mix(hash ^ 1) % u64::from(self.plan.cities)) as u32;
        let spared = past.steps / SPARED_PART;
        let step = spared + mix(hash ^ 2) % (past.steps - spared);
        Some(Due::Correction { city, step, arrives_at, withdrawal: drawn >= self.plan.corrections })
    }
}

/// A record before it is made up.
#[derive(Clone, Copy, Debug)]
pub(super) enum Due {
    Past(HeldUp),
    Live(HeldUp),
    Correction { city: u32, step: u64, arrives_at: EventTime, withdrawal: bool },
}

/// A place in a paced log.
#[derive(Debug)]
pub(super) struct Log {
    /// While there is some left.
    past: Option<Cursor>,
    live: Cursor,
    correction: Option<Due>,
    /// Of the live part.
    records: u64,
}

impl Log {
    pub(super) fn next(&mut self, paced: &Paced) -> Option<Due> {
        if let Some((past, generator)) = self.past.as_mut().zip(paced.past.as_ref()) {
            if let Some(due) = past.next(generator) {
                return Some(Due::Past(due));
            }
            self.past = None;
        }
        if let Some(correction) = self.correction.take() {
            return Some(correction);
        }
        let due = self.live.next(&paced.live)?;
        self.records += 1;
        self.correction = paced.correction(self.records, paced.live.time(due.arrives, due.city));
        Some(Due::Live(due))
    }
}

/// The clock that readings are due by, ms since 1970-01-01T00:00:00Z.
pub(super) fn now() -> i64 {
    wall_clock_ms() as i64
}

/// How long it is until then.
pub(super) fn until(time: EventTime) -> Wait {
    Wait::from_millis(time.millis().saturating_sub(now()).max(0) as u64)
}

/// Plays the log into the dataflow, without keeping it anywhere.
impl Source for Arc<Paced> {
    fn name(&self) -> &str {
        &self.name
    }

    fn partitions(&self) -> u32 {
        1
    }

    fn open(&self, _: u32, position: u64, _: Thread) -> Result<Box<dyn Partition>, SourceError> {
        let mut partition = PacedPartition {
            log: self.log(),
            paced: Arc::clone(self),
            next: None,
            position: 0,
            behind: true,
            decoder: RecordDecoder::new(DecodeSettings::default()),
            text: Vec::new(),
        };
        partition.next = partition.log.next(self);
        while partition.position < position {
            partition.advance();
        }
        Ok(Box::new(partition))
    }
}

struct PacedPartition {
    paced: Arc<Paced>,
    log: Log,
    next: Option<Due>,
    position: u64,
    /// There is more to give than has been polled.
    behind: bool,
    decoder: RecordDecoder,
    text: Vec<u8>,
}

impl PacedPartition {
    fn advance(&mut self) {
        self.next = self.log.next(&self.paced);
        self.position += 1;
    }

    fn give(&mut self, delivery: &Delivery<'_>, take: &mut dyn Take) {
        let place = Place { position: self.position, arrived: Some(delivery.arrives_at) };
        let taken = match &delivery.record {
            Record::Upsert { city, at, event } => {
                take.upsert(place, &Upsert { city, reading_at: *at, event: *event, revision: None })
            }
            Record::Invalid(_) => {
                self.text.clear();
                delivery.record.push_json(&mut self.text);
                self.decoder.decode(&self.text).and_then(|upsert| take.upsert(place, &upsert))
            }
        };
        if let Err(refusal) = taken {
            self.text.clear();
            delivery.record.push_json(&mut self.text);
            take.refused(place, &refusal, &Raw::value(&self.text));
        }
    }
}

impl Partition for PacedPartition {
    fn poll(&mut self, limit: usize, upto: u64, take: &mut dyn Take) -> Result<Polled, SourceError> {
        let now = now();
        let paced = Arc::clone(&self.paced);
        let mut records = 0;
        let next = loop {
            let Some(due) = self.next else { break Next::Never };
            let delivery = paced.deliver(due);
            if delivery.arrives_at.millis() > now {
                break Next::At(Instant::now() + until(delivery.arrives_at));
            }
            if records == limit || self.position >= upto || take.is_full() {
                break Next::Now;
            }
            self.give(&delivery, take);
            self.advance();
            records += 1;
        };
        self.behind = next == Next::Now;
        Ok(Polled { records, next })
    }

    fn end(&self) -> u64 {
        // How much is due is known only when it has been made up.
        if self.behind { u64::MAX } else { self.position }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Refusal;

    #[derive(Default)]
    struct Taken {
        upserts: Vec<(u64, String, EventTime, Event)>,
        refused: Vec<(u64, Refusal, Vec<u8>)>,
    }

    impl Take for Taken {
        fn upsert(&mut self, place: Place, upsert: &Upsert<'_>) -> Result<(), Refusal> {
            self.upserts.push((place.position, upsert.city.into(), upsert.reading_at, upsert.event));
            Ok(())
        }

        fn refused(&mut self, place: Place, refusal: &Refusal, raw: &Raw<'_>) {
            self.refused.push((place.position, refusal.clone(), raw.value.unwrap().to_vec()));
        }
    }

    fn paced(history_interval: &str) -> Arc<Paced> {
        let plan = PacedPlan {
            cities: 7,
            interval: "60s".parse().unwrap(),
            history: "6h".parse().unwrap(),
            history_interval: history_interval.parse().unwrap(),
            late: 0.1,
            corrections: 0.05,
            withdrawals: 0.05,
            duplicates: 0.1,
            invalid: 0.1,
            weather: WeatherKind::Plausible,
            seed: 3,
        };
        // An hour ago: as if it had been stopped since.
        let start = EventTime::from_millis(now() - 3_600_000).unwrap();
        Arc::new(Paced::new("made-up", plan, start).unwrap())
    }

    fn all(paced: &Arc<Paced>, position: u64) -> Taken {
        let mut partition = paced.open(0, position, std::thread::current()).unwrap();
        let mut taken = Taken::default();
        loop {
            let polled = partition.poll(100, u64::MAX, &mut taken).unwrap();
            assert!(polled.records <= 100);
            assert_eq!(polled.next == Next::Now, partition.end() == u64::MAX);
            if let Next::At(next) = polled.next {
                assert!(next > Instant::now() - Wait::from_secs(1));
                return taken;
            }
        }
    }

    #[test]
    fn a_place_in_it_is_found_again() {
        for history_interval in ["60s", "5m"] {
            let paced = paced(history_interval);
            let whole = all(&paced, 0);
            let rest = all(&paced, 1000);
            let behind: Vec<_> = whole.upserts.iter().filter(|(position, ..)| *position >= 1000).collect();
            assert!(!behind.is_empty() && rest.upserts.len() >= behind.len());
            assert!(rest.upserts.iter().zip(behind).all(|(a, b)| a == b));
        }
    }

    #[test]
    fn there_is_a_past_and_what_goes_wrong() {
        for (history_interval, least) in [("60s", 7 * 420), ("5m", 7 * (72 + 60))] {
            let taken = all(&paced(history_interval), 0);
            assert!(taken.upserts.len() >= least * 9 / 10, "{}", taken.upserts.len());
            assert!(!taken.refused.is_empty());
            assert!(taken.upserts.iter().any(|(.., event)| *event == Event::Withdrawal));
        }
    }
}
