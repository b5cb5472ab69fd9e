//! Errors of connecting the processes of a cluster.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::fault::start_failure_text;

#[derive(Clone, Debug, thiserror::Error)]
pub enum ClusterError {
    #[error(
        "{address}: {error}: this is the address of this process in cluster.hosts, and it must be free on this host"
    )]
    Listen { address: String, error: Arc<io::Error> },
    #[error("process {process} at {address} cannot be reached within {} s ({why}): start it, or correct cluster.hosts", .wait.as_secs())]
    NotThere { process: usize, address: String, why: String, wait: Duration },
    #[error("process {0} of {1} has not connected within {2} s: start it, or look at its log")]
    NotCome(usize, usize, u64),
    #[error("the cluster has refused this process: {0}")]
    Refused(String),
    #[error("the connection to process {0} of the cluster is lost")]
    Gone(usize),
    /// A stop was requested during the start.
    #[error("a stop was requested")]
    Stopped,
    #[error("cluster.tls: {path}: {problem}")]
    Tls { path: PathBuf, problem: String },
    #[error("the cluster: {}", start_failure_text(.0))]
    Threads(Arc<io::Error>),
}
