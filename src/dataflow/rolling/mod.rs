//! The rolling operator: readings in, exact changes of rolling results out.
//!
//! [`Rolling`] holds the cities of one worker. It applies the arrivals of an epoch in log order and
//! reports the changes. Most arrivals are newer than every reading of their city: such an arrival
//! is one append to the city's tail chunk and one step of its running window ([`store`]). A city
//! with any other arrival in the epoch is edited (`edit`): its arrivals are applied one by one in
//! log order, then one sweep over the changed rows computes each row before and after (`sweep`). So
//! results do not depend on where epochs begin, and an epoch changes each key at most once.

mod arena;
#[cfg(debug_assertions)]
mod check;
pub mod chunk;
mod city_table;
mod current_rows;
mod edit;
mod epoch_changes;
mod explanation;
mod hour_ago;
mod operator;
mod outcomes;
mod part;
mod period_summaries;
mod pinned;
pub mod query_responder;
mod retention;
mod revisions;
pub mod serving;
mod sink_renderer;
pub mod snapshot;
mod state;
pub mod store;
mod sweep;

#[cfg(any(test, feature = "internals"))]
pub use self::edit::MAX_TOMBSTONES_WITHOUT_READING;
#[cfg(any(test, feature = "internals"))]
pub use self::epoch_changes::EpochChanges;
pub use self::epoch_changes::RollingOutputs;
pub use self::operator::{RollingInputs, build_rolling};
pub use self::retention::Retention;
pub use self::sink_renderer::SinkRenderer;
pub use self::state::Rolling;
