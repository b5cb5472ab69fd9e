//! The durable sinks of a run: which there are, by which shards they are written, and where a replay stops for them.
//!
//! [`InspectedSinks`] are known and not claimed; claimed, they are [`DurableSinks`], and written, [`RunningSinks`].
//! `crate::sinks` says what a sink is and in which order it is called.

mod facts;
mod identity;
mod inspected;
mod recorded_topics;
mod resume_points;
mod running;
mod source_registry;
mod specs;
mod topics;

pub use self::facts::SinkFacts;
pub use self::identity::{file_identity, log_identity};
pub use self::inspected::{DurableShard, FIRST_INSPECTION_TIMEOUT, FencedSink, InspectedSinks};
pub use self::recorded_topics::check_nothing_is_lost;
pub use self::running::{DurableSinks, RunningSinks};
pub use self::source_registry::SourceRegistry;
