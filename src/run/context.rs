//! State of a process that every phase of a run uses.

use std::sync::Arc;

use tokio::runtime::Runtime;

use super::control::Control;
use super::peers::Peers;
use super::shutdown::Shutdown;
use crate::config::ServicePlan;
use crate::model::Topology;

/// The configuration and shared services of this process.
#[derive(Clone)]
pub struct RunContext<'a> {
    pub plan: &'a ServicePlan,
    pub topology: Topology,
    pub control: Control,
    pub peers: Arc<Peers>,
    pub shutdown: Shutdown,
    pub runtime: &'a Runtime,
}
