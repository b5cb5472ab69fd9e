//! The plan of a process's workers.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

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

/// The partitions, settings and outputs of a run's workers.
#[derive(Clone)]
pub struct WorkerPlan {
    pub topology: Topology,
    pub graph: GraphPlan,
    pub rules: AdmissionRules,
    pub limits: PipelineLimits,
    /// The partitions that this process can read. Each is read by one worker.
    pub partitions: Vec<LogPartition>,
    pub partition_table: PartitionTable,
    pub publisher: Publisher,
    /// Start positions of the partitions, by index.
    pub start_positions: Arc<[LogPosition]>,
    /// The initial states of this process's workers.
    pub restored: Arc<RestoredWorkers>,
    pub first_epoch: u64,
    /// Epochs below this one may be used before the release.
    pub reserved_until: u64,
    pub commands: WorkerCommandSender,
    pub shared: Arc<SharedState>,
}

/// The initial state of a worker, and the destination of its snapshots.
#[derive(Default)]
pub struct WorkerState {
    pub cities: Vec<CitySnapshot>,
    pub snapshots: Option<Box<dyn SnapshotSink + Send>>,
}

/// The initial states of a process's workers, each taken once, and the cities that the readers
/// restore.
#[derive(Default)]
pub struct RestoredWorkers {
    workers: Mutex<Vec<WorkerState>>,
    cities: HashMap<PartitionIndex, Vec<RestoredCity>>,
}

/// A restored city of a partition, for its admission.
#[derive(Clone, Debug)]
pub struct RestoredCity {
    pub city: Arc<str>,
    pub high: Option<EventTime>,
    /// Approximate number of stored readings.
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
        let mut workers = self.workers.lock();
        workers.get_mut(worker).map(std::mem::take).unwrap_or_default()
    }

    /// Restores the cities of a partition in its admission.
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
