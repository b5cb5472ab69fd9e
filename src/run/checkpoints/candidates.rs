//! Selects the checkpoints that a start may restore.

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

/// The timeout of a log that does not answer, after which the start fails, and the interval of the
/// attempts.
const LOG_TIMEOUT: Duration = Duration::from_secs(60);
const LOG_RETRY: Duration = Duration::from_millis(500);
/// How often a start lists checkpoints again if they are removed as fast as it tries them.
const MAX_LISTINGS: u32 = 100;
/// How many unusable checkpoints an error names.
const MAX_NAMED: usize = 4;

/// The logs and sinks that a checkpoint must fit.
pub struct RestoreContext<'a> {
    /// Checks that a log continues at a position.
    pub check: &'a dyn Fn(&str, u32, LogPosition) -> Result<(), SourceError>,
    /// All partitions, and their start positions without a checkpoint.
    pub partitions: &'a [(PartitionName, u64)],
    /// The durable positions of each shard of the sinks.
    pub written: &'a dyn Fn() -> Result<Vec<DurableShard>, RunError>,
    /// Another generation writes the sinks, and makes checkpoints.
    pub is_following: bool,
    /// Accept logs with other ids if their records fit.
    pub adopt_logs: bool,
}

/// Iterates over the checkpoints to try, newest first.
pub struct CheckpointCandidates<'a> {
    checkpoints: &'a Checkpoints,
    identity: &'a BTreeMap<String, String>,
    log_ids: &'a BTreeMap<String, String>,
    beginning: &'a RestoreContext<'a>,
    /// Checkpoints that were returned or do not fit.
    tried: BTreeSet<CheckpointName>,
    /// One of them belongs to these logs, so older ones may belong to other logs.
    has_own: bool,
    /// The newest checkpoint that is ahead of a sink, and how far.
    uncovered: Option<(CheckpointName, String)>,
    /// Why others cannot be used, newest first, as of the last listing.
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
            uncovered: None,
            unusable: Vec::new(),
            lists: 0,
        }
    }

    /// The newest checkpoint that was not tried yet. Lists the present ones each time, because a
    /// running generation removes some and publishes others.
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
            "checkpoints are removed faster than one can be loaded: raise checkpoints.keep or checkpoints.every"
                .into(),
        ))
    }

    /// Whether no sink is behind the checkpoint, and the logs continue at its positions. If not,
    /// logs the reason.
    ///
    /// # Errors
    ///
    /// If it belongs to other logs and is newer than all checkpoints of these logs: the location
    /// then belongs to another service.
    fn is_usable(&mut self, manifest: &Manifest, written: &[DurableShard]) -> Result<bool, RunError> {
        let name = manifest.name();
        let verdict = self.compare(manifest)?;
        self.has_own |= verdict == LogVerdict::Same;
        let missing_records = missing_in_sinks(manifest, written, self.beginning.partitions);
        let why = match verdict {
            LogVerdict::Copy(why) if self.beginning.adopt_logs => {
                tracing::info!(checkpoint = %name, "the logs are a copy of those that were read, and --adopt-logs allows it: the checkpoint is used: {why}");
                missing_records.clone()
            }
            LogVerdict::Another(why) | LogVerdict::Copy(why) if self.has_own => Some(why),
            LogVerdict::Another(why) => return Err(self.of_another_service(name, &why, false)),
            LogVerdict::Copy(why) => return Err(self.of_another_service(name, &why, true)),
            LogVerdict::Behind(why) if !self.has_own && !self.beginning.adopt_logs => {
                return Err(RunError::Failed(format!(
                    "the newest checkpoint in {}, {name}, includes more records than the log has ({why}): the log was restored from an older copy, or two services have continued the same one. Restore the newer log; to continue with this log, without the records that only the checkpoint includes, start once with --adopt-logs; to leave the checkpoints to another service, set checkpoints.url to another location",
                    self.checkpoints.location()
                )));
            }
            LogVerdict::Behind(why) | LogVerdict::Unreachable(why) => missing_records.clone().or(Some(why)),
            LogVerdict::Same => missing_records.clone(),
        };
        // A usable copy that was adopted counts as a checkpoint of these logs.
        self.has_own |= why.is_none();
        if let Some(why) = &why {
            tracing::warn!(checkpoint = %name, "a checkpoint cannot be used, and an older one is tried: {why}");
        }
        if let (Some(missing_records), None) = (missing_records, &self.uncovered) {
            self.uncovered = Some((name, missing_records));
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
        let location = self.checkpoints.location();
        let remedy = match is_copy {
            true => {
                "if this log is a copy or a restored backup of that one, start once with --adopt-logs; if not"
            }
            false => "restore the log that it was made of; if the checkpoint belongs to another service",
        };
        RunError::Failed(format!(
            "the newest checkpoint in {location}, {name}, was made of another log ({why}), and each service needs a location of its own for checkpoints: {remedy}, set checkpoints.url to another location, or start with another data directory"
        ))
    }

    /// Checks a start without a checkpoint: the logs must be complete.
    fn check_start_without_checkpoint(&self) -> Result<(), RunError> {
        self.refuse_uncovered_sinks()?;
        if self.unusable.is_empty() || self.beginning.is_following {
            return Ok(());
        }
        for (partition, start) in self.beginning.partitions {
            let check = || (self.beginning.check)(&partition.source, partition.partition, (*start).into());
            if let Err(why) = retry_until_answered(check, LOG_TIMEOUT, LOG_RETRY)? {
                let listed = self.unusable.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join("; ");
                let more = self.unusable.len().saturating_sub(MAX_NAMED);
                let more = if more > 0 { format!("; and {more} more") } else { String::new() };
                return Err(RunError::Failed(format!(
                    "none of the checkpoints in {} can be used ({listed}{more}), and the logs do not reach back to their beginnings (source {}: {why}): restore the missing or damaged files, or restore a backup with `swelter restore` into a new data directory",
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

    /// Refuses the start if the logs lack records that a checkpoint includes and a sink needs.
    fn refuse_uncovered_sinks(&self) -> Result<(), RunError> {
        let Some((name, missing_records)) = &self.uncovered else { return Ok(()) };
        for (partition, start) in self.beginning.partitions {
            let check = || (self.beginning.check)(&partition.source, partition.partition, (*start).into());
            if let Err(why) = retry_until_answered(check, LOG_TIMEOUT, LOG_RETRY)? {
                return Err(RunError::Failed(format!(
                    "the checkpoint {name} includes records whose results a sink lacks ({missing_records}), and the log no longer has them ({why}): if the sink is new, remove it from the configuration; if it was written before, configure it as it was, or restore its progress topic or folder; to begin anew, name another data directory and another location for checkpoints, and send the readings again"
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

/// Finds records that a checkpoint includes and a shard of the sinks lacks: a start with that
/// checkpoint would never write them.
pub(super) fn missing_in_sinks(
    manifest: &Manifest,
    written: &[DurableShard],
    partitions: &[(PartitionName, u64)],
) -> Option<String> {
    let start_of = |source: &str, partition: u32| {
        let partition_start =
            partitions.iter().find(|(name, _)| *name.source == *source && name.partition == partition);
        partition_start.map_or(0, |(_, start)| *start)
    };
    let of_shard = |shard: &DurableShard| {
        positions(manifest).filter(|(source, ..)| shard.is_of(source)).find_map(|(source, partition, at)| {
            // A partition without a recorded position was not read beyond its start.
            let written_until = shard.positions.get(source).and_then(|of| of.get(&partition)).copied();
            let written_until = written_until.unwrap_or_else(|| start_of(source, partition));
            (written_until < at).then(|| {
                format!(
                    "{} is complete up to {source}/{partition}/{written_until}, the checkpoint up to {at}",
                    shard.sink
                )
            })
        })
    };
    written.iter().find_map(of_shard)
}

/// Retries a request to a log until it answers.
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
                return Err(RunError::Failed(format!("checkpoints cannot be compared with the logs: {why}")));
            }
            Err(SourceError::Transient(_)) => thread::sleep(retry),
            Err(error) => return Ok(Err(error.to_string())),
        }
    }
}
