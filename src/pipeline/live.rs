//! The service: sources in, what is served out, until it is asked to stop.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration as Wait, Instant};

use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};

use super::backup::BackupService;
use super::checkpoints::{Beginning, Checkpointed, Making, Parts};
use super::data_dir::{DataDir, DataDirError};
use super::epochs::{EpochBound, keep_reserving};
use super::logs::{Logs, needs_data_dir, rules};
use super::outlets::{Outlets, Prepared, Starts, Writing, check_nothing_is_lost};
use super::processes::Processes;
use super::retry::{Retrying, spawn_retry};
use super::standby::Following;
use super::stops::Event;
pub use super::stops::Stops;
use super::workers;
use crate::checkpoint::CheckpointError;
use crate::cluster::message::Message;
use crate::cluster::{ClusterError, ClusterPlan, PeerTls};
use crate::config::{ClusterKeys, Plan, SourceKind, SourcePlan, StartKind};
use crate::dataflow::GraphPlan;
use crate::directory::Directory;
use crate::fault::{Retries, build_runtime, cannot_start};
use crate::kafka::topics::TopicsError;
use crate::model::{Appender, PartitionName, Slots, Topology};
use crate::registry::RegistryError;
use crate::serve::{self, Bound, Facts, Ports, ServeError};
use crate::sinks::dead_letters::DeadLettersError;
use crate::sinks::kafka::OutletError;
use crate::sinks::kafka::progress::Kept;
use crate::sources::generator::PlanError;
use crate::sources::generator::feed::{Feed, FeedError};
use crate::sources::journal::JournalError;
use crate::worker::{self, Cuts, Gate, Job, LogPartition, Refusals, Shared};

/// Between two looks at what goes on.
const LOOK: Wait = Wait::from_millis(50);
/// Between two looks at what should be looked at now and then.
const HOUSEKEEPING: Wait = Wait::from_millis(500);
/// How long the outlets may take to say what they hold, brokers that are starting included.
const FIRST_LOOK: Wait = Wait::from_secs(60);
/// How long workers may take to learn that the results are theirs.
const TAKE_OVER: Wait = Wait::from_secs(30);
/// How long a stop waits for clients to take what was sent to them.
const GRACE: Wait = Wait::from_secs(3);
/// Threads that serve.
const SERVING_THREADS: usize = 2;
/// Threads that decode long bodies and compress long answers.
const BLOCKING_THREADS: usize = 8;

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
    #[error("{}", cannot_start(.0))]
    Threads(io::Error),
    #[error("the workers cannot be started: {0}")]
    Workers(String),
    /// A source or the log has failed for good.
    #[error("{0}")]
    Failed(String),
    #[error("{0}")]
    TakenOver(String),
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
        let cluster = cluster_plan(plan, 0, Vec::new(), None);
        Joining { cluster, listener: None, stops: Stops::default() }
    }

    /// One of several, which are at `hosts`.
    ///
    /// # Errors
    ///
    /// If the files of `cluster.tls` cannot be used.
    pub fn one_of(plan: &Plan, process: usize, hosts: Vec<String>) -> Result<Joining, ClusterError> {
        let tls = plan.cluster.tls.as_ref().map(PeerTls::load).transpose()?;
        let cluster = cluster_plan(plan, process, hosts, tls);
        Ok(Joining { cluster, listener: None, stops: Stops::default() })
    }
}

fn cluster_plan(plan: &Plan, process: usize, hosts: Vec<String>, tls: Option<PeerTls>) -> ClusterPlan {
    let keys = &plan.cluster;
    let topology = Topology { processes: keys.processes, process, workers: plan.workers };
    ClusterPlan {
        topology,
        hosts,
        secret: keys.secret.clone().unwrap_or_default().into_bytes(),
        tls,
        connect_time: keys.connect_time,
        peer_timeout: keys.peer_timeout,
        agreement: plan.agreement.clone(),
    }
}

/// Runs the service until it is asked to stop, by SIGTERM, Ctrl-C or a closed terminal. `announce` hears the address once it is listened on, and
/// from when on readings are accepted.
pub fn run(plan: Plan, joining: Joining, announce: impl FnOnce(SocketAddr)) -> Result<(), RunError> {
    let Joining { cluster, listener, stops } = joining;
    stops.catch_signals().map_err(RunError::Threads)?;
    let (events, happened) = mpsc::sync_channel(4);
    stops.listen(&events);
    // First of all: it waits for a process that is still dying, which may hold the address as well.
    let data_dir = needs_data_dir(&plan).then(|| DataDir::open(&plan.data_dir).map(Arc::new)).transpose()?;
    let bound = serve::bind(plan.serve.clone())?;
    let runtime = build_runtime(&mut Builder::new_multi_thread(), SERVING_THREADS, BLOCKING_THREADS);
    let runtime = runtime.map_err(RunError::Threads)?;
    let processes = match Processes::meet(&cluster, listener, &stops) {
        Err(ClusterError::Stopped) => return Ok(()),
        met => Arc::new(met?),
    };
    stops.meet(&processes);
    let ran =
        run_together(plan, data_dir, bound, &runtime, &processes, (&stops, events, &happened), announce);
    let ran = match ran {
        Err(error) if error.is_stop() => {
            tracing::info!("asked to stop while it starts: ending");
            processes.give_up();
            Ok(())
        }
        ran => {
            ran.as_ref().map_or_else(|error| processes.fail(error), |()| processes.end());
            ran
        }
    };
    runtime.shutdown_timeout(GRACE);
    ran
}

