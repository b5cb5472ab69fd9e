//! The topics of a cluster as a durable sink.

use std::sync::Arc;
use std::time::Duration;

use super::error::KafkaSinkError;
use super::follow::{start_heartbeat, watch_for_claims};
use super::plan::KafkaOutputPlan;
use super::progress_topic::{ProgressProducer, ReadExtent, WaitLimit, read_topic};
use super::shard::KafkaShardWriter;
use crate::kafka::KafkaCluster;
use crate::model::rules_version::{RULES_VERSION_KEY, RulesVersionMismatch, VersionedArtifact};
use crate::sinks::contract::{DurableSink, Heartbeat, ProgressWriter, RecordWriter};
use crate::sinks::error::SinkError;
use crate::sinks::progress::{
    CLAIM, Claim, ClaimRequest, IDENTITY, MARKER, ProgressSnapshot, SinkClaim, SinkIdentity, find_difference,
};
use crate::sinks::shard::{FencedShards, ShardWriter};
use crate::sinks::stop::StopDeadline;

/// A sink of the topics of one cluster.
pub struct KafkaSink {
    plan: KafkaOutputPlan,
    /// By the topic index of encoded records.
    topics: Arc<[String]>,
    identity: SinkIdentity,
}

/// Reads the present content of a progress topic, while other processes may be writing it.
pub fn read_progress_topic(cluster: &KafkaCluster, topic: &str) -> Result<ProgressSnapshot, KafkaSinkError> {
    read_topic(cluster, topic, ReadExtent::Now, &WaitLimit::default())
}

impl KafkaSink {
    pub fn new(plan: KafkaOutputPlan, topics: Vec<String>, identity: SinkIdentity) -> KafkaSink {
        KafkaSink { plan, topics: topics.into(), identity }
    }

    fn read(&self, extent: ReadExtent, limit: &WaitLimit) -> Result<ProgressSnapshot, KafkaSinkError> {
        read_topic(&self.plan.cluster, &self.plan.progress_topic, extent, limit)
    }

    fn producer(&self) -> Result<ProgressProducer, KafkaSinkError> {
        ProgressProducer::new(&self.plan.cluster, &self.plan.progress_topic)
    }

    /// Refuses results that were made with another identity. Returns the recorded identity.
    fn check_identity(&self, progress: &ProgressSnapshot) -> Result<Option<SinkIdentity>, SinkError> {
        let recorded = progress.get::<SinkIdentity>(IDENTITY)?;
        if let Some(recorded) = &recorded {
            check_recorded(&self.plan.progress_topic, recorded, &self.identity)?;
        }
        Ok(recorded)
    }

    fn fenced(&self, by: &Claim) -> SinkError {
        let (topic, generation) = (self.plan.progress_topic.clone(), by.generation);
        KafkaSinkError::Fenced { topic, generation }.into()
    }

    /// Fails if another claim is the newest one.
    fn check_last_claim(&self, progress: &ProgressSnapshot, own_claim: &Claim) -> Result<(), SinkError> {
        match progress.get::<Claim>(CLAIM)? {
            Some(last) if last != *own_claim => Err(self.fenced(&last)),
            _ => Ok(()),
        }
    }
}

fn check_recorded(
    topic: &str,
    recorded: &SinkIdentity,
    identity: &SinkIdentity,
) -> Result<(), KafkaSinkError> {
    let (before, now) = (recorded.get(RULES_VERSION_KEY), identity.get(RULES_VERSION_KEY));
    RulesVersionMismatch::check_version(before, now, || VersionedArtifact::ProgressTopic {
        topic: topic.to_owned(),
    })?;
    match find_difference(recorded, identity) {
        Some(difference) => Err(KafkaSinkError::Identity { topic: topic.to_owned(), difference }),
        None => Ok(()),
    }
}

impl DurableSink for KafkaSink {
    fn shards(&self) -> u16 {
        self.plan.shards
    }

    fn commit_interval(&self) -> Duration {
        self.plan.commit_interval
    }

    fn metric_label(&self) -> (&'static str, String) {
        ("progress_topic", self.plan.progress_topic.clone())
    }

    fn inspect(&self, within: Duration) -> Result<ProgressSnapshot, SinkError> {
        let limit = WaitLimit::at_most(within);
        let now = self.read(ReadExtent::Now, &limit)?;
        self.check_identity(&now)?;
        // Shard progress of open and aborted transactions does not count.
        Ok(now.with_shards_of(self.read(ReadExtent::Committed, &limit)?))
    }

