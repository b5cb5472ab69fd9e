//! The service: sources in, what is served out, until it is asked to stop.

use std::any::Any;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration as Wait, Instant};

use serde::{Deserialize, Serialize};
use timely::WorkerConfig;
use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;
use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};
use timely::communication::initialize::Hooks;
use timely::execute::execute_from;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use super::data_dir::{DataDir, DataDirError};
use super::logs::{Logs, needs_data_dir, rules};
use super::outlets::{Outlets, Starts, Writing};
use super::processes::Processes;
use super::retry::{Retrying, spawn_retry};
use crate::cluster::message::Message;
use crate::cluster::{ClusterError, ClusterPlan};
use crate::config::Plan;
use crate::dataflow::GraphPlan;
use crate::directory::Directory;
use crate::kafka::topics::TopicsError;
use crate::model::{PartitionName, Slots, Topology};
use crate::registry::RegistryError;
use crate::serve::{self, Bound, Facts, Ports, ServeError};
use crate::sinks::dead_letters::DeadLettersError;
use crate::sinks::kafka::{Keeper, OutletError};
use crate::sources::generator::PlanError;
use crate::sources::generator::feed::FeedError;
use crate::sources::journal::JournalError;
use crate::worker::{self, Cuts, Job, Refusals, Shared};

/// Epochs are taken for this long ahead, in ms, and so often. After a crash the first epochs are that much ahead of the clock at
/// most, so it is short; a disk that takes longer to write a few bytes holds results up.
const RESERVED_MS: u64 = 3_000;
const RESERVE_EVERY_MS: u64 = 1_000;
const LOOK_AT_EPOCHS: Wait = Wait::from_millis(250);
/// Between two looks at what should be looked at now and then.
const HOUSEKEEPING: Wait = Wait::from_millis(500);
/// How long a stop waits for clients to take what was sent to them.
const GRACE: Wait = Wait::from_secs(3);
/// What comes so soon after a signal is the same one, sent to the process and to its group.
const SAME_SIGNAL: Wait = Wait::from_millis(300);
/// Threads that serve.
const SERVING_THREADS: usize = 2;

/// Why the service has ended, other than by request.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
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
    /// All processes stop.
    Stop,
    Ended(Result<(), RunError>),
}

/// Asks a run to stop from elsewhere, as a signal does.
#[derive(Clone, Default)]
pub struct Stops(Arc<(OnceLock<SyncSender<Event>>, AtomicBool)>);

impl Stops {
    pub fn ask(&self) {
        self.0.1.store(true, Ordering::Release);
        if let Some(events) = self.0.0.get() {
            let _ = events.try_send(Event::Signal);
        }
    }

    fn listen(&self, events: &SyncSender<Event>) {
        let _ = self.0.0.set(events.clone());
        if self.0.1.load(Ordering::Acquire) {
            let _ = events.try_send(Event::Signal);
        }
    }
}

/// How this process meets the others of its run.
pub struct Joining {
    pub cluster: ClusterPlan,
    /// Listens for them already, where it does.
    pub listener: Option<TcpListener>,
    pub stops: Stops,
}

impl Joining {
    pub fn alone(plan: &Plan) -> Joining {
        let cluster = cluster_plan(plan, 0, Vec::new());
        Joining { cluster, listener: None, stops: Stops::default() }
    }

    /// One of several, which are at `hosts`.
    pub fn one_of(plan: &Plan, process: usize, hosts: Vec<String>) -> Joining {
        Joining { cluster: cluster_plan(plan, process, hosts), listener: None, stops: Stops::default() }
    }
}

fn cluster_plan(plan: &Plan, process: usize, hosts: Vec<String>) -> ClusterPlan {
    let keys = &plan.cluster;
    let topology = Topology { processes: keys.processes, process, workers: plan.workers };
    ClusterPlan {
        topology,
        hosts,
        secret: keys.secret.clone().unwrap_or_default().into_bytes(),
        connect_time: keys.connect_time,
        peer_timeout: keys.peer_timeout,
        agreement: plan.agreement.clone(),
    }
}

