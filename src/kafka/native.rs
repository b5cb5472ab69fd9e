//! Calls of librdkafka's own C interface. Two of them handle every record: records are fetched from
//! the queue of a partition many at once, and are given to a producer with the handle of their
//! topic. With rdkafka's safe calls, which take a record at a time with an event of its own and
//! look up its topic by name, a worker took a quarter more CPU time and a shard a seventh
//! (`benches/runs`, kafka-profile.txt). The others have no counterpart in rdkafka: [`add_brokers`],
//! a flush that does not poll in between ([`TopicProducer::flush_within`]), the ids of topics
//! ([`describe_topic_ids`]), and a client's log in the order of what it does ([`LogQueue`]).
//!
//! This is the only module with unsafe code. It is sound because
//! - each pointer that librdkafka returns has one owner, which releases it once, when it is
//!   dropped;
//! - the client that a pointer belongs to is owned or borrowed by the same value, and is dropped
//!   after it;
//! - slices of a record borrow from the queue that holds it, and the queue is borrowed mutably to
//!   release it;
//! - librdkafka copies names, keys, values and headers before the call returns;
//! - error codes are read as integers: a code that the bindings' enum lacks would be an invalid
//!   value;
//! - records are reached through the pointer that librdkafka returned, since it writes to them when
//!   headers are first requested.
#![allow(unsafe_code)]

mod client;
mod error_codes;
mod log_queue;
mod record_queue;
mod topic_ids;
mod topic_producer;

pub use self::client::{add_brokers, high_watermark};
pub use self::log_queue::LogQueue;
pub use self::record_queue::{FetchedRecord, RecordQueue};
pub use self::topic_ids::{TopicState, describe_topic_ids, url_safe_topic_id};
pub use self::topic_producer::{ProducerRecord, TopicProducer};
