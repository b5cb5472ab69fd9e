//! What a progress topic says while others write it: who has claimed it, whether they live, how far they have come.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::message::Message;

use super::outlet::Claimed;
use super::progress::{
    CLAIM, COMMITTED, Claim, MARKER, Reader, SHARD, ShardProgress, Stopping, UNCOMMITTED, Writer, is_final,
};
use super::{OutletError, OutletPlan};
use crate::kafka::Cluster;

/// How often a running generation says that it lives.
const BEAT: Duration = Duration::from_secs(1);
/// How often a cluster is asked whether it answers while nothing comes, and how long it may take.
const PROBE: Duration = Duration::from_millis(500);
const ANSWER: Duration = Duration::from_secs(1);
/// No silence counts for more at a time: whoever is stopped and goes on has listened to nothing meanwhile.
const LONGEST: Duration = Duration::from_secs(1);

/// Watches for the claim of another start, until there is one or the run ends.
pub fn watch(
    cluster: &Cluster,
    topic: &str,
    from: i64,
    own: &Claim,
    stopping: &Arc<Stopping>,
) -> Result<Option<Claim>, OutletError> {
    let mut reader = Reader::open(cluster, topic, UNCOMMITTED, Offset::Offset(from))?;
    while !stopping.has_begun() {
        // Whatever goes wrong here goes wrong where results are written, too, and is said there.
        let Some(Ok(message)) = reader.poll() else { continue };
        let sign = sign(message.key().unwrap_or_default(), message.payload().unwrap_or_default());
        if let Some(Sign::Claim(claim)) = sign
            && claim != *own
        {
            return Ok(Some(claim));
        }
    }
    Ok(None)
}

/// Something that a running generation has said.
#[derive(Clone, Debug, PartialEq)]
pub enum Sign {
    /// How far a shard has come, by its number.
    Shard(u16, ShardProgress),
    Claim(Claim),
    /// What is kept under a key besides.
    Kept(String, Vec<u8>),
}

/// Follows what is committed: `hear` hears all of it that the topic holds and that comes, until it says that this was enough.
pub fn follow(
    cluster: &Cluster,
    topic: &str,
    mut hear: impl FnMut(Option<Sign>) -> bool,
) -> Result<(), OutletError> {
    let mut reader = Reader::open(cluster, topic, COMMITTED, Offset::Beginning)?;
    loop {
        let sign = match reader.poll() {
            Some(Ok(message)) => {
                sign(message.key().unwrap_or_default(), message.payload().unwrap_or_default())
            }
            Some(Err(error)) if is_final(&error) => return Err(OutletError::reading(topic, error)),
            Some(Err(_)) | None => None,
        };
        if !hear(sign) {
            return Ok(());
        }
    }
}

/// What is heard of those who write a topic.
#[derive(Clone, Debug, PartialEq)]
pub enum Life {
    /// A record at this offset, in whatever transaction.
    Record(i64, Option<Sign>),
    /// Nothing for so long, though the cluster answers.
    Silence(Duration),
    /// Nothing at all: the cluster does not answer.
    Away,
    /// It is too early to tell.
    Nothing,
}

/// Listens to a topic as [`follow`] does, but also to what is not committed: an open transaction hides from those who wait for it
/// whatever comes behind it.
pub fn listen(cluster: &Cluster, topic: &str, mut hear: impl FnMut(Life) -> bool) -> Result<(), OutletError> {
    let mut reader = Reader::open(cluster, topic, UNCOMMITTED, Offset::Beginning)?;
    let mut since = Instant::now();
    loop {
        let life = match reader.poll() {
            Some(Ok(message)) => {
                since = Instant::now();
                let sign = sign(message.key().unwrap_or_default(), message.payload().unwrap_or_default());
                Life::Record(message.offset(), sign)
            }
            Some(Err(error)) if is_final(&error) => return Err(OutletError::reading(topic, error)),
            Some(Err(_)) | None if since.elapsed() < PROBE => Life::Nothing,
            Some(Err(_)) | None => {
                let silence = since.elapsed().min(LONGEST);
                let answers = reader.is_answered(ANSWER);
                since = Instant::now();
                if answers { Life::Silence(silence) } else { Life::Away }
            }
        };
        if !hear(life) {
            return Ok(());
        }
    }
}

fn sign(key: &[u8], value: &[u8]) -> Option<Sign> {
    let key = std::str::from_utf8(key).ok()?;
    if let Some(number) = key.strip_prefix(SHARD) {
        return Some(Sign::Shard(number.parse().ok()?, serde_json::from_slice(value).ok()?));
    }
    if key == CLAIM {
        return Some(Sign::Claim(serde_json::from_slice(value).ok()?));
    }
    Some(Sign::Kept(key.to_owned(), value.to_vec()))
}

/// Says again and again that whoever has claimed an outlet lives, until it is dropped.
pub struct Alive {
    /// Its end is the end.
    _ends: Sender<()>,
}

impl Alive {
    pub fn begin(plan: &OutletPlan, claimed: &Claimed) -> Result<Alive, OutletError> {
        let writer = Writer::new(&plan.cluster, &plan.progress_topic)?;
        let nonce = claimed.nonce().to_owned();
        let (ends, ended) = channel::<()>();
        let beat = move || {
            while ended.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = writer.write(MARKER, &nonce) {
                    tracing::debug!(%error, "a sign of life was not written");
                }
            }
        };
        let spawned = thread::Builder::new().name("alive".into()).spawn(beat);
        spawned.map_err(|error| OutletError::Threads(Arc::new(error)))?;
        Ok(Alive { _ends: ends })
    }
}
