//! The service: sources in, what is served out, until it is asked to stop.

mod active_run;
mod membership;
mod start;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use self::active_run::Own;
pub use self::membership::Membership;
use self::start::{FIRST_LOOK, Start, begin, follow};
use super::checkpoints::{CheckpointRepository, RestoreContext, WrittenParts};
use super::data_dir::DataDir;
use super::durable_sinks::{DurableSinks, InspectedSinks, check_nothing_is_lost};
pub use super::logs::uses_data_dir;
use super::logs::{Logs, admission_rules, needs_data_dir};
use super::processes::Processes;
use super::run_error::RunError;
use super::shutdown::Event;
pub use super::shutdown::Shutdown;
use super::workers;
use crate::cluster::{ClusterError, ValueName};
use crate::config::{IngestPlan, ServicePlan};
use crate::dataflow::GraphPlan;
use crate::fault::{RetryBackoff, build_runtime};
use crate::kafka::partitioner;
use crate::model::{PartitionName, PartitionTable};
use crate::serve::{self, Backends, BoundServer, IngestLog, ServiceInfo};
use crate::sinks::kafka::progress::ProgressSnapshot;
use crate::sources::journal;
use crate::worker::{Gate, Refusals, SharedState, WorkerPlan};

/// How long a stop waits for clients to take what was sent to them.
const GRACE: Duration = Duration::from_secs(3);
/// Threads that serve.
const SERVING_THREADS: usize = 2;
/// Threads that decode long bodies and compress long answers.
const BLOCKING_THREADS: usize = 8;

