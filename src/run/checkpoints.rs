//! Checkpoints of a run: restored at its start, and made while it runs.
//!
//! Process 0 ([`coordinator`]) starts one with a barrier, which is data: it has an epoch, the same at all workers. Each worker writes the
//! state after that epoch. Once all workers of a process have, and its shards have made durable everything that the epoch includes, the
//! process reports its part ([`part_reporter`]); with the parts of all, process 0 publishes the checkpoint. Then it reads it back, and
//! removes what only older checkpoints needed once the new one is whole (`verifier`).

pub mod candidates;
pub mod coordinator;
pub mod part_reporter;
pub mod place;
pub mod repository;
pub mod restore;
#[cfg(test)]
mod tests;
mod verifier;
pub mod written_parts;
