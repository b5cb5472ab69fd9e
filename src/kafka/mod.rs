//! What sources and sinks share of Kafka: how to reach a cluster, the partition of a key, names of
//! headers.

pub mod broker_reminder;
pub mod dead_letter_retry;
pub mod dead_letter_topic;
pub mod error_log;
pub mod native;
pub mod partitioner;
pub mod properties;
pub mod topic_admin;
pub mod topic_identity;

pub use self::error_log::log_librdkafka;

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::client::Client;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::{ClientConfig, ClientContext};

/// A Kafka cluster, and how its clients connect to it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KafkaCluster {
    /// `host:port` addresses, separated by commas.
    pub brokers: String,
    /// Properties of librdkafka, such as `security.protocol`. Settings of swelter's own override
    /// them.
    pub properties: BTreeMap<String, String>,
}

// Without the properties, which may hold passwords.
impl std::fmt::Debug for KafkaCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaCluster").field("brokers", &self.brokers).finish_non_exhaustive()
    }
}

impl KafkaCluster {
    /// The settings that every client of the cluster begins with.
    pub fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        // `log_librdkafka` decides which lines are shown, so the client passes on all but debug
        // lines. rdkafka's own default is the level of the crate `log`, which swelter does not set.
        config.set_log_level(RDKafkaLogLevel::Info);
        // Without a leader a partition's clients may stop requesting one until the next refresh,
        // which is five minutes by librdkafka's default.
        config.set("topic.metadata.refresh.interval.ms", "10000");
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config.set("bootstrap.servers", &self.brokers).set("client.id", "swelter");
        config
    }
}

/// How long a request may stay without a response before it is repeated: librdkafka's default of a
/// minute would prolong an outage. A producer's transaction has a limit of its own.
pub const REQUEST_TIMEOUT_MS: &str = "10000";

impl KafkaCluster {
    /// The settings of a producer. The topic limits the size of a record, so the client's limit is
    /// the largest.
    pub fn producer_config(&self) -> ClientConfig {
        let mut config = self.client_config();
        config.set("message.max.bytes", "1000000000");
        config
    }
}

/// How long the prefetch may take; without it, the first use of the topic does the same work.
const METADATA_TIMEOUT: Duration = Duration::from_secs(1);

/// Fetches a topic's metadata ahead of its first use. Otherwise librdkafka looks half a second
/// later for the leader to read from, and for a broker that gives a producer its id.
pub fn prefetch_metadata<C: ClientContext>(client: &Client<C>, topic: &str) {
    // The first use of the topic reports the same error.
    let _ = client.fetch_metadata(Some(topic), METADATA_TIMEOUT);
}

/// The header of results with the epoch, in ms, at which the change became visible.
pub const AS_OF_HEADER: &str = "as_of";

/// Headers of dead letters and of retried records.
pub mod dead_letter_headers {
    /// Where the record was first: `topic/partition/offset`.
    pub const ORIGIN: &str = "swelter-origin";
    /// How often the record was retried: a number, 0 for a dead letter that never was.
    pub const ATTEMPT: &str = "swelter-attempt";
    /// When a log first had the record, RFC 3339.
    pub const FIRST_SEEN: &str = "swelter-first-seen";
    /// The address of the refused record: `topic/partition/offset`.
    pub const POSITION: &str = "swelter-position";
    /// The progress topic of the run that wrote the dead letter: if that topic has no progress, it
    /// was lost.
    pub const PROGRESS: &str = "swelter-progress";
    /// A reason code, such as `not_decodable`.
    pub const REASON: &str = "swelter-reason";
    /// What is wrong, for a person.
    pub const DETAIL: &str = "swelter-detail";
}

/// The names of a topic's two dead-letter topics.
pub fn dead_letter_topics(topic: &str) -> [String; 2] {
    [format!("{topic}.failed.1"), format!("{topic}.failed.2")]
}
