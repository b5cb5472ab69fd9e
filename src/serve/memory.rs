//! Memory that clients can make the service use: all limits together. `docs/limits.md` has them as
//! a table.

use super::new_cities::NEW_CITIES_BYTES;
use super::plan::ServeLimits;
use super::responses::LONG_RESPONSES_BYTES;
use super::view::query_scheduler::{MAX_ACTIVE_GROUPS, ROWS_PER_GROUP, SHARED_ROWS};
use super::view::{MAX_WATCHED_CITIES, SNAPSHOTS_BYTES};
use super::ws::{OUTBOXES_BYTES, metered, name_limits};
use crate::model::{EventTime, MAX_PINNED_BYTES, Row};

/// Bytes that a process uses at most for one purpose, however many clients there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    pub name: &'static str,
    pub bytes: usize,
}

/// Bytes that a watched city takes beside its changes, here and at the worker that owns it.
const WATCHED_CITY_OVERHEAD_BYTES: usize = 512;

/// Bytes that a connection takes of its own: the head of a request and the buffers for reading and
/// writing, or a session with its socket's buffers and the part of a message that is being written.
pub const CONNECTION_BYTES: usize = 160 << 10;

/// The limits of a process with `workers` workers.
pub fn memory_limits(limits: &ServeLimits, workers: usize) -> Vec<MemoryLimit> {
    let rows = MAX_ACTIVE_GROUPS * ROWS_PER_GROUP + SHARED_ROWS;
    let limit = |name, bytes| MemoryLimit { name, bytes };
    vec![
        limit("posted bodies", limits.bodies_bytes),
        limit("new cities", NEW_CITIES_BYTES),
        limit("long answers", LONG_RESPONSES_BYTES),
        limit("snapshots", SNAPSHOTS_BYTES),
        limit("rows in flight", rows * size_of::<(EventTime, Row)>()),
        limit("pinned blocks", workers * MAX_PINNED_BYTES),
        limit("outboxes", OUTBOXES_BYTES),
        limit("changes of watched cities", limits.ring_bytes),
        limit("removed cities", limits.ring_bytes),
        limit("watched cities", MAX_WATCHED_CITIES * WATCHED_CITY_OVERHEAD_BYTES),
        limit("listed names", name_limits::all_names_bytes(limits)),
        limit("unfinished messages", metered::unfinished_bytes(limits.message_bytes)),
    ]
}

/// Bytes that all clients of `connections` connections can make a process use at most.
pub fn max_client_memory(limits: &ServeLimits, workers: usize, connections: usize) -> usize {
    let shared: usize = memory_limits(limits, workers).iter().map(|limit| limit.bytes).sum();
    shared + connections * CONNECTION_BYTES
}