/// Runs the service until it is asked to stop, by SIGTERM, Ctrl-C or a closed terminal. `announce` hears the address once it is listened on, and
/// from when on readings are accepted.
pub fn run(plan: Plan, joining: Joining, announce: impl FnOnce(SocketAddr)) -> Result<(), RunError> {
    let (events, happened) = mpsc::sync_channel(4);
    joining.stops.listen(&events);
    // First of all: it waits for a process that is still dying, which may hold the address as well.
    let data_dir = needs_data_dir(&plan).then(|| DataDir::open(&plan.data_dir).map(Arc::new)).transpose()?;
    let bound = serve::bind(plan.serve.clone())?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(SERVING_THREADS)
        .enable_all()
        .build()
        .map_err(RunError::Threads)?;
    listen_for_signals(&runtime, &events)?;
    let stop = events.clone();
    let asked_to_stop = Box::new(move || drop(stop.try_send(Event::Stop)));
    let processes = Processes::meet(&joining.cluster, joining.listener, asked_to_stop)?;
    let processes = Arc::new(processes);
    let ran = run_together(plan, data_dir, bound, &runtime, &processes, (events, &happened), announce);
    match &ran {
        Ok(()) => processes.end(),
        Err(error) => processes.fail(&error.to_string()),
    }
    runtime.shutdown_timeout(GRACE);
    ran
}

/// What all processes begin with.
#[derive(Serialize, Deserialize)]
struct Start {
    generation: Arc<str>,
    /// By slot: the partitions, and from where they are read.
    partitions: Vec<(PartitionName, u64)>,
    cuts: Cuts,
    first_epoch: u64,
}

/// The run of this process among the others, from start to end.
fn run_together(
    plan: Plan,
    data_dir: Option<Arc<DataDir>>,
    bound: Bound,
    runtime: &Runtime,
    processes: &Arc<Processes>,
    (events, happened): (SyncSender<Event>, &Receiver<Event>),
    announce: impl FnOnce(SocketAddr),
) -> Result<(), RunError> {
    let topology = processes.topology();
    let logs = Logs::open(&plan, data_dir, processes)?;
    let outlets = Outlets::open(&plan, processes)?;
    let starts = outlets.starts()?;
    logs.use_schemas(&starts, processes)?;
    let start = processes.share(|| begin(&logs, &outlets, &starts))?;
    let Start { generation, partitions, cuts, first_epoch } = start;
    let slots = Slots::new(partitions.iter().map(|(name, _)| name.clone()).collect());
    let partitions = logs.readable(&starts, &partitions);
    let letters = logs.dead_letters(&plan)?;
    let bound_epochs = EpochBound::of(logs.data_dir().cloned(), outlets.keeper());
    let reserved = first_epoch + RESERVED_MS;
    if topology.is_first() {
        bound_epochs.reserve(reserved)?;
    }
    let shared = Arc::new(Shared::new(Refusals::new(letters), reserved));
    processes.serve(Arc::clone(&shared), logs.appender());
    let sockets = processes.cluster().connect_workers(&generation)?;

    let facts = facts(&plan, slots.clone(), generation.clone());
    let ports = Ports { ask: shared.clone(), appender: logs.appender() };
    let address = bound.address();
    let serving = bound.start(runtime.handle(), facts, ports)?;
    announce(address);
    tracing::info!(%address, generation = &*generation, process = topology.process, "listening");

    let mut graph = GraphPlan::serving(plan.formula, plan.retention, topology);
    graph.parcels = outlets.parcels();
    let failing = shared.clone();
    let writing = outlets.start_writing(processes, Arc::new(move |why| failing.fail(why)))?;
    let (ends, cuts) = (writing.ends(), Arc::new(cuts));
    let (slots_all, publisher) = (slots.clone(), serving.publisher());
    let job = Job {
        topology,
        graph,
        rules: rules(&plan),
        limits: plan.limits.clone(),
        partitions,
        slots: slots_all,
        publisher,
        outlets: ends,
        cuts,
        shared: Arc::clone(&shared),
    };
    start_workers(job, sockets, first_epoch, events)?;
    let ended = Arc::new(AtomicBool::new(false));
    reserve_epochs(bound_epochs, Arc::clone(processes), shared.clone(), reserved, ended.clone())?;
    let first = topology.is_first();
    let feeds = if first { logs.feed(&plan)? } else { Vec::new() };
    let retrying =
        first.then(|| spawn_retry(&plan, logs.journal()).map_err(RunError::Threads)).transpose()?;

    let house = House { logs: &logs, starts: &starts, slots: &slots, shared: &shared, processes };
    let (workers_ended, end) = house.keep(happened);
    tracing::info!("stopping");
    if let (Err(error), false) = (&end, topology.is_alone()) {
        // Workers that have lost some of them do not come to an end.
        return Err(RunError::Failed(error.to_string()));
    }
    retrying.into_iter().for_each(Retrying::stop);
    // From the sources on: what was taken in still goes all the way.
    for (name, feed) in feeds {
        if let Err(error) = feed.stop() {
            tracing::warn!(source = name, %error, "a generator has ended early");
        }
    }
    shared.stop();
    let waited = if workers_ended { Ok(()) } else { wait_for_workers(happened) };
    ended.store(true, Ordering::Relaxed);
    // Workers that do not end would keep the sinks waiting for more.
    let written = waited.and_then(|()| finish_writing(writing, &shared));
    runtime.block_on(serving.stop(GRACE));
    let synced = shared.refusals.sync().map_err(RunError::from);
    drop(logs);
    end?;
    written?;
    synced?;
    tracing::info!("stopped");
    Ok(())
}

