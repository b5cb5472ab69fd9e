//! The location of checkpoints, and the topics that the newest one includes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::checkpoint::{CheckpointLocation, Checkpoints, Manifest, SOURCE_KEY_PREFIX};
use crate::config::{ServicePlan, SourceKind};
use crate::run::run_error::RunError;

/// The location of checkpoints in the form that all processes share; none if checkpoints are
/// disabled.
pub fn checkpoint_place(plan: &ServicePlan, in_data_dir: bool) -> Option<String> {
    let checkpoints = plan.checkpoints.as_ref()?;
    let is_generator = |kind: &SourceKind| matches!(kind, SourceKind::Generator(_));
    if plan.ingest.is_none() && plan.sources.iter().any(|source| is_generator(&source.kind)) {
        // Generated readings are in no log then, so no position is meaningful later.
        return None;
    }
    match &checkpoints.location {
        _ if !checkpoints.is_configured && !in_data_dir => {
            tracing::info!(
                "no location for checkpoints is configured, so every start reads all of the logs: set checkpoints.url"
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

/// Opens the checkpoints at such a location.
pub fn open_checkpoints(location_text: &str) -> Result<Checkpoints, RunError> {
    let location: CheckpointLocation =
        location_text.parse().map_err(|error| RunError::Failed(format!("checkpoints.url: {error}")))?;
    Ok(Checkpoints::open(&location)?)
}

/// The topics whose records are included in the newest readable checkpoint.
pub fn topics_in_checkpoints(plan: &ServicePlan, in_data_dir: bool) -> Result<BTreeSet<String>, RunError> {
    let Some(location) = checkpoint_place(plan, in_data_dir) else { return Ok(BTreeSet::new()) };
    let checkpoints = open_checkpoints(&location)?;
    let newest = checkpoints.list_names()?.into_iter().find_map(|name| checkpoints.read_manifest(name).ok());
    let Some(Manifest { positions, identity, .. }) = newest else { return Ok(BTreeSet::new()) };
    Ok(positions.keys().filter_map(|source| topic_of(&identity, source)).collect())
}

fn topic_of(identity: &BTreeMap<String, String>, source: &str) -> Option<String> {
    let read = identity.get(&format!("{SOURCE_KEY_PREFIX}{source}"))?.strip_prefix("topic ")?;
    Some(read.split(" as ").next()?.to_owned())
}
