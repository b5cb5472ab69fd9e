//! An outlet from claim to end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::follow::{self, Heartbeat};
use super::progress::{
    self, CLAIM, Claim, EPOCHS, IDENTITY, MARKER, Positions, ProgressProducer, ProgressSnapshot, ReadExtent,
    ShardProgress, StopDeadline, TOPICS, WaitLimit,
};
use super::shard::{ShardBatch, ShardWriter, SharedPositions};
use super::{Delivery, KafkaOutputPlan, KafkaSinkError};
use crate::kafka::topic_identity::TopicIdentities;
use crate::model::rules_version::{RULES_VERSION_KEY, RulesVersionMismatch, VersionedArtifact};
use crate::model::{Shard, random_u64};

/// What an outlet's results were made with, by what people call it.
pub type Identity = BTreeMap<String, String>;

/// An outlet that this process has claimed: no earlier one writes any more, and what they have written is known.
pub struct KafkaSink {
    plan: KafkaOutputPlan,
    first_shard: u16,
    claim: Claim,
    claimed_at: i64,
    writer: Arc<ProgressProducer>,
    /// Those of this process.
    writers: Vec<(u16, ShardWriter)>,
    progress: ProgressSnapshot,
    stopping: Arc<StopDeadline>,
    heartbeat: Option<Heartbeat>,
}

/// A claim that is to follow another one, chosen before it is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SuccessorClaim {
    of: Claim,
    claim: Claim,
}

impl SuccessorClaim {
    /// None where nobody has claimed the outlet yet.
    pub fn after(kept: &ProgressSnapshot) -> Result<Option<SuccessorClaim>, KafkaSinkError> {
        let of = kept.get::<Claim>(CLAIM)?;
        Ok(of.map(|of| SuccessorClaim { claim: Claim::next(Some(&of)), of }))
    }

    /// Whether another one than it has claimed what it is to claim.
    pub fn is_overtaken_by(&self, claim: &Claim) -> bool {
        claim.generation >= self.claim.generation && *claim != self.claim
    }

    pub fn generation(&self) -> Arc<str> {
        format!("{}-{}", self.claim.generation, self.claim.nonce).into()
    }
}

impl Claim {
    fn next(last: Option<&Claim>) -> Claim {
        let generation = last.map_or(1, |claim| claim.generation + 1);
        Claim { generation, nonce: format!("{:016x}", random_u64()) }
    }
}

/// What others have written of an outlet until now, and how whoever goes on with it compares to them; within so much time.
pub fn inspect_progress(
    plan: &KafkaOutputPlan,
    identity: &Identity,
    within: Duration,
) -> Result<ProgressSnapshot, KafkaSinkError> {
    let (topic, patience) = (&plan.progress_topic, WaitLimit::at_most(within));
    let read = |extent| progress::read_topic(&plan.cluster, topic, extent, &patience);
    let kept = read(ReadExtent::Now)?;
    check_identity(topic, kept.get::<Identity>(IDENTITY)?.as_ref(), identity)?;
    // Where a shard stands is not said by transactions that are open or were given up.
    Ok(kept.with_shards_of(read(ReadExtent::Committed)?))
}

/// A claim of an outlet, and what was there before it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SinkClaim {
    claim: Claim,
    /// The offset of its record.
    at: i64,
    recorded: Option<Identity>,
}

impl SinkClaim {
    /// Claims an outlet: the first step of its start, at one process of a run.
    ///
    /// # Errors
    ///
    /// Where the results were made with another identity; before anything is claimed.
    ///
    /// With an `after`, where anybody but that claim has it.
    pub fn acquire(
        plan: &KafkaOutputPlan,
        identity: &Identity,
        after: Option<&SuccessorClaim>,
    ) -> Result<SinkClaim, KafkaSinkError> {
        let (cluster, topic) = (&plan.cluster, &plan.progress_topic);
        let before = ProgressSnapshot::read_now(cluster, topic)?;
        let recorded = before.get::<Identity>(IDENTITY)?;
        check_identity(topic, recorded.as_ref(), identity)?;
        let last = before.get::<Claim>(CLAIM)?;
        let claim = match after {
            None => Claim::next(last.as_ref()),
            Some(after) if last.as_ref() == Some(&after.of) => after.claim.clone(),
            Some(_) => {
                let generation = last.map_or(0, |claim| claim.generation);
                return Err(KafkaSinkError::Fenced { topic: topic.clone(), generation });
            }
        };
        let at = ProgressProducer::new(cluster, topic)?.write(CLAIM, &claim)?;
        Ok(SinkClaim { claim, at, recorded })
    }

