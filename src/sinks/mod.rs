//! # Durable sinks
//!
//! A durable sink keeps every change of the results exactly once, whatever is killed and whenever.
//!
//! The role of a sink is to make the output of *closed epochs* durable together with the *positions* of the input that the output is complete
//! up to. A sink does not know what a heat index is: records come to it as [`EncodedBatch`](crate::model::EncodedBatch)es, encoded inside the
//! dataflow by the [`Render`](crate::model::Render) that belongs to it.
//!
//! swelter keeps no record of what a sink holds. A sink can say so itself:
//!
//! - **Shards.** The output is split into a fixed number of shards, and a city belongs to one of them. One thread of one process writes a shard,
//!   whatever the number of workers.
//! - **Progress.** Of each shard: the last epoch, and the positions, that it is complete up to. Progress becomes durable in the same
//!   transaction as the records, or not at all.
//! - **Identity.** The settings and logs that the output is made with. Output of one identity is never continued with another.
//! - **Generation.** Who may write. A start claims a sink, and from then on nothing that an earlier start writes becomes part of the output.
//!
//! ## Why that is enough
//!
//! Results depend on the logs alone. A start reads how far each shard of each sink has come, and replays the logs; a replay stops exactly at
//! the positions of each shard, so an epoch ends there. What the replay gives a shard before its positions is what the shard holds, and is dropped;
//! what comes behind them is new to it. So a sink needs no unique keys, no second look at what it has written, and no agreement with other
//! sinks: each is exactly once by itself, and after a crash one may be ahead of another.
//!
//! ## The life of a sink
//!
//! | phase | call | where | must hold |
//! |---|---|---|---|
//! | inspect | [`inspect`](DurableSink::inspect) | process 0 | changes nothing; refuses what could not be gone on with: another identity, damage |
//! | claim | [`claim`](DurableSink::claim) | process 0 | durable before it returns; of two claims one is the later one, and both can find out which |
//! | | [`prove_liveness`](DurableSink::prove_liveness) | process 0 | from the claim on, a standby hears that somebody has the sink |
//! | fence | [`fence`](DurableSink::fence) | every process, its own shards | once it returns, no earlier writer of these shards adds to the output, not even one that was stopped and goes on |
//! | read | [`read_progress`](DurableSink::read_progress) | process 0, once all have fenced | what it returns is all that there is and will ever be of earlier starts; an unfinished transaction is gone |
//! | write | [`ShardWriter`](shard::ShardWriter) | a thread a shard | records and progress in one transaction; retried until it is durable or the run ends |
//! | watch | [`watch_for_claims`](DurableSink::watch_for_claims) | process 0 | returns soon after another start has claimed the sink |
//! | finish | [`ShardWriter::finish`](shard::ShardWriter::finish) | a thread a shard | all that was sent is durable |
//!
//! A start that follows a running generation (`cluster.start = "standby"`) repeats `inspect` while it hydrates, and reads no further than the
//! least positions of any shard of any sink. Whether the other one lives is heard at the authority.
//!
//! ## Several sinks
//!
//! One sink, or the data directory of a run without Kafka, is the **authority**: it counts the generations, bounds the epochs that are in use,
//! and holds where sources were first read from and what registries have answered. Only a sink with a
//! [`ProgressWriter`](DurableSink::progress_writer) can be it. Other sinks record the generation that claims them.
//!
//! Sinks are claimed in one fixed order, the authority first, each through all phases up to `read` before the next. A start that lost the authority ends
//! with code 3 before it touches the next sink; a sink refuses a generation that is lower than the one it was last claimed by. A start that is
//! killed between two claims leaves a sink with an older generation than the authority, which the next start claims like any other.
//!
//! Epochs of a run begin above those of every sink. A checkpoint is published once every sink has made durable what it includes. A sink that holds
//! nothing yet needs the logs from their beginnings: if they do not reach back, a start refuses with the choices.
//!
//! ## What comes to a sink
//!
//! A [`Render`](crate::model::Render) says which output it wants: rows always, current rows, outcomes of arrivals and summaries of days only if
//! asked, since each costs the dataflow work. A sink that writes at least once (after a crash, some records again) also gets rows that an epoch has
//! touched and left as they were, because it may have written what they were in between; a sink that writes exactly once never does.
//!
//! ## How to add one
//!
//! Implement [`DurableSink`], [`ShardWriter`](shard::ShardWriter) and a `Render`; add the table to `config/`, and the sink to the list in
//! `run/durable_sinks/specs.rs`. `kafka/` and `folder/` are the examples, and `tests/integration/kafka/several_sinks.rs` the test to join.
//!
//! Beside durable sinks, this module has what `batch` writes at the end of a run: `result_table`, `changes`, `plot`, `output`; and `dead_letters`.

pub mod changes;
mod claimed;
mod contract;
pub mod dead_letters;
pub mod error;
pub mod folder;
pub mod kafka;
pub mod output;
pub mod plot;
pub mod progress;
pub mod result_table;
pub mod shard;
mod stop;

pub use self::claimed::{ClaimedSink, RunningSink};
pub use self::contract::{DurableSink, Heartbeat, ProgressWriter};
