//! The processes of a run: how they connect and authenticate, and the connections between them.
//!
//! Process 0 has a control connection ([`link`]) to each other process; `run` defines its messages.
//! The dataflow has its own sockets between every two processes, which are connected once the start
//! is agreed on ([`Cluster::connect_workers`]). A process that loses another ends, because a
//! dataflow cannot run without all of its processes.

mod acceptor;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod handshake;
#[cfg(not(any(test, fuzzing)))]
mod handshake;
mod io_error;
mod link;
mod plan;
mod session;
pub mod signals;
mod stranger_log;
mod stream;
pub mod supervisor;
mod tls;
mod unproven_connections;

#[cfg(test)]
mod tests;

pub use self::error::ClusterError;
pub use self::link::{LinkHandler, Links, PeerEnd, SendError};
pub use self::plan::{ClusterPlan, StopFlag};
pub use self::session::Cluster;
pub use self::stream::PeerStream;
pub use self::tls::PeerTls;
