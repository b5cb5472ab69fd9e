//! A process during the start of a run: executes commands until its workers run.

use std::net::SocketAddr;
use std::sync::Arc;

use super::checkpoints::part_reporter::PartReporter;
use super::checkpoints::repository::{CheckpointRepository, RestoredState, load_failure};
use super::checkpoints::written_parts::WrittenParts;
use super::context::RunContext;
use super::control::MainEvent;
use super::data_dir::DataDir;
use super::durable_sinks::{InspectedSinks, SourceRegistry};
use super::lead::{Member, ended_by};
use super::local_control::{LocalWorkers, OpenPartition};
use super::local_sinks::LocalSinks;
use super::logs::{Logs, admission_rules};
use super::protocol::{CheckpointRequest, ControlCommand, ControlEvent, LoadFailure, StartPlan};
use super::run_error::RunError;
use super::running_member::{Housekeeping, IdleWorkers, RunningMember};
use super::service_info::service_info;
use crate::config::ServicePlan;
use crate::dataflow::GraphPlan;
use crate::model::{Appender, LogPosition, PartitionName, PartitionTable, Topology};
use crate::serve::{Backends, BoundServer, RunningServer, ServiceInfo};
use crate::sinks::postgres::history::PostgresHistory;
use crate::worker::{Refusals, RestoredWorkers, SharedState, WorkerCommandSender, WorkerPlan};

/// Announces the address once readings are accepted.
pub type Announce<'a> = Box<dyn FnOnce(SocketAddr) + 'a>;

/// A process that has not started its workers yet.
pub struct StartingMember<'a> {
    context: RunContext<'a>,
    logs: Arc<Logs>,
    server: BoundServer,
    announce: Announce<'a>,
    sinks: Option<LocalSinks>,
    /// The checkpoint that was loaded last.
    loaded: Option<(String, RestoredState)>,
}

impl<'a> StartingMember<'a> {
    /// Opens the logs that this process can read.
    pub fn open(
        context: RunContext<'a>,
        data_dir: Option<Arc<DataDir>>,
        server: BoundServer,
        announce: Announce<'a>,
    ) -> Result<StartingMember<'a>, RunError> {
        let (requests, is_first) = (context.peers.requests(), context.topology.is_first_process());
        let logs = Arc::new(Logs::open(context.plan, data_dir, requests, is_first)?);
        Ok(StartingMember { context, logs, server, announce, sinks: None, loaded: None })
    }

    pub fn context(&self) -> &RunContext<'a> {
        &self.context
    }

    pub fn plan(&self) -> &'a ServicePlan {
        self.context.plan
    }

    pub fn logs(&self) -> &Arc<Logs> {
        &self.logs
    }

    fn load_checkpoint(&mut self, request: CheckpointRequest) -> Result<Result<(), LoadFailure>, RunError> {
        let CheckpointRequest { settings, partitions, name } = request;
        let repository = CheckpointRepository::open(self.plan(), &settings)?;
        let loaded = repository.load(&name, &PartitionTable::new(partitions), self.context.topology);
        let loaded = loaded.map_err(|error| load_failure(&error));
        Ok(loaded.map(|state| self.loaded = Some((name, state))))
    }

    /// Connects the workers to those of the other processes, and starts serving.
    pub fn start(mut self, start: StartPlan) -> Result<RunningMember<'a>, RunError> {
        let sinks = self.sinks.take().ok_or_else(not_inspected)?;
        let (plan, topology) = (self.plan(), self.context.topology);
        let registry = sinks.inspected().source_registry(&start.progress.iter().collect::<Vec<_>>())?;
        let registry = Arc::new(registry);
        if !topology.is_first_process() {
            self.logs.use_remote_schemas(&registry, self.context.peers.requests())?;
        }
        let (names, positions): (Vec<PartitionName>, Vec<LogPosition>) =
            start.partitions.iter().cloned().unzip();
        let partitions = PartitionTable::new(names);
        let local_partitions = self.logs.local_partitions(&registry, &start.partitions);
        let shared = self.shared_state()?;
        let appender = self.open_appender(&shared);
        let streams = self.context.peers.connect_workers(&start.generation)?;
        let loaded = self.loaded.take();
        let (restored, part_reporter) = restore_workers(&self.context, &start, &partitions, loaded)?;
        let StartingMember { context, logs, server, announce, .. } = self;
        let info = service_info(plan, partitions.clone(), Arc::clone(&start.generation));
        let backends = backends(plan, &logs, &shared, appender.clone());
        let server = serve(&context, server, announce, info, backends)?;

        let commands = WorkerCommandSender::new(topology.workers_per_process);
        context.control.attach(LocalWorkers {
            shared: Arc::clone(&shared),
            commands: commands.clone(),
            partitions: partitions.clone(),
            open_partition: open_partition(&logs, &registry),
            count: topology.workers_per_process,
        });
        let worker_plan = WorkerPlan {
            topology,
            graph: graph_plan(plan, sinks.inspected(), topology, &partitions),
            rules: admission_rules(plan),
            limits: plan.limits.clone(),
            partitions: local_partitions.clone(),
            partition_table: partitions.clone(),
            publisher: server.publisher(),
            start_positions: positions.into(),
            restored: Arc::new(restored),
            first_epoch: start.first_epoch,
            reserved_until: start.reserved_until,
            commands: commands.clone(),
            shared: Arc::clone(&shared),
        };
        context.control.report(ControlEvent::Started);
        Ok(RunningMember {
            context,
            logs,
            sinks,
            shared,
            commands,
            partitions,
            local_partitions,
            appender,
            server,
            part_reporter,
            housekeeping: Housekeeping::default(),
            running_sinks: None,
            idle_workers: Some(IdleWorkers { plan: worker_plan, streams, follows: start.follows }),
        })
    }

    /// The state that the workers share with the rest of the process.
    fn shared_state(&self) -> Result<Arc<SharedState>, RunError> {
        let control = self.context.control.clone();
        let reporter = Arc::new(move |event| control.on_worker(event));
        let dead_letters = self.logs.dead_letters(self.plan())?;
        Ok(Arc::new(SharedState::new(Refusals::new(dead_letters), reporter)))
    }

    /// Opens the appender of posted readings. At process 0, those of the other processes use it,
    /// too.
    fn open_appender(&self, shared: &Arc<SharedState>) -> Option<Arc<dyn Appender>> {
        let appender = self.logs.held_appender(shared);
        if let (true, Some(appender)) = (self.context.topology.is_first_process(), &appender) {
            self.context.peers.requests().set_appender(Arc::clone(appender));
        }
        appender
    }
}

