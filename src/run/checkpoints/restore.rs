//! Restores the newest checkpoint that all processes can load.

use std::time::Instant;

use super::candidates::{CheckpointCandidates, RestoreContext};
use super::repository::CheckpointRepository;
use crate::checkpoint::Manifest;
use crate::model::{LogPosition, PartitionName};
use crate::run::lead::{Lead, Member};
use crate::run::protocol::{CheckpointRequest, CheckpointSettings, ControlCommand, ControlEvent};
use crate::run::run_error::RunError;

/// Lets all processes load the newest checkpoint that they can load, if there is one.
///
/// # Errors
///
/// If there is a checkpoint that could be used if something else were repaired.
pub fn restore_newest(
    lead: &Lead,
    member: &mut impl Member,
    settings: &CheckpointSettings,
    repository: &CheckpointRepository,
    context: &RestoreContext<'_>,
) -> Result<Option<Manifest>, RunError> {
    let partitions: Vec<PartitionName> = context.partitions.iter().map(|(name, _)| name.clone()).collect();
    let mut candidates = CheckpointCandidates::new(repository, context);
    while let Some(manifest) = candidates.next()? {
        let began = Instant::now();
        let (settings, name) = (settings.clone(), manifest.name().to_string());
        let request = CheckpointRequest { settings, partitions: partitions.clone(), name: name.clone() };
        let loaded = |event| match event {
            ControlEvent::CheckpointLoaded(loaded) => Some(loaded.err()),
            _ => None,
        };
        let all = lead.execute_everywhere(member, ControlCommand::LoadCheckpoint(request), loaded)?;
        if repository.verdict(&manifest, all, context.is_following)? {
            tracing::info!(checkpoint = name, took = ?began.elapsed(), "a checkpoint was restored");
            return Ok(Some(manifest));
        }
    }
    Ok(None)
}

/// The start position of a partition; without a checkpoint it is `start`.
pub fn restored_position(manifest: Option<&Manifest>, name: &PartitionName, start: u64) -> LogPosition {
    let Some(Manifest { positions, logs, .. }) = manifest else { return start.into() };
    let recorded = positions.get(&*name.source).and_then(|of| of.get(&name.partition));
    let before = logs.get(&*name.source).and_then(|log| log.before.get(&name.partition));
    recorded.map_or(start.into(), |position| LogPosition { position: *position, before: before.copied() })
}
