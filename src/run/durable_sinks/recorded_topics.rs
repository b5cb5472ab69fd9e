//! The identities of Kafka sinks' topics, recorded in the progress topics to detect lost or
//! recreated topics.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, MutexGuard};

use super::identity::unknown_dead_letters;
use super::specs::{KafkaSpec, SinkSpecs, kafka_sources};
use crate::config::ServicePlan;
use crate::kafka::native::TopicState;
use crate::kafka::topic_admin::{self, TopicSurvey};
use crate::kafka::topic_identity::{TopicChange, TopicIdentities, TopicIdentity, TopicWatch, WatchedCluster};
use crate::kafka::{KafkaCluster, dead_letter_headers, dead_letter_topics};
use crate::run::checkpoints::place::topics_in_checkpoints;
use crate::run::run_error::RunError;
use crate::sinks::ProgressWriter;
use crate::sinks::error::SinkError;
use crate::sinks::kafka::read_progress_topic;
use crate::sinks::progress::{CLAIM, Claim, IDENTITY, ProgressSnapshot, SinkIdentity, TOPICS};

/// The topics of a sink, by use.
#[derive(Clone, Debug, Default)]
pub(super) struct SinkTopics {
    progress: String,
    /// Topics of results and of current rows.
    results: Vec<String>,
    dead_letters: Vec<String>,
    /// Input topics in the same cluster, by source.
    inputs: BTreeMap<String, String>,
}

impl SinkTopics {
    pub(super) fn of(plan: &ServicePlan, spec: &KafkaSpec) -> SinkTopics {
        let own = |source: &&(&str, &crate::sources::kafka::KafkaSourcePlan)| {
            source.1.cluster == spec.plan.cluster
                && spec.topics.contains(&dead_letter_topics(&source.1.topic)[0])
        };
        let sources: Vec<_> = kafka_sources(plan).collect();
        let inputs: BTreeMap<String, String> = sources
            .iter()
            .filter(own)
            .map(|(name, source)| ((*name).to_owned(), source.topic.clone()))
            .collect();
        let dead_letter_topics_of_inputs: Vec<String> =
            inputs.values().flat_map(|topic| dead_letter_topics(topic)).collect();
        let results = spec
            .topics
            .iter()
            .filter(|topic| !dead_letter_topics_of_inputs.contains(topic))
            .cloned()
            .collect();
        SinkTopics {
            progress: spec.plan.progress_topic.clone(),
            results,
            dead_letters: dead_letter_topics_of_inputs,
            inputs,
        }
    }

    fn all(&self) -> Vec<&str> {
        let each = self.results.iter().chain(&self.dead_letters).chain(self.inputs.values());
        each.chain([&self.progress]).map(String::as_str).collect()
    }

    /// The outputs that must not exist if all results are computed again.
    fn outputs(&self) -> String {
        let each = [&self.progress].into_iter().chain(&self.results).chain(&self.dead_letters);
        each.map(String::as_str).collect::<Vec<_>>().join(", ")
    }

    /// The topics that the progress says were read or written.
    fn recorded_topics(&self, progress: &ProgressSnapshot) -> Result<BTreeSet<&str>, RunError> {
        if let Some(records) = progress.get::<TopicIdentities>(TOPICS)? {
            return Ok(self.all().into_iter().filter(|topic| records.contains_key(*topic)).collect());
        }
        // Progress written by a version that did not record them.
        let identity = progress.get::<SinkIdentity>(IDENTITY)?.unwrap_or_default();
        let has_read = |(source, topic): &(&String, &String)| {
            let made_of = identity.get(&format!("source {source}"));
            made_of.is_some_and(|made_of| made_of.starts_with(&format!("topic {topic} as ")))
        };
        let inputs: Vec<&str> =
            self.inputs.iter().filter(has_read).map(|(_, topic)| topic.as_str()).collect();
        let is_of_inputs =
            |topic: &&String| inputs.iter().any(|input| dead_letter_topics(input).contains(topic));
        let dead_letters: Vec<&str> =
            self.dead_letters.iter().filter(is_of_inputs).map(String::as_str).collect();
        let is_written = |topic: &&String| identity.contains_key(&format!("partitions of topic {topic}"));
        let results = self.results.iter().filter(is_written).map(String::as_str);
        Ok(results.chain(inputs).chain(dead_letters).collect())
    }

    /// Why a run cannot continue with a topic in its present state, with a remedy. `is_compared` is
    /// true if the records of inputs fit.
    fn refuse(&self, change: &TopicChange, is_compared: bool) -> RunError {
        let (topic, progress, outputs) = (change.topic(), &self.progress, self.outputs());
        let is_input = self.inputs.values().any(|input| input == topic);
        let is_copy = is_compared && matches!(change, TopicChange::AnotherId { .. });
        let what = match (is_input, topic == progress) {
            (true, _) if is_copy => format!(
                "its records, as far as they can be compared, match those that were read according to progress topic {progress}, so it may be a copy or a restored backup"
            ),
            (true, _) if !is_compared => "it was deleted or recreated while it was read".to_owned(),
            (true, _) => format!("progress topic {progress} has positions of the earlier topic"),
            (false, true) => "it holds the positions of all that was read and written".to_owned(),
            (false, false) => {
                format!("results that progress topic {progress} records as written to it would be missing")
            }
        };
        let adopt = match is_copy {
            true => "if it is a complete copy, start once with --adopt-logs; otherwise ",
            false => "",
        };
        RunError::Failed(format!(
            "{change}: {what}: {adopt}restore it and start once with --adopt-logs, or, to begin anew, delete {outputs} (docs/disaster-recovery.md)"
        ))
    }
}

