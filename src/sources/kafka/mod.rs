//! Kafka topics as logs: their partitions are partitions of the source, their offsets are
//! positions.

mod appender;
mod client_context;
mod fetched_topic;
mod identity;
mod partition;
mod partition_offsets;
mod plan;
mod record_writer;
mod shared;
mod source;
mod topic_check;
mod topic_decoder;
mod watch;

pub use self::appender::{AppendLimits, AppendPlan, KafkaAppender};
pub use self::plan::{KafkaSourcePlan, OffsetReset, RecordFormat, RegistryPlan};
pub use self::record_writer::RecordWriter;
pub use self::source::KafkaSource;
