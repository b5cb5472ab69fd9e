//! Arrivals that enter the dataflow, and the outcome of each.

use std::hash::BuildHasher;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::change::CityId;
use super::heat::HeldHeat;
use super::log::PartitionIndex;
use super::reading::{Measurement, ReadingEvent, Revision};
use super::time::EventTime;

/// A city as a source names it to the dataflow: by a dense number of its own, so that a reading
/// carries no string. The worker that owns the city learns the name once, from a
/// [`CityIntroduction`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CityKey {
    /// The source that assigned the number: unique within a run.
    pub source: u16,
    /// Dense from 0, in the order in which the city's first arrivals were read.
    pub number: u32,
    /// The hash of the name, the same at every source: it decides which worker owns the city.
    pub hash: u32,
}

impl CityKey {
    /// The `hash` of a name.
    pub fn hash(name: &str) -> u32 {
        foldhash::quality::FixedState::default().hash_one(name) as u32
    }
}

/// Introduces a city to its owner. It is sent at the epoch of the city's first arrival, or before.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CityIntroduction {
    /// The number by which arrivals name the city.
    pub key: CityKey,
    /// The key of the city, as in its readings.
    pub name: Box<str>,
}

/// An admitted arrival, sent to the worker that owns its city. It takes nine words, because very
/// many of them cross workers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arrival {
    /// The city of the reading. Its source is the partition of the arrival.
    pub city: CityKey,
    kind: EventKind,
    /// When the reading was taken.
    pub reading_at: EventTime,
    /// The measurement; without a meaning in a withdrawal.
    measurement: Measurement,
    /// Decides between arrivals of the same key; without one, the later arrival wins.
    pub revision: Option<Revision>,
    /// The position of the arrival at its source: returned in the [`ArrivalOutcome`], and not used
    /// in between.
    pub position: u64,
    /// When the log appended the arrival, in ms; [`NO_ARRIVAL_TIME`] if that is not known or no
    /// output wants it.
    #[serde(serialize_with = "write_arrival_time", deserialize_with = "read_arrival_time")]
    arrived_ms: i64,
}

const _: () = assert!(size_of::<Arrival>() == 72);

/// Stands for no arrival time.
const NO_ARRIVAL_TIME: i64 = i64::MIN;

/// The variant of a [`ReadingEvent`], one byte wherever it is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
enum EventKind {
    Reading,
    RetriedReading,
    Withdrawal,
}

impl From<EventKind> for u8 {
    fn from(kind: EventKind) -> u8 {
        match kind {
            EventKind::Reading => 0,
            EventKind::RetriedReading => 1,
            EventKind::Withdrawal => 2,
        }
    }
}

impl TryFrom<u8> for EventKind {
    type Error = String;

    fn try_from(code: u8) -> Result<EventKind, String> {
        match code {
            0 => Ok(EventKind::Reading),
            1 => Ok(EventKind::RetriedReading),
            2 => Ok(EventKind::Withdrawal),
            _ => Err(format!("{code} is no kind of arrival")),
        }
    }
}

fn write_arrival_time<S: Serializer>(millis: &i64, to: S) -> Result<S::Ok, S::Error> {
    (*millis != NO_ARRIVAL_TIME).then_some(*millis).serialize(to)
}

fn read_arrival_time<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(NO_ARRIVAL_TIME))
}

impl Arrival {
    /// An arrival at `position` of its source, without an arrival time.
    #[inline(always)]
    pub fn new(
        city: CityKey,
        reading_at: EventTime,
        event: ReadingEvent,
        revision: Option<Revision>,
        position: u64,
    ) -> Arrival {
        let (kind, measurement) = match event {
            ReadingEvent::Reading(measurement) => (EventKind::Reading, measurement),
            ReadingEvent::RetriedReading(measurement) => (EventKind::RetriedReading, measurement),
            ReadingEvent::Withdrawal => (EventKind::Withdrawal, Measurement::ZERO),
        };
        Arrival { city, kind, reading_at, measurement, revision, position, arrived_ms: NO_ARRIVAL_TIME }
    }

    /// The arrival with the time at which the log appended it.
    #[inline(always)]
    pub fn with_arrival_time(self, arrived: Option<EventTime>) -> Arrival {
        Arrival { arrived_ms: arrived.map_or(NO_ARRIVAL_TIME, EventTime::millis), ..self }
    }

    /// A reading or a withdrawal.
    #[inline(always)]
    pub fn event(&self) -> ReadingEvent {
        match self.kind {
            EventKind::Reading => ReadingEvent::Reading(self.measurement),
            EventKind::RetriedReading => ReadingEvent::RetriedReading(self.measurement),
            EventKind::Withdrawal => ReadingEvent::Withdrawal,
        }
    }

    /// The measurement, unless the arrival is a withdrawal.
    #[inline(always)]
    pub fn measurement(&self) -> Option<&Measurement> {
        (self.kind != EventKind::Withdrawal).then_some(&self.measurement)
    }

    /// Whether it is the reading of a retried dead letter.
    #[inline(always)]
    pub fn is_retried(&self) -> bool {
        self.kind == EventKind::RetriedReading
    }

    /// When the log appended the arrival, if that is known and an output wants it.
    pub fn arrived_at(&self) -> Option<EventTime> {
        EventTime::from_millis(self.arrived_ms)
    }
}

/// The effect of an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum OutcomeKind {
    /// The first reading of its key.
    Inserted,
    /// A reading that replaced another.
    Corrected,
    /// A withdrawal that removed a reading.
    Withdrawn,
    /// A withdrawal of a key without a reading.
    NothingToWithdraw,
    /// Its revision is lower than the one of the last accepted arrival: dropped.
    OldRevision,
    /// A retried dead letter whose key holds a reading or a withdrawal by now: dropped.
    Superseded,
    /// Older than its city's newest reading less the lateness: dropped. Admission refuses these, so
    /// it happens only to a city that reaches the operator from two partitions.
    TooLate,
}

/// The outcome of an arrival. The outcomes of a city, by epoch and [`seq`](ArrivalOutcome::seq),
/// are its arrivals in the order of its log. The last one of a key that inserted or corrected is the
/// key's winner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ArrivalOutcome {
    /// The city of the arrival.
    pub city: CityId,
    /// The event time of the arrival.
    pub reading_at: EventTime,
    /// The partition that it was read from.
    pub partition: PartitionIndex,
    /// Its position in the partition.
    pub position: u64,
    /// When the log appended it, if the log knows.
    pub arrived_at: Option<EventTime>,
    /// The arrival's content, so that the measurements of winners need not be read from the log
    /// again.
    pub event: ReadingEvent,
    /// The arrival's revision.
    pub revision: Option<Revision>,
    /// What became of it.
    pub kind: OutcomeKind,
    /// Its place among the city's arrivals of the epoch, from 0.
    pub seq: u32,
    /// The heat index of its key before the arrival; `None` if the key had no reading, and for
    /// [`OutcomeKind::TooLate`].
    pub before: Option<HeldHeat>,
    /// The heat index of its key after the arrival; `None` as in `before`.
    pub after: Option<HeldHeat>,
    /// The city had no arrival before, in this run or in the ones that it continues.
    pub is_first_of_city: bool,
    /// The city was seen in more than one partition, so results after a restart may differ.
    pub is_split: bool,
    /// The newest `reading_at` of the city's admitted readings, this one included, whether or not
    /// they won; `None` if only withdrawals were admitted.
    pub high: Option<EventTime>,
}