/// What process 0 finds for all.
fn begin(logs: &Logs, outlets: &Outlets, starts: &Starts) -> Result<Start, RunError> {
    let generation = outlets.generation().or(logs.data_dir().map(|dir| dir.generation()));
    let generation = generation.unwrap_or_else(unkept_generation);
    let partitions = logs.partitions(starts)?;
    let cuts = outlets.cuts(&partitions)?;
    let floor = logs.data_dir().map_or(0, |dir| dir.epoch_floor()).max(outlets.epoch_floor()?);
    let first_epoch = floor.max(worker::clock());
    let partitions = partitions.into_iter().map(|log| (log.name, log.start)).collect();
    Ok(Start { generation, partitions, cuts, first_epoch })
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
        let mut asked: Option<Instant> = None;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {}
            }
            if asked.is_some_and(|since| since.elapsed() > SAME_SIGNAL) {
                tracing::warn!("asked to stop again: ending at once");
                std::process::exit(130);
            }
            asked.get_or_insert_with(Instant::now);
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
        workers: plan.workers * plan.cluster.processes,
        partitions,
        directory: Directory::shipped(),
        decode: plan.decode,
    }
}

/// Starts the workers on threads of their own; `events` hears when they have ended.
fn start_workers(
    job: Job,
    sockets: Vec<Option<TcpStream>>,
    first_epoch: u64,
    events: SyncSender<Event>,
) -> Result<(), RunError> {
    let (builders, guard) = allocators(job.topology, sockets).map_err(RunError::Workers)?;
    let work = move || {
        let guards = execute_from(builders, guard, WorkerConfig::default(), move |worker| {
            // The other workers would wait for one that has panicked, for ever; the message is out by now.
            catch_unwind(AssertUnwindSafe(|| worker::run(worker, &job, first_epoch)))
                .unwrap_or_else(|_| std::process::exit(101));
        });
        let joined = guards.and_then(|guards| guards.join().into_iter().collect::<Result<Vec<()>, _>>());
        let _ = events.send(Event::Ended(joined.map(drop).map_err(RunError::Workers)));
    };
    thread::Builder::new().name("workers".into()).spawn(work).map(drop).map_err(RunError::Threads)
}

type Allocators = (Vec<AllocatorBuilder>, Box<dyn Any + Send>);