    fn claim(&self, request: &ClaimRequest<'_>) -> Result<SinkClaim, SinkError> {
        let before = self.read(ReadExtent::Now, &WaitLimit::default())?;
        let recorded = self.check_identity(&before)?;
        let last = before.get::<Claim>(CLAIM)?;
        let claim = match request.after {
            None => Claim::next(last.as_ref()),
            Some(after) => match after.claim_after(last.as_ref()) {
                Some(claim) => claim,
                None => return Err(self.fenced(&last.unwrap_or_default())),
            },
        };
        let at = self.producer()?.write(CLAIM, &claim)?;
        Ok(SinkClaim { claim, at, recorded })
    }

    fn check_claim(&self, claim: &SinkClaim) -> Result<(), SinkError> {
        let now = self.read(ReadExtent::Now, &WaitLimit::default())?;
        self.check_last_claim(&now, &claim.claim)
    }

    fn prove_liveness(&self, claim: &SinkClaim) -> Result<Option<Heartbeat>, SinkError> {
        start_heartbeat(&self.plan, &claim.claim).map(Some)
    }

    fn fence(&self, claim: &SinkClaim, shards: &[u16]) -> Result<FencedShards, SinkError> {
        let stop = Arc::<StopDeadline>::default();
        let open = |shard: &u16| {
            let writer = KafkaShardWriter::open(&self.plan, &self.topics, *shard, &claim.claim, &stop)?;
            Ok((*shard, Box::new(writer) as Box<dyn ShardWriter>))
        };
        let writers = shards.iter().map(open).collect::<Result<_, KafkaSinkError>>()?;
        Ok(FencedShards { writers, stop })
    }

    fn read_progress(&self, claim: &SinkClaim) -> Result<ProgressSnapshot, SinkError> {
        let writer = self.producer()?;
        // The marker comes after all committed records and after the end of every aborted
        // transaction, so reading up to it finds everything.
        let marker = writer.write(MARKER, &claim.claim.nonce)?;
        let progress = self.read(ReadExtent::Marker(marker), &WaitLimit::default())?;
        self.check_last_claim(&progress, &claim.claim)?;
        if claim.recorded.as_ref() != Some(&self.identity) {
            let mut all = claim.recorded.clone().unwrap_or_default();
            all.extend(self.identity.clone());
            writer.write(IDENTITY, &all)?;
        }
        Ok(progress)
    }

    fn progress_writer(&self) -> Result<Option<ProgressWriter>, SinkError> {
        Ok(Some(ProgressWriter::new(Arc::new(TopicRecords(self.producer()?)))))
    }

    fn watch_for_claims(&self, claim: &SinkClaim, stop: &Arc<StopDeadline>) -> Result<(), SinkError> {
        let KafkaOutputPlan { cluster, progress_topic, .. } = &self.plan;
        match watch_for_claims(cluster, progress_topic, claim.at, &claim.claim, stop)? {
            Some(other) => Err(self.fenced(&other)),
            None => Ok(()),
        }
    }
}

/// Writes the records of the authority to the progress topic.
struct TopicRecords(ProgressProducer);

impl RecordWriter for TopicRecords {
    fn write_record(&self, key: &str, value: &[u8]) -> Result<(), SinkError> {
        Ok(self.0.write_bytes(key, value, &WaitLimit::default()).map(drop)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_sink_identity_is_refused() {
        let identity = |pairs: &[(&str, &str)]| -> SinkIdentity {
            pairs.iter().map(|(what, value)| ((*what).to_owned(), (*value).to_owned())).collect()
        };
        let before = identity(&[
            ("formula", "nws"),
            ("partitions of topic now", "4"),
            ("source a", "topic a as json"),
        ]);
        let refused = |now: &[(&str, &str)]| {
            check_recorded("p", &before, &identity(now)).err().map(|error| error.to_string())
        };
        let same = [("formula", "nws"), ("partitions of topic now", "4"), ("source a", "topic a as json")];
        assert_eq!(refused(&same), None);
        for (at, other) in [(0, Some("rothfusz")), (1, None), (2, Some("topic b as json"))] {
            let mut now = same.to_vec();
            match other {
                Some(value) => now[at].1 = value,
                None => drop(now.remove(at)),
            }
            assert!(refused(&now).unwrap().contains(same[at].0));
        }
        // Sources may be added and removed.
        assert_eq!(refused(&same[..2]), None);
        assert_eq!(refused(&[&same[..], &[("source b", "topic b as json")]].concat()), None);
        assert!(refused(&[&same[..], &[("more", "1")]].concat()).is_some());
    }
}
