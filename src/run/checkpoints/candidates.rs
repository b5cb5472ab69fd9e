//! Which checkpoints a start may take up.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use super::repository::CheckpointRepository;
use crate::checkpoint::{CheckpointName, Checkpoints, Manifest, UsableCheckpoints};
use crate::model::{LogPosition, PartitionName};
use crate::run::durable_sinks::DurableShard;
use crate::run::log_identity::{LogVerdict, compare_logs};
use crate::run::run_error::RunError;
use crate::sources::SourceError;

/// How long a log may not answer before the start fails, and how often it is asked.
const LOG_TIMEOUT: Duration = Duration::from_secs(60);
const LOG_RETRY: Duration = Duration::from_millis(500);
/// How often a start lists them anew while they are given up as fast as it tries.
const MAX_LISTINGS: u32 = 100;
/// Of those that cannot be used, so many are named.
const MAX_NAMED: usize = 4;

/// What a run begins with beside checkpoints.
pub struct RestoreContext<'a> {
    /// Whether a log goes on at a position.
    pub check: &'a dyn Fn(&str, u32, LogPosition) -> Result<(), SourceError>,
    /// All there are, and from where each is read without a checkpoint.
    pub partitions: &'a [(PartitionName, u64)],
    /// How far each shard of the sinks has come, as it is now.
    pub written: &'a dyn Fn() -> Result<Vec<DurableShard>, RunError>,
    /// Another generation writes them, and makes checkpoints.
    pub is_following: bool,
    /// Logs with other ids whose records fit are taken for those that were read.
    pub adopt_logs: bool,
}

/// Gives checkpoints to try, the newest first.
pub struct CheckpointCandidates<'a> {
    checkpoints: &'a Checkpoints,
    identity: &'a BTreeMap<String, String>,
    log_ids: &'a BTreeMap<String, String>,
    beginning: &'a RestoreContext<'a>,
    /// Those that were given or will not do.
    tried: BTreeSet<CheckpointName>,
    /// One of these logs was among them: what is older may be of others.
    has_own: bool,
    /// The newest that the sinks lack something of, and what.
    lacking: Option<(CheckpointName, String)>,
    /// Why others cannot be used, the newest first, as it was when they were last listed.
    unusable: Vec<String>,
    lists: u32,
}

