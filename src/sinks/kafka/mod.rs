//! A durable sink of Kafka: results as records of topics, each exactly once.
//!
//! A [`KafkaSink`] writes to one cluster. It has a fixed number of shards, each with a
//! transactional producer and whole partitions, and a progress topic. A transaction of a shard has
//! whole epochs, and the positions of the input that they are complete up to. A new producer of a
//! shard fences the earlier ones by its transactional id. The authority of the run is the sink of
//! its results or the progress topic of a source's dead letters.

mod error;
pub mod follow;
mod plan;
mod producer;
mod progress_topic;
pub mod render;
mod shard;
mod sink;

pub use self::error::KafkaSinkError;
pub use self::plan::{Delivery, KafkaOutputPlan, KafkaSinkPlan, RowFormat};
pub use self::sink::{KafkaSink, read_progress_topic};
