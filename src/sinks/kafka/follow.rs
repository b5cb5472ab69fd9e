//! Follows a progress topic that another generation writes: who has claimed it, whether that
//! generation lives, and how far its shards have come.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::message::Message;

use super::error::KafkaSinkError;
use super::plan::KafkaOutputPlan;
use super::progress_topic::{
    ProgressProducer, ProgressReader, READ_COMMITTED, READ_UNCOMMITTED, is_permanent,
};
use crate::fault::start_failure_text;
use crate::kafka::KafkaCluster;
use crate::sinks::contract::Heartbeat;
use crate::sinks::error::SinkError;
use crate::sinks::progress::{CLAIM, Claim, MARKER, SHARD_PREFIX, ShardProgress};
use crate::sinks::stop::StopDeadline;

/// The interval of the heartbeats of a running generation.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// How long nothing must come before the cluster is probed, and how long it may take to answer.
const PROBE_AFTER: Duration = Duration::from_millis(500);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// The most silence that one poll may add. A process that was suspended and resumed has not
/// listened meanwhile.
const MAX_SILENCE_STEP: Duration = Duration::from_secs(1);

/// Waits until another start claims the sink, or the run ends.
pub fn watch_for_claims(
    cluster: &KafkaCluster,
    topic: &str,
    from: i64,
    own_claim: &Claim,
    stop: &Arc<StopDeadline>,
) -> Result<Option<Claim>, KafkaSinkError> {
    let mut reader = ProgressReader::open(cluster, topic, READ_UNCOMMITTED, Offset::Offset(from))?;
    while !stop.has_begun() {
        // Errors are ignored here, because the writers get and report them, too.
        let Some(Ok(message)) = reader.poll() else { continue };
        let record = parse_record(message.key().unwrap_or_default(), message.payload().unwrap_or_default());
        if let Some(ProgressRecord::Claim(claim)) = record
            && claim != *own_claim
        {
            return Ok(Some(claim));
        }
    }
    Ok(None)
}

/// A record of a progress topic.
#[derive(Clone, Debug, PartialEq)]
pub enum ProgressRecord {
    /// The progress of a shard, by its number.
    Shard(u16, ShardProgress),
    Claim(Claim),
    /// Another key with its value.
    Other(String, Vec<u8>),
}

/// Reads all committed records, those that exist and those that come. `on_record` is called with
/// each record, and with `None` if none came for a moment, until it returns false.
pub fn follow_committed(
    cluster: &KafkaCluster,
    topic: &str,
    mut on_record: impl FnMut(Option<ProgressRecord>) -> bool,
) -> Result<(), KafkaSinkError> {
    let mut reader = ProgressReader::open(cluster, topic, READ_COMMITTED, Offset::Beginning)?;
    loop {
        let record = match reader.poll() {
            Some(Ok(message)) => {
                parse_record(message.key().unwrap_or_default(), message.payload().unwrap_or_default())
            }
            Some(Err(error)) if is_permanent(&error) => {
                return Err(KafkaSinkError::cannot_read(topic, error));
            }
            Some(Err(_)) | None => None,
        };
        if !on_record(record) {
            return Ok(());
        }
    }
}

/// A sign of whether the writers of a topic are alive.
#[derive(Clone, Debug, PartialEq)]
pub enum Liveness {
    /// A record at this offset, in any transaction.
    Record(i64, Option<ProgressRecord>),
    /// No record for this long, although the cluster answers.
    Silence(Duration),
    /// The cluster does not answer.
    Unreachable,
    /// Too early to decide.
    TooEarly,
}

/// Follows a topic like [`follow_committed`], but also reads uncommitted records: a reader of
/// committed records sees nothing after the start of an open transaction.
pub fn follow_liveness(
    cluster: &KafkaCluster,
    topic: &str,
    mut on_liveness: impl FnMut(Liveness) -> bool,
) -> Result<(), KafkaSinkError> {
    let mut reader = ProgressReader::open(cluster, topic, READ_UNCOMMITTED, Offset::Beginning)?;
    let mut since = Instant::now();
    loop {
        let liveness = match reader.poll() {
            Some(Ok(message)) => {
                since = Instant::now();
                let record =
                    parse_record(message.key().unwrap_or_default(), message.payload().unwrap_or_default());
                Liveness::Record(message.offset(), record)
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
        if !on_liveness(liveness) {
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

/// Writes heartbeats until the returned value is dropped, so standbys know that the generation of
/// the claim is alive.
pub(super) fn start_heartbeat(plan: &KafkaOutputPlan, claim: &Claim) -> Result<Heartbeat, SinkError> {
    let writer = ProgressProducer::new(&plan.cluster, &plan.progress_topic)?;
    let nonce = claim.nonce.clone();
    let (ends, ended) = channel::<()>();
    let beat = move || {
        while ended.recv_timeout(HEARTBEAT_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            if let Err(error) = writer.write(MARKER, &nonce) {
                tracing::debug!(%error, "a heartbeat cannot be written to the progress topic; the next one follows");
            }
        }
    };
    let spawned = thread::Builder::new().name("alive".into()).spawn(beat);
    spawned.map_err(|error| SinkError::Fatal(start_failure_text(&error)))?;
    Ok(Heartbeat::until_dropped(ends))
}
