//! A generated log: scheduled readings, and their faults. [`paced`] plays one in real time,
//! [`feed`] appends it to another log.
//!
//! Each random draw is a hash of the seed, the city, the time and the kind of draw. So the log
//! depends only on the plan, and the shares are independent: with another `late`, the same readings
//! are corrected.

mod bad_text;
pub mod feed;
pub mod paced;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::weather::{Weather, WeatherKind};
use super::{mix64, unit_interval};
use crate::model::{EventTime, Measurement, Millis, ReadingEvent};

/// The maximum delay of a late reading, and the mean delay before it is truncated, in ms.
const MAX_DELAY_MS: i64 = 2 * 3_600_000;
const MEAN_DELAY_MS: i64 = 20 * 60_000;
/// The maximum age of corrections and withdrawals, in ms after the reading's time.
const MAX_CORRECTION_AGE_MS: i64 = 24 * 3_600_000;
/// The maximum delay of a duplicate, in intervals after its reading.
const MAX_DUPLICATE_STEPS: u64 = 3;

/// What to generate. Shares are of the scheduled readings, 0 to 1, each drawn independently: a
/// reading can be late, and corrected, and withdrawn.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratorPlan {
    pub cities: u32,
    /// Between two readings of a city.
    pub interval: Millis,
    /// The cities' readings are spread over the interval, instead of all at the same time.
    pub staggered: bool,
    /// The time of the first reading.
    pub from: EventTime,
    /// Readings are scheduled before this time; delayed records may arrive after it.
    pub to: EventTime,
    /// Readings that arrive late: by whole intervals, at least one and at most 2 hours (or one
    /// interval, if that is longer). Delays are exponentially distributed: most are short, and
    /// their mean is about 20 minutes.
    pub late: f64,
    /// Readings that are corrected by another one of the same time, by up to 5 °F and 10 % of
    /// humidity. The correction arrives after the reading and at most 24 hours after its time,
    /// evenly distributed.
    pub corrections: f64,
    /// Readings that are withdrawn, at the same ages as corrections. If the withdrawal arrives
    /// before the correction of the same reading, the corrected reading stays.
    pub withdrawals: f64,
    /// Readings that arrive twice: the second time at once or up to 3 intervals later.
    pub duplicates: f64,
    /// Bad records, in addition to the reading.
    pub invalid: f64,
    pub weather: WeatherKind,
    pub seed: u64,
}

/// Why a plan is impossible.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    #[error("there must be at least one city")]
    NoCities,
    #[error("the interval must be longer than 0")]
    NoInterval,
    #[error("the end {to} must be later than the beginning {from}")]
    NoTime { from: EventTime, to: EventTime },
    #[error("{} weather begins at {start}, after {from}", weather.name())]
    BeforeWeather { weather: WeatherKind, start: EventTime, from: EventTime },
    #[error(
        "late arrivals would be after {}, the greatest time that can be written: choose an earlier end",
        EventTime::MAX
    )]
    EndOfTime,
    #[error("{name} must be a share of all readings from 0 to 1, not {share}")]
    Share { name: &'static str, share: f64 },
    #[error("{0}")]
    Weather(String),
}

/// The generator of one log.
#[derive(Clone, Debug)]
pub struct Generator {
    plan: GeneratorPlan,
    weather: Weather,
    /// The number of scheduled readings of a city.
    steps_per_city: u64,
    /// The maximum delay of late readings, and the maximum age of corrections and withdrawals, in
    /// intervals.
    max_delay_steps: u64,
    max_correction_steps: u64,
}

/// A record and its arrival time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimedRecord<'a> {
    /// Never decreases, and is on the schedule of the city.
    pub arrives_at: EventTime,
    pub record: GeneratedRecord<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GeneratedRecord<'a> {
    Upsert { city: &'a str, at: EventTime, event: ReadingEvent },
    Invalid(BadReading<'a>),
}

/// A reading that must be refused. Faults in fields are in these fields; faults in the text are
/// added by the writer, and the fields are then valid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BadReading<'a> {
    pub kind: BadReadingKind,
    pub city: Option<&'a str>,
    pub at: Option<EventTime>,
    /// °F.
    pub temperature: Option<f64>,
    /// %.
    pub humidity: Option<f64>,
    /// mph.
    pub wind_speed: Option<f64>,
}

