//! A folder as a durable sink.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::claims::{NumberedClaim, add_claim, check_claim, check_is_same_folder, newest_claim};
use super::error::FolderError;
use super::fence::{fence_shard, read_shard};
use super::layout::{FolderLayout, create_folder};
use super::manifest::{read_identity, write_identity};
use super::plan::FolderSinkPlan;
use super::writer::FolderShardWriter;
use crate::model::rules_version::{RULES_VERSION_KEY, RulesVersionMismatch, VersionedArtifact};
use crate::sinks::contract::{DurableSink, Heartbeat, ProgressWriter};
use crate::sinks::error::SinkError;
use crate::sinks::progress::{
    CLAIM, Claim, ClaimRequest, IDENTITY, ProgressSnapshot, SinkClaim, SinkIdentity, find_difference,
    shard_key,
};
use crate::sinks::shard::{FencedShards, ShardWriter};
use crate::sinks::stop::StopDeadline;

/// How often an idle run checks for another claim.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);

/// A folder that results are written to.
pub struct FolderSink {
    plan: FolderSinkPlan,
    layout: FolderLayout,
    identity: SinkIdentity,
    /// The authority of the run, for error messages.
    authority: String,
}

impl FolderSink {
    pub fn new(plan: FolderSinkPlan, identity: SinkIdentity, authority: String) -> FolderSink {
        FolderSink { layout: FolderLayout::new(&plan.path), plan, identity, authority }
    }

    #[cfg(test)]
    pub(super) fn plan(&self) -> &FolderSinkPlan {
        &self.plan
    }

    fn check_identity(&self) -> Result<Option<SinkIdentity>, FolderError> {
        let recorded = read_identity(&self.layout)?;
        if let Some(recorded) = &recorded {
            let path = || self.plan.path.clone();
            RulesVersionMismatch::check_version(
                recorded.get(RULES_VERSION_KEY),
                self.identity.get(RULES_VERSION_KEY),
                || VersionedArtifact::Folder { path: path().display().to_string() },
            )?;
            if let Some(difference) = find_difference(recorded, &self.identity) {
                return Err(FolderError::Identity { path: path(), difference });
            }
        }
        Ok(recorded)
    }

    /// Everything that the folder records of its progress now.
    fn snapshot(&self) -> Result<ProgressSnapshot, FolderError> {
        let mut snapshot = ProgressSnapshot::new(&self.plan.path.display().to_string());
        if let Some(identity) = read_identity(&self.layout)? {
            snapshot.set(IDENTITY, &identity);
        }
        if let Some(newest) = newest_claim(&self.layout)? {
            snapshot.set(CLAIM, &newest.claim);
        }
        for shard in 0..self.plan.shards {
            if let Some(record) = read_shard(&self.layout, shard)? {
                snapshot.set(&shard_key(shard), &record.progress);
            }
        }
        Ok(snapshot)
    }

    fn make_claim(&self, own_claim: &Claim) -> Result<SinkClaim, FolderError> {
        let recorded = self.check_identity()?;
        if let Some(NumberedClaim { claim, .. }) = newest_claim(&self.layout)?
            && claim.generation > own_claim.generation
        {
            let path = self.plan.path.clone();
            return Err(FolderError::GenerationLost {
                path,
                recorded: claim.generation,
                own: own_claim.generation,
                authority: self.authority.clone(),
            });
        }
        let root = self.layout.root();
        create_folder(root).map_err(FolderError::at(root))?;
        if recorded.is_none() {
            write_identity(&self.layout, &self.identity)?;
        }
        let NumberedClaim { number, claim } = add_claim(&self.layout, own_claim)?;
        Ok(SinkClaim { claim, at: number as i64, recorded })
    }

    fn numbered(claim: &SinkClaim) -> NumberedClaim {
        NumberedClaim { number: claim.at as u64, claim: claim.claim.clone() }
    }
}

impl DurableSink for FolderSink {
    fn shards(&self) -> u16 {
        self.plan.shards
    }

    fn commit_interval(&self) -> Duration {
        self.plan.commit_interval
    }

    fn metric_label(&self) -> (&'static str, String) {
        ("folder", self.plan.path.display().to_string())
    }

    fn inspect(&self, _within: Duration) -> Result<ProgressSnapshot, SinkError> {
        self.check_identity()?;
        Ok(self.snapshot()?)
    }

    fn claim(&self, request: &ClaimRequest<'_>) -> Result<SinkClaim, SinkError> {
        let claim = request.generation.and_then(Claim::parse);
        let claim =
            claim.ok_or_else(|| SinkError::Fatal("a folder counts no generations of its own".into()))?;
        Ok(self.make_claim(&claim)?)
    }

    fn fence(&self, claim: &SinkClaim, shards: &[u16]) -> Result<FencedShards, SinkError> {
        let own_claim = FolderSink::numbered(claim);
        check_is_same_folder(&self.layout, &own_claim)?;
        let mut writers = Vec::new();
        for shard in shards {
            let fenced = fence_shard(&self.layout, *shard, &own_claim)?;
            let how = (self.plan.format, self.plan.segments);
            let writer =
                FolderShardWriter::open(self.layout.clone(), *shard, own_claim.clone(), how, fenced)?;
            writers.push((*shard, Box::new(writer) as Box<dyn ShardWriter>));
        }
        Ok(FencedShards { writers, stop: Arc::default() })
    }

    fn read_progress(&self, claim: &SinkClaim) -> Result<ProgressSnapshot, SinkError> {
        check_claim(&self.layout, &FolderSink::numbered(claim))?;
        let snapshot = self.snapshot()?;
        if claim.recorded.as_ref() != Some(&self.identity) {
            let mut all = claim.recorded.clone().unwrap_or_default();
            all.extend(self.identity.clone());
            write_identity(&self.layout, &all)?;
        }
        Ok(snapshot)
    }

    fn check_claim(&self, claim: &SinkClaim) -> Result<(), SinkError> {
        Ok(check_claim(&self.layout, &FolderSink::numbered(claim))?)
    }

    fn prove_liveness(&self, _: &SinkClaim) -> Result<Option<Heartbeat>, SinkError> {
        Ok(None)
    }

    fn progress_writer(&self) -> Result<Option<ProgressWriter>, SinkError> {
        Ok(None)
    }

    fn watch_for_claims(&self, claim: &SinkClaim, stop: &Arc<StopDeadline>) -> Result<(), SinkError> {
        let own_claim = FolderSink::numbered(claim);
        while !stop.has_begun() {
            match check_claim(&self.layout, &own_claim) {
                Ok(()) => {}
                Err(error @ (FolderError::Fenced { .. } | FolderError::SameGeneration { .. })) => {
                    return Err(error.into());
                }
                // The writers report a folder that cannot be read.
                Err(_) => {}
            }
            thread::sleep(WATCH_INTERVAL);
        }
        Ok(())
    }
}
