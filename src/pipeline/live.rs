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

use super::checkpoints::{Beginning, Checkpointed, Making, Parts};
use super::data_dir::{DataDir, DataDirError};
use super::logs::{Logs, needs_data_dir, rules};
use super::outlets::{Outlets, Prepared, Starts, Writing};
use super::processes::Processes;
use super::retry::{Retrying, spawn_retry};
use super::standby::Following;
use crate::checkpoint::CheckpointError;
use crate::cluster::message::Message;
use crate::cluster::{ClusterError, ClusterPlan};
use crate::config::{ClusterKeys, Plan, SourceKind, SourcePlan, StartKind};
use crate::dataflow::GraphPlan;
use crate::directory::Directory;
use crate::kafka::topics::TopicsError;
use crate::model::{PartitionName, Slots, Topology};
use crate::registry::RegistryError;
use crate::serve::{self, Bound, Facts, Ports, ServeError};
use crate::sinks::dead_letters::DeadLettersError;
use crate::sinks::kafka::progress::Kept;
use crate::sinks::kafka::{Keeper, OutletError};
use crate::sources::generator::PlanError;
use crate::sources::generator::feed::{Feed, FeedError};
use crate::sources::journal::JournalError;
use crate::worker::{self, Cuts, Gate, Job, LogPartition, Refusals, Shared};

/// Epochs are taken for this long ahead, in ms, and so often. After a crash the first epochs are that much ahead of the clock at
/// most, so it is short; a disk that takes longer to write a few bytes holds results up.
const RESERVED_MS: u64 = 3_000;
const RESERVE_EVERY_MS: u64 = 1_000;
const LOOK_AT_EPOCHS: Wait = Wait::from_millis(250);
/// Between two looks at what goes on.
const LOOK: Wait = Wait::from_millis(50);
/// Between two looks at what should be looked at now and then.
const HOUSEKEEPING: Wait = Wait::from_millis(500);
/// How long workers may take to learn that the results are theirs.
const TAKE_OVER: Wait = Wait::from_secs(30);
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
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
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
    #[error("{0}")]
    TakenOver(String),
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
    first_epoch: u64,
}