/// What all processes begin with.
#[derive(Serialize, Deserialize)]
struct Start {
    generation: Arc<str>,
    /// By slot: the partitions, and from where they are read.
    partitions: Vec<(PartitionName, u64)>,
    /// By source: what the logs are known by beside their names.
    ids: BTreeMap<String, String>,
    first_epoch: u64,
}

/// What a run writes its results by, and where its shards go on.
#[derive(Serialize, Deserialize)]
struct Opening {
    cuts: Cuts,
    /// Not before this epoch.
    floor: u64,
    /// Epochs below are durably taken.
    reserved: u64,
}

/// The run of this process among the others, from start to end.
fn run_together(
    plan: Plan,
    data_dir: Option<Arc<DataDir>>,
    bound: Bound,
    runtime: &Runtime,
    processes: &Arc<Processes>,
    (stops, events, happened): (&Stops, SyncSender<Event>, &Receiver<Event>),
    announce: impl FnOnce(SocketAddr),
) -> Result<(), RunError> {
    let topology = processes.topology();
    // Before anything is made that is missing.
    processes.share(|| check_nothing_is_lost(&plan, data_dir.is_some()))?;
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
    let Start { generation, partitions, ids, first_epoch } = start;
    let slots = Slots::new(partitions.iter().map(|(name, _)| name.clone()).collect());
    let checkpoints = Checkpointed::open(&plan, &logs, ids, processes, &generation)?;
    let written = || match following {
        Some(_) => prepared.written(&prepared.look(FIRST_LOOK)?.iter().collect::<Vec<_>>()),
        None => prepared.written(&kept),
    };
    let check = |source: &str, partition, at| logs.check(source, partition, at);
    let is_following = following.is_some();
    // A topic that was adopted has passed by its id: checkpoints from before that are compared by its records alone.
    let adopt_logs = plan.adopt_logs || (logs.journal().is_none() && prepared.has_adopted_topics());
    let beginning =
        Beginning { check: &check, partitions: &partitions, written: &written, is_following, adopt_logs };
    let taken = checkpoints.as_ref().map(|kept| kept.take_up(&beginning, &slots, processes));
    let taken = taken.transpose()?.flatten();
    let from = |(name, start): (PartitionName, u64)| {
        let at = taken.as_ref().map_or(start.into(), |taken| taken.at(&name, start));
        (name, at)
    };
    let partitions: Vec<_> = partitions.into_iter().map(from).collect();
    let positions = partitions.iter().map(|(_, at)| *at).collect();
    let partitions = logs.readable(&starts, &partitions);
    let first_epoch = first_epoch.max(taken.as_ref().map_or(0, |taken| taken.epoch + 1));
    let letters = logs.dead_letters(&plan)?;
    // Of a generation that is hydrated nothing is seen, so its epochs are its own; the others are taken in time.
    let reserved = if following.is_some() { u64::MAX } else { 0 };
    let shared = Arc::new(Shared::new(Refusals::new(letters), reserved));
    let failing = Arc::clone(&shared);
    let watch = || prepared.watch_topics(move |why| failing.fail(why));
    let _watch = topology.is_first().then(watch).transpose()?;
    let appender = logs.held_appender(&shared);
    processes.serve(Arc::clone(&shared), slots.clone(), appender.clone());
    let streams = processes.cluster().connect_workers(&generation)?;
    if following.is_some() {
        processes.cluster().go_on_together()?;
    }

    let facts = facts(&plan, slots.clone(), generation.clone());
    let holds = Some(logs.hold_reasons(&shared));
    let ports = Ports { ask: shared.clone(), appender: appender.clone(), holds };
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
        backups: None,
        retrying: None,
        appender,
        feeds: Vec::new(),
        letter_retries: Retries::new("dead_letters", "write dead letters", "the logs are not read on"),
    };
    if let Some(outlets) = outlets {
        own.begin(outlets, first_epoch)?;
    }
    logs.keep_ids()?;
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
    workers::start(job, streams, first_epoch, events)?;
    stops.start_is_done();
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
    let kept = processes.share(|| look(prepared, logs))?;
    if start == StartKind::Claim {
        return Ok((None, kept));
    }
    if prepared.is_empty() || logs.data_dir().is_some() || !plan.sources.iter().all(is_topic) {
        return Err(RunError::Failed(
            "cluster.start: only a run whose sources are all topics of Kafka can take over from another one: a journal has one owner".into(),
        ));
    }
    // The same at all processes but for the claims, which only the first one makes.
    let following = Following::new(start, standby_after, prepared, &kept)?.map(Arc::new);
    if let (Some(following), true) = (&following, processes.topology().is_first()) {
        following.spawn(prepared)?;
        tracing::info!("another generation is followed");
    }
    Ok((following, kept))
}

