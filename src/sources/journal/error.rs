//! Errors of opening or using a journal.

use std::io;
use std::path::{Path, PathBuf};

use super::plan::MAX_PARTITIONS;
use super::store_error::StoreError;
use crate::fault::{remedy_for, start_failure_text};

/// Why a journal cannot be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("{}: {source}: {}, or choose another data directory", path.display(), remedy_for(source, path))]
    Io { path: PathBuf, source: io::Error },
    #[error("the journal in {}: {}", dir.display(), start_failure_text(source))]
    Threads { dir: PathBuf, source: io::Error },
    #[error("the journal in {} cannot be used: {what}: {remedy}, then start again", dir.display())]
    Stopped { dir: PathBuf, what: String, remedy: String },
    #[error("a journal has 1 to {MAX_PARTITIONS} partitions, not {0}: change the configuration")]
    PartitionCount(u32),
    #[error(
        "the journal in {} has {found} partitions, not {asked}: set ingest.partitions = {found}, or move it away to begin anew",
        dir.display()
    )]
    PartitionsDiffer { dir: PathBuf, found: u32, asked: u32 },
    #[error(
        "the journal in {} has format {found}, and this swelter reads format {known}: use the version that wrote it",
        dir.display()
    )]
    Format { dir: PathBuf, found: u32, known: u32 },
    #[error("the journal in {} is in use by another process: stop that process first", dir.display())]
    InUse { dir: PathBuf },
    #[error("the journal in {} is damaged: {what}; {DAMAGE_REMEDY}", dir.display())]
    Damaged { dir: PathBuf, what: String },
    #[error("the journal in {}: its file \"id\" {what}: {}", dir.display(), id_remedy(*known))]
    Id { dir: PathBuf, what: &'static str, known: Option<u128> },
    #[error(
        "partition {partition} of the journal in {} ends at {end} and is not trimmed before {upto}: the checkpoint that covers that position belongs to another journal",
        dir.display()
    )]
    TrimBeyondEnd { dir: PathBuf, partition: u32, end: u64, upto: u64 },
}

pub(super) const DAMAGE_REMEDY: &str = "restore it from a backup, or move it away to begin anew";

fn id_remedy(recorded_id: Option<u128>) -> String {
    match recorded_id {
        Some(id) => {
            format!("restore it, as the line {{\"id\":\"{}\"}}, or restore the journal from a backup", id_to_hex(id))
        }
        None => "restore it, as a line {\"id\":\"..\"} with the id that the manifests of its checkpoints name (logs.journal.id); if none \
                 names one, remove it"
            .into(),
    }
}

impl JournalError {
    pub(super) fn damaged_error(dir: &Path, what: &str) -> JournalError {
        JournalError::Damaged { dir: dir.into(), what: what.into() }
    }

    /// Converts an error of the store of the journal in `dir`.
    pub(super) fn from_store_error(dir: &Path, failure: StoreError) -> JournalError {
        match failure {
            StoreError::Io(source) => JournalError::Io { path: dir.into(), source },
            StoreError::Stopped(_) => {
                let (what, remedy) = (failure.to_string(), failure.remedy(dir));
                JournalError::Stopped { dir: dir.into(), what, remedy }
            }
            StoreError::Store(_) | StoreError::Damaged(_) => {
                JournalError::damaged_error(dir, &failure.to_string())
            }
        }
    }
}

pub(super) fn id_to_hex(id: u128) -> String {
    format!("{id:032x}")
}