impl<'a> CheckpointCandidates<'a> {
    pub fn new(
        repository: &'a CheckpointRepository,
        beginning: &'a RestoreContext<'a>,
    ) -> CheckpointCandidates<'a> {
        let CheckpointRepository { checkpoints, identity, log_ids, .. } = repository;
        CheckpointCandidates {
            checkpoints,
            identity,
            log_ids,
            beginning,
            tried: BTreeSet::new(),
            has_own: false,
            lacking: None,
            unusable: Vec::new(),
            lists: 0,
        }
    }

    /// The newest that was not tried yet, of all that there are now: a generation that runs gives up some and publishes others.
    pub fn next(&mut self) -> Result<Option<Manifest>, RunError> {
        while self.lists < MAX_LISTINGS {
            self.lists += 1;
            let newest = self.checkpoints.list_names()?.first().copied();
            let UsableCheckpoints { usable, unusable } = self.checkpoints.find_usable(self.identity)?;
            self.unusable = unusable;
            let written = (self.beginning.written)()?;
            for manifest in usable {
                if self.tried.insert(manifest.name()) && self.is_usable(&manifest, &written)? {
                    return Ok(Some(manifest));
                }
            }
            if self.checkpoints.list_names()?.first().copied() == newest {
                return self.check_start_without_checkpoint().map(|()| None);
            }
        }
        Err(RunError::Failed(
            "checkpoints are given up faster than one can be loaded: set checkpoints.keep or checkpoints.every higher"
                .into(),
        ))
    }

    /// Whether the sinks have all that a checkpoint includes, and the logs go on where it ends; where not, the log says why.
    ///
    /// # Errors
    ///
    /// If it is of other logs and newer than all of these logs: the place belongs to another service.
    fn is_usable(&mut self, manifest: &Manifest, written: &[DurableShard]) -> Result<bool, RunError> {
        let name = manifest.name();
        let verdict = self.compare(manifest)?;
        self.has_own |= verdict == LogVerdict::Same;
        let lacks = missing_in_sinks(manifest, written, self.beginning.partitions);
        let why = match verdict {
            LogVerdict::Copy(why) if self.beginning.adopt_logs => {
                tracing::info!(checkpoint = %name, "a copy of the logs is gone on with: {why}");
                lacks.clone()
            }
            LogVerdict::Another(why) | LogVerdict::Copy(why) if self.has_own => Some(why),
            LogVerdict::Another(why) => return Err(self.of_another_service(name, &why, false)),
            LogVerdict::Copy(why) => return Err(self.of_another_service(name, &why, true)),
            LogVerdict::Behind(why) if !self.has_own && !self.beginning.adopt_logs => {
                return Err(RunError::Failed(format!(
                    "the newest checkpoint in {}, {name}, includes more than the log has ({why}): it was restored from an older copy, or two have \
                     gone on from one. Restore the newer log; to go on with this one, without what the checkpoint includes, start it once \
                     with --adopt-logs; to leave the checkpoints to another service, give this one a place of its own with checkpoints.url",
                    self.checkpoints.location()
                )));
            }
            LogVerdict::Behind(why) | LogVerdict::Unreachable(why) => lacks.clone().or(Some(why)),
            LogVerdict::Same => lacks.clone(),
        };
        // A copy that is gone on with.
        self.has_own |= why.is_none();
        if let Some(why) = &why {
            tracing::warn!(checkpoint = %name, "a checkpoint is not used: {why}");
        }
        if let (Some(lacks), None) = (lacks, &self.lacking) {
            self.lacking = Some((name, lacks));
        }
        Ok(why.is_none())
    }

    fn compare(&self, manifest: &Manifest) -> Result<LogVerdict, RunError> {
        retry_until_answered(
            || compare_logs(manifest, self.log_ids, self.beginning.check),
            LOG_TIMEOUT,
            LOG_RETRY,
        )?
        .map_err(|why| RunError::Failed(format!("the checkpoint {}: {why}", manifest.name())))
    }

    fn of_another_service(&self, name: CheckpointName, why: &str, is_copy: bool) -> RunError {
        let place = self.checkpoints.location();
        let remedy = match is_copy {
            true => {
                "if this log is a copy of that one, or a restored one, start once with --adopt-logs; if not"
            }
            false => "restore the log that it was made of; if it is another service's",
        };
        RunError::Failed(format!(
            "the newest checkpoint in {place}, {name}, was made of another log ({why}), and a place for checkpoints belongs to one service: \
             {remedy}, give this one a place of its own with checkpoints.url, or begin with another data directory"
        ))
    }

    /// There is none: everything must be in the logs then.
    fn check_start_without_checkpoint(&self) -> Result<(), RunError> {
        self.refuse_uncovered_sinks()?;
        if self.unusable.is_empty() || self.beginning.is_following {
            return Ok(());
        }
        for (partition, start) in self.beginning.partitions {
            let check = || (self.beginning.check)(&partition.source, partition.partition, (*start).into());
            if let Err(why) = retry_until_answered(check, LOG_TIMEOUT, LOG_RETRY)? {
                let shown = self.unusable.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join("; ");
                let more = self.unusable.len().saturating_sub(MAX_NAMED);
                let more = if more > 0 { format!("; and {more} more") } else { String::new() };
                return Err(RunError::Failed(format!(
                    "none of the checkpoints in {} can be used ({shown}{more}), and the logs do not reach back to their beginnings (source {}: {why}): \
                     put the right files back in their places, or restore a backup with `swelter restore` into a new data directory",
                    self.checkpoints.location(),
                    partition.source,
                )));
            }
        }
        tracing::warn!(
            unusable = self.unusable.len(),
            "none of the checkpoints can be used: the logs are read from their beginnings"
        );
        Ok(())
    }

    /// What one has that the sinks lack must be in the logs.
    fn refuse_uncovered_sinks(&self) -> Result<(), RunError> {
        let Some((name, lacks)) = &self.lacking else { return Ok(()) };
        for (partition, start) in self.beginning.partitions {
            let check = || (self.beginning.check)(&partition.source, partition.partition, (*start).into());
            if let Err(why) = retry_until_answered(check, LOG_TIMEOUT, LOG_RETRY)? {
                return Err(RunError::Failed(format!(
                    "the checkpoint {name} includes what was not written ({lacks}), and that cannot be computed again ({why}): configure the sinks \
                     as they were, restore their progress topics, or begin with another data directory and another place for checkpoints"
                )));
            }
        }
        Ok(())
    }
}

fn positions(manifest: &Manifest) -> impl Iterator<Item = (&str, u32, u64)> {
    let each = manifest.positions.iter();
    each.flat_map(|(source, of)| of.iter().map(move |(partition, at)| (source.as_str(), *partition, *at)))
}

/// What a shard of the sinks lacks of what a checkpoint includes: nobody would ever write it.
pub(super) fn missing_in_sinks(
    manifest: &Manifest,
    written: &[DurableShard],
    partitions: &[(PartitionName, u64)],
) -> Option<String> {
    let start_of = |source: &str, partition: u32| {
        let known =
            partitions.iter().find(|(name, _)| *name.source == *source && name.partition == partition);
        known.map_or(0, |(_, start)| *start)
    };
    let of_shard = |shard: &DurableShard| {
        positions(manifest).filter(|(source, ..)| shard.is_of(source)).find_map(|(source, partition, at)| {
            // One that is not recorded was not read beyond its start.
            let has = shard.positions.get(source).and_then(|of| of.get(&partition)).copied();
            let has = has.unwrap_or_else(|| start_of(source, partition));
            (has < at)
                .then(|| format!("the sinks are complete up to {source}/{partition}/{has}, it up to {at}"))
        })
    };
    written.iter().find_map(of_shard)
}

/// What a log says, once it answers.
pub(super) fn retry_until_answered<T>(
    ask: impl Fn() -> Result<T, SourceError>,
    patience: Duration,
    retry: Duration,
) -> Result<Result<T, String>, RunError> {
    let deadline = Instant::now() + patience;
    loop {
        match ask() {
            Ok(answer) => return Ok(Ok(answer)),
            Err(SourceError::Transient(why)) if Instant::now() >= deadline => {
                return Err(RunError::Failed(format!(
                    "whether checkpoints fit the logs cannot be found out: {why}"
                )));
            }
            Err(SourceError::Transient(_)) => thread::sleep(retry),
            Err(error) => return Ok(Err(error.to_string())),
        }
    }
}
