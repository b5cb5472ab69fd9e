//! Reserves epochs durably ahead of their use, at process 0 for all processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::control::Control;
use super::data_dir::DataDir;
use super::protocol::ControlCommand;
use super::run_error::{Failure, RunError};
use crate::fault::RetryBackoff;
use crate::sinks::ProgressWriter;
use crate::worker::{self, SharedState};

/// How far ahead epochs are reserved, in ms, and the interval of reservations. After a crash the
/// first epochs are ahead of the clock by at most this, so it is short. A disk that takes longer to
/// write a few bytes delays results.
const RESERVED_MS: u64 = 3_000;
const RESERVE_EVERY_MS: u64 = 1_000;
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Where the bound of the epochs in use is stored.
pub enum EpochBound {
    DataDir(Arc<DataDir>),
    Progress(ProgressWriter),
    /// Results of this run do not outlive it.
    Nowhere,
}

impl EpochBound {
    pub fn choose(data_dir: Option<Arc<DataDir>>, writer: Option<ProgressWriter>) -> EpochBound {
        match (data_dir, writer) {
            (Some(data_dir), _) => EpochBound::DataDir(data_dir),
            (None, Some(writer)) => EpochBound::Progress(writer),
            (None, None) => EpochBound::Nowhere,
        }
    }

    /// Reserves the first epochs of a run, from `floor` on. Returns the bound.
    pub fn reserve_first(&self, floor: u64) -> Result<u64, RunError> {
        if matches!(self, EpochBound::Nowhere) {
            return Ok(u64::MAX);
        }
        let reserved = floor.max(worker::ingest_clock_ms()) + RESERVED_MS;
        self.reserve(reserved)?;
        Ok(reserved)
    }

    /// Makes durable that epochs below `until` may be in use.
    fn reserve(&self, until: u64) -> Result<(), RunError> {
        match self {
            EpochBound::DataDir(data_dir) => Ok(data_dir.reserve_epochs(until)?),
            EpochBound::Progress(writer) => Ok(writer.reserve_epochs(until)?),
            EpochBound::Nowhere => Ok(()),
        }
    }

    /// Whether a later attempt may succeed.
    fn is_passing(&self, error: &RunError) -> bool {
        match error {
            RunError::DataDir(error) => error.is_passing(),
            _ => matches!(self, EpochBound::Progress(_)),
        }
    }
}

/// At process 0: reserves epochs for all processes until the run `has_ended`. Epochs are needed
/// during a stop, too.
pub fn spawn_epoch_reservation(
    bound: EpochBound,
    control: Control,
    shared: Arc<SharedState>,
    mut reserved_until: u64,
    has_ended: Arc<AtomicBool>,
) -> Result<(), RunError> {
    if reserved_until == u64::MAX {
        return Ok(());
    }
    let mut retries = RetryBackoff::new("epochs", "reserve epochs", "results are held back");
    let reserve = move || {
        while !has_ended.load(Ordering::Relaxed) {
            let until = shared.newest_epoch().max(control.newest_epoch()) + RESERVED_MS;
            if until >= reserved_until + RESERVE_EVERY_MS && retries.is_due() {
                match bound.reserve(until) {
                    Ok(()) => {
                        reserved_until = until;
                        retries.record_success();
                        control.append(ControlCommand::ReserveEpochs { until });
                    }
                    Err(error) if bound.is_passing(&error) => retries.record_failure(&error),
                    Err(error) => return control.fail(Failure::new(error.to_string())),
                }
            }
            thread::sleep(POLL_INTERVAL);
        }
    };
    thread::Builder::new().name("epochs".into()).spawn(reserve).map(drop).map_err(RunError::Threads)
}