/// What a run writes its results by, and where its shards go on.
#[derive(Serialize, Deserialize)]
struct Opening {
    cuts: Cuts,
    /// Not before this epoch.
    floor: u64,
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
    let prepared = Prepared::new(&plan, processes)?;
    let (following, kept) = follow(&plan, &prepared, &logs, processes)?;
    let outlets = match &following {
        Some(_) => None,
        None => Some(prepared.claim(None, processes)?),
    };
    let kept: Vec<&Kept> = outlets.as_ref().map_or(kept.iter().collect(), Outlets::kept);
    let starts = prepared.starts(&kept)?;
    if let Some(outlets) = &outlets {
        starts.claimed(outlets);
    }
    logs.use_schemas(&starts, processes, following.as_ref())?;
    let start = processes.share(|| begin(&logs, outlets.as_ref(), following.as_deref(), &starts))?;
    let Start { generation, partitions, first_epoch } = start;
    let slots = Slots::new(partitions.iter().map(|(name, _)| name.clone()).collect());
    let checkpoints = Checkpointed::open(&plan, &logs, processes, &generation)?;
    let written = || match following {
        Some(_) => prepared.written(&prepared.look()?.iter().collect::<Vec<_>>()),
        None => prepared.written(&kept),
    };
    let check = |source: &str, partition, position| logs.check(source, partition, position);
    let is_following = following.is_some();
    let beginning = Beginning { check: &check, partitions: &partitions, written: &written, is_following };
    let taken = checkpoints.as_ref().map(|kept| kept.take_up(&beginning, &slots, processes));
    let taken = taken.transpose()?.flatten();
    let from = |(name, start): (PartitionName, u64)| {
        let position = taken.as_ref().map_or(start, |taken| taken.position(&name, start));
        (name, position)
    };
    let partitions: Vec<_> = partitions.into_iter().map(from).collect();
    let positions = partitions.iter().map(|(_, position)| *position).collect();
    let partitions = logs.readable(&starts, &partitions);
    let first_epoch = first_epoch.max(taken.as_ref().map_or(0, |taken| taken.epoch + 1));
    let letters = logs.dead_letters(&plan)?;
    // Of a generation that is hydrated nothing is seen, so its epochs are its own.
    let reserved = if following.is_some() { u64::MAX } else { first_epoch + RESERVED_MS };
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
    graph.parcels = prepared.parcels();
    let parts = Arc::<Parts>::default();
    let states = checkpoints.as_ref().map(|kept| kept.states(taken, &slots, topology.workers, &parts));
    let states = states.transpose()?.unwrap_or_default();
    let gate = Arc::<Gate>::default();
    let (logs, starts, following_) = (&logs, &starts, following.clone());
    let mut own = Own {
        plan: &plan,
        processes,
        logs,
        starts,
        prepared: &prepared,
        slots: slots.clone(),
        partitions: partitions.clone(),
        shared: Arc::clone(&shared),
        gate: Arc::clone(&gate),
        generation,
        checkpoints: checkpoints.map(|kept| (kept, parts)),
        following: following_,
        ended: Arc::default(),
        writing: None,
        making: None,
        retrying: None,
        feeds: Vec::new(),
    };
    if let Some(outlets) = outlets {
        own.begin(outlets, first_epoch)?;
    }
    let job = Job {
        topology,
        graph,
        rules: rules(&plan),
        limits: plan.limits.clone(),
        partitions,
        slots,
        publisher: serving.publisher(),
        gate,
        starts: positions,
        states: Arc::new(states),
        shared: Arc::clone(&shared),
    };
    start_workers(job, sockets, first_epoch, events)?;
    let (workers_ended, end) = own.keep(happened);
    tracing::info!("stopping");
    if let (Err(error), false) = (&end, topology.is_alone()) {
        // Workers that have lost some of them do not come to an end.
        return Err(RunError::ended(error.to_string(), &shared));
    }
    let stopped = own.stop(workers_ended, happened);
    runtime.block_on(serving.stop(GRACE));
    let synced = shared.refusals.sync().map_err(RunError::from);
    end?;
    stopped?;
    synced?;
    tracing::info!("stopped");
    Ok(())
}

/// Looks for a generation to follow, where the plan says so; and what the outlets hold.
fn follow(
    plan: &Plan,
    prepared: &Prepared,
    logs: &Logs,
    processes: &Processes,
) -> Result<(Option<Arc<Following>>, Vec<Kept>), RunError> {
    let ClusterKeys { start, standby_after, .. } = plan.cluster;
    if start == StartKind::Claim {
        return Ok((None, Vec::new()));
    }
    if prepared.is_empty() || logs.data_dir().is_some() || !plan.sources.iter().all(is_topic) {
        return Err(RunError::Failed(
            "cluster.start: only a run whose sources are all topics of Kafka can take over from another one: a journal has one owner".into(),
        ));
    }
    let kept = processes.share(|| prepared.look())?;
    // The same at all processes but for the claims, which only the first one makes.
    let following = Following::new(start, standby_after, prepared, &kept)?.map(Arc::new);
    if let (Some(following), true) = (&following, processes.topology().is_first()) {
        following.spawn(prepared)?;
        tracing::info!("another generation is followed");
    }
    Ok((following, kept))
}

fn is_topic(source: &SourcePlan) -> bool {
    matches!(source.kind, SourceKind::Kafka(_))
}

