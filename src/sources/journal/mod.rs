//! The journal: an embedded, durable log of records, for a service without Kafka.
//!
//! A city always maps to the same partition, and each record has a position in its partition. One
//! thread writes: all waiting appends become one atomic, synced commit, and are then acknowledged.
//! The records of a commit form one or a few blocks in each partition. A block is the unit of
//! compression, of the memory that readers share with the writer, and of reading from disk.
//!
//! The blocks are in a key-value store (`blocks/`), which has its own write-ahead log, compaction
//! and checksums. Beside it are the acknowledged end of each partition (`marks`), the identity of
//! the journal (`id`), and the first position of each partition (`begins`). Records never change.
//! Whole blocks that checkpoints cover are removed from the beginning of a partition, if the
//! service asks for it.
//!
//! Memory: the waiting appends, and the same again while they are written; the tails; 4 MB of
//! cache, up to 5 memtables of 8 MB each, and the index of the newest tables; 1 MB and a block for
//! each partition that is replayed. Threads: the writer, and one of the store.

mod acked_ends;
mod append_queue;
mod arrival_clock;
mod block;
mod block_store;
mod copy;
mod error;
mod id;
mod log_starts;
mod open_journal;
mod plan;
mod reader;
mod shared;
mod store_contents;
mod store_error;
mod store_log;
mod tail;
#[cfg(test)]
mod tests;
mod writer;

pub use self::block_store::is_catching_store_panics;
pub use self::copy::{BlockSequence, JournalCopy};
pub use self::error::JournalError;
pub use self::id::{JournalId, ParentJournal};
pub use self::open_journal::Journal;
pub use self::plan::{JournalPlan, SOURCE_NAME};
pub use self::writer::partition_of_city;

/// The maximum number of files that a journal has open at once: tables that are read, its
/// write-ahead log, files that are flushed and merged, and its own files that are replaced.
pub const MAX_OPEN_FILES: u64 = block_store::MAX_OPEN_TABLES as u64 + 36;
