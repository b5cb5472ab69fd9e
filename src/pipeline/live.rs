//! The service: sources in, what is served out, until it is asked to stop.

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration as Wait, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use super::data_dir::{DataDir, DataDirError};
use super::logs::{Logs, needs_data_dir, rules};
use super::outlets::{Outlets, Starts, Writing};
use super::retry::spawn_retry;
use crate::config::Plan;
use crate::dataflow::GraphPlan;
use crate::directory::Directory;
use crate::kafka::topics::TopicsError;
use crate::model::Slots;
use crate::registry::RegistryError;
use crate::serve::{self, Facts, Ports, ServeError, Serving};
use crate::sinks::dead_letters::DeadLettersError;
use crate::sinks::kafka::{Ends, Keeper, OutletError};
use crate::sources::generator::PlanError;
use crate::sources::generator::feed::FeedError;
use crate::sources::journal::JournalError;
use crate::worker::{self, Cuts, Job, LogPartition, Refusals, Shared};

/// Epochs are taken for this long ahead, in ms, and so often. After a crash the first epochs are that much ahead of the clock at
/// most, so it is short; a disk that takes longer to write a few bytes holds results up.
const RESERVED_MS: u64 = 3_000;
const RESERVE_EVERY_MS: u64 = 1_000;
const LOOK_AT_EPOCHS: Wait = Wait::from_millis(250);
/// Between two looks at what should be looked at now and then.
const HOUSEKEEPING: Wait = Wait::from_millis(500);
/// How long a stop waits for clients to take what was sent to them.
const GRACE: Wait = Wait::from_secs(3);
/// Threads that serve.
const SERVING_THREADS: usize = 2;

/// Why the service has ended, other than by request.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    DeadLetters(#[from] DeadLettersError),
    #[error(transparent)]
    Topics(#[from] TopicsError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Outlet(#[from] OutletError),
    #[error("source {name}: {error}")]
    Feed { name: String, error: FeedError },
    #[error("source {name}: {error}")]
    Generator { name: String, error: PlanError },
    #[error("source {name}: {error}")]
    Source { name: String, error: crate::sources::SourceError },
    #[error("threads cannot be started: {0}")]
    Threads(io::Error),
    #[error("the workers cannot be started: {0}")]
    Workers(String),
    /// A source or the log has failed for good.
    #[error("{0}")]
    Failed(String),
}

/// What ends the wait for the end.
enum Event {
    Signal,
    Ended(Result<(), RunError>),
}