    pub(super) fn nonce(&self) -> &str {
        &self.claim.nonce
    }

    /// Reads what is durable, once every process has fenced its shards: nothing is added to it any more but by this start.
    ///
    /// # Errors
    ///
    /// Where another start has claimed the outlet meanwhile.
    pub fn read_progress(
        &self,
        plan: &KafkaOutputPlan,
        identity: &Identity,
        topics: &TopicIdentities,
    ) -> Result<ProgressSnapshot, KafkaSinkError> {
        let (cluster, topic) = (&plan.cluster, &plan.progress_topic);
        let writer = ProgressProducer::new(cluster, topic)?;
        // Behind all that was committed, and behind the marks of all that was given up: what can be read up to here is all.
        let marker = writer.write(MARKER, &self.claim.nonce)?;
        let kept = progress::read_topic(cluster, topic, ReadExtent::Marker(marker), &WaitLimit::default())?;
        if let Some(other) = kept.get::<Claim>(CLAIM)?.filter(|last| *last != self.claim) {
            return Err(KafkaSinkError::Fenced { topic: topic.clone(), generation: other.generation });
        }
        if self.recorded.as_ref() != Some(identity) {
            let mut all = self.recorded.clone().unwrap_or_default();
            all.extend(identity.clone());
            writer.write(IDENTITY, &all)?;
        }
        // Before anything is written to them or read of them.
        if kept.get::<TopicIdentities>(TOPICS)?.as_ref() != Some(topics) {
            writer.write(TOPICS, topics)?;
        }
        Ok(kept)
    }
}

/// The shards of an outlet that this process writes: no earlier writer of theirs writes any more.
pub struct FencedShards {
    writers: Vec<(u16, ShardWriter)>,
    stopping: Arc<StopDeadline>,
}

impl FencedShards {
    /// Fences every earlier writer of these shards, numbered within the outlet.
    pub fn fence(
        plan: &KafkaOutputPlan,
        topics: Vec<String>,
        shards: impl Iterator<Item = u16>,
        claimed: &SinkClaim,
    ) -> Result<FencedShards, KafkaSinkError> {
        let topics: Arc<[String]> = topics.into();
        let stopping = Arc::<StopDeadline>::default();
        let open = |shard| Ok((shard, ShardWriter::open(plan, &topics, shard, &claimed.claim, &stopping)?));
        let writers = shards.map(open).collect::<Result<_, KafkaSinkError>>()?;
        Ok(FencedShards { writers, stopping })
    }
}

impl KafkaSink {
    /// An outlet that was claimed, fenced and read, in this order.
    pub fn new(
        plan: &KafkaOutputPlan,
        first_shard: Shard,
        claimed: SinkClaim,
        (fenced, alive): (FencedShards, Option<Heartbeat>),
        kept: ProgressSnapshot,
    ) -> Result<KafkaSink, KafkaSinkError> {
        let writer = Arc::new(ProgressProducer::new(&plan.cluster, &plan.progress_topic)?);
        let FencedShards { writers, stopping } = fenced;
        let SinkClaim { claim, at, .. } = claimed;
        let plan = plan.clone();
        let first_shard = first_shard.0;
        let claimed_at = at;
        Ok(KafkaSink {
            plan,
            first_shard,
            claim,
            claimed_at,
            writer,
            writers,
            progress: kept,
            stopping,
            heartbeat: alive,
        })
    }

    /// The number of this start and a random one, as `17-9f2c41d06b3e8a55`.
    pub fn generation(&self) -> Arc<str> {
        format!("{}-{}", self.claim.generation, self.claim.nonce).into()
    }

    /// No epoch below may be used: an earlier start may have used it.
    pub fn epoch_floor(&self) -> Result<u64, KafkaSinkError> {
        let shards = self.shards()?;
        let written =
            shards.iter().map(|(_, progress)| progress.as_ref().map_or(0, |progress| progress.epoch + 1));
        Ok(written.max().unwrap_or(0).max(self.progress.get::<u64>(EPOCHS)?.unwrap_or(0)))
    }

