//! Takes a shard over from the previous generation: nothing that the other writes later becomes
//! part of the results.
//!
//! Each generation writes in its own working folder. The next generation copies the durable part of
//! it into a new folder, renames that to its own working folder, and removes the old one. A
//! suspended process that resumes writes to files that have no name any more.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use super::claims::{NumberedClaim, check_claim};
use super::commit_log::{CommitLog, CommitLogContents, CommitRecord, OpenSegment, read_commit_log};
use super::error::FolderError;
use super::layout::{FolderLayout, WorkingFolder, create_folder, sync_folder};

/// How often a folder that changes while it is read is read again.
const MAX_READS: u32 = 10;

/// A fenced shard.
#[derive(Debug)]
pub(super) struct FencedShard {
    pub log: CommitLog,
    pub last: Option<CommitRecord>,
}

/// The last commit of a shard, under whichever claim it was written.
pub(super) fn read_shard(layout: &FolderLayout, shard: u16) -> Result<Option<CommitRecord>, FolderError> {
    let mut reads = 0;
    loop {
        reads += 1;
        let claims = layout.working_claims(shard).map_err(FolderError::at(&layout.writing()))?;
        let Some(claim) = claims.first() else { return Ok(None) };
        let folder = layout.working_folder(shard, *claim);
        let read = read_commit_log(&folder.commits()).and_then(|contents| {
            find_segment(layout, &folder, contents.last.as_ref())?;
            Ok(contents)
        });
        match read {
            Ok(CommitLogContents { last, .. }) => return Ok(last),
            // Its writer has committed, or another start has taken the shard over.
            Err(_) if reads < MAX_READS => {}
            Err(error) => return Err(error),
        }
    }
}

/// The location of the rows of an open segment.
#[derive(Debug, PartialEq)]
enum SegmentPlace {
    /// There is no open segment, or it is finished.
    Finished,
    Open,
}

/// Finds the open segment of a commit record, and checks that it is complete.
fn find_segment(
    layout: &FolderLayout,
    folder: &WorkingFolder,
    last: Option<&CommitRecord>,
) -> Result<SegmentPlace, FolderError> {
    let Some(segment) = last.and_then(|last| last.segment.as_ref()) else {
        return Ok(SegmentPlace::Finished);
    };
    let damaged = |path, has: u64| FolderError::Damaged {
        path,
        problem: format!("it has {has} bytes, and its transactions have {}", segment.bytes),
    };
    let length = |path: &Path| match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FolderError::at(path)(error)),
    };
    let open = folder.segment(&segment.name);
    if let Some(has) = length(&open)? {
        return if has < segment.bytes { Err(damaged(open, has)) } else { Ok(SegmentPlace::Open) };
    }
    // The segment was finished after the last commit.
    let finished = layout.segment(&segment.name);
    match length(&finished)? {
        Some(has) if has == segment.bytes => Ok(SegmentPlace::Finished),
        Some(has) => Err(damaged(finished, has)),
        None => Err(FolderError::Damaged { path: open, problem: "the open segment is missing".into() }),
    }
}

/// Takes a shard over under a claim.
pub(super) fn fence_shard(
    layout: &FolderLayout,
    shard: u16,
    own_claim: &NumberedClaim,
) -> Result<FencedShard, FolderError> {
    let writing = layout.writing();
    create_folder(&writing).map_err(FolderError::at(&writing))?;
    for leftover in layout.leftovers(shard).map_err(FolderError::at(&writing))? {
        remove_folder(&leftover)?;
    }
    let building = layout.building(shard, own_claim.number);
    let mut reads = 0;
    let (before, last, log) = loop {
        reads += 1;
        let before = layout.working_claims(shard).map_err(FolderError::at(&writing))?;
        match copy_shard(layout, shard, before.first().copied(), &building) {
            Ok((last, log)) => break (before, last, log),
            // A process that is about to end has written meanwhile.
            Err(FolderError::Damaged { .. } | FolderError::Io { .. }) if reads < MAX_READS => {
                remove_folder(&building.path)?;
            }
            Err(error) => return Err(error),
        }
    };
    // Check the claim before removing, because a newer start may have made the folders.
    check_claim(layout, own_claim)?;
    let folder = layout.working_folder(shard, own_claim.number);
    fs::rename(&building.path, &folder.path).map_err(FolderError::at(&building.path))?;
    sync_folder(&writing).map_err(FolderError::sync_at(&writing))?;
    for claim in before.into_iter().filter(|claim| *claim < own_claim.number) {
        let removing = layout.removing(shard, claim);
        let old = layout.working_folder(shard, claim);
        fs::rename(&old.path, &removing).map_err(FolderError::at(&old.path))?;
        remove_folder(&removing)?;
    }
    sync_folder(&writing).map_err(FolderError::sync_at(&writing))?;
    if let Some(OpenSegment { name, .. }) = last.as_ref().and_then(|last| last.segment.as_ref()) {
        remove_late_segment(layout, name)?;
    }
    Ok(FencedShard { log: log.moved_to(folder.commits()), last })
}

/// Makes the working folder of a claim from the previous one.
fn copy_shard(
    layout: &FolderLayout,
    shard: u16,
    before: Option<u64>,
    building: &WorkingFolder,
) -> Result<(Option<CommitRecord>, CommitLog), FolderError> {
    fs::create_dir(&building.path).map_err(FolderError::at(&building.path))?;
    let mut last = None;
    if let Some(before) = before {
        let folder = layout.working_folder(shard, before);
        last = read_commit_log(&folder.commits())?.last;
        let segment_place = find_segment(layout, &folder, last.as_ref())?;
        if let Some(record) = &mut last {
            match (&record.segment, segment_place) {
                (Some(segment), SegmentPlace::Open) => copy_segment(&folder, building, segment)?,
                _ => record.segment = None,
            }
        }
    }
    let log = CommitLog::create(&building.commits(), last.as_ref())?;
    sync_folder(&building.path).map_err(FolderError::sync_at(&building.path))?;
    Ok((last, log))
}

/// Copies the durable part of an open segment. The rest belongs to an interrupted transaction.
fn copy_segment(from: &WorkingFolder, to: &WorkingFolder, segment: &OpenSegment) -> Result<(), FolderError> {
    let (from, to) = (from.segment(&segment.name), to.segment(&segment.name));
    let copy = || {
        let mut rows = File::open(&from)?.take(segment.bytes);
        let mut file = File::create(&to)?;
        let copied = io::copy(&mut rows, &mut file)?;
        file.sync_all()?;
        Ok(copied)
    };
    let copied = copy().map_err(FolderError::at(&from))?;
    if copied < segment.bytes {
        let problem = format!("it has {copied} bytes, and its transactions have {}", segment.bytes);
        return Err(FolderError::Damaged { path: from, problem });
    }
    Ok(())
}

/// Removes the finished copy of the segment that this start continues. A process that passed its
/// last check of the claim before it was fenced may have finished it.
fn remove_late_segment(layout: &FolderLayout, name: &str) -> Result<(), FolderError> {
    let path = layout.segment(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(FolderError::at(&path)),
    }
}

fn remove_folder(path: &Path) -> Result<(), FolderError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(FolderError::at(path)),
    }
}
