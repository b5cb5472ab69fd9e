//! The configured sinks of a run, in the order in which they are claimed.

use std::collections::HashMap;
use std::time::Duration;

use crate::config::{ServicePlan, SinkKind, SourceKind};
use crate::kafka::dead_letter_topics;
use crate::sinks::folder::FolderSinkPlan;
use crate::sinks::kafka::{Delivery, KafkaOutputPlan, KafkaSinkPlan};
use crate::sinks::postgres::PostgresSinkPlan;
use crate::sources::kafka::KafkaSourcePlan;

/// Shards and intervals of a sink that writes only dead letters.
const DEAD_LETTER_SHARDS: u16 = 1;
const DEAD_LETTER_COMMIT_INTERVAL: Duration = Duration::from_millis(200);
const DEAD_LETTER_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);

/// All sinks, in the order of claims: Kafka sinks first, so that the authority is the first one.
pub(super) struct SinkSpecs {
    pub kafka: Vec<KafkaSpec>,
    pub folders: Vec<FolderSinkPlan>,
    pub postgres: Vec<PostgresSinkPlan>,
    /// By source: the index of its sink among the Kafka sinks, and the number of its first
    /// dead-letter topic there.
    pub dead_letters: HashMap<String, (usize, u8)>,
}

/// The outputs in one cluster: the results of a sink, and the dead letters of the sources there.
pub(super) struct KafkaSpec {
    pub plan: KafkaOutputPlan,
    pub topics: Vec<String>,
    /// None if only dead letters are written.
    pub results: Option<KafkaSinkPlan>,
}

impl SinkSpecs {
    pub fn of(plan: &ServicePlan) -> SinkSpecs {
        let mut specs = SinkSpecs {
            kafka: Vec::new(),
            folders: Vec::new(),
            postgres: Vec::new(),
            dead_letters: HashMap::new(),
        };
        for sink in &plan.sinks {
            match &sink.kind {
                SinkKind::Kafka(kafka) => specs.kafka.push(KafkaSpec::of_results(kafka)),
                SinkKind::Folder(folder) => specs.folders.push(folder.clone()),
                SinkKind::Postgres(postgres) => specs.postgres.push(postgres.clone()),
            }
        }
        for (name, source) in kafka_sources(plan) {
            let same = |spec: &KafkaSpec| {
                spec.plan.cluster == source.cluster
                    && (spec.results.is_some() || spec.plan.progress_topic == source.progress_topic)
            };
            let sink = specs.kafka.iter().position(same).unwrap_or_else(|| {
                specs.kafka.push(KafkaSpec::of_dead_letters(source));
                specs.kafka.len() - 1
            });
            let spec = &mut specs.kafka[sink];
            specs.dead_letters.insert(name.to_owned(), (sink, spec.topics.len() as u8));
            spec.topics.extend(dead_letter_topics(&source.topic));
        }
        specs
    }
}

impl KafkaSpec {
    fn of_results(sink: &KafkaSinkPlan) -> KafkaSpec {
        let mut topics = vec![sink.topic.clone()];
        topics.extend(sink.current_topic.clone());
        KafkaSpec { plan: sink.output.clone(), topics, results: Some(sink.clone()) }
    }

    fn of_dead_letters(source: &KafkaSourcePlan) -> KafkaSpec {
        let plan = KafkaOutputPlan {
            cluster: source.cluster.clone(),
            progress_topic: source.progress_topic.clone(),
            delivery: Delivery::ExactlyOnce,
            shards: DEAD_LETTER_SHARDS,
            commit_interval: DEAD_LETTER_COMMIT_INTERVAL,
            transaction_timeout: DEAD_LETTER_TRANSACTION_TIMEOUT,
        };
        KafkaSpec { plan, topics: Vec::new(), results: None }
    }
}

/// The sources that are topics, by name.
pub(super) fn kafka_sources(plan: &ServicePlan) -> impl Iterator<Item = (&str, &KafkaSourcePlan)> {
    plan.sources.iter().filter_map(|source| match &source.kind {
        SourceKind::Kafka(kafka) => Some((source.name.as_str(), kafka)),
        SourceKind::Generator(_) | SourceKind::File(_) => None,
    })
}
