//! What every phase of a run has at hand in its process.

use std::sync::Arc;

use tokio::runtime::Runtime;

use super::control::Control;
use super::peers::Peers;
use super::shutdown::Shutdown;
use crate::config::ServicePlan;
use crate::model::Topology;

/// See the module.
#[derive(Clone)]
pub struct RunContext<'a> {
    pub plan: &'a ServicePlan,
    pub topology: Topology,
    pub control: Control,
    pub peers: Arc<Peers>,
    pub shutdown: Shutdown,
    pub runtime: &'a Runtime,
}
