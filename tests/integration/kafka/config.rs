//! The configuration of a service with topics.

use std::path::Path;

use super::broker::BrokerAccess;
use super::topics::{COMPACT, LOG_APPEND_TIME, TopicAdmin, unique_name};
use crate::support::{ServiceBuilder, swelter_command};

/// A configuration with a source and a sink in Kafka.
#[derive(Clone, Debug)]
pub struct KafkaConfig {
    pub access: BrokerAccess,
    pub input: String,
    pub results: String,
    pub current: String,
    pub progress: String,
    pub ingest: bool,
    /// Whether there is a sink.
    pub has_sink: bool,
    /// Of the input.
    pub format: &'static str,
    /// Further lines of their tables.
    pub rules: String,
    pub source: String,
    pub sink: String,
}

impl KafkaConfig {
    /// Unique names of topics, which are not created yet.
    pub fn new(access: &BrokerAccess) -> KafkaConfig {
        let input = unique_name("readings");
        KafkaConfig {
            access: access.clone(),
            results: format!("{input}-heat-index"),
            current: format!("{input}-heat-index-now"),
            progress: format!("{input}-progress"),
            input,
            ingest: false,
            has_sink: true,
            format: "json",
            rules: String::new(),
            source: String::new(),
            sink: "shards = 2\ncommit_interval = \"20ms\"\n".into(),
        }
    }

    pub fn dead_letter_topic(&self) -> String {
        format!("{}.failed.1", self.input)
    }

    /// Creates all topics but one.
    pub fn create_topics_except(&self, left_out: &str, partitions: i32) {
        let topics = TopicAdmin::of(&self.access);
        let second = format!("{}.failed.2", self.input);
        for (name, partitions, config) in [
            (&self.input, partitions, LOG_APPEND_TIME),
            (&self.dead_letter_topic(), partitions, LOG_APPEND_TIME),
            (&second, partitions, LOG_APPEND_TIME),
            (&self.results, 4, COMPACT),
            (&self.current, 4, COMPACT),
            (&self.progress, 1, COMPACT),
        ] {
            if name != left_out {
                topics.create(name, partitions, &[config]);
            }
        }
    }

    pub fn create_topics(&self, partitions: i32) {
        self.create_topics_except("", partitions);
    }

    pub fn to_toml(&self) -> String {
        let KafkaConfig { access, input, results, current, progress, ingest, format, rules, source, .. } =
            self;
        let properties = access.properties().into_iter().filter(|(name, _)| *name != "bootstrap.servers");
        let properties: Vec<_> =
            properties.map(|(name, value)| format!("properties.\"{name}\" = \"{value}\"")).collect();
        let cluster = format!("brokers = \"{}\"\n{}", access.address, properties.join("\n"));
        let sink = match self.has_sink {
            false => String::new(),
            true => format!(
                "[[sinks]]\ntype = \"kafka\"\n{cluster}\ntopic = \"{results}\"\ncurrent_topic = \"{current}\"\n\
                 progress_topic = \"{progress}\"\n{}\n",
                self.sink
            ),
        };
        format!(
            "[results]\nwindow = \"30m\"\nlateness = \"90m\"\nhistory = \"1h\"\n{rules}\n\
             [ingest]\nenabled = {ingest}\n\
             [[sources]]\ntype = \"kafka\"\n{cluster}\ntopic = \"{input}\"\nformat = \"{format}\"\n{source}\n{sink}"
        )
    }

    /// Adds a folder for checkpoints, one a second.
    pub fn set_checkpoints(&mut self, folder: &Path) {
        self.rules = format!("[checkpoints]\nevery = \"1s\"\nurl = \"{}\"\n", folder.display());
    }

    /// Runs `swelter dead-letters retry`; returns its output.
    pub fn retry_dead_letters(&self) -> String {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("swelter.toml");
        std::fs::write(&config, self.to_toml()).unwrap();
        let mut command = swelter_command();
        let output = command.args(["dead-letters", "retry", "--config"]).arg(&config).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// A service with this configuration. Its data folder is all that it shares with another one
    /// beside the topics.
    pub fn service(&self, data: &Path, workers: u64) -> ServiceBuilder {
        ServiceBuilder::new(self.to_toml()).data(data).args(&["--workers", &workers.to_string()])
    }
}
