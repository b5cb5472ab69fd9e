//! Which checkpoints a start may take up.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration as Wait, Instant};

use crate::checkpoint::{Checkpoints, Manifest, Name, Usable};
use crate::model::{LogPosition, PartitionName};
use crate::pipeline::checkpoints::Checkpointed;
use crate::pipeline::live::RunError;
use crate::pipeline::outlets::Written;
use crate::sources::{SourceError, journal};

/// How long a log may not answer before the start fails, and how often it is asked.
const LOG_PATIENCE: Wait = Wait::from_secs(60);
const LOG_RETRY: Wait = Wait::from_millis(500);
/// How often a start lists them anew while they are given up as fast as it tries.
const MOST_LISTS: u32 = 100;
/// Of those that cannot be used, so many are named.
const MOST_SHOWN: usize = 4;

/// What a run begins with beside checkpoints.
pub struct Beginning<'a> {
    /// Whether a log goes on at a position.
    pub check: &'a dyn Fn(&str, u32, LogPosition) -> Result<(), SourceError>,
    /// All there are, and from where each is read without a checkpoint.
    pub partitions: &'a [(PartitionName, u64)],
    /// How far each shard of the sinks has come, as it is now.
    pub written: &'a dyn Fn() -> Result<Vec<Written>, RunError>,
    /// Another generation writes them, and makes checkpoints.
    pub is_following: bool,
    /// Logs with other ids whose records fit are taken for those that were read.
    pub adopt_logs: bool,
}

/// Gives checkpoints to try, the newest first.
pub(super) struct Candidates<'a> {
    checkpoints: &'a Checkpoints,
    identity: &'a BTreeMap<String, String>,
    ids: &'a BTreeMap<String, String>,
    beginning: &'a Beginning<'a>,
    /// Those that were given or will not do.
    tried: BTreeSet<Name>,
    /// The newest that the sinks lack something of, and what.
    lacking: Option<(Name, String)>,
    /// Why others cannot be used, the newest first, as it was when they were last listed.
    unusable: Vec<String>,
    lists: u32,
}

