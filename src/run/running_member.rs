//! A process whose workers run: executes commands, does housekeeping, and stops.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use super::checkpoints::part_reporter::PartReporter;
use super::context::RunContext;
use super::control::MainEvent;
use super::durable_sinks::RunningSinks;
use super::lead::{Member, ended_by};
use super::local_sinks::LocalSinks;
use super::logs::Logs;
use super::protocol::{ControlCommand, ControlEvent, RefusedCounts};
use super::run_error::{Failure, RunError};
use super::workers::spawn_workers;
use crate::cluster::PeerStream;
use crate::fault::RetryBackoff;
use crate::model::{Appender, PartitionTable};
use crate::serve::RunningServer;
use crate::sinks::error::SinkError;
use crate::worker::{
    InstalledSinks, LogPartition, SharedState, WorkerCommand, WorkerCommandSender, WorkerPlan,
};

/// Interval at which the main thread runs due tasks if no event wakes it.
pub const TICK_INTERVAL: Duration = Duration::from_millis(50);
/// Interval of less urgent tasks.
pub const HOUSEKEEPING_INTERVAL: Duration = Duration::from_millis(500);
/// How long a stop waits for clients to read what was sent to them.
pub const CLIENT_GRACE: Duration = Duration::from_secs(3);
/// How long the workers may take to end.
const WORKERS_EXIT_TIMEOUT: Duration = Duration::from_secs(30);

/// A process whose workers are started.
pub struct RunningMember<'a> {
    pub context: RunContext<'a>,
    pub logs: Arc<Logs>,
    pub sinks: LocalSinks,
    pub shared: Arc<SharedState>,
    pub commands: WorkerCommandSender,
    pub partitions: PartitionTable,
    /// The partitions that this process can read, as of the start.
    pub local_partitions: Vec<LogPartition>,
    pub appender: Option<Arc<dyn Appender>>,
    pub server: RunningServer,
    pub part_reporter: Option<PartReporter>,
    pub housekeeping: Housekeeping,
    /// Set once this run owns the results.
    pub running_sinks: Option<RunningSinks>,
    /// Set until the workers run.
    pub idle_workers: Option<IdleWorkers>,
}

/// Workers that are connected but not started yet.
pub struct IdleWorkers {
    pub plan: WorkerPlan,
    pub streams: Vec<Option<PeerStream>>,
    /// A primary is followed, so the start is complete once the workers run.
    pub follows: bool,
}

/// The periodic tasks of a process.
pub struct Housekeeping {
    dead_letter_retries: RetryBackoff,
    reported_refused: RefusedCounts,
    next_report: Instant,
}

impl Default for Housekeeping {
    fn default() -> Housekeeping {
        Housekeeping {
            dead_letter_retries: RetryBackoff::new("dead_letters", "write dead letters", "sources wait"),
            reported_refused: RefusedCounts::new(),
            next_report: Instant::now(),
        }
    }
}

/// Why the main loop of a process ends.
pub struct RunEnd {
    /// The workers have ended by themselves.
    pub have_workers_exited: bool,
    pub result: Result<(), RunError>,
}

impl RunEnd {
    /// The end of the run that an event means, if it is no command to execute.
    pub fn of(event: MainEvent) -> RunEnd {
        match event {
            MainEvent::Command(ControlCommand::Stop) => RunEnd { have_workers_exited: false, result: Ok(()) },
            MainEvent::WorkersExited(Ok(())) => RunEnd { have_workers_exited: true, result: Ok(()) },
            MainEvent::WorkersExited(Err(error)) => RunEnd { have_workers_exited: true, result: Err(error) },
            event => RunEnd::failed(ended_by(event)),
        }
    }

    pub fn failed(error: RunError) -> RunEnd {
        RunEnd { have_workers_exited: false, result: Err(error) }
    }
}

impl Member for RunningMember<'_> {
    fn execute(&mut self, command: ControlCommand) -> Result<(), RunError> {
        match command {
            ControlCommand::RunWorkers => self.run_workers()?,
            ControlCommand::FenceSink(order) => {
                let sink = order.sink;
                self.sinks.fence(order)?;
                self.context.control.report(ControlEvent::SinkFenced { sink });
            }
            ControlCommand::ClaimSinks(progress) => self.sinks.claim(progress)?,
            ControlCommand::InstallResumePoints(points) => {
                let sinks = self.start_writing()?;
                let senders = sinks.senders();
                if let Some(reporter) = &mut self.part_reporter {
                    reporter.set_shard_senders(senders.clone());
                }
                self.running_sinks = Some(sinks);
                let installed = Arc::new(InstalledSinks { points, senders });
                self.commands.send(&WorkerCommand::InstallResumePoints(installed));
                self.context.shutdown.finish_start();
            }
            ControlCommand::SealCheckpoint { checkpoint, positions } => {
                if let Some(reporter) = &mut self.part_reporter {
                    reporter.on_sealed(checkpoint, positions);
                }
            }
            ControlCommand::CancelCheckpoint { checkpoint } => {
                if let Some(reporter) = &mut self.part_reporter {
                    reporter.on_cancelled(checkpoint);
                }
            }
            command => return Err(ended_by(MainEvent::Command(command))),
        }
        Ok(())
    }

    fn sinks(&self) -> Result<&LocalSinks, RunError> {
        Ok(&self.sinks)
    }
}

