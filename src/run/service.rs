//! Runs the service: reads sources and serves results until a stop is requested.
//!
//! Process 0 goes through the phases of a run, which are types: [`Inspected`],
//! [`Restored`](super::restored), [`Follower`] if another generation runs, and [`Owner`]. The other
//! processes execute the command log ([`protocol`](super::protocol)).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use tokio::runtime::Builder;

use super::context::RunContext;
use super::control::{Control, MainEvent};
use super::data_dir::DataDir;
use super::durable_sinks::check_nothing_is_lost;
use super::follower::{Followed, Follower};
use super::inspected::Inspected;
use super::lead::{Lead, Member as _, ended_by};
use super::logs::needs_data_dir;
use super::membership::Membership;
use super::owner::Owner;
use super::peers::Peers;
use super::protocol::{ControlCommand, ControlEvent};
use super::run_error::RunError;
use super::running_member::CLIENT_GRACE;
use super::starting_member::StartingMember;
use crate::cluster::ClusterError;
use crate::config::ServicePlan;
use crate::fault::build_runtime;
use crate::serve;

/// Threads that serve requests.
const SERVING_THREADS: usize = 2;
/// Threads that decode long bodies and compress long responses.
const BLOCKING_THREADS: usize = 8;

/// Runs the service until a stop is requested by SIGTERM, Ctrl-C or a closed terminal. `announce`
/// gets the address once the service listens and accepts readings.
pub fn run(
    plan: ServicePlan,
    membership: Membership,
    announce: impl FnOnce(SocketAddr),
) -> Result<(), RunError> {
    let Membership { cluster, listener, shutdown } = membership;
    shutdown.catch_signals().map_err(RunError::Threads)?;
    let (control, events) = Control::spawn(cluster.topology, shutdown.clone())?;
    let requested = control.clone();
    shutdown.on_request(move || requested.report(ControlEvent::StopRequested));
    // This comes first: it waits for a dying process, which may still use the address as well.
    let data_dir = needs_data_dir(&plan).then(|| DataDir::open(&plan.data_dir).map(Arc::new)).transpose()?;
    let server = serve::bind_server(plan.serve.clone())?;
    let runtime = build_runtime(&mut Builder::new_multi_thread(), SERVING_THREADS, BLOCKING_THREADS);
    let runtime = runtime.map_err(RunError::Threads)?;
    let peers = match Peers::connect(&cluster, listener, &control, &shutdown) {
        Err(ClusterError::Stopped) => return Ok(()),
        connected => Arc::new(connected?),
    };
    let abandoned = Arc::downgrade(&peers);
    shutdown.on_abandon(move || {
        if let Some(peers) = abandoned.upgrade() {
            peers.abandon_start();
        }
    });
    let context = RunContext {
        plan: &plan,
        topology: cluster.topology,
        control,
        peers: Arc::clone(&peers),
        shutdown,
        runtime: &runtime,
    };
    let ran = run_process(context, data_dir, server, Box::new(announce), events);
    let ran = match ran {
        Err(error) if error.is_stop_request() => {
            tracing::info!("a stop was requested during the start: the process ends");
            peers.abandon_start();
            Ok(())
        }
        Err(error) => {
            peers.fail(&error);
            Err(error)
        }
        Ok(()) => {
            peers.close();
            Ok(())
        }
    };
    runtime.shutdown_timeout(CLIENT_GRACE);
    ran
}

/// Runs this process among the others, from start to end.
fn run_process<'a>(
    context: RunContext<'a>,
    data_dir: Option<Arc<DataDir>>,
    server: serve::BoundServer,
    announce: Box<dyn FnOnce(SocketAddr) + 'a>,
    events: Receiver<MainEvent>,
) -> Result<(), RunError> {
    let is_first = context.topology.is_first_process();
    if is_first {
        // Check before any missing topic is created.
        check_nothing_is_lost(context.plan, data_dir.is_some())?;
    }
    let lead = Lead::new(context.control.clone(), events, context.topology.processes);
    let member = StartingMember::open(context, data_dir, server, announce)?;
    if is_first { lead_run(lead, member) } else { follow_commands(&lead, member) }
}

/// Process 0: runs the phases.
fn lead_run(lead: Lead, member: StartingMember<'_>) -> Result<(), RunError> {
    let inspected = Inspected::inspect(lead, member)?;
    let owner = match inspected.find_primary()? {
        None => Owner::begin(inspected.claim()?)?,
        Some(primary) => match Follower::new(inspected.follow(primary)?).hydrate() {
            Followed::TakeoverDue(follower) => follower.claim()?,
            Followed::Ended(result) => return result,
        },
    };
    owner.run()
}

/// The other processes: executes the command log.
fn follow_commands(lead: &Lead, mut member: StartingMember<'_>) -> Result<(), RunError> {
    let start = loop {
        match lead.events().recv() {
            Ok(MainEvent::Command(ControlCommand::Start(start))) => break start,
            Ok(MainEvent::Command(command)) if !matches!(command, ControlCommand::Stop) => {
                member.execute(command)?;
            }
            Ok(event) => return Err(ended_by(event)),
            Err(_) => return Err(RunError::bug("the control thread has ended")),
        }
    };
    let mut member = member.start(start)?;
    let end = member.run(lead.events());
    member.stop(end, lead.events())
}
