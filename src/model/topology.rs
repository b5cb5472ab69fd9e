//! Which workers of which processes do what.

use serde::{Deserialize, Serialize};

use super::{PartitionIndex, Shard};

/// The processes of a run, and this one of them. Workers have numbers over all processes: those of process 0 come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    pub processes: usize,
    /// This process.
    pub process: usize,
    /// Of each process.
    #[serde(rename = "workers")]
    pub workers_per_process: usize,
}

impl Topology {
    /// One process.
    pub fn single_process(workers: usize) -> Topology {
        Topology { processes: 1, process: 0, workers_per_process: workers }
    }

    /// All workers.
    pub fn total_workers(&self) -> usize {
        self.processes * self.workers_per_process
    }

    /// The process that does what only one does.
    pub fn is_first_process(&self) -> bool {
        self.process == 0
    }

    pub fn is_single_process(&self) -> bool {
        self.processes == 1
    }

    pub fn process_of_worker(&self, worker: usize) -> usize {
        worker / self.workers_per_process
    }

    /// The worker of a process that tells its server.
    pub fn serving_worker_of(&self, process: usize) -> usize {
        process * self.workers_per_process
    }

    /// The worker that reads a partition: of any process where it is `shared`, else of the first.
    pub fn reader_worker_of(&self, partition: PartitionIndex, shared: bool) -> usize {
        match shared {
            true => self.spread_over_processes(usize::from(partition.0)),
            false => usize::from(partition.0) % self.workers_per_process,
        }
    }

    /// The worker that the parcels of a shard go to.
    pub fn writer_worker_of(&self, shard: Shard) -> usize {
        self.spread_over_processes(usize::from(shard.0))
    }

    /// One process after the other, so that few things are spread over many of them.
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
            (0..3).map(|slot| topology.reader_worker_of(PartitionIndex(slot), false)).collect();
        assert_eq!(readers, [0, 1, 0], "what only one process can read");
        assert_eq!((topology.process_of_worker(3), topology.serving_worker_of(2)), (1, 4));
    }
}
