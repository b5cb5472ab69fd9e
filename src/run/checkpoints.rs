//! Checkpoints of a run: restored at its start, and made while it runs.
//!
//! Process 0 ([`coordinator`]) starts a checkpoint with a barrier, which is data with an epoch that
//! is the same at all workers. Each worker writes the state after that epoch. A process reports its
//! part ([`part_reporter`]) once all its workers have written theirs and its shards have made
//! durable everything that the epoch includes. With the parts of all processes, process 0 publishes
//! the checkpoint. Then it reads the checkpoint back, and removes what only older ones need if the
//! new one is intact (`verifier`).

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
