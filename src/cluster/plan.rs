//! Settings for connecting the processes of a run, and the flag that stops their waits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::tls::PeerTls;
use crate::config::host_of;
use crate::model::Topology;

/// Settings for connecting the processes of a run.
#[derive(Clone)]
pub struct ClusterPlan {
    pub topology: Topology,
    /// Addresses by process, as `host:port`.
    pub hosts: Vec<String>,
    /// The secret shared by all processes.
    pub secret: Vec<u8>,
    /// Encrypts all traffic between processes.
    pub tls: Option<PeerTls>,
    /// How long processes wait for each other at the start.
    pub connect_time: Duration,
    /// A process that sends nothing for this long is lost.
    pub peer_timeout: Duration,
    /// Settings that must be equal at all processes, as keys and values of the configuration.
    pub agreement: BTreeMap<String, String>,
}

// Never prints the secret.
impl std::fmt::Debug for ClusterPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ClusterPlan { topology, hosts, .. } = self;
        f.debug_struct("ClusterPlan")
            .field("topology", topology)
            .field("hosts", hosts)
            .finish_non_exhaustive()
    }
}

/// The host of a process, if the plan has one.
pub(super) fn host_of_process(plan: &ClusterPlan, process: usize) -> Option<&str> {
    plan.hosts.get(process).map(|address| host_of(address))
}

/// Whether a stop was requested. Every wait of a start checks it.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Raises the flag. Returns true the first time.
    pub fn raise(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