/// The fault of a bad record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BadReadingKind {
    /// A measured value is far out of range.
    OutOfRange,
    /// The city, the time, the temperature or the humidity is absent.
    MissingField,
    /// The line is truncated.
    CutLine,
    /// The time has no offset.
    NoOffset,
    /// A number is a word.
    BadNumber,
}

impl BadReadingKind {
    pub const ALL: [BadReadingKind; 5] = [
        BadReadingKind::OutOfRange,
        BadReadingKind::MissingField,
        BadReadingKind::CutLine,
        BadReadingKind::NoOffset,
        BadReadingKind::BadNumber,
    ];

    /// Whether only a text format can express the fault.
    pub fn needs_text(self) -> bool {
        matches!(self, BadReadingKind::CutLine | BadReadingKind::NoOffset | BadReadingKind::BadNumber)
    }
}

/// The kind of a random draw.
#[derive(Clone, Copy, Debug)]
enum RandomDraw {
    IsLate,
    LateBy,
    IsCorrected,
    CorrectedAt,
    CorrectedTo,
    IsWithdrawn,
    WithdrawnAt,
    IsDuplicated,
    DuplicatedAt,
    IsInvalid,
    InvalidHow,
}

impl Generator {
    pub fn new(plan: GeneratorPlan) -> Result<Generator, PlanError> {
        let interval = plan.interval.millis();
        let (from, to) = (plan.from, plan.to);
        if plan.cities == 0 {
            return Err(PlanError::NoCities);
        }
        if interval == 0 {
            return Err(PlanError::NoInterval);
        }
        if from >= to {
            return Err(PlanError::NoTime { from, to });
        }
        let start = plan.weather.first_instant();
        if from < start {
            return Err(PlanError::BeforeWeather { weather: plan.weather, start, from });
        }
        // The last record arrives an interval after the maximum age, or after the most delayed
        // reading.
        let last = MAX_CORRECTION_AGE_MS
            .max(interval)
            .saturating_add(interval.saturating_mul(MAX_DUPLICATE_STEPS as i64 + 1));
        if to.millis().checked_add(last).and_then(EventTime::from_millis).is_none() {
            return Err(PlanError::EndOfTime);
        }
        for (name, share) in [
            ("late", plan.late),
            ("corrections", plan.corrections),
            ("withdrawals", plan.withdrawals),
            ("duplicates", plan.duplicates),
            ("invalid", plan.invalid),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return Err(PlanError::Share { name, share });
            }
        }
        let weather = Weather::new(plan.weather, plan.cities, plan.seed).map_err(PlanError::Weather)?;
        let whole = |ms: i64| (ms / interval) as u64;
        Ok(Generator {
            weather,
            steps_per_city: whole(to.millis() - from.millis() - 1) + 1,
            max_delay_steps: whole(MAX_DELAY_MS).max(1),
            max_correction_steps: whole(MAX_CORRECTION_AGE_MS),
            plan,
        })
    }

    /// The number of scheduled readings, of all cities together.
    #[cfg(test)]
    pub fn scheduled_readings(&self) -> u64 {
        self.steps_per_city.saturating_mul(u64::from(self.plan.cities))
    }

    /// The records of the log, in the order of arrival: interval by interval, then city by city,
    /// then the scheduled reading of a city before its delayed records. Only delayed records are in
    /// memory.
    pub fn timed_records(&self) -> TimedRecords<'_> {
        TimedRecords { generator: self, cursor: ScheduleCursor::default() }
    }

    /// The time of a city's step. [`Generator::new`] has checked that it exists.
    fn scheduled_time(&self, step: u64, city: u32) -> EventTime {
        let GeneratorPlan { from, interval, staggered, cities, .. } = &self.plan;
        // No overflow: the interval is shorter than event time, so this is 2^48 ms by 2^32 cities.
        let share = i128::from(interval.millis()) * i128::from(city) / i128::from(*cities);
        let offset = if *staggered { share as i64 } else { 0 };
        let ms = from.millis() + step as i64 * interval.millis() + offset;
        EventTime::from_millis(ms).unwrap_or(EventTime::MAX)
    }

    fn draw_hash(&self, city: u32, at: EventTime, draw: RandomDraw) -> u64 {
        let draw_key = (u64::from(city) << 8) | draw as u64;
        mix64(mix64(mix64(self.plan.seed) ^ draw_key) ^ at.millis() as u64)
    }

    fn draw_happens(&self, share: f64, city: u32, at: EventTime, draw: RandomDraw) -> bool {
        share > 0.0 && unit_interval(self.draw_hash(city, at, draw)) < share
    }

    /// The delay of the reading in intervals.
    fn draw_delay(&self, city: u32, at: EventTime) -> u64 {
        if !self.draw_happens(self.plan.late, city, at, RandomDraw::IsLate) {
            return 0;
        }
        // The inverse of the exponential distribution, truncated at the maximum.
        let cut_off = 1.0 - libm::exp(-(MAX_DELAY_MS as f64) / MEAN_DELAY_MS as f64);
        let drawn = -libm::log(1.0 - cut_off * unit_interval(self.draw_hash(city, at, RandomDraw::LateBy)));
        let whole = drawn * MEAN_DELAY_MS as f64 / self.plan.interval.millis() as f64;
        (whole as u64 + 1).min(self.max_delay_steps)
    }

    /// How many intervals after the scheduled time a correction or a withdrawal arrives, if the
    /// reading has this delay.
    fn draw_correction_age(&self, delay: u64, hash: u64) -> u64 {
        let choices = self.max_correction_steps.saturating_sub(delay).max(1);
        delay + 1 + (unit_interval(hash) * choices as f64) as u64
    }

    fn corrected_measurement(&self, city: u32, at: EventTime) -> Measurement {
        let first_measurement = self.weather.measure(city, at);
        let hash = self.draw_hash(city, at, RandomDraw::CorrectedTo);
        // Whole numbers stay whole.
        let steps_per_degree = if self.plan.weather == WeatherKind::Uniform { 1.0 } else { 10.0 };
        let up_to = |shift: u32, limit: f64| ((unit_interval(hash << shift) * limit) as i64 + 1) as f64;
        let sign = |bit: u64| if hash & bit == 0 { -1.0 } else { 1.0 };
        let steps = (first_measurement.temperature() * steps_per_degree).round_ties_even();
        let temperature = (steps + sign(1) * up_to(0, 5.0 * steps_per_degree)) / steps_per_degree;
        let humidity = (first_measurement.humidity() + sign(2) * up_to(24, 10.0)).clamp(0.0, 100.0);
        Measurement::new(temperature, humidity, first_measurement.wind_speed())
            .expect("generated weather is far within the accepted ranges")
    }

    fn generate_record(&self, due: ScheduledRecord) -> TimedRecord<'_> {
        let at = self.scheduled_time(due.scheduled_step, due.city);
        let event = match due.kind {
            RecordKind::Reading | RecordKind::Duplicate => {
                ReadingEvent::Reading(self.weather.measure(due.city, at))
            }
            RecordKind::Correction => ReadingEvent::Reading(self.corrected_measurement(due.city, at)),
            RecordKind::Withdrawal => ReadingEvent::Withdrawal,
            RecordKind::Invalid => {
                let record = GeneratedRecord::Invalid(self.bad_reading(due.city, at));
                return TimedRecord { arrives_at: at, record };
            }
        };
        let record = GeneratedRecord::Upsert { city: self.weather.city_key(due.city), at, event };
        TimedRecord { arrives_at: self.scheduled_time(due.arrival_step, due.city), record }
    }

    fn bad_reading(&self, city: u32, at: EventTime) -> BadReading<'_> {
        let right = self.weather.measure(city, at);
        let hash = self.draw_hash(city, at, RandomDraw::InvalidHow);
        let fault = BadReadingKind::ALL[(hash % 5) as usize];
        let mut bad_reading = BadReading {
            kind: fault,
            city: Some(self.weather.city_key(city)),
            at: Some(at),
            temperature: Some(right.temperature()),
            humidity: Some(right.humidity()),
            wind_speed: right.wind_speed(),
        };
        match (fault, (hash >> 32) % 4) {
            (BadReadingKind::OutOfRange, 0) => bad_reading.temperature = Some(999.9),
            (BadReadingKind::OutOfRange, 1) => bad_reading.temperature = Some(-459.7),
            (BadReadingKind::OutOfRange, 2) => bad_reading.humidity = Some(-5.0),
            (BadReadingKind::OutOfRange, _) => bad_reading.wind_speed = Some(1048.4),
            (BadReadingKind::MissingField, 0) => bad_reading.city = None,
            (BadReadingKind::MissingField, 1) => bad_reading.at = None,
            (BadReadingKind::MissingField, 2) => bad_reading.temperature = None,
            (BadReadingKind::MissingField, _) => bad_reading.humidity = None,
            (BadReadingKind::CutLine | BadReadingKind::NoOffset | BadReadingKind::BadNumber, _) => {}
        }
        bad_reading
    }
}

