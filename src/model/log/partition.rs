//! The partitions of a run's logs, and how far each is applied.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::position::Fingerprint;
use crate::panics::locks::SharedRwLock;

/// A partition of one of a run's logs: dense numbers over all sources, in the order of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartitionIndex(pub u16);

/// A partition as people name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartitionName {
    /// The source, such as `journal`.
    pub source: Arc<str>,
    pub partition: u32,
}

/// The partitions of a run, by slot. More can come while it runs, none goes.
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

/// How far a partition has come. A position is the number of the next record: all before it are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartitionProgress {
    pub partition: PartitionIndex,
    /// Results include every record before this one.
    pub applied_until: u64,
    /// The log's end, as far as the reader knows it.
    pub log_end: u64,
    /// Of the positions before it, those that wait for the end of an open transaction.
    pub withheld: u64,
    /// The last record before `applied`, if there is one that is known.
    pub before: Option<Fingerprint>,
    /// How many cities admission knows of the partition.
    pub city_count: u32,
}
