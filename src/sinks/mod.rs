//! # Durable sinks
//!
//! A durable sink stores every change of the results exactly once, whenever processes are killed.
//!
//! A sink makes the output of *closed epochs* durable together with the *positions* of the input
//! that the output is complete up to. It does not know what a heat index is: records come as
//! [`EncodedBatch`](crate::model::EncodedBatch)es, which the sink's
//! [`Render`](crate::model::Render) encodes inside the dataflow.
//!
//! swelter keeps no record of the content of a sink. The sink itself stores:
//!
//! - **Shards.** The output is split into a fixed number of shards, and each city belongs to one of
//!   them. One thread of one process writes a shard, whatever the number of workers.
//! - **Progress.** For each shard: the last epoch and the positions that it is complete up to.
//!   Progress becomes durable in the same transaction as the records, or not at all.
//! - **Identity.** The settings and logs that the output is made with. Output of one identity is
//!   never continued with another.
//! - **Generation.** The start that may write. A start claims the sink, and from then on nothing
//!   that an earlier start writes becomes part of the output.
//!
//! ## Why this is exactly once
//!
//! Results depend on the logs alone. A start reads the progress of each shard of each sink, and
//! replays the logs. The replay stops exactly at the positions of each shard, so an epoch ends
//! there. The shard already has what the replay produces before these positions, so that is
//! dropped; what comes after them is new to it. So a sink needs no unique keys, no check of what it
//! has written, and no agreement with other sinks: each is exactly once by itself, and after a
//! crash one may be ahead of another.
//!
//! ## The calls of a run
//!
//! 1. [`inspect`](DurableSink::inspect), in process 0, changes nothing. It fails if the run could
//!    not continue with the sink: another identity, or damage.
//! 2. [`claim`](DurableSink::claim), in process 0, is durable before it returns. Of two claims one
//!    is the later one, and both starts can find out which.
//! 3. [`prove_liveness`](DurableSink::prove_liveness), in process 0: from the claim on, a standby
//!    sees that the sink has a live owner.
//! 4. [`fence`](DurableSink::fence), in every process for its own shards: once it returns, no
//!    earlier writer of these shards adds to the output, not even one that was suspended and
//!    resumes.
//! 5. [`read_progress`](DurableSink::read_progress), in process 0 after all have fenced, returns
//!    everything that earlier starts have written or ever will. An unfinished transaction is gone.
//! 6. [`ShardWriter`](shard::ShardWriter), on a thread for each shard, writes records and progress
//!    in one transaction. It is retried until it is durable or the run ends.
//! 7. [`watch_for_claims`](DurableSink::watch_for_claims), in process 0, returns soon after another
//!    start has claimed the sink.
//! 8. [`ShardWriter::finish`](shard::ShardWriter::finish), on a thread for each shard: everything
//!    that was sent is durable.
//!
//! A start that follows a running generation (`cluster.start = "standby"`) repeats `inspect` while
//! it hydrates, and reads no further than the lowest positions of any shard of any sink. It follows
//! the liveness of the other generation at the authority.
//!
//! ## Several sinks
//!
//! One sink, or the data directory of a run without Kafka, is the **authority**: it counts the
//! generations, bounds the epochs that are in use, and stores the start positions of the sources
//! and the responses of schema registries. Only a sink with a
//! [`ProgressWriter`](DurableSink::progress_writer) can be the authority. Other sinks record the
//! generation that claims them.
//!
//! Sinks are claimed in a fixed order, the authority first; each goes through all calls up to
//! `read_progress` before the next. A start that loses the authority ends with code 3 before it
//! touches the next sink. A sink refuses a generation lower than the one that claimed it last. A
//! start that is killed between two claims leaves a sink with an older generation than the
//! authority, which the next start claims like any other.
//!
//! The epochs of a run begin above those of every sink. A checkpoint is published once every sink
//! has made durable the output that it includes. An empty sink needs the logs from their
//! beginnings: if they do not reach back, a start fails and names the choices.
//!
//! ## The input of a sink
//!
//! A [`Render`](crate::model::Render) says which output it wants: always rows; current rows,
//! outcomes of arrivals and summaries of days only on request, since each costs the dataflow work.
//! A sink that writes at least once (after a crash, some records again) also gets rows that an
//! epoch has touched without a change, because it may have written an intermediate value of them. A
//! sink that writes exactly once never gets them.
//!
//! ## How to add a sink
//!
//! Implement [`DurableSink`], [`ShardWriter`](shard::ShardWriter) and a `Render`; add the table to
//! `config/`, and the sink to the list in `run/durable_sinks/specs.rs`. `kafka/`, `folder/` and
//! `postgres/` are examples. Add the sink to the test `tests/integration/kafka/several_sinks.rs`.
//!
//! This module also has the outputs that `batch` writes at the end of a run, `result_table`,
//! `changes`, `plot` and `output`, and `dead_letters`.

pub mod changes;
mod claimed;
mod contract;
pub mod dead_letters;
pub mod error;
pub mod folder;
pub mod kafka;
pub mod output;
pub mod plot;
pub mod postgres;
pub mod progress;
pub mod result_table;
pub mod shard;
mod stop;

pub use self::claimed::{ClaimedSink, RunningSink};
pub use self::contract::{DurableSink, Heartbeat, ProgressWriter};
