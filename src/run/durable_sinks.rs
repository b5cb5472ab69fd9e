//! The durable sinks of a run: their specifications, their shards, and the resume points of a
//! replay.
//!
//! [`InspectedSinks`] are known but not claimed; [`DurableSinks`] are claimed; [`RunningSinks`] are
//! written to. `crate::sinks` defines a sink and the order of its calls.

mod facts;
mod identity;
mod inspected;
mod recorded_topics;
mod resume_points;
mod running;
mod source_registry;
mod specs;
mod topics;
mod uncounted_sinks;

pub use self::facts::SinkFacts;
pub use self::identity::{file_identity, log_identity};
pub use self::inspected::{DurableShard, FIRST_INSPECTION_TIMEOUT, FencedSink, InspectedSinks};
pub use self::recorded_topics::check_nothing_is_lost;
pub use self::running::{DurableSinks, RunningSinks};
pub use self::source_registry::SourceRegistry;
