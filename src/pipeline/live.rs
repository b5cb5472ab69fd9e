//! The service: sources in, what is served out, until it is asked to stop.

mod active_run;
mod joining;
mod start;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Duration as Wait;

use tokio::runtime::{Builder, Runtime};

use self::active_run::Own;
pub use self::joining::Joining;
use self::start::{FIRST_LOOK, Start, begin, follow};
use super::checkpoints::{Beginning, Checkpointed, Parts};
use super::data_dir::DataDir;
pub use super::logs::uses_data_dir;
use super::logs::{Logs, needs_data_dir, rules};
use super::outlets::{Outlets, Prepared, check_nothing_is_lost};
use super::processes::Processes;
use super::run_error::RunError;
use super::stops::Event;
pub use super::stops::Stops;
use super::workers;
use crate::cluster::{ClusterError, ValueName};
use crate::config::{IngestPlan, Plan};
use crate::dataflow::GraphPlan;
use crate::fault::{Retries, build_runtime};
use crate::kafka::partitioner;
use crate::model::{PartitionName, Slots};
use crate::serve::{self, Bound, Facts, IngestLog, Ports};
use crate::sinks::kafka::progress::Kept;
use crate::sources::journal;
use crate::worker::{Gate, Job, Refusals, Shared};

/// How long a stop waits for clients to take what was sent to them.
const GRACE: Wait = Wait::from_secs(3);
/// Threads that serve.
const SERVING_THREADS: usize = 2;
/// Threads that decode long bodies and compress long answers.
const BLOCKING_THREADS: usize = 8;

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
    processes.share(ValueName::NOTHING, || check_nothing_is_lost(&plan, data_dir.is_some()))?;
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
    let start = processes
        .share(ValueName::START, || begin(&logs, outlets.as_ref(), following.as_deref(), &starts))?;
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
    // The journal decides by its own stamps; a topic's are not known before.
    let warn_ahead = plan.ingest.as_ref().and_then(|ingest| ingest.into.as_ref()).map(|_| plan.max_ahead);
    let ports = Ports { ask: shared.clone(), appender: appender.clone(), holds, warn_ahead };
    let address = bound.address();
    let serving = bound.start(runtime.handle(), facts, ports)?;
    announce(address);
    tracing::info!(%address, generation = &*generation, "listening");

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

fn facts(plan: &Plan, partitions: Slots, generation: Arc<str>) -> Facts {
    Facts {
        generation,
        formula: plan.formula.name(),
        window: plan.retention.window,
        lateness: plan.retention.lateness,
        history: plan.retention.history,
        stale_after: plan.stale_after,
        units: plan.output_units,
        workers: plan.workers * plan.cluster.processes,
        partitions,
        directory: plan.directory,
        read: plan.posts(),
        ingest_log: plan.ingest.as_ref().map(|ingest| ingest_log(ingest, plan.max_cities)),
    }
}

/// Where readings that are posted are admitted. Records of a topic are taken to be where Kafka's own partitioner has them.
fn ingest_log(ingest: &IngestPlan, max_cities: u32) -> IngestLog {
    match &ingest.into {
        Some(topic) => {
            let partition_of =
                |city: &str, partitions| partitioner::partition_of(city.as_bytes(), partitions);
            IngestLog { source: topic.as_str().into(), max_cities, partition_of }
        }
        None => {
            IngestLog { source: journal::NAME.into(), max_cities, partition_of: journal::partition_of_city }
        }
    }
}
