//! The processes of a run: who they are, how they find each other, and what they say to each other beside the dataflow.
//!
//! Process 0 has a connection (`link`) to each other one. Over it they agree on how to start ([`Cluster::share`]), and
//! later on what is no data: forwarded appends, epochs, the end. The dataflow has sockets of its own between every two processes,
//! which are connected once all is agreed ([`Cluster::connect_workers`]). A process that loses another ends: a
//! dataflow is whole or not at all.

mod acceptor;
#[cfg(any(test, fuzzing))]
pub(crate) mod handshake;
#[cfg(not(any(test, fuzzing)))]
mod handshake;
mod link;
pub mod message;
pub mod signals;
mod stranger_log;
mod stream;
pub mod supervisor;
mod tls;
mod unproven_connections;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use self::acceptor::Acceptor;
use self::handshake::{HandshakeFailure, Purpose};
pub use self::link::{LinkHandler, Links, SendError};
use self::link::{LinkPlan, Peer};
use self::message::Message;
pub use self::message::ValueName;
pub use self::stream::PeerStream;
pub use self::tls::PeerTls;
use crate::config::host_of;
use crate::fault::start_failure_text;
use crate::model::Topology;

/// Between two tries to reach a process that does not listen yet, or where another one is in the way.
const CONNECT_RETRY: Duration = Duration::from_millis(50);
const REFUSED_RETRY: Duration = Duration::from_millis(250);
/// How long the others may take to hear why a start has failed.
const FAILED_START_TIMEOUT: Duration = Duration::from_secs(1);

/// How the processes find each other.
#[derive(Clone)]
pub struct ClusterPlan {
    pub topology: Topology,
    /// By process, as `host:port`.
    pub hosts: Vec<String>,
    /// What each must know.
    pub secret: Vec<u8>,
    /// Encrypts all that they send each other.
    pub tls: Option<PeerTls>,
    /// How long they wait for each other at the start.
    pub connect_time: Duration,
    /// After this long without a sign of life a process counts as gone.
    pub peer_timeout: Duration,
    /// What they must have in common, as keys and values of the configuration.
    pub agreement: BTreeMap<String, String>,
}

// The secret is never shown.
impl std::fmt::Debug for ClusterPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ClusterPlan { topology, hosts, .. } = self;
        f.debug_struct("ClusterPlan")
            .field("topology", topology)
            .field("hosts", hosts)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum ClusterError {
    #[error(
        "{address}: {error}: it is this process's address of the hosts, where the others of the cluster reach it"
    )]
    Listen { address: String, error: Arc<io::Error> },
    #[error("process {process} at {address} cannot be reached within {} s ({why}): start it, or mend the hosts", .wait.as_secs())]
    NotThere { process: usize, address: String, why: String, wait: Duration },
    #[error("process {0} of {1} has not come within {2} s: start it, or look at its log")]
    NotCome(usize, usize, u64),
    #[error("the cluster has refused this process: {0}")]
    Refused(String),
    /// That process has said why.
    #[error("process {process}: {why}")]
    Peer { process: usize, why: String },
    #[error("process {0} of the cluster is gone")]
    Gone(usize),
    #[error("what a process of the cluster says is not understood: {0}")]
    Malformed(String),
    #[error(
        "process {process} is at step {} of its start ({}), this one at {} ({}): start all anew, with the same flags",
        .theirs.0, .theirs.1, .ours.0, .ours.1
    )]
    OutOfStep { process: usize, theirs: (u64, String), ours: (u64, String) },
    /// While it starts.
    #[error("asked to stop")]
    Stopped,
    #[error("cluster.tls: {path}: {problem}")]
    Tls { path: PathBuf, problem: String },
    #[error("the cluster: {}", start_failure_text(.0))]
    Threads(Arc<io::Error>),
}