/// Runs the service until it is asked to stop, by SIGTERM, Ctrl-C or a closed terminal. `announce` hears the address once it is listened on, and
/// from when on readings are accepted.
pub fn run(plan: Plan, announce: impl FnOnce(SocketAddr)) -> Result<(), RunError> {
    // First of all: it waits for a process that is still dying, which may hold the address as well.
    let data_dir = needs_data_dir(&plan).then(|| DataDir::open(&plan.data_dir).map(Arc::new)).transpose()?;
    let bound = serve::bind(plan.serve.clone())?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(SERVING_THREADS)
        .enable_all()
        .build()
        .map_err(RunError::Threads)?;
    let (events, happened) = mpsc::sync_channel(4);
    listen_for_signals(&runtime, &events)?;

    let logs = Logs::open(&plan, data_dir)?;
    let outlets = Outlets::open(&plan)?;
    let generation = outlets.generation().or(logs.data_dir().map(|dir| dir.generation()));
    let generation = generation.unwrap_or_else(unkept_generation);
    let starts = outlets.starts()?;
    logs.use_schemas(&starts)?;
    let partitions = logs.partitions(&starts)?;
    let slots = Slots::new(partitions.iter().map(|partition| partition.name.clone()).collect());
    let cuts = Arc::new(outlets.cuts(&partitions)?);
    let letters = logs.dead_letters(&plan)?;
    let bound_epochs = EpochBound::of(logs.data_dir().cloned(), outlets.keeper());
    let floor = logs.data_dir().map_or(0, |dir| dir.epoch_floor()).max(outlets.epoch_floor()?);
    let first_epoch = floor.max(worker::clock());
    let reserved = first_epoch + RESERVED_MS;
    bound_epochs.reserve(reserved)?;
    let shared = Arc::new(Shared::new(Refusals::new(letters), reserved));

    let facts = facts(&plan, slots.clone(), generation.clone());
    let ports = Ports { ask: shared.clone(), appender: logs.appender() };
    let address = bound.address();
    let serving = bound.start(runtime.handle(), facts, ports)?;
    announce(address);
    tracing::info!(%address, generation = &*generation, "listening");

    let feeds = logs.feed(&plan)?;
    let mut graph = GraphPlan::serving(plan.formula, plan.retention);
    graph.parcels = outlets.parcels();
    let failing = shared.clone();
    let writing = outlets.start_writing(Arc::new(move |why| failing.fail(why)))?;
    let run = WorkerPlan {
        plan: &plan,
        graph,
        partitions,
        slots: slots.clone(),
        ends: writing.ends(),
        cuts,
        first_epoch,
    };
    start_workers(run, &serving, &shared, events)?;
    let ended = Arc::new(AtomicBool::new(false));
    reserve_epochs(bound_epochs, shared.clone(), reserved, ended.clone())?;
    let retrying = spawn_retry(&plan, logs.journal()).map_err(RunError::Threads)?;
    let (workers_ended, end) = keep_house(&logs, &starts, &slots, &shared, &happened);
    tracing::info!("stopping");
    retrying.stop();
    // From the sources on: what was taken in still goes all the way.
    for (name, feed) in feeds {
        if let Err(error) = feed.stop() {
            tracing::warn!(source = name, %error, "a generator has ended early");
        }
    }
    shared.stop();
    let waited = if workers_ended { Ok(()) } else { wait_for_workers(&happened) };
    ended.store(true, Ordering::Relaxed);
    // Workers that do not end would keep the sinks waiting for more.
    let written = waited.and_then(|()| finish_writing(writing, &shared));
    runtime.block_on(serving.stop(GRACE));
    let synced = shared.refusals.sync().map_err(RunError::from);
    runtime.shutdown_timeout(GRACE);
    drop(logs);
    end?;
    written?;
    synced?;
    tracing::info!("stopped");
    Ok(())
}

/// The workers have ended: what they have given to the sinks becomes durable.
fn finish_writing(writing: Writing, shared: &Shared) -> Result<(), RunError> {
    match writing.finish() {
        true => Ok(()),
        false => Err(RunError::Failed(shared.failed().unwrap_or_else(|| "a sink has failed".into()))),
    }
}

/// Where the bound of the epochs in use is kept.
enum EpochBound {
    DataDir(Arc<DataDir>),
    Progress(Keeper),
    /// Nothing of this run outlives it.
    Nowhere,
}

impl EpochBound {
    fn of(data_dir: Option<Arc<DataDir>>, keeper: Option<Keeper>) -> EpochBound {
        match (data_dir, keeper) {
            (Some(data_dir), _) => EpochBound::DataDir(data_dir),
            (None, Some(keeper)) => EpochBound::Progress(keeper),
            (None, None) => EpochBound::Nowhere,
        }
    }

    /// Makes durable that epochs below `upto` may be in use.
    fn reserve(&self, upto: u64) -> Result<(), RunError> {
        match self {
            EpochBound::DataDir(data_dir) => Ok(data_dir.reserve_epochs(upto)?),
            EpochBound::Progress(keeper) => Ok(keeper.reserve_epochs(upto)?),
            EpochBound::Nowhere => Ok(()),
        }
    }

    /// Whether it gets better by itself where it does not work.
    fn is_retried(&self) -> bool {
        matches!(self, EpochBound::Progress(_))
    }
}

/// Without a directory nothing is taken up again, and so that nobody thinks so, no two runs have the same.
fn unkept_generation() -> Arc<str> {
    use std::hash::{BuildHasher, RandomState};
    format!("0-{:016x}", RandomState::new().hash_one(worker::clock())).into()
}

/// The first signal asks for an end, the second one is the end.
fn listen_for_signals(runtime: &Runtime, events: &SyncSender<Event>) -> Result<(), RunError> {
    let _inside = runtime.enter();
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Threads)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Threads)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(RunError::Threads)?;
    let events = events.clone();
    runtime.spawn(async move {
        for asked in [false, true] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {}
            }
            if asked {
                tracing::warn!("asked to stop again: ending at once");
                std::process::exit(130);
            }
            // There is room for it: others send at most one event more.
            let _ = events.try_send(Event::Signal);
        }
    });
    Ok(())
}

