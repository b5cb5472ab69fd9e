//! How the processes of a run find each other, and what ends the wait for them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::tls::PeerTls;
use crate::config::host_of;
use crate::model::Topology;

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

/// The host of a process, if the plan has it.
pub(super) fn host_of_process(plan: &ClusterPlan, process: usize) -> Option<&str> {
    plan.hosts.get(process).map(|address| host_of(address))
}

/// Whether a stop was requested. Every wait of a start watches it.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// True the first time.
    pub fn raise(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