/// Runs the service until it is asked to stop, by SIGTERM, Ctrl-C or a closed terminal. `announce` hears the address once it is listened on, and
/// from when on readings are accepted.
pub fn run(
    plan: ServicePlan,
    joining: Membership,
    announce: impl FnOnce(SocketAddr),
) -> Result<(), RunError> {
    let Membership { cluster, listener, stops } = joining;
    stops.catch_signals().map_err(RunError::Threads)?;
    let (events, happened) = mpsc::sync_channel(4);
    stops.listen(&events);
    // First of all: it waits for a process that is still dying, which may hold the address as well.
    let data_dir = needs_data_dir(&plan).then(|| DataDir::open(&plan.data_dir).map(Arc::new)).transpose()?;
    let bound = serve::bind_server(plan.serve.clone())?;
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
        Err(error) if error.is_stop_request() => {
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
    plan: ServicePlan,
    data_dir: Option<Arc<DataDir>>,
    bound: BoundServer,
    runtime: &Runtime,
    processes: &Arc<Processes>,
    (stops, events, happened): (&Shutdown, SyncSender<Event>, &Receiver<Event>),
    announce: impl FnOnce(SocketAddr),
) -> Result<(), RunError> {
    let topology = processes.topology();
    // Before anything is made that is missing.
    processes.share(ValueName::NOTHING, || check_nothing_is_lost(&plan, data_dir.is_some()))?;
    let logs = Logs::open(&plan, data_dir, processes)?;
    let prepared = InspectedSinks::new(&plan, processes)?;
    let (following, kept) = follow(&plan, &prepared, &logs, processes)?;
    let outlets = match &following {
        Some(_) => None,
        None => Some(prepared.claim(None, processes)?),
    };
    let kept: Vec<&ProgressSnapshot> = outlets.as_ref().map_or(kept.iter().collect(), DurableSinks::progress);
    let starts = prepared.source_registry(&kept)?;
    if let Some(outlets) = &outlets {
        starts.install_writers(outlets);
    }
    logs.use_schemas(&starts, processes, following.as_ref())?;
    let start = processes
        .share(ValueName::START, || begin(&logs, outlets.as_ref(), following.as_deref(), &starts))?;
    let Start { generation, partitions, ids, first_epoch } = start;
    let slots = PartitionTable::new(partitions.iter().map(|(name, _)| name.clone()).collect());
    let checkpoints = CheckpointRepository::open(&plan, &logs, ids, processes, &generation)?;
    let written = || match following {
        Some(_) => {
            prepared.durable_shards(&prepared.inspect_progress(FIRST_LOOK)?.iter().collect::<Vec<_>>())
        }
        None => prepared.durable_shards(&kept),
    };
    let check = |source: &str, partition, at| logs.check_position(source, partition, at);
    let is_following = following.is_some();
    // A topic that was adopted has passed by its id: checkpoints from before that are compared by its records alone.
    let adopt_logs = plan.adopt_logs || (logs.journal().is_none() && prepared.has_adopted_topics());
    let beginning = RestoreContext {
        check: &check,
        partitions: &partitions,
        written: &written,
        is_following,
        adopt_logs,
    };
    let taken = checkpoints.as_ref().map(|kept| kept.take_up(&beginning, &slots, processes));
    let taken = taken.transpose()?.flatten();
    let from = |(name, start): (PartitionName, u64)| {
        let at = taken.as_ref().map_or(start.into(), |taken| taken.start_position(&name, start));
        (name, at)
    };
    let partitions: Vec<_> = partitions.into_iter().map(from).collect();
    let positions = partitions.iter().map(|(_, at)| *at).collect();
    let partitions = logs.local_partitions(&starts, &partitions);
    let first_epoch = first_epoch.max(taken.as_ref().map_or(0, |taken| taken.epoch + 1));
    let letters = logs.dead_letters(&plan)?;
    // Of a generation that is hydrated nothing is seen, so its epochs are its own; the others are taken in time.
    let reserved = if following.is_some() { u64::MAX } else { 0 };
    let shared = Arc::new(SharedState::new(Refusals::new(letters), reserved));
    let failing = Arc::clone(&shared);
    let watch = || prepared.watch_topics(move |why| failing.fail(why));
    let _watch = topology.is_first_process().then(watch).transpose()?;
    let appender = logs.held_appender(&shared);
    processes.serve(Arc::clone(&shared), slots.clone(), appender.clone());
    let streams = processes.cluster().connect_workers(&generation)?;
    if following.is_some() {
        processes.cluster().go_on_together()?;
    }

    let facts = facts(&plan, slots.clone(), generation.clone());
    let holds = Some(logs.hold_reasons(&shared));
    // The journal decides by its own stamps; a topic's are not known before.
    let warn_ahead = plan.ingest.as_ref().and_then(|ingest| ingest.source.as_ref()).map(|_| plan.max_ahead);
    let ports =
        Backends { queries: shared.clone(), appender: appender.clone(), hold_check: holds, warn_ahead };
    let address = bound.address();
    let serving = bound.start_serving(runtime.handle(), facts, ports)?;
    announce(address);
    tracing::info!(%address, generation = &*generation, "listening");

    let mut graph = GraphPlan::serving_only(plan.formula, plan.retention, topology);
    graph.encoded_batches = prepared.output_plan();
    let parts = Arc::<WrittenParts>::default();
    let states = checkpoints
        .as_ref()
        .map(|kept| kept.worker_states(taken, &slots, topology.workers_per_process, &parts));
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
        letter_retries: RetryBackoff::new("dead_letters", "write dead letters", "the logs are not read on"),
    };
    if let Some(outlets) = outlets {
        own.begin(outlets, first_epoch)?;
    }
    logs.record_ids()?;
    let job = WorkerPlan {
        topology,
        graph,
        rules: admission_rules(&plan),
        limits: plan.limits.clone(),
        partitions,
        slots,
        publisher: serving.publisher(),
        gate,
        start_positions: positions,
        states: Arc::new(states),
        shared: Arc::clone(&shared),
    };
    workers::spawn_workers(job, streams, first_epoch, events)?;
    stops.start_is_done();
    let (workers_ended, end) = own.keep(happened);
    tracing::info!("stopping");
    if let (Err(error), false) = (&end, topology.is_single_process()) {
        // Workers that have lost some of them do not come to an end.
        return Err(RunError::ended(error.to_string(), &shared));
    }
    let stopped = own.stop(workers_ended, happened);
    runtime.block_on(serving.stop_serving(GRACE));
    let synced = shared.refusals.sync().map_err(RunError::from);
    end?;
    stopped?;
    synced?;
    tracing::info!("stopped");
    Ok(())
}

fn facts(plan: &ServicePlan, partitions: PartitionTable, generation: Arc<str>) -> ServiceInfo {
    ServiceInfo {
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
        read_options: plan.ingest_read_options(),
        ingest_log: plan.ingest.as_ref().map(|ingest| ingest_log(ingest, plan.max_cities)),
    }
}

/// Where readings that are posted are admitted. Records of a topic are taken to be where Kafka's own partitioner has them.
fn ingest_log(ingest: &IngestPlan, max_cities: u32) -> IngestLog {
    match &ingest.source {
        Some(topic) => {
            let partition_of =
                |city: &str, partitions| partitioner::partition_for_key(city.as_bytes(), partitions);
            IngestLog { source: topic.as_str().into(), max_cities, partition_of }
        }
        None => IngestLog {
            source: journal::SOURCE_NAME.into(),
            max_cities,
            partition_of: journal::partition_of_city,
        },
    }
}
