//! Arrivals that enter the dataflow, and the outcome of each.

use std::hash::BuildHasher;

use serde::{Deserialize, Serialize};

use super::{EventTime, ReadingEvent, Revision};

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

/// An admitted arrival, sent to the worker that owns its city.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arrival {
    /// The city of the reading.
    pub city: CityKey,
    /// When the reading was taken.
    pub reading_at: EventTime,
    /// A reading or a withdrawal.
    pub event: ReadingEvent,
    /// Decides between arrivals of the same key; without one, the later arrival wins.
    pub revision: Option<Revision>,
    /// The position of the arrival at its source: returned in the [`ArrivalOutcome`], and not used
    /// in between.
    pub position: u64,
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

/// The outcome of the arrival at `position`. The last one of a key that inserted or corrected is
/// the key's winner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ArrivalOutcome {
    /// The city of the arrival.
    pub city: super::CityId,
    /// The event time of the arrival.
    pub reading_at: EventTime,
    /// The position of the arrival.
    pub position: u64,
    /// The arrival's content, so that the measurements of winners need not be read from the log
    /// again.
    pub event: ReadingEvent,
    /// What became of it.
    pub kind: OutcomeKind,
}
