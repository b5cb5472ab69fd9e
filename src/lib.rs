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
//! use swelter::{
//!     Admission, AdmissionRules, Formula, Graph, GraphPlan, Measurement, Millis, ReadingEvent, Retention,
//!     Upsert, timely,
//! };
//!
//! let retention = Retention { window: Millis::DAY, lateness: Millis::DAY, history: Millis::DAY };
//! let changes = timely::execute_directly(move |worker| {
//!     let mut graph = Graph::build(worker, &GraphPlan::new(Formula::Nws, retention));
//!     let mut admission = Admission::new(0, AdmissionRules::new(retention.lateness));
//!     // The third reading corrects the first, which changes the rows of both.
//!     let readings = [(12, 88.0), (13, 91.0), (12, 89.5)];
//!     for (epoch, (hour, temperature)) in (0..).zip(readings) {
//!         let event = ReadingEvent::Reading(Measurement::new(temperature, 60.0, None).unwrap());
//!         let reading_at = format!("2013-07-18T{hour}:00:00Z").parse().unwrap();
//!         let upsert = Upsert { city: "JFK", reading_at, event, revision: None };
//!         let admitted = admission.admit(&upsert, None).unwrap();
//!         let mut cities = Vec::from_iter(admitted.is_new.then(|| admitted.introduction("JFK")));
//!         graph.send_epoch(epoch, &mut cities, &mut vec![admitted.arrival(&upsert, 0)]);
//!     }
//!     graph.close_inputs();
//!     worker.step_while(|| !graph.probe.done());
//!     let batches = std::iter::from_fn(|| graph.rows.as_ref()?.next_batch());
//!     batches.flat_map(|batch| batch.changes).map(|(_, rows)| rows.len()).collect::<Vec<_>>()
//! });
//! assert_eq!(changes, [1, 1, 2]);
//! ```

#![cfg_attr(not(feature = "internals"), warn(missing_docs))]

mod admission;
mod checkpoint;
#[cfg(test)]
mod child_tests;
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
    DayChange, EventTime, HeatIndex, LocalTimePolicy, Measurement, Millis, OutcomeKind, PeriodSummary,
    ReadingEvent, Reason, Refusal, Revision, Row, RowChange, TimeError, Upsert,
};