    /// The shards, and how far each has come, if it ever has.
    pub fn shards(&self) -> Result<Vec<(Shard, Option<ShardProgress>)>, KafkaSinkError> {
        let shard = |number: u16| {
            Ok((Shard(self.first_shard + number), self.progress.get(&progress::shard_key(number))?))
        };
        (0..self.plan.shards).map(shard).collect()
    }

    /// What earlier starts have kept beside the shards' progress.
    pub fn progress(&self) -> &ProgressSnapshot {
        &self.progress
    }

    /// Keeps more of it.
    pub fn progress_writer(&self) -> ProgressWriter {
        ProgressWriter(Arc::clone(&self.writer))
    }

    /// Starts the shards' threads, and where told so the watch for another claim. `failed` hears what ends the run, at most once a
    /// thread.
    pub fn start_writers(
        self,
        watches: bool,
        failed: Arc<dyn Fn(KafkaSinkError) + Send + Sync>,
    ) -> Result<RunningKafkaSink, KafkaSinkError> {
        let threads = |error| KafkaSinkError::Threads(Arc::new(error));
        let pending = Arc::new(AtomicUsize::new(0));
        let (stopping, _alive) = (self.stopping, self.heartbeat);
        let mut running = RunningKafkaSink {
            senders: Vec::new(),
            pending,
            durable: Vec::new(),
            stopping,
            threads: Vec::new(),
            _alive,
        };
        for (number, mut writer) in self.writers {
            let (end, portions) = mpsc::channel();
            running.senders.push((Shard(self.first_shard + number), end));
            running.durable.push(writer.share_durable(self.progress.get(&progress::shard_key(number))?));
            let (pending, failed) = (Arc::clone(&running.pending), Arc::clone(&failed));
            let write = move || {
                let written = writer.run(&portions, &pending);
                written.map_err(|error| failed(error)).is_ok()
            };
            let name = format!("sink {number}");
            running.threads.push(thread::Builder::new().name(name).spawn(write).map_err(threads)?);
        }
        if !watches {
            return Ok(running);
        }
        let (plan, claim, from) = (self.plan, self.claim, self.claimed_at);
        let stopping = Arc::clone(&running.stopping);
        let watch = move || match follow::watch_for_claims(
            &plan.cluster,
            &plan.progress_topic,
            from,
            &claim,
            &stopping,
        ) {
            Ok(None) => {}
            Ok(Some(Claim { generation, .. })) => {
                failed(KafkaSinkError::Fenced { topic: plan.progress_topic, generation });
            }
            Err(error) => failed(error),
        };
        thread::Builder::new().name("claims".into()).spawn(watch).map_err(threads)?;
        Ok(running)
    }
}

/// Sources may be added: all of them is read then. Those that are gone are noticed by their positions.
fn check_identity(
    topic: &str,
    recorded: Option<&Identity>,
    identity: &Identity,
) -> Result<(), KafkaSinkError> {
    let Some(recorded) = recorded else { return Ok(()) };
    RulesVersionMismatch::check_version(
        recorded.get(RULES_VERSION_KEY),
        identity.get(RULES_VERSION_KEY),
        || VersionedArtifact::ProgressTopic { topic: topic.to_owned() },
    )?;
    let nothing = || "nothing".to_owned();
    for what in recorded.keys().chain(identity.keys()) {
        let (before, now) = (recorded.get(what), identity.get(what));
        if before != now && !(what.starts_with(SOURCE_PREFIX) && (before.is_none() || now.is_none())) {
            let (before, now) =
                (before.cloned().unwrap_or_else(nothing), now.cloned().unwrap_or_else(nothing));
            return Err(KafkaSinkError::Identity {
                topic: topic.to_owned(),
                what: what.clone(),
                before,
                now,
            });
        }
    }
    Ok(())
}

/// What the names of sources begin with in an identity.
const SOURCE_PREFIX: &str = "source ";

/// Keeps what must outlive a restart.
#[derive(Clone)]
pub struct ProgressWriter(Arc<ProgressProducer>);

impl ProgressWriter {
    pub fn write(&self, key: &str, value: &impl serde::Serialize) -> Result<(), KafkaSinkError> {
        self.0.write(key, value).map(drop)
    }

