//! The progress of a sink: who may write it, what its results are made with, and how far each shard
//! has come.
//!
//! Every sink reports it as a [`ProgressSnapshot`]: JSON values by key. A Kafka sink stores them in
//! its progress topic under the same keys; other sinks store them in their own format.
//!
//! | key | value |
//! |---|---|
//! | `claim` | the generation that may write: `{"generation":7,"nonce":".."}` |
//! | `identity` | the settings and logs that the results are made with |
//! | `shard/N` | `{"epoch":..,"positions":{SOURCE:{PARTITION:..}},"before":..}` |
//!
//! `before` has the last record of each partition:
//! `{SOURCE:{PARTITION:{"position":..,"digest":..}}}`.
//!
//! The authority of a run also holds records of the run as a whole:
//!
//! | key | value |
//! |---|---|
//! | `epochs` | epochs below this may be in use |
//! | `start/SOURCE` | the first position that was read of each partition: `{PARTITION:..}` |
//! | `schema/SOURCE/ID` | the response of a schema registry |
//! | `topics` | the identities of the topics that are read and written: `{TOPIC:{"id":..}}` |
//! | `marker` | no value: marks an offset, or is a heartbeat |

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::SinkError;
use crate::model::rules_version::rebuild_hint;
use crate::model::{Fingerprint, LogPosition, random_u64};

pub const CLAIM: &str = "claim";
pub const IDENTITY: &str = "identity";
pub const TOPICS: &str = "topics";
pub const EPOCHS: &str = "epochs";
pub const MARKER: &str = "marker";
/// The prefixes of the keys of shards and of start positions.
pub const SHARD_PREFIX: &str = "shard/";
pub const START_PREFIX: &str = "start/";

/// The key of a shard's progress, by its number within the sink.
pub fn shard_key(shard: u16) -> String {
    format!("{SHARD_PREFIX}{shard}")
}

/// The key of the start positions of a source.
pub fn start_key(source: &str) -> String {
    format!("{START_PREFIX}{source}")
}

/// The prefix of the keys of a source's registry responses; the id follows.
pub fn schema_prefix(source: &str) -> String {
    format!("schema/{source}/")
}

/// The generation that may write.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    pub generation: u64,
    pub nonce: String,
}

impl Claim {
    /// The claim that follows `last`.
    pub fn next(last: Option<&Claim>) -> Claim {
        let generation = last.map_or(1, |claim| claim.generation + 1);
        Claim { generation, nonce: format!("{:016x}", random_u64()) }
    }

    /// Parses a generation as [`Claim::generation`] formats it.
    pub fn parse(generation: &str) -> Option<Claim> {
        let (number, nonce) = generation.split_once('-')?;
        Some(Claim { generation: number.parse().ok()?, nonce: nonce.to_owned() })
    }

    /// Number and nonce, as `17-9f2c41d06b3e8a55`.
    pub fn generation(&self) -> String {
        format!("{}-{}", self.generation, self.nonce)
    }
}

/// A claim that follows a given other claim. It is chosen before it is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SuccessorClaim {
    of: Claim,
    claim: Claim,
}

impl SuccessorClaim {
    /// `None` if no generation has claimed the sink yet.
    pub fn after(progress: &ProgressSnapshot) -> Result<Option<SuccessorClaim>, SinkError> {
        let of = progress.get::<Claim>(CLAIM)?;
        Ok(of.map(|of| SuccessorClaim { claim: Claim::next(Some(&of)), of }))
    }

    /// The claim to make, if the last claim is still the one that it follows.
    pub(super) fn claim_after(&self, last: Option<&Claim>) -> Option<Claim> {
        (last == Some(&self.of)).then(|| self.claim.clone())
    }

    /// Whether `claim` is another claim of the same generation or a newer one.
    pub fn is_overtaken_by(&self, claim: &Claim) -> bool {
        claim.generation >= self.claim.generation && *claim != self.claim
    }

    pub fn generation(&self) -> Arc<str> {
        self.claim.generation().into()
    }
}

/// A claim that was made, and the progress before it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SinkClaim {
    pub(super) claim: Claim,
    /// The offset of the claim's record, or the number of the claim.
    pub(super) at: i64,
    pub(super) recorded: Option<SinkIdentity>,
}

impl SinkClaim {
    pub fn generation(&self) -> Arc<str> {
        self.claim.generation().into()
    }
}

/// How to claim a sink.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClaimRequest<'a> {
    /// The generation of the run, if the authority is not this sink.
    pub generation: Option<&'a str>,
    /// The claim to make, if this start follows another generation. Claiming fails if any other
    /// generation has claimed the sink.
    pub after: Option<&'a SuccessorClaim>,
}

/// How far a shard has come: its output is complete up to and including this epoch and these
/// positions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardProgress {
    pub epoch: u64,
    pub positions: Positions,
    /// The last record of each partition before the positions, if it is known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub before: Fingerprints,
}

/// A value for each partition, by the name of its source.
pub type BySource<T> = BTreeMap<Arc<str>, BTreeMap<u32, T>>;

pub type Positions = BySource<u64>;

pub type Fingerprints = BySource<Fingerprint>;

impl ShardProgress {
    /// The position of a partition, with the record before it; `None` if it is not recorded.
    pub fn at(&self, source: &str, partition: u32) -> Option<LogPosition> {
        let position = *self.positions.get(source)?.get(&partition)?;
        let before = self.before.get(source).and_then(|of| of.get(&partition)).copied();
        Some(LogPosition { position, before })
    }
}

