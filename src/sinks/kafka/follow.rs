//! What a progress topic says while others write it: who has claimed it, whether they live, how far they have come.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::message::Message;

use super::progress::{
    CLAIM, Claim, MARKER, ProgressProducer, ProgressReader, READ_COMMITTED, READ_UNCOMMITTED, SHARD_PREFIX,
    ShardProgress, StopDeadline, is_permanent,
};
use super::sink::SinkClaim;
use super::{KafkaOutputPlan, KafkaSinkError};
use crate::kafka::KafkaCluster;

/// How often a running generation says that it lives.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// How often a cluster is asked whether it answers while nothing comes, and how long it may take.
const PROBE_AFTER: Duration = Duration::from_millis(500);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// No silence counts for more at a time: whoever is stopped and goes on has listened to nothing meanwhile.
const MAX_SILENCE_STEP: Duration = Duration::from_secs(1);

/// Watches for the claim of another start, until there is one or the run ends.
pub fn watch_for_claims(
    cluster: &KafkaCluster,
    topic: &str,
    from: i64,
    own: &Claim,
    stopping: &Arc<StopDeadline>,
) -> Result<Option<Claim>, KafkaSinkError> {
    let mut reader = ProgressReader::open(cluster, topic, READ_UNCOMMITTED, Offset::Offset(from))?;
    while !stopping.has_begun() {
        // Whatever goes wrong here goes wrong where results are written, too, and is said there.
        let Some(Ok(message)) = reader.poll() else { continue };
        let sign = parse_record(message.key().unwrap_or_default(), message.payload().unwrap_or_default());
        if let Some(ProgressRecord::Claim(claim)) = sign
            && claim != *own
        {
            return Ok(Some(claim));
        }
    }
    Ok(None)
}

/// Something that a running generation has said.
#[derive(Clone, Debug, PartialEq)]
pub enum ProgressRecord {
    /// How far a shard has come, by its number.
    Shard(u16, ShardProgress),
    Claim(Claim),
    /// What is kept under a key besides.
    Other(String, Vec<u8>),
}

/// Follows what is committed: `hear` hears all of it that the topic holds and that comes, until it says that this was enough.
pub fn follow_committed(
    cluster: &KafkaCluster,
    topic: &str,
    mut hear: impl FnMut(Option<ProgressRecord>) -> bool,
) -> Result<(), KafkaSinkError> {
    let mut reader = ProgressReader::open(cluster, topic, READ_COMMITTED, Offset::Beginning)?;
    loop {
        let sign = match reader.poll() {
            Some(Ok(message)) => {
                parse_record(message.key().unwrap_or_default(), message.payload().unwrap_or_default())
            }
            Some(Err(error)) if is_permanent(&error) => {
                return Err(KafkaSinkError::cannot_read(topic, error));
            }
            Some(Err(_)) | None => None,
        };
        if !hear(sign) {
            return Ok(());
        }
    }
}

/// What is heard of those who write a topic.
#[derive(Clone, Debug, PartialEq)]
pub enum Liveness {
    /// A record at this offset, in whatever transaction.
    Record(i64, Option<ProgressRecord>),
    /// Nothing for so long, though the cluster answers.
    Silence(Duration),
    /// Nothing at all: the cluster does not answer.
    Unreachable,
    /// It is too early to tell.
    TooEarly,
}

/// Listens to a topic as [`follow`] does, but also to what is not committed: an open transaction hides from those who wait for it
/// whatever comes behind it.
pub fn follow_liveness(
    cluster: &KafkaCluster,
    topic: &str,
    mut hear: impl FnMut(Liveness) -> bool,
) -> Result<(), KafkaSinkError> {
    let mut reader = ProgressReader::open(cluster, topic, READ_UNCOMMITTED, Offset::Beginning)?;
    let mut since = Instant::now();
    loop {
        let life = match reader.poll() {
            Some(Ok(message)) => {
                since = Instant::now();
                let sign =
                    parse_record(message.key().unwrap_or_default(), message.payload().unwrap_or_default());
                Liveness::Record(message.offset(), sign)
            }
            Some(Err(error)) if is_permanent(&error) => {
                return Err(KafkaSinkError::cannot_read(topic, error));
            }
            Some(Err(_)) | None if since.elapsed() < PROBE_AFTER => Liveness::TooEarly,
            Some(Err(_)) | None => {
                let silence = since.elapsed().min(MAX_SILENCE_STEP);
                let answers = reader.is_reachable(PROBE_TIMEOUT);
                since = Instant::now();
                if answers { Liveness::Silence(silence) } else { Liveness::Unreachable }
            }
        };
        if !hear(life) {
            return Ok(());
        }
    }
}

fn parse_record(key: &[u8], value: &[u8]) -> Option<ProgressRecord> {
    let key = std::str::from_utf8(key).ok()?;
    if let Some(number) = key.strip_prefix(SHARD_PREFIX) {
        return Some(ProgressRecord::Shard(number.parse().ok()?, serde_json::from_slice(value).ok()?));
    }
    if key == CLAIM {
        return Some(ProgressRecord::Claim(serde_json::from_slice(value).ok()?));
    }
    Some(ProgressRecord::Other(key.to_owned(), value.to_vec()))
}

/// Says again and again that whoever has claimed an outlet lives, until it is dropped.
pub struct Heartbeat {
    /// Its end is the end.
    _ends: Sender<()>,
}

impl Heartbeat {
    pub fn begin(plan: &KafkaOutputPlan, claimed: &SinkClaim) -> Result<Heartbeat, KafkaSinkError> {
        let writer = ProgressProducer::new(&plan.cluster, &plan.progress_topic)?;
        let nonce = claimed.nonce().to_owned();
        let (ends, ended) = channel::<()>();
        let beat = move || {
            while ended.recv_timeout(HEARTBEAT_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = writer.write(MARKER, &nonce) {
                    tracing::debug!(%error, "a sign of life was not written");
                }
            }
        };
        let spawned = thread::Builder::new().name("alive".into()).spawn(beat);
        spawned.map_err(|error| KafkaSinkError::Threads(Arc::new(error)))?;
        Ok(Heartbeat { _ends: ends })
    }
}
