//! Topics of Kafka as logs: partitions are theirs, positions are offsets.

use std::path::PathBuf;

use crate::kafka::Cluster;
use crate::model::{Duration, EventTime};

/// A topic to read.
#[derive(Clone, Debug, PartialEq)]
pub struct KafkaPlan {
    pub cluster: Cluster,
    pub topic: String,
    pub format: RecordFormat,
    pub start: Start,
    /// Make the topic and those of its dead letters where they are missing, the first with so many partitions.
    pub create_topics: Option<u32>,
    /// Where the progress of the dead letters is kept, unless a sink of the same cluster keeps it.
    pub progress_topic: String,
    /// The consumer group under which positions are shown to monitors of lag. They decide nothing.
    pub group: String,
    /// After this long dead letters are sent once more by themselves, other than those that are too late.
    pub retry_after: Option<Duration>,
}

/// How records are written.
#[derive(Clone, Debug, PartialEq)]
pub enum RecordFormat {
    Json,
    /// In Confluent's wire format, with schemas of a registry.
    AvroRegistry(RegistryPlan),
    /// Bare, each written with the schema of a file.
    AvroFile(PathBuf),
}

/// A schema registry as a client reaches it.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryPlan {
    /// Asked in turn.
    pub urls: Vec<String>,
    /// User and password.
    pub user: Option<(String, String)>,
}

// The password is never shown.
impl std::fmt::Debug for RegistryPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryPlan").field("urls", &self.urls).finish_non_exhaustive()
    }
}

/// Where reading begins at the first start of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Earliest,
    Latest,
    /// With the first record that the log took then or later.
    At(EventTime),
}