/// The settings and logs that a sink's results are made with, by the names that error messages use.
pub type SinkIdentity = BTreeMap<String, String>;

/// The prefix of the names of sources in an identity.
const SOURCE_PREFIX: &str = "source ";

/// A setting that differs: the value that results were made with, and the value now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {before}, now it is {now}")]
pub struct IdentityDifference {
    pub what: String,
    pub before: String,
    pub now: String,
}

impl IdentityDifference {
    /// The advice that is appended to the refusal.
    pub fn rebuild_hint(&self) -> &'static str {
        rebuild_hint(&self.what)
    }
}

/// Finds why results of one identity cannot be continued with another. Sources may be added, which
/// are then read from their start. Removed sources are detected by their positions.
pub fn find_difference(recorded: &SinkIdentity, identity: &SinkIdentity) -> Option<IdentityDifference> {
    let differs = |what: &&String| {
        let (before, now) = (recorded.get(*what), identity.get(*what));
        before != now && !(what.starts_with(SOURCE_PREFIX) && (before.is_none() || now.is_none()))
    };
    let what = recorded.keys().chain(identity.keys()).find(differs)?;
    let of = |identity: &SinkIdentity| identity.get(what).cloned().unwrap_or_else(|| "nothing".to_owned());
    Some(IdentityDifference { what: what.clone(), before: of(recorded), now: of(identity) })
}

/// Everything that a sink holds besides the results, by key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProgressSnapshot {
    values: BTreeMap<String, Vec<u8>>,
    /// The topic or folder that it was read from, for error messages.
    #[serde(rename = "topic")]
    shown_as: String,
    /// The offset of the last record that was read, if the sink is a log.
    #[serde(rename = "last")]
    last_offset: Option<i64>,
}

impl ProgressSnapshot {
    pub fn new(shown_as: &str) -> ProgressSnapshot {
        ProgressSnapshot { shown_as: shown_as.to_owned(), ..ProgressSnapshot::default() }
    }

    #[cfg(test)]
    pub fn of(
        shown_as: &str,
        values: impl Iterator<Item = (String, Vec<u8>)>,
        last: i64,
    ) -> ProgressSnapshot {
        ProgressSnapshot { values: values.collect(), shown_as: shown_as.to_owned(), last_offset: Some(last) }
    }

    /// The offset of the last record that was read.
    pub fn last_offset(&self) -> Option<i64> {
        self.last_offset
    }

    /// Adds a record of a log.
    pub(super) fn add_record(&mut self, offset: i64, record: Option<(String, Vec<u8>)>) {
        self.last_offset = Some(offset);
        self.values.extend(record);
    }

    /// Sets the value of a key.
    pub(super) fn set(&mut self, key: &str, value: &impl Serialize) {
        // Every value that a sink holds can be serialized.
        self.values.insert(key.to_owned(), serde_json::to_vec(value).unwrap_or_default());
    }

    /// Replaces the progress of the shards by that of `other`.
    pub(super) fn with_shards_of(mut self, other: ProgressSnapshot) -> ProgressSnapshot {
        let is_shard = |key: &String| key.starts_with(SHARD_PREFIX);
        self.values.retain(|key, _| !is_shard(key));
        self.values.extend(other.values.into_iter().filter(|(key, _)| is_shard(key)));
        self
    }

    /// The value of a key.
    pub fn get<T: for<'de> Deserialize<'de>>(&self, key: &str) -> Result<Option<T>, SinkError> {
        let parse = |value: &Vec<u8>| {
            serde_json::from_slice(value).map_err(|error| {
                let place = &self.shown_as;
                SinkError::Fatal(format!("{place}, key {key}: {error}: is it a progress topic of swelter?"))
            })
        };
        self.values.get(key).map(parse).transpose()
    }

    /// The progress of a shard, by its number within the sink; `None` if it has none yet.
    pub fn shard(&self, number: u16) -> Result<Option<ShardProgress>, SinkError> {
        self.get(&shard_key(number))
    }

    /// The keys with a prefix, without the prefix, and their values.
    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let from = self.values.range(prefix.to_owned()..);
        from.map_while(move |(key, value)| Some((key.strip_prefix(prefix)?, &value[..])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_progress_of_earlier_versions_has_no_fingerprints() {
        let old = r#"{"epoch":3,"positions":{"readings":{"0":7}}}"#;
        let progress: ShardProgress = serde_json::from_str(old).unwrap();
        assert_eq!(progress.at("readings", 0), Some(7.into()));
        assert_eq!((progress.at("readings", 1), progress.at("other", 0)), (None, None));
        assert_eq!(serde_json::to_string(&progress).unwrap(), old);
        let before = Fingerprint { position: 5, digest: 9, leader_epoch: None };
        let progress =
            ShardProgress { before: [("readings".into(), [(0, before)].into())].into(), ..progress };
        let json = serde_json::to_vec(&progress).unwrap();
        let read: ShardProgress = serde_json::from_slice(&json).unwrap();
        assert_eq!(read.at("readings", 0), Some(LogPosition { position: 7, before: Some(before) }));
    }

    #[test]
    fn shard_progress_is_taken_from_committed_records() {
        let kept = |values: &[(&str, &str)]| ProgressSnapshot {
            values: values.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            ..ProgressSnapshot::default()
        };
        let now = kept(&[("claim", "2"), ("shard/0", "open"), ("shard/1", "aborted")]);
        let committed = kept(&[("claim", "1"), ("shard/0", "before")]);
        assert_eq!(now.with_shards_of(committed), kept(&[("claim", "2"), ("shard/0", "before")]));
    }
}