/// A delayed record. The order of the fields is the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ScheduledRecord {
    arrival_step: u64,
    city: u32,
    scheduled_step: u64,
    kind: RecordKind,
}

/// In the order of arrival at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum RecordKind {
    Reading,
    Duplicate,
    Correction,
    Withdrawal,
    Invalid,
}

/// A position in the log.
#[derive(Clone, Debug, Default)]
struct ScheduleCursor {
    /// The next scheduled reading.
    step: u64,
    city: u32,
    delayed: BinaryHeap<Reverse<ScheduledRecord>>,
}

impl ScheduleCursor {
    /// The next record. `generator` must be the same at each call.
    fn next_record(&mut self, generator: &Generator) -> Option<ScheduledRecord> {
        loop {
            let ended = self.step == generator.steps_per_city;
            if let Some(Reverse(due)) = self.delayed.peek().copied()
                && (ended || (due.arrival_step, due.city) < (self.step, self.city))
            {
                self.delayed.pop();
                return Some(due);
            }
            if ended {
                return None;
            }
            if let Some(due) = self.schedule_next_reading(generator) {
                return Some(due);
            }
        }
    }

    /// Returns the next scheduled reading, unless it is delayed, and schedules the delayed records
    /// that belong to it.
    fn schedule_next_reading(&mut self, generator: &Generator) -> Option<ScheduledRecord> {
        let plan = &generator.plan;
        let (city, scheduled) = (self.city, self.step);
        self.city += 1;
        if self.city == plan.cities {
            (self.city, self.step) = (0, self.step + 1);
        }
        let at = generator.scheduled_time(scheduled, city);
        let delay = generator.draw_delay(city, at);
        let mut hold_up = |steps: u64, what: RecordKind| {
            self.delayed.push(Reverse(ScheduledRecord {
                arrival_step: scheduled + steps,
                city,
                scheduled_step: scheduled,
                kind: what,
            }));
        };
        let happens = |share, question| generator.draw_happens(share, city, at, question);
        let hash = |question| generator.draw_hash(city, at, question);
        if happens(plan.corrections, RandomDraw::IsCorrected) {
            hold_up(
                generator.draw_correction_age(delay, hash(RandomDraw::CorrectedAt)),
                RecordKind::Correction,
            );
        }
        if happens(plan.withdrawals, RandomDraw::IsWithdrawn) {
            hold_up(
                generator.draw_correction_age(delay, hash(RandomDraw::WithdrawnAt)),
                RecordKind::Withdrawal,
            );
        }
        if happens(plan.duplicates, RandomDraw::IsDuplicated) {
            hold_up(
                delay + hash(RandomDraw::DuplicatedAt) % (MAX_DUPLICATE_STEPS + 1),
                RecordKind::Duplicate,
            );
        }
        if happens(plan.invalid, RandomDraw::IsInvalid) {
            hold_up(0, RecordKind::Invalid);
        }
        if delay > 0 {
            hold_up(delay, RecordKind::Reading);
            return None;
        }
        Some(ScheduledRecord {
            arrival_step: scheduled,
            city,
            scheduled_step: scheduled,
            kind: RecordKind::Reading,
        })
    }
}

/// An iterator over the records of a log, in the order of arrival.
#[derive(Clone, Debug)]
pub struct TimedRecords<'a> {
    generator: &'a Generator,
    cursor: ScheduleCursor,
}

impl<'a> Iterator for TimedRecords<'a> {
    type Item = TimedRecord<'a>;

    fn next(&mut self) -> Option<TimedRecord<'a>> {
        self.cursor.next_record(self.generator).map(|due| self.generator.generate_record(due))
    }
}
