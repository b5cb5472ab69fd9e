//! Epochs are taken ahead of their use: durably, by process 0 for all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::data_dir::DataDir;
use super::processes::Processes;
use super::run_error::RunError;
use crate::cluster::message::Message;
use crate::fault::RetryBackoff;
use crate::sinks::kafka::ProgressWriter;
use crate::worker::{self, SharedState};

/// Epochs are taken for this long ahead, in ms, and so often. After a crash the first epochs are that much ahead of the clock at
/// most, so it is short; a disk that takes longer to write a few bytes holds results up.
const RESERVED_MS: u64 = 3_000;
const RESERVE_EVERY_MS: u64 = 1_000;
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Where the bound of the epochs in use is kept.
pub enum EpochBound {
    DataDir(Arc<DataDir>),
    Progress(ProgressWriter),
    /// Nothing of this run outlives it.
    Nowhere,
}

impl EpochBound {
    pub fn choose(data_dir: Option<Arc<DataDir>>, keeper: Option<ProgressWriter>) -> EpochBound {
        match (data_dir, keeper) {
            (Some(data_dir), _) => EpochBound::DataDir(data_dir),
            (None, Some(keeper)) => EpochBound::Progress(keeper),
            (None, None) => EpochBound::Nowhere,
        }
    }

    /// Takes the first epochs of a run, from `floor` on; gives up to where.
    pub fn reserve_first(&self, floor: u64) -> Result<u64, RunError> {
        if matches!(self, EpochBound::Nowhere) {
            return Ok(u64::MAX);
        }
        let reserved = floor.max(worker::ingest_clock_ms()) + RESERVED_MS;
        self.reserve(reserved)?;
        Ok(reserved)
    }

    /// Makes durable that epochs below `upto` may be in use.
    fn reserve(&self, upto: u64) -> Result<(), RunError> {
        match self {
            EpochBound::DataDir(data_dir) => Ok(data_dir.reserve_epochs(upto)?),
            EpochBound::Progress(keeper) => Ok(keeper.reserve_epochs(upto)?),
            EpochBound::Nowhere => Ok(()),
        }
    }

    /// Whether it may get better by itself.
    fn is_passing(&self, error: &RunError) -> bool {
        match error {
            RunError::DataDir(error) => error.is_passing(),
            _ => matches!(self, EpochBound::Progress(_)),
        }
    }
}

/// Takes more and more, until the run has `ended`: they are needed while it stops, too. At other processes than the first, says which are
/// wanted.
pub fn spawn_epoch_reservation(
    bound: EpochBound,
    processes: Arc<Processes>,
    shared: Arc<SharedState>,
    mut reserved: u64,
    ended: Arc<AtomicBool>,
) -> Result<(), RunError> {
    if reserved == u64::MAX {
        return Ok(());
    }
    let first = processes.topology().is_first_process();
    let mut retries = RetryBackoff::new("epochs", "reserve epochs", "results are held back");
    let reserve = move || {
        while !ended.load(Ordering::Relaxed) {
            let newest = shared.newest_epoch().max(processes.newest_epoch());
            let wanted = newest + RESERVED_MS;
            if !first {
                processes.tell(&Message::Newest { epoch: newest });
            } else if wanted >= reserved + RESERVE_EVERY_MS && retries.is_due() {
                match bound.reserve(wanted) {
                    Ok(()) => {
                        reserved = wanted;
                        retries.record_success();
                    }
                    Err(error) if bound.is_passing(&error) => retries.record_failure(&error),
                    Err(error) => return shared.fail(error.to_string()),
                }
                shared.reserve(reserved);
                processes.tell(&Message::Reserved { upto: reserved });
            }
            thread::sleep(POLL_INTERVAL);
        }
    };
    thread::Builder::new().name("epochs".into()).spawn(reserve).map(drop).map_err(RunError::Threads)
}