    /// Makes durable that epochs below `upto` may be in use. To be called ahead of their use.
    pub fn reserve_epochs(&self, upto: u64) -> Result<(), KafkaSinkError> {
        self.write(EPOCHS, &upto)
    }
}

/// The running shards of an outlet.
pub struct RunningKafkaSink {
    senders: Vec<(Shard, Sender<ShardBatch>)>,
    /// Bytes that wait to be durable.
    pending: Arc<AtomicUsize>,
    durable: Vec<SharedPositions>,
    stopping: Arc<StopDeadline>,
    threads: Vec<JoinHandle<bool>>,
    _alive: Option<Heartbeat>,
}

/// The ends that workers give portions to.
#[derive(Clone)]
pub struct ShardSenders {
    senders: Vec<(Shard, Sender<ShardBatch>)>,
    pending: Arc<AtomicUsize>,
    durable: Vec<SharedPositions>,
}

impl ShardSenders {
    pub fn shards(&self) -> impl Iterator<Item = Shard> {
        self.senders.iter().map(|(shard, _)| *shard)
    }

    /// Gives a shard what it writes next. Who gives looks at [`Ends::pending`] first: this takes everything.
    pub fn send_batch(&self, shard: Shard, portion: ShardBatch) {
        if let Some((_, end)) = self.senders.iter().find(|(own, _)| *own == shard) {
            self.pending.fetch_add(portion.bytes(), Ordering::Relaxed);
            // A shard whose thread has ended has said why.
            let _ = end.send(portion);
        }
    }

    /// Bytes that wait to be durable.
    pub fn pending_bytes(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    /// Whether what all shards of this process have made durable includes all input before these positions.
    pub fn have_written(&self, positions: &Positions) -> bool {
        self.durable.iter().all(|durable| {
            let durable = durable.lock().unwrap_or_else(PoisonError::into_inner);
            positions.iter().all(|(source, partitions)| {
                let written = durable.get(source);
                partitions.iter().all(|(partition, position)| {
                    *position == 0
                        || written.and_then(|of| of.get(partition)).is_some_and(|at| at >= position)
                })
            })
        })
    }
}

impl RunningKafkaSink {
    pub fn senders(&self) -> ShardSenders {
        let RunningKafkaSink { senders: ends, pending, durable, .. } = self;
        ShardSenders { senders: ends.clone(), pending: Arc::clone(pending), durable: durable.clone() }
    }

    /// Waits until everything that was given is durable; the workers have given back their ends. False where it is not.
    pub fn finish(self) -> bool {
        self.stopping.begin();
        drop(self.senders);
        // All of them, also behind one that has failed.
        let written: Vec<bool> =
            self.threads.into_iter().map(|thread| thread.join().unwrap_or(false)).collect();
        written.into_iter().all(|written| written)
    }
}

impl KafkaOutputPlan {
    pub(super) fn is_transactional(&self) -> bool {
        self.delivery == Delivery::ExactlyOnce
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_sink_identity_is_refused() {
        let identity = |pairs: &[(&str, &str)]| -> Identity {
            pairs.iter().map(|(what, value)| ((*what).to_owned(), (*value).to_owned())).collect()
        };
        let before = identity(&[
            ("formula", "nws"),
            ("partitions of topic now", "4"),
            ("source a", "topic a as json"),
        ]);
        let refused = |now: &[(&str, &str)]| {
            check_identity("p", Some(&before), &identity(now)).err().map(|error| error.to_string())
        };
        let same = [("formula", "nws"), ("partitions of topic now", "4"), ("source a", "topic a as json")];
        assert_eq!(refused(&same), None);
        assert_eq!(check_identity("p", None, &identity(&same)).err().map(|error| error.to_string()), None);
        for (at, other) in [(0, Some("rothfusz")), (1, None), (2, Some("topic b as json"))] {
            let mut now = same.to_vec();
            match other {
                Some(value) => now[at].1 = value,
                None => drop(now.remove(at)),
            }
            assert!(refused(&now).unwrap().contains(same[at].0));
        }
        // Sources come and go.
        assert_eq!(refused(&same[..2]), None);
        assert_eq!(refused(&[&same[..], &[("source b", "topic b as json")]].concat()), None);
        assert!(refused(&[&same[..], &[("more", "1")]].concat()).is_some());
    }
}
