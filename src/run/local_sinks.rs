//! The durable sinks of a process, from inspection to claim, with the shards that it writes.

use std::sync::Arc;

use super::durable_sinks::{DurableSinks, FencedSink, InspectedSinks};
use super::protocol::FenceOrder;
use super::run_error::RunError;
use crate::model::Topology;
use crate::panics::panic_point;
use crate::sinks::progress::ProgressSnapshot;

/// The sinks of this process and their state.
pub struct LocalSinks {
    inspected: Arc<InspectedSinks>,
    topology: Topology,
    fenced: Vec<FencedSink>,
    claimed: Option<DurableSinks>,
}

impl LocalSinks {
    pub fn new(inspected: InspectedSinks, topology: Topology) -> LocalSinks {
        LocalSinks { inspected: Arc::new(inspected), topology, fenced: Vec::new(), claimed: None }
    }

    pub fn inspected(&self) -> &Arc<InspectedSinks> {
        &self.inspected
    }

    /// Fences every earlier writer of the shards that this process writes.
    pub fn fence(&mut self, order: FenceOrder) -> Result<(), RunError> {
        let FenceOrder { sink, claim, is_takeover } = order;
        if sink > 0 || !self.inspected.has_authority() {
            panic_point("between_fences");
        }
        let fenced = self.inspected.fence(sink, claim, self.topology);
        self.fenced.push(fenced.map_err(|error| if is_takeover { error.into_lost_race() } else { error })?);
        Ok(())
    }

    /// Opens the sinks: all are fenced, and have this progress.
    pub fn claim(&mut self, progress: Vec<ProgressSnapshot>) -> Result<(), RunError> {
        let fenced = std::mem::take(&mut self.fenced);
        self.claimed = Some(self.inspected.open(fenced, progress)?);
        Ok(())
    }

    pub fn claimed(&self) -> Result<&DurableSinks, RunError> {
        self.claimed.as_ref().ok_or_else(not_claimed)
    }

    /// Takes the claimed sinks, to write them.
    pub fn take_claimed(&mut self) -> Result<DurableSinks, RunError> {
        self.claimed.take().ok_or_else(not_claimed)
    }
}

fn not_claimed() -> RunError {
    RunError::bug("the sinks were to be written before they were claimed")
}
