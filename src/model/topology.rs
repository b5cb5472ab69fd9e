//! Which workers of which processes do what.

use serde::{Deserialize, Serialize};

use super::{Shard, Slot};

/// The processes of a run, and this one of them. Workers have numbers over all processes: those of process 0 come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    pub processes: usize,
    /// This process.
    pub process: usize,
    /// Of each process.
    pub workers: usize,
}

impl Topology {
    /// One process.
    pub fn alone(workers: usize) -> Topology {
        Topology { processes: 1, process: 0, workers }
    }

    /// All workers.
    pub fn peers(&self) -> usize {
        self.processes * self.workers
    }

    /// The process that does what only one does.
    pub fn is_first(&self) -> bool {
        self.process == 0
    }

    pub fn is_alone(&self) -> bool {
        self.processes == 1
    }

    pub fn process_of(&self, worker: usize) -> usize {
        worker / self.workers
    }

    /// The worker of a process that tells its server.
    pub fn teller_of(&self, process: usize) -> usize {
        process * self.workers
    }

    /// The worker that reads a partition: of any process where it is `shared`, else of the first.
    pub fn reader_of(&self, slot: Slot, shared: bool) -> usize {
        match shared {
            true => self.spread(usize::from(slot.0)),
            false => usize::from(slot.0) % self.workers,
        }
    }

    /// The worker that the parcels of a shard go to.
    pub fn writer_of(&self, shard: Shard) -> usize {
        self.spread(usize::from(shard.0))
    }

    /// One process after the other, so that few things are spread over many of them.
    fn spread(&self, number: usize) -> usize {
        let (process, worker) = (number % self.processes, number / self.processes % self.workers);
        process * self.workers + worker
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_are_spread_over_processes_first() {
        let topology = Topology { processes: 3, process: 1, workers: 2 };
        let writers: Vec<usize> = (0..7).map(|shard| topology.writer_of(Shard(shard))).collect();
        assert_eq!(writers, [0, 2, 4, 1, 3, 5, 0]);
        let readers: Vec<usize> = (0..3).map(|slot| topology.reader_of(Slot(slot), false)).collect();
        assert_eq!(readers, [0, 1, 0], "what only one process can read");
        assert_eq!((topology.process_of(3), topology.teller_of(2)), (1, 4));
    }
}
