//! Accepts connections of other processes during a whole run. Late ones are refused with a reason.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::handshake::{self, Caller, Purpose, Verdict};
use super::link::{LinkPlan, Peer};
use super::stranger_log::StrangerLog;
use super::stream::{PeerStream, configure_socket};
use super::tls::TlsFailure;
use super::unproven_connections::{UnprovenConnection, UnprovenConnections};
use super::{ClusterError, ClusterPlan, StopFlag};
use crate::model::Topology;
use crate::panics::{self, PanicScope, panic_point};

/// Interval between two polls for connections.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(5);
const LATE_ACCEPT_INTERVAL: Duration = Duration::from_millis(100);
/// Connections accepted in one poll once no process is expected any more.
const MAX_LATE_CALLS: usize = 16;

/// Listens until dropped.
pub(super) struct Acceptor(Arc<AcceptorState>);

struct AcceptorState {
    plan: ClusterPlan,
    links: LinkPlan,
    stage: Mutex<Stage>,
    strangers: StrangerLog,
    ended: AtomicBool,
}

/// The stage of the run, which decides which processes are expected.
enum Stage {
    /// At process 0: waiting until all others are connected. Holds their links.
    Meeting(BTreeMap<usize, Peer>),
    Starting,
    /// Waiting for the dataflow connections of the processes with higher numbers.
    Connecting {
        generation: String,
        streams: BTreeMap<usize, PeerStream>,
    },
    Running {
        generation: String,
    },
}

impl Acceptor {
    pub fn start(
        plan: &ClusterPlan,
        listener: TcpListener,
        links: &LinkPlan,
    ) -> Result<Acceptor, ClusterError> {
        let threads = |error: io::Error| ClusterError::Threads(Arc::new(error));
        listener.set_nonblocking(true).map_err(threads)?;
        let is_first = plan.topology.is_first_process();
        let stage = if is_first { Stage::Meeting(BTreeMap::new()) } else { Stage::Starting };
        let (plan, links) = (plan.clone(), links.clone());
        let (strangers, ended) = (StrangerLog::default(), AtomicBool::new(false));
        let state = Arc::new(AcceptorState { plan, links, stage: Mutex::new(stage), strangers, ended });
        let accepting = Arc::clone(&state);
        let accept = move || accept(&accepting, &listener);
        thread::Builder::new().name("acceptor".into()).spawn(accept).map_err(threads)?;
        Ok(Acceptor(state))
    }

    /// At process 0: waits until all others are connected at the same time.
    pub fn wait_for_peers(&self, stop: &StopFlag) -> Result<(), ClusterError> {
        self.wait_for_stage(stop, 1, |stage| match stage {
            Stage::Meeting(peers) => {
                peers.retain(|_, peer| peer.is_alive());
                peers.keys().copied().collect()
            }
            _ => Vec::new(),
        })
    }

    /// Returns the links of the connected processes and stops expecting others.
    pub fn take_peers(&self) -> Vec<(usize, Peer)> {
        match mem::replace(&mut *self.0.stage(), Stage::Starting) {
            Stage::Meeting(peers) => peers.into_iter().collect(),
            _ => Vec::new(),
        }
    }

    /// Accepts from now on the dataflow connections of the processes with higher numbers, for this
    /// generation.
    pub fn expect_workers(&self, generation: &str) {
        *self.0.stage() = Stage::Connecting { generation: generation.to_owned(), streams: BTreeMap::new() };
    }

    /// Waits until all of them are connected.
    pub fn take_workers(&self, stop: &StopFlag) -> Result<BTreeMap<usize, PeerStream>, ClusterError> {
        self.wait_for_stage(stop, self.0.plan.topology.process + 1, |stage| match stage {
            Stage::Connecting { streams, .. } => streams.keys().copied().collect(),
            _ => Vec::new(),
        })?;
        let mut stage = self.0.stage();
        match mem::replace(&mut *stage, Stage::Starting) {
            Stage::Connecting { generation, streams } => {
                *stage = Stage::Running { generation };
                Ok(streams)
            }
            _ => Ok(BTreeMap::new()),
        }
    }

    /// Waits until every process from `first` on is in the list of `connected`.
    fn wait_for_stage(
        &self,
        stop: &StopFlag,
        first: usize,
        connected: impl Fn(&mut Stage) -> Vec<usize>,
    ) -> Result<(), ClusterError> {
        let ClusterPlan { topology, connect_time, .. } = &self.0.plan;
        let deadline = Instant::now() + *connect_time;
        loop {
            let connected = connected(&mut self.0.stage());
            let missing = (first..topology.processes).find(|process| !connected.contains(process));
            let Some(missing) = missing else { return Ok(()) };
            if stop.is_raised() {
                return Err(ClusterError::Stopped);
            }
            if Instant::now() >= deadline {
                return Err(ClusterError::NotCome(missing, topology.processes, connect_time.as_secs()));
            }
            thread::sleep(ACCEPT_INTERVAL);
        }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Relaxed);
    }
}