impl SinkTopics {
    /// Why a run does not append to outputs that its progress does not know.
    fn refuse_unknown(&self, topic: &str, what: &str) -> RunError {
        RunError::Failed(format!(
            "topic {topic} holds {what} that progress topic {} does not know, so they would be written twice: the progress topic was lost or recreated, or is another one; restore it and start once with --adopt-logs, name the right one, or, to begin anew, delete {} (docs/disaster-recovery.md)",
            self.progress,
            self.outputs()
        ))
    }
}

/// Refuses a start, before any topic is created, if a topic is missing that the progress or a
/// checkpoint knows, or the progress topic itself.
pub fn check_nothing_is_lost(plan: &ServicePlan, in_data_dir: bool) -> Result<(), RunError> {
    let SinkSpecs { kafka: specs, .. } = SinkSpecs::of(plan);
    for spec in &specs {
        let (topics, cluster) = (SinkTopics::of(plan, spec), &spec.plan.cluster);
        let survey = topic_admin::survey_topics(cluster, &topics.all())?;
        let is_gone = |topic: &str| survey.states.get(topic) == Some(&TopicState::Missing);
        let progress = (!is_gone(&topics.progress))
            .then(|| read_progress_topic(cluster, &topics.progress))
            .transpose()
            .map_err(SinkError::from)?;
        let is_claimed = |progress: &&ProgressSnapshot| !matches!(progress.get::<Claim>(CLAIM), Ok(None));
        let known = match progress.as_ref().filter(is_claimed) {
            Some(progress) => topics.recorded_topics(progress)?,
            None => {
                check_progress_is_new(plan, spec, &topics, cluster)?;
                BTreeSet::new()
            }
        };
        if let Some(missing) = known.into_iter().find(|topic| is_gone(topic)) {
            return Err(topics.refuse(&TopicChange::Gone { topic: missing.to_owned() }, true));
        }
        check_checkpoints(plan, in_data_dir, topics.inputs.values().filter(|topic| is_gone(topic)))?;
    }
    Ok(())
}

/// Checks that outputs are new if nobody has claimed the progress topic yet.
fn check_progress_is_new(
    plan: &ServicePlan,
    spec: &KafkaSpec,
    topics: &SinkTopics,
    cluster: &KafkaCluster,
) -> Result<(), RunError> {
    let results: Vec<&str> = topics.results.iter().map(String::as_str).collect();
    if let Some(topic) = topic_admin::first_topic_with_records(cluster, &results)? {
        return Err(topics.refuse_unknown(&topic, "results"));
    }
    for (name, source) in kafka_sources(plan).filter(|(name, _)| topics.inputs.contains_key(*name)) {
        let [first, second] = &dead_letter_topics(&source.topic);
        let dead_letters = [&**first, &**second];
        let is_own = spec.results.is_none() && source.progress_topic == topics.progress;
        if is_own && topic_admin::first_topic_with_records(cluster, &dead_letters)?.is_some() {
            return Err(unknown_dead_letters(name, source, &topics.progress));
        }
        // New results may be written beside others of the same input, whose dead letters exist.
        let written = topic_admin::first_topic_with_header(
            cluster,
            &dead_letters,
            (dead_letter_headers::PROGRESS, &topics.progress),
        )?;
        if let Some(topic) = written {
            return Err(topics.refuse_unknown(&topic, "dead letters"));
        }
    }
    Ok(())
}

/// Refuses a start if a checkpoint includes records of a topic that is missing.
fn check_checkpoints<'a>(
    plan: &ServicePlan,
    in_data_dir: bool,
    missing: impl Iterator<Item = &'a String>,
) -> Result<(), RunError> {
    let missing: Vec<&String> = missing.collect();
    if missing.is_empty() {
        return Ok(());
    }
    let known = topics_in_checkpoints(plan, in_data_dir)?;
    match missing.into_iter().find(|topic| known.contains(*topic)) {
        None => Ok(()),
        Some(topic) => Err(RunError::Failed(format!(
            "topic {topic} is gone, and checkpoints include its records: restore it and start once with --adopt-logs, or, to begin anew, name another location for checkpoints (checkpoints.url) (docs/disaster-recovery.md)"
        ))),
    }
}

/// The identities of the topics of a run's sinks, as they are or will be recorded.
pub(super) struct RecordedTopics {
    topics: Vec<SinkTopics>,
    clusters: Vec<KafkaCluster>,
    adopt: bool,
    records: Mutex<Vec<TopicIdentities>>,
    /// Set once the sinks are claimed.
    writers: OnceLock<Vec<ProgressWriter>>,
}