impl RunningMember<'_> {
    fn run_workers(&mut self) -> Result<(), RunError> {
        if let Some(IdleWorkers { plan, streams, follows }) = self.idle_workers.take() {
            spawn_workers(plan, streams, self.context.control.clone())?;
            if follows {
                self.context.shutdown.finish_start();
            }
        }
        Ok(())
    }

    /// Starts the writers of this process's shards.
    fn start_writing(&mut self) -> Result<RunningSinks, RunError> {
        let control = self.context.control.clone();
        let failed = move |error: SinkError| {
            let is_takeover = error.is_fenced();
            control.fail(Failure { why: error.to_string(), is_takeover });
        };
        // One process watches for claims, because all processes end if a sink is lost.
        let watches = self.context.topology.is_first_process();
        self.sinks.take_claimed()?.start_writing(watches, Arc::new(failed))
    }

    /// Runs until all stop, at a process that only follows the log.
    pub fn run(&mut self, events: &Receiver<MainEvent>) -> RunEnd {
        loop {
            match events.recv_timeout(TICK_INTERVAL) {
                Ok(MainEvent::Command(command)) if !matches!(command, ControlCommand::Stop) => {
                    if let Err(error) = self.execute(command) {
                        return RunEnd::failed(error);
                    }
                }
                Ok(event) => return RunEnd::of(event),
                Err(_) => {}
            }
            if let Err(error) = self.tick() {
                return RunEnd::failed(error);
            }
        }
    }

    /// Runs due tasks without waiting for others. Returns whether the dead letters are durable: a
    /// checkpoint may only include records whose dead letters are on disk.
    pub fn tick(&mut self) -> Result<bool, RunError> {
        let are_durable = self.sync_dead_letters()?;
        if let (true, Some(reporter)) = (are_durable, &mut self.part_reporter) {
            reporter.report_part_if_ready();
        }
        if let Some(failure) = self.logs.failure() {
            return Err(RunError::Failed(failure));
        }
        self.report_refused();
        Ok(are_durable)
    }

    /// Makes the dead letters durable. Returns false if that must be retried later.
    fn sync_dead_letters(&mut self) -> Result<bool, RunError> {
        let retries = &mut self.housekeeping.dead_letter_retries;
        if !retries.is_due() {
            return Ok(false);
        }
        match self.shared.refusals.sync() {
            Ok(()) => retries.record_success(),
            Err(error) if error.is_transient() => {
                retries.record_failure(&error);
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }

    fn report_refused(&mut self) {
        let housekeeping = &mut self.housekeeping;
        if Instant::now() < housekeeping.next_report || self.context.topology.is_single_process() {
            return;
        }
        housekeeping.next_report = Instant::now() + HOUSEKEEPING_INTERVAL;
        let counts = self.shared.refusals.local_counts();
        let counts: RefusedCounts = (0..).zip(counts).filter(|(_, count)| *count > 0).collect();
        if counts != housekeeping.reported_refused {
            housekeeping.reported_refused.clone_from(&counts);
            self.context.control.report(ControlEvent::Refused(counts));
        }
    }

    /// Ends the workers of this process if the run stops before it owns the results. Returns the
    /// error.
    pub fn stop_unreleased(self, error: RunError, events: &Receiver<MainEvent>) -> RunError {
        if error.is_stop_request() {
            let end = RunEnd { have_workers_exited: false, result: Ok(()) };
            if let Err(error) = self.stop(end, events) {
                tracing::warn!(%error, "the run was stopped before its takeover, and its workers did not end in order; it had not written results");
            }
        }
        error
    }

    /// Stops this process's part of the run: records that were read are processed to the end.
    pub fn stop(mut self, end: RunEnd, events: &Receiver<MainEvent>) -> Result<(), RunError> {
        tracing::info!("the service stops: it processes what it has read, and ends");
        if end.result.is_err() && !self.context.topology.is_single_process() {
            // Workers that have lost some of the others cannot end in order.
            return end.result;
        }
        self.commands.send(&WorkerCommand::Stop);
        self.part_reporter = None;
        let mut failure = None;
        let do_workers_run = self.idle_workers.is_none() && !end.have_workers_exited;
        let waited = if !do_workers_run { Ok(()) } else { wait_for_workers(events, &mut failure) };
        let stopped = waited.and_then(|()| match self.running_sinks.take() {
            None => Ok(()),
            Some(sinks) => finish_writing(sinks, events, failure),
        });
        self.context.runtime.block_on(self.server.stop_serving(CLIENT_GRACE));
        let synced = self.shared.refusals.sync().map_err(RunError::from);
        end.result?;
        stopped?;
        synced?;
        tracing::info!("the service has stopped");
        Ok(())
    }
}

/// Waits until the workers have sent everything that they have read. Failures meanwhile are stored
/// in `failure`.
fn wait_for_workers(events: &Receiver<MainEvent>, failure: &mut Option<Failure>) -> Result<(), RunError> {
    let deadline = Instant::now() + WORKERS_EXIT_TIMEOUT;
    loop {
        match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(MainEvent::WorkersExited(result)) => return result,
            Ok(MainEvent::Failed(first)) => drop(failure.get_or_insert(first)),
            Ok(_) => {}
            Err(_) => return Err(RunError::Failed("the workers did not end in time".into())),
        }
    }
}

/// Makes everything durable that the workers have sent to the sinks. The workers have ended.
fn finish_writing(
    sinks: RunningSinks,
    events: &Receiver<MainEvent>,
    failure: Option<Failure>,
) -> Result<(), RunError> {
    if sinks.finish() {
        return Ok(());
    }
    let failure = failure.or_else(|| {
        events.try_iter().find_map(|event| match event {
            MainEvent::Failed(failure) => Some(failure),
            _ => None,
        })
    });
    Err(failure.map_or_else(
        || RunError::Failed("a durable sink has failed, so the process ends".into()),
        RunError::from,
    ))
}
