//! The partitions of a run's logs, and how far each is applied.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::position::Fingerprint;
use crate::panics::locks::SharedRwLock;

/// The index of a partition: dense over all sources of a run, in the order of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartitionIndex(pub u16);

/// The name of a partition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartitionName {
    /// The source, such as `journal`.
    pub source: Arc<str>,
    pub partition: u32,
}

/// The partitions of a run, by partition index. Partitions are added while it runs, and never
/// removed.
#[derive(Clone, Debug, Default)]
pub struct PartitionTable(Arc<SharedRwLock<Vec<PartitionName>>>);

impl PartitionTable {
    pub fn new(names: Vec<PartitionName>) -> PartitionTable {
        PartitionTable(Arc::new(SharedRwLock::new(names)))
    }

    pub fn push(&self, name: PartitionName) -> PartitionIndex {
        let mut names = self.0.write();
        names.push(name);
        PartitionIndex((names.len() - 1) as u16)
    }

    pub fn name(&self, partition: PartitionIndex) -> Option<PartitionName> {
        self.0.read().get(usize::from(partition.0)).cloned()
    }

    pub fn names(&self) -> Vec<PartitionName> {
        self.0.read().clone()
    }
}

/// How far a partition is applied. A position is the number of the next record: it stands for all
/// records before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartitionProgress {
    pub partition: PartitionIndex,
    /// Results include every record before this position.
    pub applied_until: u64,
    /// The end of the log, as far as the reader knows it.
    pub log_end: u64,
    /// The number of positions before `log_end` that wait for the end of an open transaction.
    pub withheld: u64,
    /// The last record before `applied_until`, if it is known.
    pub before: Option<Fingerprint>,
    /// The number of cities of the partition's admission.
    pub city_count: u32,
}
