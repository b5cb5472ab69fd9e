//! A run while its workers work: housekeeping, a takeover, and its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::cluster::ValueName;
use crate::cluster::message::Message;
use crate::config::ServicePlan;
use crate::fault::RetryBackoff;
use crate::model::{Appender, PartitionTable};
use crate::run::backup::BackupService;
use crate::run::checkpoints::{CheckpointCoordinator, CheckpointRepository, WrittenParts};
use crate::run::dead_letter_retry::{RetryThreads, spawn_retry};
use crate::run::durable_sinks::{DurableSinks, InspectedSinks, RunningSinks, SourceRegistry};
use crate::run::epochs::{EpochBound, spawn_epoch_reservation};
use crate::run::logs::Logs;
use crate::run::primary_follower::PrimaryFollower;
use crate::run::processes::Processes;
use crate::run::run_error::RunError;
use crate::run::shutdown::Event;
use crate::run::workers;
use crate::sinks::kafka::KafkaSinkError;
use crate::sources::generator::feed::GeneratorFeed;
use crate::worker::{Gate, LogPartition, ResumePoints, SharedState};

/// Between two looks at what goes on.
const LOOK: Duration = Duration::from_millis(50);
/// Between two looks at what should be looked at now and then.
const HOUSEKEEPING: Duration = Duration::from_millis(500);
/// How long workers may take to learn that the results are theirs.
const TAKE_OVER: Duration = Duration::from_secs(30);

/// What a run writes its results by, and where its shards go on.
#[derive(Serialize, Deserialize)]
struct Opening {
    cuts: ResumePoints,
    /// Not before this epoch.
    floor: u64,
    /// Epochs below are durably taken.
    reserved: u64,
}

/// What a run has in hand while its workers work.
pub(super) struct Own<'a> {
    pub(super) plan: &'a ServicePlan,
    pub(super) processes: &'a Arc<Processes>,
    pub(super) logs: &'a Logs,
    pub(super) starts: &'a SourceRegistry,
    pub(super) prepared: &'a InspectedSinks,
    pub(super) slots: PartitionTable,
    /// Those that this process can read, as they were at the start.
    pub(super) partitions: Vec<LogPartition>,
    pub(super) shared: Arc<SharedState>,
    pub(super) gate: Arc<Gate>,
    pub(super) generation: Arc<str>,
    /// Until the results are this run's.
    pub(super) checkpoints: Option<(CheckpointRepository, Arc<WrittenParts>)>,
    pub(super) following: Option<Arc<PrimaryFollower>>,
    pub(super) ended: Arc<AtomicBool>,
    pub(super) writing: Option<RunningSinks>,
    pub(super) making: Option<CheckpointCoordinator>,
    pub(super) backups: Option<BackupService>,
    pub(super) retrying: Option<RetryThreads>,
    pub(super) appender: Option<Arc<dyn Appender>>,
    pub(super) feeds: Vec<(String, GeneratorFeed)>,
    pub(super) letter_retries: RetryBackoff,
}

