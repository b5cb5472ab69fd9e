//! The processes of a run: who they are, how they find each other, and what they say to each other beside the dataflow.
//!
//! Process 0 has a connection ([`link`]) to each other one. Over it they agree on how to start ([`Cluster::share`]), and
//! later on what is no data: forwarded appends, epochs, the end. The dataflow has sockets of its own between every two processes,
//! which are connected once all is agreed ([`Cluster::connect_workers`]). A process that loses another ends: a
//! dataflow is whole or not at all.

mod handshake;
mod link;
pub mod message;
pub mod supervisor;

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration as Wait, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::handshake::nonce as fresh_secret;
use self::handshake::{Hello, Purpose};
pub use self::link::{Heard, Links};
use self::message::Message;
use crate::model::Topology;

/// Between two tries to reach a process that does not listen yet.
const RETRY: Wait = Wait::from_millis(50);
/// Until a connection has said who it is.
const HANDSHAKE: Wait = Wait::from_secs(5);

/// How the processes find each other.
#[derive(Clone)]
pub struct ClusterPlan {
    pub topology: Topology,
    /// By process, as `host:port`.
    pub hosts: Vec<String>,
    /// What each must know.
    pub secret: Vec<u8>,
    /// How long they wait for each other at the start.
    pub connect_time: Wait,
    /// After this long without a sign of life a process counts as gone.
    pub peer_timeout: Wait,
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
    NotThere { process: usize, address: String, why: String, wait: Wait },
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
    #[error("threads of the cluster cannot be started: {0}")]
    Threads(Arc<io::Error>),
}

/// The processes of a run, connected.
pub struct Cluster {
    plan: ClusterPlan,
    /// None where there is one process.
    listener: Option<TcpListener>,
    links: Links,
}

