//! What enters the dataflow, and what it says about each arrival.

use std::hash::BuildHasher;

use serde::{Deserialize, Serialize};

use super::{EventTime, ReadingEvent, Revision};

/// How a source names a city to the dataflow: by a dense number of its own, so that a reading carries no string. The
/// worker that owns the city learns the name once, from a [`CityName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CityKey {
    /// The source that gave the number: unique within a run.
    pub source: u16,
    /// Dense from 0, in the order in which the source first saw its cities.
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

/// An admitted arrival, on its way to the worker that owns its city.
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
    /// Where the source finds this arrival again; it comes back in the [`Outcome`] and means nothing in between.
    pub position: u64,
}

/// What became of an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum OutcomeKind {
    /// The first reading of its key.
    Inserted,
    /// A reading that took the place of another.
    Corrected,
    /// A withdrawal that removed a reading.
    Withdrawn,
    /// A withdrawal of what was not there.
    NothingToWithdraw,
    /// Its revision is lower than the one of the last accepted arrival: dropped.
    OldRevision,
    /// A retried dead letter whose key holds a reading or a withdrawal by now: dropped.
    Superseded,
    /// Older than its city's newest reading less the lateness: dropped. Admission refuses these, so it happens only to a
    /// city that reaches the operator from two partitions.
    TooLate,
}

/// What became of the arrival at `position`; the last one of a key that inserted or corrected is its winner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ArrivalOutcome {
    /// The city of the arrival.
    pub city: super::CityId,
    /// The event time of the arrival.
    pub reading_at: EventTime,
    /// The position of the arrival.
    pub position: u64,
    /// What the arrival brought: so whoever wants the measurements of the winners need not keep the log to look them up.
    pub event: ReadingEvent,
    /// What became of it.
    pub kind: OutcomeKind,
}