/// How workers reach each other: by sockets those of other processes.
fn allocators(topology: Topology, sockets: Vec<Option<TcpStream>>) -> Result<Allocators, String> {
    let Topology { process, workers, .. } = topology;
    if topology.is_alone() {
        return match workers {
            1 => timely::CommunicationConfig::Thread,
            workers => timely::CommunicationConfig::Process(workers),
        }
        .try_build();
    }
    for socket in sockets.iter().flatten() {
        // Whether a peer lives is found out elsewhere.
        let untimed = socket.set_read_timeout(None).and_then(|()| socket.set_write_timeout(None));
        untimed.map_err(|error| error.to_string())?;
    }
    let hooks = Hooks::default();
    let within = ProcessBuilder::new_typed_vector(workers, hooks.refill.clone(), hooks.spill.clone());
    let (builders, guard) = initialize_networking_from_sockets(within, sockets, process, workers, hooks)
        .map_err(|error| format!("the dataflow's connections fail: {error}"))?;
    Ok((builders.into_iter().map(AllocatorBuilder::Tcp).collect(), Box::new(guard)))
}

/// Takes epochs ahead of their use, until the run has ended: they are needed while it stops, too. Process 0 takes them for all.
fn reserve_epochs(
    bound: EpochBound,
    processes: Arc<Processes>,
    shared: Arc<Shared>,
    mut reserved: u64,
    ended: Arc<AtomicBool>,
) -> Result<(), RunError> {
    let first = processes.topology().is_first();
    if first && matches!(bound, EpochBound::Nowhere) {
        shared.reserve(u64::MAX);
        processes.tell(&Message::Reserved { upto: u64::MAX });
        return Ok(());
    }
    let reserve = move || {
        while !ended.load(Ordering::Relaxed) {
            let newest = shared.newest_epoch().max(processes.newest_epoch());
            let wanted = newest + RESERVED_MS;
            if !first {
                processes.tell(&Message::Newest { epoch: newest });
            } else if wanted >= reserved + RESERVE_EVERY_MS {
                match bound.reserve(wanted) {
                    Ok(()) => reserved = wanted,
                    Err(error) if bound.is_retried() => tracing::warn!(%error, "epochs wait"),
                    Err(error) => return shared.fail(error.to_string()),
                }
                shared.reserve(reserved);
                processes.tell(&Message::Reserved { upto: reserved });
            }
            thread::sleep(LOOK_AT_EPOCHS);
        }
    };
    thread::Builder::new().name("epochs".into()).spawn(reserve).map(drop).map_err(RunError::Threads)
}

/// What must be looked after while workers work.
struct House<'a> {
    logs: &'a Logs,
    starts: &'a Starts,
    slots: &'a Slots,
    shared: &'a Shared,
    processes: &'a Processes,
}

impl House<'_> {
    /// Looks after it until it is time to stop; true where the workers have ended by then.
    fn keep(&self, happened: &Receiver<Event>) -> (bool, Result<(), RunError>) {
        loop {
            match happened.recv_timeout(HOUSEKEEPING) {
                Ok(Event::Signal) => self.processes.ask_to_stop(),
                Ok(Event::Stop) => return (false, Ok(())),
                Ok(Event::Ended(ended)) => {
                    let failed = self.shared.failed().map_or(Ok(()), |failed| Err(RunError::Failed(failed)));
                    return (true, ended.and(failed));
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            if let Err(error) = self.look() {
                return (false, Err(error));
            }
        }
    }

    fn look(&self) -> Result<(), RunError> {
        self.shared.refusals.sync()?;
        self.processes.exchange_refused(self.shared);
        self.logs.add_new(self.starts, self.slots, self.shared, self.processes)?;
        // Alone, the workers come to an end by themselves.
        let shared = self.shared.failed().filter(|_| !self.processes.topology().is_alone());
        match shared.or_else(|| self.logs.failed()) {
            Some(failed) => Err(RunError::Failed(failed)),
            None => Ok(()),
        }
    }
}

/// Waits until the workers have told all that they have read.
fn wait_for_workers(happened: &Receiver<Event>) -> Result<(), RunError> {
    let deadline = Instant::now() + Wait::from_secs(30);
    loop {
        match happened.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Event::Signal | Event::Stop) => {}
            Ok(Event::Ended(ended)) => return ended,
            Err(_) => return Err(RunError::Failed("the workers do not come to an end".into())),
        }
    }
}