/// What the outlets hold; refused before anything is claimed, where it could not be gone on with.
fn look(prepared: &Prepared, logs: &Logs) -> Result<Vec<Kept>, RunError> {
    let kept = prepared.look(FIRST_LOOK)?;
    prepared.check_letters(&kept)?;
    let starts = prepared.starts(&kept.iter().collect::<Vec<_>>())?;
    logs.compare_topics(|source| prepared.recorded_topic(&kept, source))?;
    prepared.check(&kept, &logs.partitions(&starts, true)?)?;
    Ok(kept)
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
    let partitions = partitions.into_iter().map(|log| (log.name, log.start.position)).collect();
    let (ids, first_epoch) = (logs.ids()?, floor.max(worker::clock()));
    Ok(Start { generation, partitions, ids, first_epoch })
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
    backups: Option<BackupService>,
    retrying: Option<Retrying>,
    appender: Option<Arc<dyn Appender>>,
    feeds: Vec<(String, Feed)>,
    letter_retries: Retries,
}

impl Own<'_> {
    /// The outlets are this run's: from now on it writes, and whatever else only one generation does.
    fn begin(&mut self, outlets: Outlets, first_epoch: u64) -> Result<(), RunError> {
        let (logs, first) = (self.logs, self.processes.topology().is_first());
        let bound = EpochBound::of(logs.data_dir().cloned(), outlets.keeper());
        let Opening { cuts, floor, reserved } = self.processes.share(|| {
            let floor = outlets.epoch_floor()?.max(first_epoch);
            let cuts = outlets.cuts(&self.partitions)?;
            Ok(Opening { cuts, floor, reserved: bound.begin(floor)? })
        })?;
        let failing = Arc::clone(&self.shared);
        let failed = move |error: OutletError| match error {
            OutletError::Fenced { .. } => failing.hand_over(error.to_string()),
            error => failing.fail(error.to_string()),
        };
        let writing = outlets.start_writing(self.processes, Arc::new(failed))?;
        self.gate.install(cuts, writing.ends());
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
            let from = (parts, writing.ends(), journal);
            self.making = Some(Making::start(kept, self.slots.clone(), Arc::clone(self.processes), from)?);
        }
        self.writing = Some(writing);
        let (processes, shared) = (Arc::clone(self.processes), Arc::clone(&self.shared));
        keep_reserving(bound, processes, shared, reserved, Arc::clone(&self.ended))?;
        if first {
            self.feeds = logs.feed(self.plan, self.appender.clone())?;
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
            let is_time = following.is_time(&least, &self.shared.positions())?
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
        self.starts.claimed(&outlets);
        following.end(&outlets.kept());
        self.begin(outlets, self.shared.newest_epoch() + 1)?;
        tracing::info!(took = ?began.elapsed(), generation = &*self.generation, "taken over");
        Ok(())
    }

    /// Looks after everything until it is time to stop; true where the workers have ended by then.
    fn keep(&mut self, happened: &Receiver<Event>) -> (bool, Result<(), RunError>) {
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
                Err(error) if error.is_stop() => {
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
            making.look(&self.shared);
        }
        // Alone, the workers come to an end by themselves.
        let failed = self.shared.failed().filter(|_| !self.processes.topology().is_alone());
        if let Some(failed) = failed.or_else(|| self.logs.failed()) {
            return Err(RunError::ended(failed, &self.shared));
        }
        self.logs.read_added(self.starts, &self.shared, self.processes);
        if at_all {
            self.processes.exchange_refused(&self.shared);
            self.processes.say_congestion_again();
            if self.gate.is_released() {
                self.logs.add_new(self.starts, &self.slots, self.processes)?;
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
            Ok(()) => self.letter_retries.succeeded(),
            Err(error) if error.is_passing() => {
                self.letter_retries.failed(&error);
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }

    /// From the sources on: what was taken in still goes all the way.
    fn stop(&mut self, workers_ended: bool, happened: &Receiver<Event>) -> Result<(), RunError> {
        self.retrying.take().into_iter().for_each(Retrying::stop);
        for (name, feed) in self.feeds.drain(..) {
            if let Err(error) = feed.stop() {
                tracing::warn!(source = name, %error, "a generator has ended early");
            }
        }
        (self.making, self.backups) = (None, None);
        self.shared.stop();
        let waited = if workers_ended { Ok(()) } else { workers::wait_for_end(happened) };
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

    /// Whether it was asked to stop, and had not started.
    pub fn is_stop(&self) -> bool {
        matches!(self, RunError::Cluster(ClusterError::Stopped))
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

/// Without a directory nothing is taken up again, and so that nobody thinks so, no two runs have the same.
fn unkept_generation() -> Arc<str> {
    use std::hash::{BuildHasher, RandomState};
    format!("0-{:016x}", RandomState::new().hash_one(worker::clock())).into()
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