fn facts(plan: &Plan, partitions: Slots, generation: Arc<str>) -> Facts {
    Facts {
        generation,
        formula: plan.formula.name(),
        window: plan.retention.window,
        lateness: plan.retention.lateness,
        history: plan.retention.history,
        workers: plan.workers,
        partitions,
        directory: Directory::shipped(),
        decode: plan.decode,
    }
}

/// What the workers of a run begin with.
struct WorkerPlan<'a> {
    plan: &'a Plan,
    graph: GraphPlan,
    partitions: Vec<LogPartition>,
    slots: Slots,
    ends: Vec<Ends>,
    cuts: Arc<Cuts>,
    first_epoch: u64,
}

/// Starts the workers on threads of their own; `events` hears when they have ended.
fn start_workers(
    run: WorkerPlan<'_>,
    serving: &Serving,
    shared: &Arc<Shared>,
    events: SyncSender<Event>,
) -> Result<(), RunError> {
    let WorkerPlan { plan, graph, partitions, slots, ends, cuts, first_epoch } = run;
    let job = Job {
        graph,
        rules: rules(plan),
        limits: plan.limits.clone(),
        partitions,
        slots,
        publisher: serving.publisher(),
        outlets: ends,
        cuts,
        shared: Arc::clone(shared),
    };
    let config = match plan.workers {
        1 => timely::Config::thread(),
        workers => timely::Config::process(workers),
    };
    let work = move || {
        let guards = timely::execute(config, move |worker| {
            // The other workers would wait for one that has panicked, for ever; the message is out by now.
            catch_unwind(AssertUnwindSafe(|| worker::run(worker, &job, first_epoch)))
                .unwrap_or_else(|_| std::process::exit(101));
        });
        let joined = guards.and_then(|guards| guards.join().into_iter().collect::<Result<Vec<()>, _>>());
        let _ = events.send(Event::Ended(joined.map(drop).map_err(RunError::Workers)));
    };
    thread::Builder::new().name("workers".into()).spawn(work).map(drop).map_err(RunError::Threads)
}

/// Takes epochs ahead of their use, until the run has ended: they are needed while it stops, too.
fn reserve_epochs(
    bound: EpochBound,
    shared: Arc<Shared>,
    mut reserved: u64,
    ended: Arc<AtomicBool>,
) -> Result<(), RunError> {
    if matches!(bound, EpochBound::Nowhere) {
        shared.reserve(u64::MAX);
        return Ok(());
    }
    let reserve = move || {
        while !ended.load(Ordering::Relaxed) {
            let wanted = shared.newest_epoch() + RESERVED_MS;
            if wanted >= reserved + RESERVE_EVERY_MS {
                match bound.reserve(wanted) {
                    Ok(()) => reserved = wanted,
                    Err(error) if bound.is_retried() => tracing::warn!(%error, "epochs wait"),
                    Err(error) => return shared.fail(error.to_string()),
                }
                shared.reserve(reserved);
            }
            thread::sleep(LOOK_AT_EPOCHS);
        }
    };
    thread::Builder::new().name("epochs".into()).spawn(reserve).map(drop).map_err(RunError::Threads)
}

/// Looks after what must be looked after, until it is time to stop; true where the workers have ended by then.
fn keep_house(
    logs: &Logs,
    starts: &Starts,
    slots: &Slots,
    shared: &Shared,
    happened: &Receiver<Event>,
) -> (bool, Result<(), RunError>) {
    loop {
        match happened.recv_timeout(HOUSEKEEPING) {
            Ok(Event::Signal) => return (false, Ok(())),
            Ok(Event::Ended(ended)) => {
                let failed = shared.failed().map_or(Ok(()), |failed| Err(RunError::Failed(failed)));
                return (true, ended.and(failed));
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        let looked = shared.refusals.sync().map_err(RunError::from);
        if let Err(error) = looked.and_then(|()| logs.add_new(starts, slots, shared)) {
            return (false, Err(error));
        }
        if let Some(failed) = logs.failed() {
            return (false, Err(RunError::Failed(failed)));
        }
    }
}

/// Waits until the workers have told all that they have read.
fn wait_for_workers(happened: &Receiver<Event>) -> Result<(), RunError> {
    let deadline = Instant::now() + Wait::from_secs(30);
    loop {
        match happened.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Event::Signal) => {}
            Ok(Event::Ended(ended)) => return ended,
            Err(_) => return Err(RunError::Failed("the workers do not come to an end".into())),
        }
    }
}
