//! The processes of a run: who they are, how they find each other, and the connections between them.
//!
//! Process 0 has a connection ([`link`]) to each other one, for what is no data: what is said over it is the matter of `run`. The dataflow
//! has sockets of its own between every two processes, which are connected once the start is agreed on ([`Cluster::connect_workers`]). A
//! process that loses another ends: a dataflow is whole or not at all.

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
