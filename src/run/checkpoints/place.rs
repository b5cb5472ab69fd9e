//! Where checkpoints are, and which topics the newest one includes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::checkpoint::{CheckpointLocation, Checkpoints, Manifest, SOURCE_KEY_PREFIX};
use crate::config::{ServicePlan, SourceKind};
use crate::run::run_error::RunError;

/// Where checkpoints are, as all processes must write it: none if there are to be none.
pub fn checkpoint_place(plan: &ServicePlan, in_data_dir: bool) -> Option<String> {
    let checkpoints = plan.checkpoints.as_ref()?;
    let is_generator = |kind: &SourceKind| matches!(kind, SourceKind::Generator(_));
    if plan.ingest.is_none() && plan.sources.iter().any(|source| is_generator(&source.kind)) {
        // What is made up is in no log then, so no position means anything later.
        return None;
    }
    match &checkpoints.location {
        _ if !checkpoints.is_configured && !in_data_dir => {
            tracing::info!(
                "there are no checkpoints, so every start reads all of the logs: see checkpoints.url"
            );
            None
        }
        CheckpointLocation::Folder(folder) => {
            let absolute = std::path::absolute(folder).unwrap_or_else(|_| PathBuf::from(folder));
            Some(absolute.display().to_string())
        }
        location => Some(location.to_string()),
    }
}

/// Opens the checkpoints at such a place.
pub fn open_checkpoints(place: &str) -> Result<Checkpoints, RunError> {
    let location: CheckpointLocation =
        place.parse().map_err(|error| RunError::Failed(format!("checkpoints.url: {error}")))?;
    Ok(Checkpoints::open(&location)?)
}

/// The topics of which the newest checkpoint that can be read includes records.
pub fn topics_in_checkpoints(plan: &ServicePlan, in_data_dir: bool) -> Result<BTreeSet<String>, RunError> {
    let Some(place) = checkpoint_place(plan, in_data_dir) else { return Ok(BTreeSet::new()) };
    let checkpoints = open_checkpoints(&place)?;
    let newest = checkpoints.list_names()?.into_iter().find_map(|name| checkpoints.read_manifest(name).ok());
    let Some(Manifest { positions, identity, .. }) = newest else { return Ok(BTreeSet::new()) };
    Ok(positions.keys().filter_map(|source| topic_of(&identity, source)).collect())
}

fn topic_of(identity: &BTreeMap<String, String>, source: &str) -> Option<String> {
    let read = identity.get(&format!("{SOURCE_KEY_PREFIX}{source}"))?.strip_prefix("topic ")?;
    Some(read.split(" as ").next()?.to_owned())
}
