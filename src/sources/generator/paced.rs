//! A generated log in real time: a history at the start, then readings when they are due.

use std::sync::Arc;
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::{
    GeneratedRecord, Generator, GeneratorPlan, PlanError, ScheduleCursor, ScheduledRecord, TimedRecord,
};
use crate::codec::{DecodeSettings, JsonRecordDecoder};
use crate::model::clock::wall_clock_ms;
use crate::model::{EventTime, Millis, RawRecord, ReadingEvent, Upsert};
use crate::sources::weather::WeatherKind;
use crate::sources::{
    NextPoll, Partition, PollResult, RecordHandler, RecordPosition, Source, SourceError, mix64, unit_interval,
};

/// What to generate, from `history` before the start on and without an end. Shares are those of
/// [`GeneratorPlan`].
#[derive(Clone, Debug, PartialEq)]
pub struct PacedPlan {
    pub cities: u32,
    /// Between two readings of a city. The cities take turns.
    pub interval: Millis,
    /// The length of the history at the start.
    pub history: Millis,
    /// Between two readings of a city in the history. If it differs from `interval`, the history
    /// has no faults, and corrections and withdrawals are of readings of the history, a share of
    /// the live readings, and arrive at once: a steady load.
    pub history_interval: Millis,
    pub late: f64,
    pub corrections: f64,
    pub withdrawals: f64,
    pub duplicates: f64,
    pub invalid: f64,
    pub weather: WeatherKind,
    pub seed: u64,
}

/// The log of a plan and a start time. It is the same whenever it is read.
#[derive(Debug)]
pub struct PacedLog {
    name: Box<str>,
    past: Option<Generator>,
    live: Generator,
    plan: PacedPlan,
}

/// The maximum length of a log in ms: 20 years.
const MAX_LOG_MS: i64 = 20 * 365 * 86_400_000;

/// The oldest `1 / UNCORRECTED_PART` of the history is not corrected: it will soon be too old for
/// that.
const UNCORRECTED_PART: u64 = 8;

impl PacedLog {
    /// The first city has readings at multiples of the interval.
    pub fn new(name: &str, plan: PacedPlan, start: EventTime) -> Result<PacedLog, PlanError> {
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
            to: moved(MAX_LOG_MS)?,
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
        Ok(PacedLog { name: name.into(), past, live: Generator::new(live)?, plan })
    }

    /// A cursor at the beginning of the log.
    pub(super) fn cursor(&self) -> PacedCursor {
        let past = self.past.as_ref().map(|_| ScheduleCursor::default());
        PacedCursor { past, live: ScheduleCursor::default(), correction: None, records: 0 }
    }

    pub(super) fn generate_record(&self, due: PacedRecord) -> TimedRecord<'_> {
        let past = self.past.as_ref().unwrap_or(&self.live);
        match due {
            PacedRecord::Past(due) => past.generate_record(due),
            PacedRecord::Live(due) => self.live.generate_record(due),
            PacedRecord::Correction { city, step, arrives_at, withdrawal } => {
                let at = past.scheduled_time(step, city);
                let event = match withdrawal {
                    true => ReadingEvent::Withdrawal,
                    false => ReadingEvent::Reading(past.corrected_measurement(city, at)),
                };
                let record = GeneratedRecord::Upsert { city: past.weather.city_key(city), at, event };
                TimedRecord { arrives_at, record }
            }
        }
    }

    /// The correction of the history that follows the record with this number, if there is one.
    fn correction_after(&self, number: u64, arrives_at: EventTime) -> Option<PacedRecord> {
        let past = self.past.as_ref()?;
        let hash = mix64(mix64(self.plan.seed) ^ number);
        let drawn = unit_interval(hash);
        if drawn >= self.plan.corrections + self.plan.withdrawals {
            return None;
        }
        let city = (mix64(hash ^ 1) % u64::from(self.plan.cities)) as u32;
        let spared = past.steps_per_city / UNCORRECTED_PART;
        let step = spared + mix64(hash ^ 2) % (past.steps_per_city - spared);
        Some(PacedRecord::Correction { city, step, arrives_at, withdrawal: drawn >= self.plan.corrections })
    }
}

/// A record before its fields are generated.
#[derive(Clone, Copy, Debug)]
pub(super) enum PacedRecord {
    Past(ScheduledRecord),
    Live(ScheduledRecord),
    Correction { city: u32, step: u64, arrives_at: EventTime, withdrawal: bool },
}

/// A position in a paced log.
#[derive(Debug)]
pub(super) struct PacedCursor {
    /// Until the end of the history.
    past: Option<ScheduleCursor>,
    live: ScheduleCursor,
    correction: Option<PacedRecord>,
    /// The number of records of the live part.
    records: u64,
}

impl PacedCursor {
    pub(super) fn next_record(&mut self, paced: &PacedLog) -> Option<PacedRecord> {
        if let Some((past, generator)) = self.past.as_mut().zip(paced.past.as_ref()) {
            if let Some(due) = past.next_record(generator) {
                return Some(PacedRecord::Past(due));
            }
            self.past = None;
        }
        if let Some(correction) = self.correction.take() {
            return Some(correction);
        }
        let due = self.live.next_record(&paced.live)?;
        self.records += 1;
        self.correction =
            paced.correction_after(self.records, paced.live.scheduled_time(due.arrival_step, due.city));
        Some(PacedRecord::Live(due))
    }
}

/// The clock of due times, ms since 1970-01-01T00:00:00Z.
pub(super) fn now_ms() -> i64 {
    wall_clock_ms() as i64
}