impl Own<'_> {
    /// The outlets are this run's: from now on it writes, and whatever else only one generation does.
    pub(super) fn begin(&mut self, outlets: DurableSinks, first_epoch: u64) -> Result<(), RunError> {
        let (logs, first) = (self.logs, self.processes.topology().is_first_process());
        let bound = EpochBound::choose(logs.data_dir().cloned(), outlets.progress_writer());
        let Opening { cuts, floor, reserved } = self.processes.share(ValueName::OPENING, || {
            let floor = outlets.epoch_floor()?.max(first_epoch);
            let cuts = outlets.resume_points(&self.partitions)?;
            Ok(Opening { cuts, floor, reserved: bound.reserve_first(floor)? })
        })?;
        let failing = Arc::clone(&self.shared);
        let failed = move |error: KafkaSinkError| match error {
            KafkaSinkError::Fenced { .. } => failing.hand_over(error.to_string()),
            error => failing.fail(error.to_string()),
        };
        let writing = outlets.start_writing(self.processes, Arc::new(failed))?;
        self.gate.install(cuts, writing.senders());
        if self.following.is_some() {
            self.wait_for_workers_to_know()?;
        }
        // Before process 0 goes on, and takes more.
        self.shared.begin_reserving(reserved);
        // All know where to wait: whoever is released first leaves nobody behind.
        self.processes.cluster().go_on_together()?;
        self.gate.release(floor);
        let place = self.checkpoints.as_ref().map(|(kept, _)| kept.place().to_string());
        self.backups = logs.journal().and_then(|(journal, dir)| {
            let started = BackupService::start(journal, &dir, place);
            started
                .inspect_err(|error| tracing::warn!(%error, "backups cannot be taken while this runs"))
                .ok()
        });
        if let Some((kept, parts)) = self.checkpoints.take() {
            let journal = logs.journal().map(|(journal, _)| journal);
            let from = (parts, writing.senders(), journal);
            self.making = Some(CheckpointCoordinator::start(
                kept,
                self.slots.clone(),
                Arc::clone(self.processes),
                from,
            )?);
        }
        self.writing = Some(writing);
        let (processes, shared) = (Arc::clone(self.processes), Arc::clone(&self.shared));
        spawn_epoch_reservation(bound, processes, shared, reserved, Arc::clone(&self.ended))?;
        if first {
            self.feeds = logs.spawn_feeds(self.plan, self.appender.clone())?;
            self.retrying = Some(spawn_retry(self.plan, logs.journal()).map_err(RunError::Threads)?);
        }
        Ok(())
    }

    fn wait_for_workers_to_know(&self) -> Result<(), RunError> {
        let deadline = Instant::now() + TAKE_OVER;
        while self.gate.seen() < self.processes.topology().workers_per_process {
            if Instant::now() > deadline {
                return Err(RunError::Failed("the workers do not come to take over".into()));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Follows the other generation, and takes over from it when it is time.
    fn follow(&mut self) -> Result<(), RunError> {
        let Some(following) = self.following.clone().filter(|_| !self.gate.is_released()) else {
            return Ok(());
        };
        let is_time = if self.processes.topology().is_first_process() {
            let least = following.durable_positions(&self.slots);
            self.gate.follow(least.iter().copied());
            self.processes.tell(&Message::Follow(least.clone()));
            let is_time = following.is_takeover_due(&least, &self.shared.positions())?
                && following.may_claim(self.prepared, &self.partitions)?;
            if is_time {
                self.processes.tell(&Message::TakeOver);
            }
            is_time
        } else {
            let (positions, is_time) = self.processes.followed();
            self.gate.follow(positions);
            is_time
        };
        if !is_time {
            return Ok(());
        }
        let began = Instant::now();
        let outlets = self.prepared.claim(Some(following.successors()), self.processes)?;
        self.starts.install_writers(&outlets);
        following.finish(&outlets.progress());
        self.begin(outlets, self.shared.newest_epoch() + 1)?;
        tracing::info!(took = ?began.elapsed(), generation = &*self.generation, "taken over");
        Ok(())
    }

    /// Looks after everything until it is time to stop; true where the workers have ended by then.
    pub(super) fn keep(&mut self, happened: &Receiver<Event>) -> (bool, Result<(), RunError>) {
        let mut next = Instant::now();
        loop {
            match happened.recv_timeout(LOOK) {
                Ok(Event::Asked) => self.processes.ask_to_stop(),
                Ok(Event::Stop) => return (false, Ok(())),
                Ok(Event::Ended(ended)) => {
                    let failed = self.shared.failed();
                    let failed = failed.map_or(Ok(()), |why| Err(RunError::ended(why, &self.shared)));
                    return (true, ended.and(failed));
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            let at_all = Instant::now() >= next;
            let looked = self.look(at_all);
            if at_all {
                next = Instant::now() + HOUSEKEEPING;
            }
            match looked {
                // On its way to take over: what was begun by then is nothing that others wait for.
                Err(error) if error.is_stop_request() => {
                    self.processes.tell(&Message::Stop);
                    return (false, Ok(()));
                }
                Err(error) => return (false, Err(error)),
                Ok(()) => {}
            }
        }
    }

    fn look(&mut self, at_all: bool) -> Result<(), RunError> {
        let letters_are_durable = self.sync_letters()?;
        self.follow()?;
        // A checkpoint covers only what has its dead letters on the disk.
        if let Some(making) = self.making.as_mut().filter(|_| letters_are_durable) {
            making.run_due_steps(&self.shared);
        }
        // Alone, the workers come to an end by themselves.
        let failed = self.shared.failed().filter(|_| !self.processes.topology().is_single_process());
        if let Some(failed) = failed.or_else(|| self.logs.failure()) {
            return Err(RunError::ended(failed, &self.shared));
        }
        self.logs.read_added(self.starts, &self.shared, self.processes);
        if at_all {
            self.processes.exchange_refused(&self.shared);
            self.processes.say_congestion_again();
            if self.gate.is_released() {
                self.logs.announce_new_partitions(self.starts, &self.slots, self.processes)?;
            }
        }
        Ok(())
    }

    /// Makes the dead letters durable; false if that has to wait.
    fn sync_letters(&mut self) -> Result<bool, RunError> {
        if !self.letter_retries.is_due() {
            return Ok(false);
        }
        match self.shared.refusals.sync() {
            Ok(()) => self.letter_retries.record_success(),
            Err(error) if error.is_transient() => {
                self.letter_retries.record_failure(&error);
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }

    /// From the sources on: what was taken in still goes all the way.
    pub(super) fn stop(&mut self, workers_ended: bool, happened: &Receiver<Event>) -> Result<(), RunError> {
        self.retrying.take().into_iter().for_each(RetryThreads::stop);
        for (name, feed) in self.feeds.drain(..) {
            if let Err(error) = feed.stop() {
                tracing::warn!(source = name, %error, "a generator has ended early");
            }
        }
        (self.making, self.backups) = (None, None);
        self.shared.stop();
        let waited = if workers_ended { Ok(()) } else { workers::wait_for_exit(happened) };
        self.ended.store(true, Ordering::Relaxed);
        // Workers that do not end would keep the sinks waiting for more. The gate has ends of theirs.
        self.gate = Arc::default();
        waited.and_then(|()| {
            self.writing.take().map_or(Ok(()), |writing| finish_writing(writing, &self.shared))
        })
    }
}

/// The workers have ended: what they have given to the sinks becomes durable.
fn finish_writing(writing: RunningSinks, shared: &SharedState) -> Result<(), RunError> {
    match writing.finish() {
        true => Ok(()),
        false => {
            let why = shared.failed().unwrap_or_else(|| "a sink has failed".into());
            Err(RunError::ended(why, shared))
        }
    }
}
