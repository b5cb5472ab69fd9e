//! What the workers of a process are started with.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::commands::WorkerCommandSender;
use super::reader::LogPartition;
use super::shared_state::SharedState;
use crate::admission::{Admission, AdmissionRules};
use crate::config::PipelineLimits;
use crate::dataflow::GraphPlan;
use crate::dataflow::rolling::Retention;
use crate::model::{
    CitySnapshot, EventTime, LogPosition, PartitionIndex, PartitionTable, SnapshotSink, Topology,
};
use crate::serve::Publisher;

/// What the workers of a run do.
#[derive(Clone)]
pub struct WorkerPlan {
    pub topology: Topology,
    pub graph: GraphPlan,
    pub rules: AdmissionRules,
    pub limits: PipelineLimits,
    /// The partitions that this process can read. Each is read by one worker.
    pub partitions: Vec<LogPartition>,
    /// All partitions.
    pub partition_table: PartitionTable,
    pub publisher: Publisher,
    /// Where each partition is read from, by index.
    pub start_positions: Arc<[LogPosition]>,
    /// What the workers of this process begin with.
    pub restored: Arc<RestoredWorkers>,
    pub first_epoch: u64,
    /// Epochs below may be used before the release.
    pub reserved_until: u64,
    pub commands: WorkerCommandSender,
    pub shared: Arc<SharedState>,
}

/// What a worker begins with, and where the snapshots of its state go.
#[derive(Default)]
pub struct WorkerState {
    pub cities: Vec<CitySnapshot>,
    pub snapshots: Option<Box<dyn SnapshotSink + Send>>,
}

/// The states of the workers of a process, each taken once; and what the readers of partitions know of cities.
#[derive(Default)]
pub struct RestoredWorkers {
    workers: Mutex<Vec<WorkerState>>,
    cities: HashMap<PartitionIndex, Vec<RestoredCity>>,
}

/// A city of a partition, as its admission takes it over.
#[derive(Clone, Debug)]
pub struct RestoredCity {
    pub city: Arc<str>,
    pub high: Option<EventTime>,
    /// About how many readings are held.
    pub readings: u32,
}

impl RestoredWorkers {
    pub fn new(
        workers: Vec<WorkerState>,
        cities: HashMap<PartitionIndex, Vec<RestoredCity>>,
    ) -> RestoredWorkers {
        RestoredWorkers { workers: Mutex::new(workers), cities }
    }

    pub(super) fn take_worker_state(&self, worker: usize) -> WorkerState {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.get_mut(worker).map(std::mem::take).unwrap_or_default()
    }

    /// Has an admission know the cities that its partition had.
    pub(super) fn restore_admission(
        &self,
        partition: PartitionIndex,
        retention: Retention,
        admission: &mut Admission,
    ) {
        for RestoredCity { city, high, readings } in self.cities.get(&partition).into_iter().flatten() {
            let held = high.and_then(|high| EventTime::from_millis(retention.oldest_held(high.millis())));
            admission.resume_city(city, *high, *readings, held.unwrap_or_default());
        }
    }
}