impl<'a> Candidates<'a> {
    pub(super) fn new(kept: &'a Checkpointed, beginning: &'a Beginning<'a>) -> Candidates<'a> {
        let Checkpointed { checkpoints, identity, ids, .. } = kept;
        Candidates {
            checkpoints,
            identity,
            ids,
            beginning,
            tried: BTreeSet::new(),
            lacking: None,
            unusable: Vec::new(),
            lists: 0,
        }
    }

    /// The newest that was not tried yet, of all that there are now: a generation that runs gives up some and publishes others.
    pub(super) fn next(&mut self) -> Result<Option<Manifest>, RunError> {
        while self.lists < MOST_LISTS {
            self.lists += 1;
            let newest = self.checkpoints.list()?.first().copied();
            let Usable { usable, unusable } = self.checkpoints.usable(self.identity)?;
            self.unusable = unusable;
            let written = (self.beginning.written)()?;
            for manifest in usable {
                if self.tried.insert(manifest.name()) && self.fits(&manifest, &written)? {
                    return Ok(Some(manifest));
                }
            }
            if self.checkpoints.list()?.first().copied() == newest {
                return self.none().map(|()| None);
            }
        }
        Err(RunError::Failed(
            "checkpoints are given up faster than one can be loaded: set checkpoints.keep or checkpoints.every higher"
                .into(),
        ))
    }

    /// Whether the sinks have all that a checkpoint includes, and the logs go on where it ends; where not, the log says why.
    fn fits(&mut self, manifest: &Manifest, written: &[Written]) -> Result<bool, RunError> {
        let name = manifest.name();
        let lacks = lacks(manifest, written, self.beginning.partitions);
        let why = match &lacks {
            Some(lacks) => Some(lacks.clone()),
            None => self.does_not_go_on(manifest)?,
        };
        if let Some(why) = &why {
            tracing::warn!(checkpoint = %name, "a checkpoint is not used: {why}");
            if lacks.is_none() && self.is_of_this_journal(manifest) && !self.beginning.adopt_logs {
                return Err(RunError::Failed(format!(
                    "the checkpoint {name} in {} is of this journal, which is another one now or ends before it ({why}): this data directory is an older \
                     copy, or two have gone on from one. To go on with this one, without what the checkpoint includes, start it once with \
                     --adopt-logs; to leave the checkpoints to the other one, name another place in checkpoints.url",
                    self.checkpoints.place(),
                )));
            }
        }
        if let (Some(lacks), None) = (lacks, &self.lacking) {
            self.lacking = Some((name, lacks));
        }
        Ok(why.is_none())
    }

    fn is_of_this_journal(&self, manifest: &Manifest) -> bool {
        let recorded = manifest.logs.get(journal::NAME).and_then(|log| log.id.as_ref());
        recorded.is_some() && recorded == self.ids.get(journal::NAME)
    }

    fn does_not_go_on(&self, manifest: &Manifest) -> Result<Option<String>, RunError> {
        for (source, partition, position) in positions(manifest) {
            let before = manifest.logs.get(source).and_then(|log| log.before.get(&partition)).copied();
            let at = LogPosition { position, before };
            let check = || (self.beginning.check)(source, partition, at);
            if let Err(why) = patiently(check, LOG_PATIENCE, LOG_RETRY)? {
                return Ok(Some(format!("source {source}: {why}")));
            }
        }
        let recorded = manifest.logs.iter().filter_map(|(source, log)| Some((source, log.id.as_ref()?)));
        Ok(another_id(recorded, self.ids).filter(|_| !self.beginning.adopt_logs))
    }

    /// There is none: everything must be in the logs then.
    fn none(&self) -> Result<(), RunError> {
        self.refuse_lacking()?;
        if self.unusable.is_empty() || self.beginning.is_following {
            return Ok(());
        }
        for (partition, start) in self.beginning.partitions {
            let check = || (self.beginning.check)(&partition.source, partition.partition, (*start).into());
            if let Err(why) = patiently(check, LOG_PATIENCE, LOG_RETRY)? {
                let shown = self.unusable.iter().take(MOST_SHOWN).cloned().collect::<Vec<_>>().join("; ");
                let more = self.unusable.len().saturating_sub(MOST_SHOWN);
                let more = if more > 0 { format!("; and {more} more") } else { String::new() };
                return Err(RunError::Failed(format!(
                    "none of the checkpoints in {} can be used ({shown}{more}), and the logs do not reach back to their beginnings (source {}: {why}): \
                     put the right files back in their places, or restore a backup with `swelter restore` into a new data directory",
                    self.checkpoints.place(),
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
    fn refuse_lacking(&self) -> Result<(), RunError> {
        let Some((name, lacks)) = &self.lacking else { return Ok(()) };
        for (partition, start) in self.beginning.partitions {
            let check = || (self.beginning.check)(&partition.source, partition.partition, (*start).into());
            if let Err(why) = patiently(check, LOG_PATIENCE, LOG_RETRY)? {
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

/// Says which log has another id than the one that was recorded, though its records fit.
pub fn another_id<'a>(
    recorded: impl Iterator<Item = (&'a String, &'a String)>,
    ids: &BTreeMap<String, String>,
) -> Option<String> {
    let mut known = recorded.filter_map(|(source, id)| Some((source, id, ids.get(source)?)));
    let (source, recorded, id) = known.find(|(_, recorded, id)| recorded != id)?;
    Some(format!(
        "source {source}: the log has the id {id}, and was read as {recorded}, though what can be compared of its records fits: it is a \
         copy, or was made anew and filled again; if it is to be gone on with, start once with --adopt-logs"
    ))
}

/// What a shard of the sinks lacks of what a checkpoint includes: nobody would ever write it.
pub(super) fn lacks(
    manifest: &Manifest,
    written: &[Written],
    partitions: &[(PartitionName, u64)],
) -> Option<String> {
    let start_of = |source: &str, partition: u32| {
        let known =
            partitions.iter().find(|(name, _)| *name.source == *source && name.partition == partition);
        known.map_or(0, |(_, start)| *start)
    };
    let of_shard = |shard: &Written| {
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
pub(super) fn patiently(
    check: impl Fn() -> Result<(), SourceError>,
    patience: Wait,
    retry: Wait,
) -> Result<Result<(), String>, RunError> {
    let deadline = Instant::now() + patience;
    loop {
        match check() {
            Ok(()) => return Ok(Ok(())),
            Err(SourceError::Fatal(why)) => return Ok(Err(why)),
            Err(SourceError::Transient(why)) if Instant::now() >= deadline => {
                return Err(RunError::Failed(format!(
                    "whether checkpoints fit the logs cannot be found out: {why}"
                )));
            }
            Err(SourceError::Transient(_)) => thread::sleep(retry),
        }
    }
}