impl AcceptorState {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock()
    }

    fn on_connection(
        &self,
        socket: TcpStream,
        connection: &UnprovenConnection,
        deadline: Instant,
    ) -> Result<(PeerStream, Caller), String> {
        panic_point("handshake");
        configure_socket(&socket).map_err(|error| error.to_string())?;
        let mut stream = match &self.plan.tls {
            None => PeerStream::Plain(socket),
            Some(tls) => PeerStream::Tls(tls.accept(socket, deadline).map_err(TlsFailure::into_text)?),
        };
        let caller = handshake::answer_handshake(&mut stream, &self.plan, &connection.proven, deadline)?;
        Ok((stream, caller))
    }

    /// Performs the handshake with an unproven connection, and admits or refuses it.
    fn shake_hands(&self, socket: TcpStream, connection: &UnprovenConnection) -> Result<(), String> {
        let deadline = Instant::now() + handshake::HANDSHAKE_TIMEOUT;
        // A panic caused by a stranger's bytes ends this connection only.
        let result =
            panics::catch_panic(PanicScope::Handshake, || self.on_connection(socket, connection, deadline));
        let (mut stream, caller) = result.map_err(|panicked| panicked.to_string())??;
        // Hold the lock while deciding, so only one of two callers with the same number is
        // admitted.
        let mut stage = self.stage();
        let verdict = stage.verdict_on(self.plan.topology, &caller);
        if verdict == Verdict::Welcome {
            handshake::send_verdict(&mut stream, &verdict, deadline)?;
            return stage.admit_peer(&caller, stream, &self.links).map_err(|error| error.to_string());
        }
        drop(stage);
        handshake::send_verdict(&mut stream, &verdict, deadline)?;
        match verdict {
            Verdict::Refused(why) => Err(why),
            Verdict::Welcome | Verdict::NotYet(_) | Verdict::Taken(_) => Ok(()),
        }
    }
}

impl Stage {
    fn verdict_on(&self, topology: Topology, Caller { process, purpose }: &Caller) -> Verdict {
        let lowest = match purpose {
            Purpose::Link if topology.is_first_process() => 1,
            Purpose::Link => topology.processes,
            Purpose::Data { .. } => topology.process + 1,
        };
        if !(lowest..topology.processes).contains(process) {
            let own_process = topology.process;
            return Verdict::Refused(format!("process {process} is not expected by process {own_process}"));
        }
        match (self, purpose) {
            (Stage::Meeting(peers), Purpose::Link) => match peers.get(process).filter(|peer| peer.is_alive())
            {
                None => Verdict::Welcome,
                Some(_) => Verdict::Taken(already_connected(*process)),
            },
            (Stage::Connecting { generation: own_generation, .. }, Purpose::Data { generation: theirs }) => {
                match own_generation == theirs {
                    true => Verdict::Welcome,
                    false => Verdict::Refused(format!(
                        "process {process} is of generation {theirs}, and this one of {own_generation}"
                    )),
                }
            }
            (Stage::Meeting(_) | Stage::Starting, Purpose::Data { .. }) => {
                Verdict::NotYet(format!("process {process} is in another phase of its start"))
            }
            (Stage::Starting | Stage::Connecting { .. }, Purpose::Link) => {
                Verdict::Taken(already_connected(*process))
            }
            (Stage::Running { generation }, _) => {
                Verdict::Taken(format!("the cluster already runs as generation {generation}"))
            }
        }
    }

    fn admit_peer(&mut self, caller: &Caller, stream: PeerStream, links: &LinkPlan) -> io::Result<()> {
        match self {
            Stage::Meeting(peers) => {
                let peer = Peer::start(caller.process, stream, links)?;
                peers.insert(caller.process, peer);
            }
            // A caller that reconnects after losing its connection replaces the old one.
            Stage::Connecting { streams, .. } => drop(streams.insert(caller.process, stream)),
            Stage::Starting | Stage::Running { .. } => {}
        }
        Ok(())
    }
}

fn already_connected(process: usize) -> String {
    format!("another process {process} is connected already: give each process its own --process")
}

fn accept(state: &Arc<AcceptorState>, listener: &TcpListener) {
    let (mut connections, mut late_calls) = (UnprovenConnections::default(), 0);
    let has_ended = || state.ended.load(Ordering::Relaxed);
    while !has_ended() {
        state.strangers.log_if_due();
        let is_late = matches!(&*state.stage(), Stage::Running { .. });
        let accepted = match is_late && late_calls >= MAX_LATE_CALLS {
            true => Err(io::ErrorKind::WouldBlock.into()),
            false => listener.accept(),
        };
        match accepted {
            Ok((socket, from)) => {
                late_calls += 1;
                while !connections.evict_if_full() && !has_ended() {
                    thread::sleep(ACCEPT_INTERVAL);
                }
                match spawn_handshake(state, socket, from) {
                    Ok(connection) => connections.add(connection),
                    Err(error) => {
                        state.strangers.refuse(Some(from), format!("a connection is dropped: {error}"))
                    }
                }
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    state.strangers.refuse(None, format!("no connection can be accepted: {error}"));
                }
                late_calls = 0;
                thread::sleep(if is_late { LATE_ACCEPT_INTERVAL } else { ACCEPT_INTERVAL });
            }
        }
    }
}

fn spawn_handshake(
    state: &Arc<AcceptorState>,
    socket: TcpStream,
    from: SocketAddr,
) -> io::Result<Arc<UnprovenConnection>> {
    let connection = Arc::new(UnprovenConnection::new(socket.try_clone()?, from.ip()));
    let (state, peer) = (Arc::clone(state), Arc::clone(&connection));
    thread::Builder::new().name("handshake".into()).spawn(move || {
        if let Err(why) = state.shake_hands(socket, &peer) {
            if peer.proven.load(Ordering::Relaxed) {
                tracing::warn!(%from, "a process of the cluster is refused: {why}");
            } else {
                state.strangers.refuse(Some(from), why);
            }
        }
        peer.finish();
    })?;
    Ok(connection)
}
