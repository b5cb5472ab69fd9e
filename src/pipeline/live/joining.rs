//! How a process comes to the others of its run.

use std::net::TcpListener;

use crate::cluster::{ClusterError, ClusterPlan, PeerTls};
use crate::config::Plan;
use crate::model::Topology;
use crate::pipeline::stops::Stops;

/// How this process meets the others of its run.
pub struct Joining {
    pub cluster: ClusterPlan,
    /// Listens for them already, where it does.
    pub listener: Option<TcpListener>,
    pub stops: Stops,
}

impl Joining {
    pub fn alone(plan: &Plan) -> Joining {
        let cluster = cluster_plan(plan, 0, Vec::new(), None);
        Joining { cluster, listener: None, stops: Stops::default() }
    }

    /// One of several, which are at `hosts`.
    ///
    /// # Errors
    ///
    /// If the files of `cluster.tls` cannot be used.
    pub fn one_of(plan: &Plan, process: usize, hosts: Vec<String>) -> Result<Joining, ClusterError> {
        let tls = plan.cluster.tls.as_ref().map(PeerTls::load).transpose()?;
        let cluster = cluster_plan(plan, process, hosts, tls);
        Ok(Joining { cluster, listener: None, stops: Stops::default() })
    }
}

fn cluster_plan(plan: &Plan, process: usize, hosts: Vec<String>, tls: Option<PeerTls>) -> ClusterPlan {
    let keys = &plan.cluster;
    let topology = Topology { processes: keys.processes, process, workers: plan.workers };
    ClusterPlan {
        topology,
        hosts,
        secret: keys.secret.clone().unwrap_or_default().into_bytes(),
        tls,
        connect_time: keys.connect_time,
        peer_timeout: keys.peer_timeout,
        agreement: plan.agreement.clone(),
    }
}