impl Cluster {
    /// Meets the other processes. `heard` hears what they say that is not part of the start, and `lost` why one is gone.
    ///
    /// # Errors
    ///
    /// Where they do not come in time, or disagree.
    pub fn meet(
        plan: &ClusterPlan,
        listener: Option<TcpListener>,
        heard: Heard,
    ) -> Result<Cluster, ClusterError> {
        let Topology { processes, process, .. } = plan.topology;
        if processes == 1 {
            return Ok(Cluster { plan: plan.clone(), listener: None, links: Links::none() });
        }
        let listener = listener.map_or_else(|| listen(&plan.hosts[process]), Ok)?;
        let links = match process {
            0 => {
                let hello = Hello::new(plan, Purpose::Link);
                let peers = accept(plan, &listener, &hello, 1)?;
                Links::start(plan, peers, heard)?
            }
            _ => {
                let hello = Hello::new(plan, Purpose::Link);
                let socket = reach(plan, 0, &hello)?;
                Links::start(plan, vec![(0, socket)], heard)?
            }
        };
        Ok(Cluster { plan: plan.clone(), listener: Some(listener), links })
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
    pub fn share<T, E>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
        E: From<ClusterError> + ToString,
    {
        if !self.plan.topology.is_first() {
            return Ok(self.links.value(0)?);
        }
        match make() {
            Ok(value) => {
                self.links.send_value(&value)?;
                Ok(value)
            }
            Err(error) => {
                self.fail(&error.to_string());
                Err(error)
            }
        }
    }

    /// Gives process 0 a value of each process, in their order; the others get nothing.
    pub fn gather<T: Serialize + DeserializeOwned>(&self, mine: T) -> Result<Vec<T>, ClusterError> {
        if !self.plan.topology.is_first() {
            self.links.send_value(&mine)?;
            return Ok(Vec::new());
        }
        let others = (1..self.plan.topology.processes).map(|process| self.links.value(process));
        std::iter::once(Ok(mine)).chain(others).collect()
    }

    /// Tells the others why this process ends.
    pub fn fail(&self, why: &str) {
        self.links.send_all(&Message::Failed(why.to_owned()));
    }

    /// Connects every two processes for the dataflow: by process, none for this one. Only those of the same generation are taken.
    pub fn connect_workers(&self, generation: &str) -> Result<Vec<Option<TcpStream>>, ClusterError> {
        let Topology { processes, process, .. } = self.plan.topology;
        let mut sockets: Vec<Option<TcpStream>> = (0..processes).map(|_| None).collect();
        let hello = Hello::new(&self.plan, Purpose::Data { generation: generation.to_owned() });
        // To those before this one; they have listened since before they were met.
        for (other, socket) in sockets.iter_mut().enumerate().take(process) {
            *socket = Some(reach(&self.plan, other, &hello)?);
        }
        if let Some(listener) = &self.listener {
            for (other, socket) in accept(&self.plan, listener, &hello, process + 1)? {
                sockets[other] = Some(socket);
            }
        }
        Ok(sockets)
    }
}

/// Listens for the other processes.
pub fn listen(address: &str) -> Result<TcpListener, ClusterError> {
    TcpListener::bind(address)
        .map_err(|error| ClusterError::Listen { address: address.to_owned(), error: Arc::new(error) })
}

/// Connects to a process that may not be there yet.
fn reach(plan: &ClusterPlan, process: usize, hello: &Hello) -> Result<TcpStream, ClusterError> {
    let address = plan.hosts[process].clone();
    let deadline = Instant::now() + plan.connect_time;
    loop {
        let why = match connect(&address) {
            Ok(mut socket) => match handshake::call(&mut socket, plan, hello, process) {
                Ok(()) => return Ok(socket),
                Err(handshake::Failure::Refused(why)) => return Err(ClusterError::Refused(why)),
                Err(handshake::Failure::Broken(why)) => why,
            },
            Err(error) => error.to_string(),
        };
        if Instant::now() >= deadline {
            return Err(ClusterError::NotThere { process, address, why, wait: plan.connect_time });
        }
        thread::sleep(RETRY);
    }
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        let address: SocketAddr = address;
        match TcpStream::connect_timeout(&address, HANDSHAKE) {
            Ok(socket) => {
                prepare(&socket)?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(HANDSHAKE))?;
    socket.set_write_timeout(Some(HANDSHAKE))
}

/// Waits for all processes from `first` on; whoever else connects is refused, and nobody waits for somebody who says nothing.
fn accept(
    plan: &ClusterPlan,
    listener: &TcpListener,
    hello: &Hello,
    first: usize,
) -> Result<Vec<(usize, TcpStream)>, ClusterError> {
    let threads = |error: io::Error| ClusterError::Threads(Arc::new(error));
    let deadline = Instant::now() + plan.connect_time;
    let mut come: BTreeMap<usize, TcpStream> = BTreeMap::new();
    listener.set_nonblocking(true).map_err(threads)?;
    let (answers, answered) = std::sync::mpsc::channel();
    let mut answering = 0usize;
    while come.len() < plan.topology.processes - first {
        while let Ok((process, socket)) = answered.try_recv() {
            answering -= 1;
            if let Some(process) = process {
                // One that was lost on its way and comes again takes its place.
                come.insert(process, socket);
            }
        }
        match listener.accept() {
            Ok((mut socket, from)) if answering < MAX_ANSWERING => {
                answering += 1;
                let (plan, hello, answers) = (plan.clone(), hello.clone(), answers.clone());
                let answer = move || {
                    let answered = prepare(&socket)
                        .map_err(|error| error.to_string())
                        .and_then(|()| handshake::answer(&mut socket, &plan, &hello, first));
                    let process = answered.map_err(
                        |why| tracing::warn!(%from, "a connection to the cluster is refused: {why}"),
                    );
                    let _ = answers.send((process.ok(), socket));
                };
                thread::Builder::new().name("handshake".into()).spawn(answer).map_err(threads)?;
            }
            _ => thread::sleep(Wait::from_millis(5)),
        }
        if Instant::now() >= deadline {
            let missing = (first..plan.topology.processes).find(|process| !come.contains_key(process));
            let missing = missing.unwrap_or(first);
            return Err(ClusterError::NotCome(missing, plan.topology.processes, plan.connect_time.as_secs()));
        }
    }
    Ok(come.into_iter().collect())
}

/// Connections that say who they are at once.
const MAX_ANSWERING: usize = 64;
