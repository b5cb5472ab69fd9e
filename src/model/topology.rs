//! The processes and workers of a run, and which worker does what.

use serde::{Deserialize, Serialize};

use super::{PartitionIndex, Shard};

/// The processes of a run, and which of them this one is. Workers are numbered over all processes,
/// those of process 0 first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    pub processes: usize,
    /// The number of this process.
    pub process: usize,
    /// The workers of each process.
    #[serde(rename = "workers")]
    pub workers_per_process: usize,
}

impl Topology {
    /// The topology of a run with one process.
    pub fn single_process(workers: usize) -> Topology {
        Topology { processes: 1, process: 0, workers_per_process: workers }
    }

    /// The workers of all processes.
    pub fn total_workers(&self) -> usize {
        self.processes * self.workers_per_process
    }

    /// Whether this is the process that does what only one may do.
    pub fn is_first_process(&self) -> bool {
        self.process == 0
    }

    pub fn is_single_process(&self) -> bool {
        self.processes == 1
    }

    pub fn process_of_worker(&self, worker: usize) -> usize {
        worker / self.workers_per_process
    }

    /// The worker of a process that sends updates to the process's server.
    pub fn serving_worker_of(&self, process: usize) -> usize {
        process * self.workers_per_process
    }

    /// The worker that reads a partition: of any process if the source is `shared`, else of the
    /// first process.
    pub fn reader_worker_of(&self, partition: PartitionIndex, shared: bool) -> usize {
        match shared {
            true => self.spread_over_processes(usize::from(partition.0)),
            false => usize::from(partition.0) % self.workers_per_process,
        }
    }

    /// The worker that gets the encoded batches of a shard.
    pub fn writer_worker_of(&self, shard: Shard) -> usize {
        self.spread_over_processes(usize::from(shard.0))
    }

    /// Takes a worker of one process after the other, so that a few items are spread over many
    /// processes.
    fn spread_over_processes(&self, number: usize) -> usize {
        let (process, worker) = (number % self.processes, number / self.processes % self.workers_per_process);
        process * self.workers_per_process + worker
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_spread_over_processes_first() {
        let topology = Topology { processes: 3, process: 1, workers_per_process: 2 };
        let writers: Vec<usize> = (0..7).map(|shard| topology.writer_worker_of(Shard(shard))).collect();
        assert_eq!(writers, [0, 2, 4, 1, 3, 5, 0]);
        let readers: Vec<usize> =
            (0..3).map(|index| topology.reader_worker_of(PartitionIndex(index), false)).collect();
        assert_eq!(readers, [0, 1, 0], "a source that only one process can read");
        assert_eq!((topology.process_of_worker(3), topology.serving_worker_of(2)), (1, 4));
    }
}
