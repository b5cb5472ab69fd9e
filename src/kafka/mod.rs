//! What sources and sinks have in common of Kafka: how to reach a cluster, who a key belongs to, names of headers.

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

/// A Kafka cluster as a client reaches it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KafkaCluster {
    /// `host:port`, separated by commas.
    pub brokers: String,
    /// Of librdkafka, such as `security.protocol`. They come before our own settings, which win.
    pub properties: BTreeMap<String, String>,
}

// Properties may hold passwords.
impl std::fmt::Debug for KafkaCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaCluster").field("brokers", &self.brokers).finish_non_exhaustive()
    }
}

impl KafkaCluster {
    /// The settings that every client of the cluster begins with.
    pub fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        // Warnings too: `log_librdkafka` decides what is shown. rdkafka's own default is the level of
        // the crate `log`, which swelter does not write to.
        config.set_log_level(RDKafkaLogLevel::Info);
        // While a partition has no leader its clients may stop asking for one; librdkafka's own five minutes would be a long time.
        config.set("topic.metadata.refresh.interval.ms", "10000");
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config.set("bootstrap.servers", &self.brokers).set("client.id", "swelter");
        config
    }
}

/// How long a request may stay without an answer before it is made again: after an outage, librdkafka's own minute would add to it. A
/// transaction limits those of its producer by itself.
pub const REQUEST_TIMEOUT_MS: &str = "10000";

impl KafkaCluster {
    /// Those of a producer: topics say how large a record may be, not the client.
    pub fn producer_config(&self) -> ClientConfig {
        let mut config = self.client_config();
        config.set("message.max.bytes", "1000000000");
        config
    }
}

/// How long an introduction may take: what follows does without, and takes as long as it did.
const METADATA_TIMEOUT: Duration = Duration::from_secs(1);

/// Has a new client learn who leads a topic, ahead of its first use. Else librdkafka looks half a second after that, for a leader to read
/// from and for a broker that gives a producer its id.
pub fn prefetch_metadata<C: ClientContext>(client: &Client<C>, topic: &str) {
    // Whatever is wrong is said where the topic is used.
    let _ = client.fetch_metadata(Some(topic), METADATA_TIMEOUT);
}

/// Headers of results: the epoch, in ms, at which the change became visible.
pub const AS_OF_HEADER: &str = "as_of";

/// Headers of dead letters, and of those that are sent again.
pub mod dead_letter_headers {
    /// Where the record first stood: `topic/partition/offset`.
    pub const ORIGIN: &str = "swelter-origin";
    /// How often it was sent again: a number; 0 for a dead letter that never was.
    pub const ATTEMPT: &str = "swelter-attempt";
    /// When the log first took it, RFC 3339.
    pub const FIRST_SEEN: &str = "swelter-first-seen";
    /// Where the refused record stands: `topic/partition/offset`.
    pub const POSITION: &str = "swelter-position";
    /// The progress topic of whoever wrote the letter: where that knows nothing of it, the progress was lost.
    pub const PROGRESS: &str = "swelter-progress";
    /// A reason code, such as `not_decodable`.
    pub const REASON: &str = "swelter-reason";
    /// What is wrong, for a person.
    pub const DETAIL: &str = "swelter-detail";
}

/// The first and the second dead-letter topic of a topic.
pub fn dead_letter_topics(topic: &str) -> [String; 2] {
    [format!("{topic}.failed.1"), format!("{topic}.failed.2")]
}