impl Member for StartingMember<'_> {
    fn execute(&mut self, command: ControlCommand) -> Result<(), RunError> {
        match command {
            ControlCommand::OpenSinks(facts) => {
                let inspected = InspectedSinks::new(self.plan(), &facts);
                self.sinks = Some(LocalSinks::new(inspected, self.context.topology));
            }
            ControlCommand::FenceSink(order) => {
                let sink = order.sink;
                self.sinks.as_mut().ok_or_else(not_inspected)?.fence(order)?;
                self.context.control.report(ControlEvent::SinkFenced { sink });
            }
            ControlCommand::ClaimSinks(progress) => {
                self.sinks.as_mut().ok_or_else(not_inspected)?.claim(progress)?;
            }
            ControlCommand::LoadCheckpoint(request) => {
                let loaded = self.load_checkpoint(request)?;
                self.context.control.report(ControlEvent::CheckpointLoaded(loaded));
            }
            command => return Err(ended_by(MainEvent::Command(command))),
        }
        Ok(())
    }

    fn sinks(&self) -> Result<&LocalSinks, RunError> {
        self.sinks.as_ref().ok_or_else(not_inspected)
    }
}

fn not_inspected() -> RunError {
    RunError::bug("process 0 has not sent the command `open sinks`")
}

/// The initial states of the workers, and the reporter of the checkpoint parts that they write.
fn restore_workers(
    context: &RunContext<'_>,
    start: &StartPlan,
    partitions: &PartitionTable,
    loaded: Option<(String, RestoredState)>,
) -> Result<(RestoredWorkers, Option<PartReporter>), RunError> {
    let Some(settings) = &start.checkpoints else { return Ok((RestoredWorkers::default(), None)) };
    let repository = CheckpointRepository::open(context.plan, settings)?;
    let restored = match (&start.restore, loaded) {
        (None, _) => None,
        (Some(name), Some((loaded, state))) if *name == loaded => Some(state),
        (Some(name), _) => {
            return Err(RunError::bug(format!("the checkpoint {name} was not loaded")));
        }
    };
    let (workers, parts) = (context.topology.workers_per_process, Arc::<WrittenParts>::default());
    let restored = repository.worker_states(restored, partitions, workers, &parts)?;
    Ok((restored, Some(PartReporter::new(repository, parts, workers, context.control.clone()))))
}

/// Starts serving, and announces the address.
fn serve<'a>(
    context: &RunContext<'a>,
    server: BoundServer,
    announce: Announce<'a>,
    info: ServiceInfo,
    backends: Backends,
) -> Result<RunningServer, RunError> {
    let (address, generation) = (server.address(), Arc::clone(&info.generation));
    let server = server.start_serving(context.runtime.handle(), info, backends)?;
    announce(address);
    tracing::info!(%address, generation = &*generation, "the service listens");
    Ok(server)
}

/// The plan of the dataflow.
fn graph_plan(
    plan: &ServicePlan,
    sinks: &InspectedSinks,
    topology: Topology,
    partitions: &PartitionTable,
) -> GraphPlan {
    let mut graph = GraphPlan::serving_only(plan.formula, plan.retention, topology);
    graph.encoded_batches = sinks.output_plan(partitions);
    graph.time_zones = Some(plan.directory);
    graph
}

/// The backends of the server, for queries and appends.
fn backends(
    plan: &ServicePlan,
    logs: &Logs,
    shared: &Arc<SharedState>,
    appender: Option<Arc<dyn Appender>>,
) -> Backends {
    // A journal decides by its own timestamps; those of a topic are not known in advance.
    let warn_ahead = plan.ingest.as_ref().and_then(|ingest| ingest.source.as_ref()).map(|_| plan.max_ahead);
    let hold_check = Some(logs.hold_reasons(shared));
    let history_store =
        plan.history.as_ref().map(|history| Arc::new(PostgresHistory::new(history)) as Arc<_>);
    Backends { queries: Arc::clone(shared) as Arc<_>, appender, hold_check, warn_ahead, history_store }
}

/// Opens partitions that are added later, if this process can read them.
fn open_partition(logs: &Arc<Logs>, registry: &Arc<SourceRegistry>) -> OpenPartition {
    let (logs, registry) = (Arc::clone(logs), Arc::clone(registry));
    Box::new(move |index, name, start| logs.local_partition(&registry, index, name, start.into()))
}
