//! The session with the other processes: passes control messages to the control thread, answers
//! requests, and ends all processes if one fails.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::control::Control;
use super::peer_requests::PeerRequests;
use super::protocol::{ControlCommand, ControlEvent, PeerMessage};
use super::run_error::RunError;
use super::shutdown::Shutdown;
use crate::cluster::{Cluster, ClusterError, ClusterPlan, LinkHandler, Links, PeerEnd, PeerStream};
use crate::fault::exit::{ExitReason, end_process};

/// How long an ending process waits for the others, including one that has not started.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);
const ABANDON_TIMEOUT: Duration = Duration::from_secs(1);

/// The connections to the other processes, and the handling of their messages.
pub struct Peers {
    cluster: Cluster,
    requests: Arc<PeerRequests>,
    failures: Arc<PeerFailures>,
}

impl Peers {
    /// Connects to the others.
    pub fn connect(
        plan: &ClusterPlan,
        listener: Option<TcpListener>,
        control: &Control,
        shutdown: &Shutdown,
    ) -> Result<Peers, ClusterError> {
        let topology = plan.topology;
        let is_first = topology.is_first_process();
        let failures =
            Arc::new(PeerFailures { is_first, is_ending: AtomicBool::new(false), links: OnceLock::new() });
        let requests = Arc::<PeerRequests>::default();
        let handler = LinkHandler {
            on_message: {
                let (control, requests) = (control.clone(), Arc::clone(&requests));
                Arc::new(move |process, bytes| {
                    let message = postcard::from_bytes(bytes).map_err(|error| error.to_string())?;
                    on_message(&control, &requests, process, message);
                    Ok(())
                })
            },
            on_end: {
                let (control, failures) = (control.clone(), Arc::clone(&failures));
                Arc::new(move |process, end| match end {
                    PeerEnd::StopRequested if is_first => {
                        control.receive_event(process, ControlEvent::StopRequested);
                    }
                    PeerEnd::StopRequested => control.receive_command(ControlCommand::Stop),
                    end => failures.end_all(process, end),
                })
            },
        };
        let cluster = Cluster::connect(plan, listener, handler, shutdown.flag())?;
        // Earlier messages could not be answered, and none of them needs an answer.
        let links = cluster.links();
        let _ = failures.links.set(links.clone());
        requests.connect(links.clone());
        control.connect(links.clone());
        Ok(Peers { cluster, requests, failures })
    }

    pub fn requests(&self) -> &Arc<PeerRequests> {
        &self.requests
    }

    /// See [`Cluster::connect_workers`].
    pub fn connect_workers(&self, generation: &str) -> Result<Vec<Option<PeerStream>>, ClusterError> {
        self.cluster.connect_workers(generation)
    }

    /// Ends the other processes, because this one ends with an error.
    pub fn fail(&self, why: &RunError) {
        self.failures.is_ending.store(true, Ordering::Relaxed);
        let text = why.to_string();
        let end = if why.is_takeover() { PeerEnd::TakenOver(text) } else { PeerEnd::Failed(text) };
        self.cluster.links().send_end(&end);
        self.cluster.links().flush();
    }

    /// Stops the other processes, because this one stops before it has started.
    pub fn abandon_start(&self) {
        self.failures.is_ending.store(true, Ordering::Relaxed);
        self.cluster.links().send_end(&PeerEnd::StopRequested);
        self.cluster.links().close(Instant::now() + ABANDON_TIMEOUT);
    }

    /// Waits for the goodbyes of the others after a stop, since they may need this process until
    /// then.
    pub fn close(&self) {
        self.failures.is_ending.store(true, Ordering::Relaxed);
        self.cluster.links().close(Instant::now() + CLOSE_TIMEOUT);
    }
}

fn on_message(control: &Control, requests: &PeerRequests, process: usize, message: PeerMessage) {
    match message {
        PeerMessage::Command(command) => control.receive_command(command),
        PeerMessage::Event(event) => control.receive_event(process, event),
        PeerMessage::Append { call, records } => requests.append(process, call, records),
        PeerMessage::Appended { call, result } => requests.on_appended(call, result),
        PeerMessage::AskSchema { call, source, id } => requests.answer(process, call, &source, id),
        PeerMessage::SchemaAnswer { call, answer } => requests.on_schema(call, answer),
    }
}

/// Ends all processes if one fails, because a dataflow cannot run without all of its processes.
struct PeerFailures {
    is_first: bool,
    /// This process is about to end, so others may end, too.
    is_ending: AtomicBool,
    links: OnceLock<Links>,
}

impl PeerFailures {
    /// Another process has failed or is gone.
    fn end_all(&self, process: usize, end: PeerEnd) {
        if self.is_ending.swap(true, Ordering::Relaxed) {
            return;
        }
        let (why, reason) = match end {
            PeerEnd::TakenOver(why) => (why, ExitReason::TakenOver),
            PeerEnd::Failed(why) => (why, ExitReason::Failed),
            PeerEnd::Lost(why) => (format!("its connection is lost: {why}"), ExitReason::Failed),
            PeerEnd::StopRequested => return,
        };
        tracing::error!(peer = process, "a process of the cluster has failed, so all processes end: {why}");
        if let (true, Some(links)) = (self.is_first, self.links.get()) {
            let text = format!("process {process}: {why}");
            let is_takeover = reason == ExitReason::TakenOver;
            links.send_end(&if is_takeover { PeerEnd::TakenOver(text) } else { PeerEnd::Failed(text) });
            links.flush();
        }
        end_process(reason);
    }
}
