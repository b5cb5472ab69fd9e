//! Checkpoints of a run: taken up at its start, and made while it goes on.
//!
//! Process 0 asks for one with a mark, which is data: it has an epoch, the same at all workers. Each worker writes the state after that epoch
//! ([`PartWriter`]). Once all workers of a process have, and its shards have made durable all that the epoch includes, the process hands
//! in its part; with the parts of all, process 0 publishes. What was published it reads back, and gives up what only older checkpoints needed
//! once that is whole (`verifying`).

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