/// What process 0 finds for all.
fn begin(
    logs: &Logs,
    outlets: Option<&Outlets>,
    following: Option<&Following>,
    starts: &Starts,
) -> Result<Start, RunError> {
    let generation = outlets.and_then(Outlets::generation).or(following.and_then(Following::generation));
    let generation = generation.or(logs.data_dir().map(|dir| dir.generation()));
    let generation = generation.unwrap_or_else(unkept_generation);
    let partitions = logs.partitions(starts, following.is_some())?;
    let floor = outlets.map_or(Ok(0), Outlets::epoch_floor)?;
    let floor = floor.max(logs.data_dir().map_or(0, |dir| dir.epoch_floor()));
    let partitions = partitions.into_iter().map(|log| (log.name, log.start)).collect();
    Ok(Start { generation, partitions, first_epoch: floor.max(worker::clock()) })
}

/// What a run has in hand while its workers work.
struct Own<'a> {
    plan: &'a Plan,
    processes: &'a Arc<Processes>,
    logs: &'a Logs,
    starts: &'a Starts,
    prepared: &'a Prepared,
    slots: Slots,
    /// Those that this process can read, as they were at the start.
    partitions: Vec<LogPartition>,
    shared: Arc<Shared>,
    gate: Arc<Gate>,
    generation: Arc<str>,
    /// Until the results are this run's.
    checkpoints: Option<(Checkpointed, Arc<Parts>)>,
    following: Option<Arc<Following>>,
    ended: Arc<AtomicBool>,
    writing: Option<Writing>,
    making: Option<Making>,
    retrying: Option<Retrying>,
    feeds: Vec<(String, Feed)>,
}

