//! Errors of connecting the processes of a cluster.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::fault::start_failure_text;

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
    #[error("process {0} of the cluster is gone")]
    Gone(usize),
    /// A stop was requested during the start.
    #[error("asked to stop")]
    Stopped,
    #[error("cluster.tls: {path}: {problem}")]
    Tls { path: PathBuf, problem: String },
    #[error("the cluster: {}", start_failure_text(.0))]
    Threads(Arc<io::Error>),
}
