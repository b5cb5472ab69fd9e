//! The service: sources in, what is served out, until it is stopped.

use std::net::SocketAddr;

use crate::config::Plan;

/// Why the service has stopped, other than by request.
#[derive(Debug, thiserror::Error)]
pub enum RunError {}

/// Runs the service until it is asked to stop. `announce` hears the address once it is listened on.
pub fn run(plan: Plan, announce: impl FnOnce(SocketAddr)) -> Result<(), RunError> {
    announce(plan.serve.listen);
    Ok(())
}