impl Own<'_> {
    /// The outlets are this run's: from now on it writes, and whatever else only one generation does.
    fn begin(&mut self, outlets: Outlets, first_epoch: u64) -> Result<(), RunError> {
        let (logs, first) = (self.logs, self.processes.topology().is_first());
        let opening = self.processes.share(|| {
            let floor = outlets.epoch_floor()?.max(first_epoch);
            Ok::<_, RunError>(Opening { cuts: outlets.cuts(&self.partitions)?, floor })
        })?;
        let bound = EpochBound::of(logs.data_dir().cloned(), outlets.keeper());
        let reserved = opening.floor.max(worker::clock()) + RESERVED_MS;
        if first {
            bound.reserve(reserved)?;
        }
        let failing = Arc::clone(&self.shared);
        let failed = move |error: OutletError| match error {
            OutletError::Fenced { .. } => failing.hand_over(error.to_string()),
            error => failing.fail(error.to_string()),
        };
        let writing = outlets.start_writing(self.processes, Arc::new(failed))?;
        self.gate.install(opening.cuts, writing.ends());
        if self.following.is_some() {
            self.wait_for_workers_to_know()?;
        }
        // All know where to wait: whoever is released first leaves nobody behind.
        self.processes.gather(())?;
        self.processes.share(|| Ok::<_, RunError>(()))?;
        self.shared.reserve(reserved);
        self.gate.release(opening.floor);
        if let Some((kept, parts)) = self.checkpoints.take() {
            let journal = logs.journal().map(|(journal, _)| journal);
            let from = (parts, writing.ends(), journal);
            self.making = Some(Making::start(kept, self.slots.clone(), Arc::clone(self.processes), from)?);
        }
        self.writing = Some(writing);
        reserve_epochs(bound, Arc::clone(self.processes), self.shared.clone(), reserved, self.ended.clone())?;
        if first {
            self.feeds = logs.feed(self.plan)?;
            self.retrying = Some(spawn_retry(self.plan, logs.journal()).map_err(RunError::Threads)?);
        }
        Ok(())
    }

    fn wait_for_workers_to_know(&self) -> Result<(), RunError> {
        let deadline = Instant::now() + TAKE_OVER;
        while self.gate.seen() < self.processes.topology().workers {
            if Instant::now() > deadline {
                return Err(RunError::Failed("the workers do not come to take over".into()));
            }
            thread::sleep(Wait::from_millis(1));
        }
        Ok(())
    }

    /// Follows the other generation, and takes over from it when it is time.
    fn follow(&mut self) -> Result<(), RunError> {
        let Some(following) = self.following.clone().filter(|_| !self.gate.is_released()) else {
            return Ok(());
        };
        let is_time = if self.processes.topology().is_first() {
            let least = following.least(&self.slots);
            self.gate.follow(least.iter().copied());
            self.processes.tell(&Message::Follow(least.clone()));
            let is_time = following.is_time(&least, &self.shared.positions())?;
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
        self.starts.claimed(&outlets);
        following.end();
        self.begin(outlets, self.shared.newest_epoch() + 1)?;
        tracing::info!(took = ?began.elapsed(), generation = &*self.generation, "taken over");
        Ok(())
    }

    /// Looks after everything until it is time to stop; true where the workers have ended by then.
    fn keep(&mut self, happened: &Receiver<Event>) -> (bool, Result<(), RunError>) {
        let mut next = Instant::now();
        loop {
            match happened.recv_timeout(LOOK) {
                Ok(Event::Signal) => self.processes.ask_to_stop(),
                Ok(Event::Stop) => return (false, Ok(())),
                Ok(Event::Ended(ended)) => {
                    let failed = self.shared.failed();
                    let failed = failed.map_or(Ok(()), |why| Err(RunError::ended(why, &self.shared)));
                    return (true, ended.and(failed));
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            let looked = self.look(Instant::now() >= next);
            if Instant::now() >= next {
                next = Instant::now() + HOUSEKEEPING;
            }
            if let Err(error) = looked {
                return (false, Err(error));
            }
        }
    }

    fn look(&mut self, at_all: bool) -> Result<(), RunError> {
        self.shared.refusals.sync()?;
        self.follow()?;
        if let Some(making) = &mut self.making {
            making.look(&self.shared);
        }
        // Alone, the workers come to an end by themselves.
        let failed = self.shared.failed().filter(|_| !self.processes.topology().is_alone());
        if let Some(failed) = failed.or_else(|| self.logs.failed()) {
            return Err(RunError::ended(failed, &self.shared));
        }
        if at_all {
            self.processes.exchange_refused(&self.shared);
            if self.gate.is_released() {
                self.logs.add_new(self.starts, &self.slots, &self.shared, self.processes)?;
            }
        }
        Ok(())
    }

    /// From the sources on: what was taken in still goes all the way.
    fn stop(&mut self, workers_ended: bool, happened: &Receiver<Event>) -> Result<(), RunError> {
        self.retrying.take().into_iter().for_each(Retrying::stop);
        for (name, feed) in self.feeds.drain(..) {
            if let Err(error) = feed.stop() {
                tracing::warn!(source = name, %error, "a generator has ended early");
            }
        }
        self.making = None;
        self.shared.stop();
        let waited = if workers_ended { Ok(()) } else { wait_for_workers(happened) };
        self.ended.store(true, Ordering::Relaxed);
        // Workers that do not end would keep the sinks waiting for more. The gate has ends of theirs.
        self.gate = Arc::default();
        waited.and_then(|()| {
            self.writing.take().map_or(Ok(()), |writing| finish_writing(writing, &self.shared))
        })
    }
}

impl RunError {
    fn ended(why: String, shared: &Shared) -> RunError {
        match shared.is_taken_over() {
            true => RunError::TakenOver(why),
            false => RunError::Failed(why),
        }
    }

    /// Whether the run has ended because another generation has taken over, so that it should not be started again.
    pub fn is_takeover(&self) -> bool {
        matches!(self, RunError::TakenOver(_) | RunError::Outlet(OutletError::Fenced { .. }))
    }
}

/// The workers have ended: what they have given to the sinks becomes durable.
fn finish_writing(writing: Writing, shared: &Shared) -> Result<(), RunError> {
    match writing.finish() {
        true => Ok(()),
        false => {
            let why = shared.failed().unwrap_or_else(|| "a sink has failed".into());
            Err(RunError::ended(why, shared))
        }
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
