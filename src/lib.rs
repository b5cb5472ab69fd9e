//! The rolling heat index of every city, exact and incremental.
//!
//! The crate is the program `swelter`. It also offers the dataflow of the program to other programs
//! that run [timely dataflow](timely):
//!
//! 1. Read records with a [`FileDecoder`], or build an [`Upsert`] for each reading.
//! 2. Admit each upsert with an [`Admission`]: it refuses readings that are too late, and numbers
//!    the cities.
//! 3. Send arrivals to the [`Graph`], epoch by epoch.
//! 4. Take closed [`Batch`]es of [`RowChange`]s from it.
//!
//! ```
#![doc = include_str!("../examples/embedded.rs")]
//! ```

#![cfg_attr(not(feature = "internals"), warn(missing_docs))]

mod admission;
mod checkpoint;
mod cli;
mod cluster;
mod codec;
mod config;
mod dataflow;
mod directory;
mod fault;
#[cfg(any(test, fuzzing))]
mod fuzzing;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
mod kafka;
mod model;
mod panics;
mod registry;
mod run;
mod serve;
mod sinks;
mod sources;
mod test_hooks;
mod worker;

/// The version of timely dataflow that the [`Graph`] is built with.
pub use timely;

pub use crate::admission::{Admission, AdmissionRules, AdmittedArrival};
pub use crate::cli::run_command_line;
pub use crate::codec::{
    Compression, DecodeError, DecodeSettings, FileDecoder, FileNameError, Format, ReadOptions, detect_format,
};
pub use crate::dataflow::heat_index::Formula;
pub use crate::dataflow::rankings::{CountryCategory, RankedCity};
pub use crate::dataflow::rolling::Retention;
pub use crate::dataflow::{Closed, Graph, GraphPlan};
pub use crate::directory::Directory;
pub use crate::model::{
    Arrival, ArrivalOutcome, Batch, Category, CityId, CityIntroduction, CityKey, CityNames, CurrentRow,
    DayChange, DaySummary, EventTime, HeatIndex, LocalTimePolicy, Measurement, Millis, OutcomeKind,
    ReadingEvent, Reason, Refusal, Revision, Row, RowChange, TimeError, Upsert,
};
