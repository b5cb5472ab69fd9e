//! Why a checkpoint cannot be written, read or used.

use super::name::CheckpointName;
use crate::model::rules_version::{RulesVersionMismatch, rebuild_hint};

/// Why a checkpoint cannot be written, read or used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{place} cannot be a location of checkpoints: {problem}")]
    Location { place: String, problem: String },
    #[error("{path}: {problem}")]
    StoreFailed { path: String, problem: String },
    #[error("the checkpoint {name} is damaged: {what}; use an earlier one, or restore it from a backup")]
    Damaged {
        name: String,
        what: String,
        /// The damaged object, if it is a single one.
        path: Option<String>,
    },
    #[error(
        "the checkpoint {name} has format {found}, and this swelter reads formats up to {known}: use the version that wrote it"
    )]
    Format { name: String, found: u32, known: u32 },
    #[error(
        "the checkpoint {name} was made with {key} = {found}, and this run has {wanted}: set it back, or start with new outputs and another location for checkpoints{}",
        rebuild_hint(key)
    )]
    Identity { name: String, key: String, found: String, wanted: String },
    #[error(transparent)]
    OtherRules(#[from] RulesVersionMismatch),
    /// The error from when all manifests were read.
    #[error("{0}")]
    Unreadable(String),
    #[error("there is no checkpoint {0}: `swelter checkpoints list` shows all checkpoints")]
    Missing(CheckpointName),
    #[error(
        "{0} exists already, so another process writes checkpoints to this location: give each service a location of its own"
    )]
    AlreadyPublished(String),
    #[error(
        "the checkpoint {name} was not published, because a newer generation has published {newer}: stop this process"
    )]
    Superseded { name: CheckpointName, newer: CheckpointName },
    #[error("the parts of the checkpoint do not fit together: {0}; the next one is full")]
    IncompatibleParts(String),
    #[error("the checkpoint was cancelled")]
    Cancelled,
    #[error(
        "the checkpoint {name} was not published, because {path} is missing or differs from what was written: give all processes the same store"
    )]
    FileMissing { name: CheckpointName, path: String },
    #[error(
        "the checkpoint {name} has readings of {partition}, which this run does not read: configure its source again"
    )]
    UnknownPartition { name: String, partition: String },
}

impl CheckpointError {
    pub(super) fn damaged(name: CheckpointName, what: &str) -> CheckpointError {
        CheckpointError::Damaged { name: name.to_string(), what: what.into(), path: None }
    }

    /// The error of a damaged object of a checkpoint: `what` follows its path.
    pub(super) fn damaged_object(name: CheckpointName, path: &str, what: &str) -> CheckpointError {
        let (what, path) = (format!("{path} {what}"), Some(path.to_owned()));
        CheckpointError::Damaged { name: name.to_string(), what, path }
    }

    /// The damaged object, if it is a single one.
    pub fn damaged_path(&self) -> Option<&str> {
        match self {
            CheckpointError::Damaged { path, .. } => path.as_deref(),
            _ => None,
        }
    }

    /// Whether another checkpoint may be usable. Otherwise the store or the program has failed.
    pub fn is_specific_to_checkpoint(&self) -> bool {
        use CheckpointError::*;
        matches!(
            self,
            Damaged { .. }
                | Unreadable(_)
                | Format { .. }
                | Identity { .. }
                | OtherRules(_)
                | Missing(_)
                | UnknownPartition { .. }
        )
    }
}