/// The time until then.
pub(super) fn time_until(time: EventTime) -> Duration {
    Duration::from_millis(time.millis().saturating_sub(now_ms()).max(0) as u64)
}

/// A source that generates the log for the dataflow, without storing it.
impl Source for Arc<PacedLog> {
    fn name(&self) -> &str {
        &self.name
    }

    fn partitions(&self) -> u32 {
        1
    }

    fn open_partition(&self, _: u32, position: u64, _: Thread) -> Result<Box<dyn Partition>, SourceError> {
        let mut partition = PacedPartition {
            cursor: self.cursor(),
            paced: Arc::clone(self),
            next: None,
            position: 0,
            has_more: true,
            decoder: JsonRecordDecoder::new(DecodeSettings::default()),
            text: Vec::new(),
        };
        partition.next = partition.cursor.next_record(self);
        while partition.position < position {
            partition.advance();
        }
        Ok(Box::new(partition))
    }
}

struct PacedPartition {
    paced: Arc<PacedLog>,
    cursor: PacedCursor,
    next: Option<PacedRecord>,
    position: u64,
    /// More records are due than were polled.
    has_more: bool,
    decoder: JsonRecordDecoder,
    text: Vec<u8>,
}

impl PacedPartition {
    fn advance(&mut self) {
        self.next = self.cursor.next_record(&self.paced);
        self.position += 1;
    }

    fn handle_record(&mut self, delivery: &TimedRecord<'_>, handler: &mut dyn RecordHandler) {
        let record_position = RecordPosition { position: self.position, arrived: Some(delivery.arrives_at) };
        let outcome = match &delivery.record {
            GeneratedRecord::Upsert { city, at, event } => handler.handle_upsert(
                record_position,
                &Upsert { city, reading_at: *at, event: *event, revision: None },
            ),
            GeneratedRecord::Invalid(_) => {
                self.text.clear();
                delivery.record.push_json(&mut self.text);
                self.decoder
                    .decode(&self.text)
                    .and_then(|upsert| handler.handle_upsert(record_position, &upsert))
            }
        };
        if let Err(refusal) = outcome {
            self.text.clear();
            delivery.record.push_json(&mut self.text);
            handler.handle_refusal(record_position, &refusal, &RawRecord::from_value(&self.text));
        }
    }
}

impl Partition for PacedPartition {
    fn poll(
        &mut self,
        limit: usize,
        until: u64,
        handler: &mut dyn RecordHandler,
    ) -> Result<PollResult, SourceError> {
        let now = now_ms();
        let paced = Arc::clone(&self.paced);
        let mut records = 0;
        let next = loop {
            let Some(due) = self.next else { break NextPoll::EndOfLog };
            let delivery = paced.generate_record(due);
            if delivery.arrives_at.millis() > now {
                break NextPoll::At(Instant::now() + time_until(delivery.arrives_at));
            }
            if records == limit || self.position >= until || handler.is_full() {
                break NextPoll::Now;
            }
            self.handle_record(&delivery, handler);
            self.advance();
            records += 1;
        };
        self.has_more = next == NextPoll::Now;
        Ok(PollResult { records, next })
    }

    fn end(&self) -> u64 {
        // The number of due records is unknown until they are generated.
        if self.has_more { u64::MAX } else { self.position }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Refusal;

    #[derive(Default)]
    struct Taken {
        upserts: Vec<(u64, String, EventTime, ReadingEvent)>,
        refused: Vec<(u64, Refusal, Vec<u8>)>,
    }

    impl RecordHandler for Taken {
        fn handle_upsert(&mut self, place: RecordPosition, upsert: &Upsert<'_>) -> Result<(), Refusal> {
            self.upserts.push((place.position, upsert.city.into(), upsert.reading_at, upsert.event));
            Ok(())
        }

        fn handle_refusal(&mut self, place: RecordPosition, refusal: &Refusal, raw: &RawRecord<'_>) {
            self.refused.push((place.position, refusal.clone(), raw.value.unwrap().to_vec()));
        }
    }

    fn paced(history_interval: &str) -> Arc<PacedLog> {
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
        // An hour ago, as if it had been stopped since.
        let start = EventTime::from_millis(now_ms() - 3_600_000).unwrap();
        Arc::new(PacedLog::new("made-up", plan, start).unwrap())
    }

    fn all(paced: &Arc<PacedLog>, position: u64) -> Taken {
        let mut partition = paced.open_partition(0, position, std::thread::current()).unwrap();
        let mut taken = Taken::default();
        loop {
            let polled = partition.poll(100, u64::MAX, &mut taken).unwrap();
            assert!(polled.records <= 100);
            assert_eq!(polled.next == NextPoll::Now, partition.end() == u64::MAX);
            if let NextPoll::At(next) = polled.next {
                assert!(next > Instant::now() - Duration::from_secs(1));
                return taken;
            }
        }
    }

    #[test]
    fn position_is_restored_after_restart() {
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
    fn history_contains_refused_and_withdrawn_readings() {
        for (history_interval, least) in [("60s", 7 * 420), ("5m", 7 * (72 + 60))] {
            let taken = all(&paced(history_interval), 0);
            assert!(taken.upserts.len() >= least * 9 / 10, "{}", taken.upserts.len());
            assert!(!taken.refused.is_empty());
            assert!(taken.upserts.iter().any(|(.., event)| *event == ReadingEvent::Withdrawal));
        }
    }
}
