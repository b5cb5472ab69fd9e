//! The session of this process with the other processes of its run.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::acceptor::Acceptor;
use super::error::ClusterError;
use super::handshake::{self, HandshakeFailure, Purpose};
use super::link::{LinkHandler, LinkPlan, Links, Peer, PeerEnd};
use super::plan::{ClusterPlan, StopFlag};
use super::stream::{PeerStream, configure_socket};
use crate::config::host_of;
use crate::model::Topology;

/// Interval between two attempts to reach a process that does not listen yet, or whose place
/// another connection occupies.
pub(super) const CONNECT_RETRY: Duration = Duration::from_millis(50);
const REFUSED_RETRY: Duration = Duration::from_millis(250);
/// How long sending the reason of a failed start to the other processes may take.
const FAILED_START_TIMEOUT: Duration = Duration::from_secs(1);

/// The connected processes of a run.
pub struct Cluster {
    plan: ClusterPlan,
    /// None if the run has a single process.
    acceptor: Option<Acceptor>,
    links: Links,
    stop: StopFlag,
}

impl Cluster {
    /// Connects to the other processes. `handler` receives their messages and their ends.
    ///
    /// # Errors
    ///
    /// If a process does not connect in time, a setting differs, or a stop is requested.
    pub fn connect(
        plan: &ClusterPlan,
        listener: Option<TcpListener>,
        handler: LinkHandler,
        stop: StopFlag,
    ) -> Result<Cluster, ClusterError> {
        let Topology { processes, process, .. } = plan.topology;
        let plan = plan.clone();
        if processes == 1 {
            return Ok(Cluster { plan, acceptor: None, links: Links::none(), stop });
        }
        let listener = listener.map_or_else(|| listen(&plan.hosts[process]), Ok)?;
        let all_connected = Arc::new(AtomicBool::new(process > 0));
        let link =
            LinkPlan { handler, timeout: plan.peer_timeout, all_connected: Arc::clone(&all_connected) };
        let acceptor = Acceptor::start(&plan, listener, &link)?;
        let links = match process {
            0 => {
                let peers_connected = acceptor.wait_for_peers(&stop);
                let links = Links::new(acceptor.take_peers());
                all_connected.store(peers_connected.is_ok(), Ordering::SeqCst);
                let lost_process =
                    links.first_gone().map_or(Ok(()), |process| Err(ClusterError::Gone(process)));
                if let Err(error) = peers_connected.and(lost_process) {
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
        Ok(Cluster { plan, acceptor: Some(acceptor), links, stop })
    }

    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Connects every two processes for the dataflow. Returns streams by process, none for this
    /// one. Processes of another generation are refused.
    pub fn connect_workers(&self, generation: &str) -> Result<Vec<Option<PeerStream>>, ClusterError> {
        let Topology { processes, process, .. } = self.plan.topology;
        let mut streams: Vec<Option<PeerStream>> = (0..processes).map(|_| None).collect();
        let Some(acceptor) = &self.acceptor else { return Ok(streams) };
        acceptor.expect_workers(generation);
        let purpose = Purpose::Data { generation: generation.to_owned() };
        // Connect to the processes with lower numbers, which listen already.
        for (other, stream) in streams.iter_mut().enumerate().take(process) {
            *stream = Some(connect_with_retry(&self.plan, other, &purpose, &self.stop)?);
        }
        for (other, stream) in acceptor.take_workers(&self.stop)? {
            streams[other] = Some(stream);
        }
        Ok(streams)
    }
}

/// Tells the connected processes why the start has failed.
fn send_start_failure(links: &Links, error: &ClusterError) {
    links.send_end(&match error {
        ClusterError::Stopped => PeerEnd::StopRequested,
        error => PeerEnd::Failed(error.to_string()),
    });
    links.close(Instant::now() + FAILED_START_TIMEOUT);
}

/// Listens for the other processes.
pub fn listen(address: &str) -> Result<TcpListener, ClusterError> {
    TcpListener::bind(address)
        .map_err(|error| ClusterError::Listen { address: address.to_owned(), error: Arc::new(error) })
}

/// Connects to a process that may not listen yet.
pub(super) fn connect_with_retry(
    plan: &ClusterPlan,
    process: usize,
    purpose: &Purpose,
    stop: &StopFlag,
) -> Result<PeerStream, ClusterError> {
    let address = plan.hosts[process].clone();
    let deadline = Instant::now() + plan.connect_time;
    let (mut taken_since, mut is_warned): (Option<Instant>, bool) = (None, false);
    loop {
        let (why, pause) = match connect_once(&address, plan, purpose, process) {
            Ok(stream) => return Ok(stream),
            Err(HandshakeFailure::Refused(why)) => return Err(ClusterError::Refused(why)),
            Err(HandshakeFailure::Taken(why)) => {
                if taken_since.is_none() {
                    tracing::warn!(
                        peer = process,
                        "another process does not accept this one yet; it is retried: {why}"
                    );
                }
                // The connection of a dead process would have timed out by now.
                if taken_since.get_or_insert_with(Instant::now).elapsed() > plan.peer_timeout {
                    return Err(ClusterError::Refused(why));
                }
                (why, REFUSED_RETRY)
            }
            Err(HandshakeFailure::Unproven(why)) => {
                if !is_warned {
                    tracing::warn!(
                        peer = process,
                        address,
                        "another process of the cluster cannot be found at its address; it is retried: {why}"
                    );
                }
                (taken_since, is_warned) = (None, true);
                (why, REFUSED_RETRY)
            }
            Err(HandshakeFailure::Broken(why)) => {
                taken_since = None;
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

pub(super) fn connect_once(
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

fn connect_socket(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
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