/// Whether somebody has asked for a stop: whoever waits looks at it.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// True where nobody has before.
    pub fn raise(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The processes of a run, connected.
pub struct Cluster {
    plan: ClusterPlan,
    /// None where there is one process.
    acceptor: Option<Acceptor>,
    links: Links,
    stop: StopFlag,
    /// Counts what is shared, gathered and waited for.
    steps: AtomicU64,
}

impl Cluster {
    /// Meets the other processes. `heard` hears what they say that is not part of the start, and why one is lost.
    ///
    /// # Errors
    ///
    /// Where they do not come in time, or disagree, or it is time to `stop`.
    pub fn connect(
        plan: &ClusterPlan,
        listener: Option<TcpListener>,
        heard: LinkHandler,
        stop: StopFlag,
    ) -> Result<Cluster, ClusterError> {
        let Topology { processes, process, .. } = plan.topology;
        let (plan, steps) = (plan.clone(), AtomicU64::new(0));
        if processes == 1 {
            return Ok(Cluster { plan, acceptor: None, links: Links::none(), stop, steps });
        }
        let listener = listener.map_or_else(|| listen(&plan.hosts[process]), Ok)?;
        let is_whole = Arc::new(AtomicBool::new(process > 0));
        let link =
            LinkPlan { handler: heard, timeout: plan.peer_timeout, all_connected: Arc::clone(&is_whole) };
        let acceptor = Acceptor::start(&plan, listener, &link)?;
        let links = match process {
            0 => {
                let met = acceptor.wait_for_peers(&stop);
                let links = Links::new(acceptor.take_peers());
                is_whole.store(met.is_ok(), Ordering::SeqCst);
                let gone = links.first_gone().map_or(Ok(()), |process| Err(ClusterError::Gone(process)));
                if let Err(error) = met.and(gone) {
                    send_start_failure(&links, &error);
                    return Err(error);
                }
                links
            }
            _ => {
                let stream = connect_with_retry(&plan, 0, &Purpose::Link, &stop)?;
                let peer = Peer::start(0, stream, &link);
                Links::new(vec![(0, peer.map_err(|error| ClusterError::Threads(Arc::new(error)))?)])
            }
        };
        Ok(Cluster { plan, acceptor: Some(acceptor), links, stop, steps })
    }

    pub fn topology(&self) -> Topology {
        self.plan.topology
    }

    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Has process 0 make a value, and gives it to all. All processes call it in the same order.
    ///
    /// # Errors
    ///
    /// Where it cannot be made, at all processes.
    pub fn share<T, E>(&self, name: ValueName, make: impl FnOnce() -> Result<T, E>) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
        E: From<ClusterError> + ToString,
    {
        let step = self.step();
        self.check_stop()?;
        if !self.plan.topology.is_first_process() {
            return Ok(self.links.value(0, (step, name), (&self.stop, true))?);
        }
        let value = make()?;
        self.links.send_value(step, name, &value)?;
        Ok(value)
    }

    /// Gives process 0 a value of each process, in their order; the others get nothing.
    pub fn gather<T: Serialize + DeserializeOwned>(
        &self,
        name: ValueName,
        mine: T,
    ) -> Result<Vec<T>, ClusterError> {
        let step = self.step();
        self.check_stop()?;
        if !self.plan.topology.is_first_process() {
            self.links.send_value(step, name, &mine)?;
            return Ok(Vec::new());
        }
        let others = (1..self.plan.topology.processes).map(|process| self.value(process, (step, name)));
        std::iter::once(Ok(mine)).chain(others).collect()
    }

    /// Waits until all have come here: process 0 alone decides that they go on, or stop instead, so that none goes on without another.
    pub fn go_on_together(&self) -> Result<(), ClusterError> {
        let all = self.gather(ValueName::NOTHING, ());
        let step = self.step();
        if self.plan.topology.is_first_process() {
            // In any case: whoever waits for it does not heed a stop.
            self.links.send_value(step, ValueName::FLAG, &all.is_ok())?;
            return all.map(drop);
        }
        all?;
        let go_on: bool = self.links.value(0, (step, ValueName::FLAG), (&self.stop, false))?;
        if go_on { Ok(()) } else { Err(ClusterError::Stopped) }
    }

    /// An error where it is time to stop.
    pub fn check_stop(&self) -> Result<(), ClusterError> {
        if self.stop.is_raised() { Err(ClusterError::Stopped) } else { Ok(()) }
    }

    fn value<T: DeserializeOwned>(&self, process: usize, step: (u64, ValueName)) -> Result<T, ClusterError> {
        self.links.value(process, step, (&self.stop, true))
    }

    fn step(&self) -> u64 {
        self.steps.fetch_add(1, Ordering::Relaxed)
    }

    /// Tells the others why this process ends.
    pub fn fail(&self, why: &str, taken_over: bool) {
        self.links.send_all(&Message::Failed { why: why.to_owned(), taken_over });
    }

    /// Connects every two processes for the dataflow: by process, none for this one. Only those of the same generation are taken.
    pub fn connect_workers(&self, generation: &str) -> Result<Vec<Option<PeerStream>>, ClusterError> {
        let Topology { processes, process, .. } = self.plan.topology;
        let mut streams: Vec<Option<PeerStream>> = (0..processes).map(|_| None).collect();
        let Some(acceptor) = &self.acceptor else { return Ok(streams) };
        acceptor.expect_workers(generation);
        let purpose = Purpose::Data { generation: generation.to_owned() };
        // To those before this one; they have listened since before they were met.
        for (other, stream) in streams.iter_mut().enumerate().take(process) {
            *stream = Some(connect_with_retry(&self.plan, other, &purpose, &self.stop)?);
        }
        for (other, stream) in acceptor.take_workers(&self.stop)? {
            streams[other] = Some(stream);
        }
        Ok(streams)
    }
}

/// Those that have come hear what has become of the start.
fn send_start_failure(links: &Links, error: &ClusterError) {
    match error {
        ClusterError::Stopped => links.send_all(&Message::Stop),
        error => links.send_all(&Message::Failed { why: error.to_string(), taken_over: false }),
    }
    links.close(Instant::now() + FAILED_START_TIMEOUT);
}

/// Listens for the other processes.
pub fn listen(address: &str) -> Result<TcpListener, ClusterError> {
    TcpListener::bind(address)
        .map_err(|error| ClusterError::Listen { address: address.to_owned(), error: Arc::new(error) })
}

/// Connects to a process that may not be there yet.
fn connect_with_retry(
    plan: &ClusterPlan,
    process: usize,
    purpose: &Purpose,
    stop: &StopFlag,
) -> Result<PeerStream, ClusterError> {
    let address = plan.hosts[process].clone();
    let deadline = Instant::now() + plan.connect_time;
    let (mut taken, mut is_warned): (Option<Instant>, bool) = (None, false);
    loop {
        let (why, pause) = match connect_once(&address, plan, purpose, process) {
            Ok(stream) => return Ok(stream),
            Err(HandshakeFailure::Refused(why)) => return Err(ClusterError::Refused(why)),
            Err(HandshakeFailure::Taken(why)) => {
                if taken.is_none() {
                    tracing::warn!(peer = process, "this process is not taken in yet: {why}");
                }
                // By then, one that was gone would have counted as gone.
                if taken.get_or_insert_with(Instant::now).elapsed() > plan.peer_timeout {
                    return Err(ClusterError::Refused(why));
                }
                (why, REFUSED_RETRY)
            }
            Err(HandshakeFailure::Unproven(why)) => {
                if !is_warned {
                    tracing::warn!(
                        peer = process,
                        address,
                        "another process is not found, and is called again: {why}"
                    );
                }
                (taken, is_warned) = (None, true);
                (why, REFUSED_RETRY)
            }
            Err(HandshakeFailure::Broken(why)) => {
                taken = None;
                (why, CONNECT_RETRY)
            }
        };
        if stop.is_raised() {
            return Err(ClusterError::Stopped);
        }
        if Instant::now() >= deadline {
            return Err(ClusterError::NotThere { process, address, why, wait: plan.connect_time });
        }
        thread::sleep(pause);
    }
}

fn connect_once(
    address: &str,
    plan: &ClusterPlan,
    purpose: &Purpose,
    process: usize,
) -> Result<PeerStream, HandshakeFailure> {
    let socket = connect_socket(address).map_err(|error| HandshakeFailure::Broken(error.to_string()))?;
    let deadline = Instant::now() + handshake::HANDSHAKE_TIMEOUT;
    let mut stream = match &plan.tls {
        None => PeerStream::Plain(socket),
        Some(tls) => PeerStream::Tls(tls.connect(socket, host_of(address), deadline)?),
    };
    handshake::start_handshake(&mut stream, plan, purpose, process, deadline)?;
    Ok(stream)
}

/// The host of a process, where the plan says it.
fn host_of_process(plan: &ClusterPlan, process: usize) -> Option<&str> {
    plan.hosts.get(process).map(|address| host_of(address))
}

fn connect_socket(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        let address: SocketAddr = address;
        match TcpStream::connect_timeout(&address, handshake::HANDSHAKE_TIMEOUT) {
            Ok(socket) => {
                configure_socket(&socket)?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn configure_socket(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    socket.set_nonblocking(false)
}