impl RecordedTopics {
    pub(super) fn new(plan: &ServicePlan, specs: &[KafkaSpec]) -> RecordedTopics {
        RecordedTopics {
            topics: specs.iter().map(|spec| SinkTopics::of(plan, spec)).collect(),
            clusters: specs.iter().map(|spec| spec.plan.cluster.clone()).collect(),
            adopt: plan.adopt_logs,
            records: Mutex::new(vec![TopicIdentities::new(); specs.len()]),
            writers: OnceLock::new(),
        }
    }

    /// Refuses topics that differ from the recorded ones. Positions in them were checked before.
    pub(super) fn check(&self, snapshots: &[ProgressSnapshot]) -> Result<(), RunError> {
        let mut all = Vec::new();
        for ((topics, cluster), snapshot) in self.topics.iter().zip(&self.clusters).zip(snapshots) {
            let recorded = snapshot.get::<TopicIdentities>(TOPICS)?.unwrap_or_default();
            let survey = topic_admin::survey_topics(cluster, &topics.all())?;
            all.push(self.check_sink(topics, recorded, &survey)?);
        }
        *self.lock() = all;
        Ok(())
    }

    fn check_sink(
        &self,
        topics: &SinkTopics,
        mut recorded: TopicIdentities,
        survey: &TopicSurvey,
    ) -> Result<TopicIdentities, RunError> {
        for topic in topics.all() {
            let record = recorded.entry(topic.to_owned()).or_default();
            let state = survey.states.get(topic).unwrap_or(&TopicState::Missing);
            let is_written = survey.written_topics.contains(topic);
            match record.detect_change(topic, state, is_written) {
                None => {}
                Some(change @ TopicChange::AnotherId { .. }) if self.adopt => {
                    tracing::warn!("{change}: the run continues with it, because --adopt-logs allows it");
                }
                Some(change) => return Err(topics.refuse(&change, true)),
            }
            *record = record.updated_from(state, is_written);
        }
        Ok(recorded)
    }

    /// The identities to record for a sink's topics.
    pub(super) fn of_sink(&self, sink: usize) -> TopicIdentities {
        self.lock().get(sink).cloned().unwrap_or_default()
    }

    /// Records the topics of a claimed sink, if they differ from the recorded ones.
    pub(super) fn record_claimed(
        &self,
        sink: usize,
        progress: &ProgressSnapshot,
        writer: Option<&ProgressWriter>,
    ) -> Result<(), SinkError> {
        let topics = self.of_sink(sink);
        match writer {
            Some(writer) if progress.get::<TopicIdentities>(TOPICS)?.as_ref() != Some(&topics) => {
                writer.write(TOPICS, &topics)
            }
            _ => Ok(()),
        }
    }

    /// Starts recording changes.
    pub(super) fn install_writers(&self, writers: Vec<ProgressWriter>) {
        let _ = self.writers.set(writers);
    }

    /// Checks the topics regularly. `failed` receives the reason if the run cannot continue.
    pub(super) fn watch(
        self: &Arc<Self>,
        failed: impl Fn(String) + Clone + Send + 'static,
    ) -> Result<TopicWatch, RunError> {
        let records = self.lock().clone();
        let watched = self.clusters.iter().cloned().zip(records);
        let watched = watched.map(|(cluster, topics)| WatchedCluster { cluster, topics }).collect();
        let (changing, writing) = (Arc::clone(self), Arc::clone(self));
        let changed = move |sink: usize, change: &TopicChange| {
            failed(format!("while the service runs: {}", changing.topics[sink].refuse(change, false)));
        };
        let written = move |sink: usize, topics: &BTreeSet<String>| writing.record_written(sink, topics);
        TopicWatch::start_watching(watched, changed, written).map_err(RunError::Failed)
    }

    /// Records that topics have been written to. From then on, an empty topic of the same name is a
    /// different one.
    fn record_written(&self, sink: usize, written: &BTreeSet<String>) -> bool {
        let Some(writer) = self.writers.get().and_then(|writers| writers.get(sink)) else { return false };
        let mut records = self.of_sink(sink);
        for topic in written {
            records.entry(topic.clone()).or_default().is_written = true;
        }
        let result = writer.write(TOPICS, &records);
        if let Err(error) = &result {
            tracing::debug!(%error, "topics that were written for the first time cannot be recorded now; it is retried");
            return false;
        }
        if let Some(identities) = self.lock().get_mut(sink) {
            *identities = records;
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Vec<TopicIdentities>> {
        self.records.lock()
    }
}

/// The recorded identity of the topic of a source.
pub(super) fn recorded_topic(progress: &ProgressSnapshot, topic: &str) -> Result<TopicIdentity, RunError> {
    let mut recorded = progress.get::<TopicIdentities>(TOPICS)?.unwrap_or_default();
    Ok(recorded.remove(topic).unwrap_or_default())
}
