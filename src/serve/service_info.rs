//! What responses say about the service, and what does not change while it runs.

use std::sync::Arc;

use crate::codec::ReadOptions;
use crate::directory::Directory;
use crate::model::{Millis, OutputUnits, PartitionTable};

/// What is served, as far as it does not change while the service runs.
#[derive(Clone)]
pub struct ServiceInfo {
    /// Differs with every start.
    pub generation: Arc<str>,
    /// The name of the heat index formula.
    pub formula: &'static str,
    pub window: Millis,
    pub lateness: Millis,
    pub history: Millis,
    /// A current row that is older is stale.
    pub stale_after: Millis,
    /// Units of responses and subscriptions that name no others.
    pub units: OutputUnits,
    pub workers: usize,
    pub partitions: PartitionTable,
    pub directory: &'static Directory<'static>,
    /// How posted readings are decoded.
    pub read_options: ReadOptions,
    /// The log that posted readings are appended to.
    pub ingest_log: Option<IngestLog>,
}

/// What admission needs to know about the log that posted readings are appended to.
#[derive(Clone, Debug)]
pub struct IngestLog {
    pub source: Arc<str>,
    /// Cities that one partition may have.
    pub max_cities: u32,
    /// The partition of a city, given the number of partitions.
    pub partition_of: fn(&str, u32) -> u32,
}
