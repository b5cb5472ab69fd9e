//! Membership of a process in its run: its number, and how it reaches the others.

use std::net::TcpListener;

use super::protocol::CONTROL_VERSION;
use super::shutdown::Shutdown;
use crate::cluster::{ClusterError, ClusterPlan, PeerTls};
use crate::config::ServicePlan;
use crate::model::Topology;
use crate::model::rules_version::{RULES_VERSION, RULES_VERSION_KEY};

/// How this process connects to the others of its run.
pub struct Membership {
    pub cluster: ClusterPlan,
    /// The listener for other processes, if it is open already.
    pub listener: Option<TcpListener>,
    pub shutdown: Shutdown,
}

impl Membership {
    pub fn alone(plan: &ServicePlan) -> Membership {
        let cluster = cluster_plan(plan, 0, Vec::new(), None);
        Membership { cluster, listener: None, shutdown: Shutdown::default() }
    }

    /// A process of several at `hosts`.
    ///
    /// # Errors
    ///
    /// If the files of `cluster.tls` cannot be used.
    pub fn one_of(
        plan: &ServicePlan,
        process: usize,
        hosts: Vec<String>,
    ) -> Result<Membership, ClusterError> {
        let tls = plan.cluster.tls.as_ref().map(PeerTls::load).transpose()?;
        let cluster = cluster_plan(plan, process, hosts, tls);
        Ok(Membership { cluster, listener: None, shutdown: Shutdown::default() })
    }
}

fn cluster_plan(plan: &ServicePlan, process: usize, hosts: Vec<String>, tls: Option<PeerTls>) -> ClusterPlan {
    let keys = &plan.cluster;
    let mut agreement = plan.common_settings.clone();
    agreement.insert("version of control messages".into(), CONTROL_VERSION.to_string());
    // Otherwise the results of a city would depend on the process that it belongs to.
    agreement.insert(RULES_VERSION_KEY.into(), RULES_VERSION.to_string());
    let topology = Topology { processes: keys.processes, process, workers_per_process: plan.workers };
    ClusterPlan {
        topology,
        hosts,
        secret: keys.secret.clone().unwrap_or_default().into_bytes(),
        tls,
        connect_time: keys.connect_time,
        peer_timeout: keys.peer_timeout,
        agreement,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::layers::ConfigLayers;

    #[test]
    fn processes_agree_on_versions_that_decide_results() {
        let plan = Config::load(&ConfigLayers::default()).unwrap().plan;
        let agreement = cluster_plan(&plan, 0, Vec::new(), None).agreement;
        assert_eq!(agreement.get("rules version"), Some(&RULES_VERSION.to_string()));
        assert_eq!(agreement.get("version of control messages"), Some(&CONTROL_VERSION.to_string()));
    }
}
