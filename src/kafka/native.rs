//! librdkafka's own interface for the two calls that every record goes through: records are taken from the queue of a partition many
//! at once, and handed to a producer by the handle of their topic. By rdkafka's safe ones, a record at a time with an event of its own
//! and its topic looked up by name, a worker took a quarter more CPU time and a shard a seventh (`benches/runs`, kafka-profile.txt).
//! And for what rdkafka does not have: [`add_brokers`], a flush that waits without looking, [`TopicProducer::flush`], and the ids of
//! topics, [`topic_ids`], and a client's log as it is written, [`LogQueue`].
//!
//! The one module with unsafe code. It is safe since
//! - pointers that librdkafka gives are kept by one owner each, which gives each back once, when it is dropped;
//! - what they belong to, the client, is owned by or borrowed for the same value, and is given up after them;
//! - slices of a record borrow from the queue that holds it, and the queue is borrowed mutably to let go of it;
//! - what librdkafka is given (names, keys, values, headers) it copies before the call returns;
//! - error codes are read as integers: a code that the bindings' enum does not have would be no value of it;
//! - records are reached through the pointer that librdkafka gave, since it writes to them when headers are first asked for.
#![allow(unsafe_code)]

mod client;
mod error_codes;
mod log_queue;
mod record_queue;
mod topic_ids;
mod topic_producer;

pub use self::client::{add_brokers, high_watermark};
pub use self::log_queue::LogQueue;
pub use self::record_queue::{FetchedHeaders, FetchedRecord, RecordQueue};
pub use self::topic_ids::{TopicState, describe_topic_ids, url_safe_topic_id};
pub use self::topic_producer::{ProducerRecord, TopicProducer};
