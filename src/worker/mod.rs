//! The workers of a process: each reads partitions, feeds the dataflow, and sends closed epochs on.

mod closed_epochs;
mod commands;
mod egress;
mod plan;
mod reader;
mod refusals;
mod replay;
mod serving_sink;
mod shard_sink;
mod shared_state;
mod worker_loop;

pub use self::commands::{AlignedBarrier, Release, WorkerCommand, WorkerCommandSender, WorkerEvent};
pub use self::plan::{RestoredCity, RestoredWorkers, WorkerPlan, WorkerState};
pub use self::reader::{DeadLetterTargets, LogPartition};
pub use self::refusals::Refusals;
pub use self::replay::{InstalledSinks, ResumePoints};
pub use self::shared_state::{SharedState, ingest_clock_ms};
pub use self::worker_loop::run_worker;
