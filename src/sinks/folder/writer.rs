//! The writer of one shard of a folder: rows to the open segment, then a line to the commit log.

use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::time::Instant;

use super::claims::{NumberedClaim, check_claim};
use super::commit_log::{CommitLog, CommitRecord, OpenSegment};
use super::error::FolderError;
use super::fence::FencedShard;
use super::layout::{FolderLayout, WorkingFolder, segment_name, sync_folder};
use super::plan::{FolderFormat, SegmentLimits};
use crate::sinks::error::{SinkError, WriteFailure};
use crate::sinks::progress::ShardProgress;
use crate::sinks::shard::{ShardBatch, ShardWriter};
use crate::test_hooks;

/// Rows are written to the file in pieces of about this size.
const BUFFER_BYTES: usize = 256 * 1024;

/// Writes the rows of a shard.
#[derive(Debug)]
pub(super) struct FolderShardWriter {
    layout: FolderLayout,
    folder: WorkingFolder,
    shard: u16,
    claim: NumberedClaim,
    format: FolderFormat,
    limits: SegmentLimits,
    log: CommitLog,
    segment: Option<Segment>,
    /// Rows of the current transaction that were not written to a file yet, and the number of its
    /// rows.
    buffer: Vec<u8>,
    rows: u64,
    /// Some bytes of the current transaction were written.
    is_dirty: bool,
}

/// The open segment.
#[derive(Debug)]
struct Segment {
    file: File,
    /// Its durable part.
    durable: OpenSegment,
    /// The length of everything that was written.
    bytes: u64,
    opened: Instant,
}

impl FolderShardWriter {
    pub fn open(
        layout: FolderLayout,
        shard: u16,
        claim: NumberedClaim,
        (format, limits): (FolderFormat, SegmentLimits),
        fenced: FencedShard,
    ) -> Result<FolderShardWriter, FolderError> {
        let folder = layout.working_folder(shard, claim.number);
        let durable = fenced.last.and_then(|last| last.segment);
        let segment = durable.map(|durable| Segment::reopen(&folder, durable)).transpose()?;
        Ok(FolderShardWriter {
            layout,
            folder,
            shard,
            claim,
            format,
            limits,
            log: fenced.log,
            segment,
            buffer: Vec::new(),
            rows: 0,
            is_dirty: false,
        })
    }

    fn write_batch(&mut self, batch: &ShardBatch) -> Result<(), FolderError> {
        for encoded in &batch.batches {
            for record in encoded.records() {
                self.buffer.extend_from_slice(record.value.unwrap_or_default());
                self.rows += 1;
            }
            if self.segment.is_none() && !self.buffer.is_empty() {
                self.begin_segment(encoded.epoch)?;
            }
            if self.buffer.len() >= BUFFER_BYTES {
                self.write_buffer()?;
            }
        }
        Ok(())
    }

    /// Begins a segment with the rows of an epoch.
    fn begin_segment(&mut self, epoch: u64) -> Result<(), FolderError> {
        let name = segment_name(self.shard, epoch, self.format);
        let path = self.folder.segment(&name);
        let at_path = FolderError::at(&path);
        let file = File::options().write(true).create(true).truncate(true).open(&path).map_err(&at_path)?;
        self.is_dirty = true;
        let durable = OpenSegment { name, bytes: 0, rows: 0 };
        let segment = self.segment.insert(Segment { file, durable, bytes: 0, opened: Instant::now() });
        segment.write(self.format.header().as_bytes()).map_err(&at_path)?;
        sync_folder(&self.folder.path).map_err(FolderError::sync_at(&self.folder.path))
    }

    fn write_buffer(&mut self) -> Result<(), FolderError> {
        let Some(segment) = &mut self.segment else { return Ok(()) };
        let path = self.folder.segment(&segment.durable.name);
        self.is_dirty = true;
        segment.write(&self.buffer).map_err(FolderError::at(&path))?;
        self.buffer.clear();
        Ok(())
    }

    fn commit_transaction(&mut self, progress: &ShardProgress) -> Result<(), FolderError> {
        // Check again, because collecting the transaction may have taken long.
        check_claim(&self.layout, &self.claim)?;
        let mut durable = None;
        if self.rows > 0 {
            self.write_buffer()?;
        }
        if let Some(segment) = &self.segment {
            let path = self.folder.segment(&segment.durable.name);
            if self.rows > 0 {
                segment.file.sync_data().map_err(FolderError::sync_at(&path))?;
            }
            let OpenSegment { name, rows, .. } = &segment.durable;
            durable = Some(OpenSegment { name: name.clone(), bytes: segment.bytes, rows: rows + self.rows });
        }
        self.is_dirty = true;
        let record = CommitRecord {
            generation: self.claim.claim.generation(),
            progress: progress.clone(),
            segment: durable.clone(),
        };
        test_hooks::crash_before_folder_commit();
        self.log.append(&record)?;
        (self.rows, self.is_dirty) = (0, false);
        if let (Some(segment), Some(durable)) = (&mut self.segment, durable) {
            segment.durable = durable;
        }
        Ok(())
    }

    /// Truncates the segment to its durable length after a failed transaction.
    fn cut_back(&mut self) -> Result<(), FolderError> {
        self.buffer.clear();
        self.rows = 0;
        if !self.is_dirty {
            return Ok(());
        }
        self.log.cut_back()?;
        match &mut self.segment {
            // The transaction began this segment.
            Some(segment) if segment.durable.bytes == 0 => {
                let path = self.folder.segment(&segment.durable.name);
                fs::remove_file(&path).map_err(FolderError::at(&path))?;
                self.segment = None;
            }
            Some(segment) => {
                let path = self.folder.segment(&segment.durable.name);
                segment.cut_back().map_err(FolderError::at(&path))?;
            }
            None => {}
        }
        self.is_dirty = false;
        Ok(())
    }

    /// Moves the segment to the finished ones. All its rows are durable.
    fn finish_segment(&mut self) -> Result<(), FolderError> {
        let Some(segment) = &self.segment else { return Ok(()) };
        check_claim(&self.layout, &self.claim)?;
        let name = &segment.durable.name;
        let (open, finished) = (self.folder.segment(name), self.layout.segment(name));
        fs::rename(&open, &finished).map_err(FolderError::at(&open))?;
        self.segment = None;
        sync_folder(self.layout.root()).map_err(FolderError::sync_at(self.layout.root()))
    }

    fn is_segment_full(&self) -> bool {
        self.segment.as_ref().is_some_and(|segment| {
            segment.durable.bytes >= self.limits.bytes || segment.opened.elapsed() >= self.limits.age
        })
    }

    /// Finishes the segment if it is full. A failure is retried after the next transaction.
    fn finish_full_segment(&mut self) -> Result<(), FolderError> {
        if !self.is_segment_full() {
            return Ok(());
        }
        match self.finish_segment() {
            Err(error) if error.is_transient() => {
                tracing::warn!(shard = self.shard, %error, "a full segment could not be finished; records are still appended to it, and finishing it is retried");
                Ok(())
            }
            finished => finished,
        }
    }
}

impl ShardWriter for FolderShardWriter {
    fn begin(&mut self) -> Result<(), WriteFailure> {
        check_claim(&self.layout, &self.claim).map_err(write_failure)
    }

    fn add(&mut self, batch: &ShardBatch) -> Result<(), WriteFailure> {
        self.write_batch(batch).map_err(write_failure)
    }

    fn commit(&mut self, progress: &ShardProgress) -> Result<(), WriteFailure> {
        self.commit_transaction(progress).map_err(write_failure)?;
        // The transaction is durable, whether or not this succeeds.
        self.finish_full_segment().map_err(|error| WriteFailure::Final(error.into()))
    }

    fn roll_back(&mut self) -> bool {
        self.cut_back().is_ok()
    }

    fn reopen(&mut self, _last: u64) -> Result<bool, SinkError> {
        check_claim(&self.layout, &self.claim)?;
        self.cut_back()?;
        Ok(false)
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        Ok(self.finish_segment()?)
    }

    fn unfinished(&self) -> SinkError {
        SinkError::Fatal(format!(
            "the folder {} cannot be written, so it lacks results of records that were read; the next start writes them",
            self.layout.root().display()
        ))
    }
}

fn write_failure(error: FolderError) -> WriteFailure {
    match error.is_transient() {
        true => WriteFailure::RollBack(error.to_string()),
        false => WriteFailure::Final(error.into()),
    }
}

impl Segment {
    /// Reopens a segment at its durable length.
    fn reopen(folder: &WorkingFolder, durable: OpenSegment) -> Result<Segment, FolderError> {
        let path = folder.segment(&durable.name);
        let open = || {
            let mut file = File::options().write(true).open(&path)?;
            file.seek(SeekFrom::Start(durable.bytes))?;
            Ok(file)
        };
        let file = open().map_err(FolderError::at(&path))?;
        Ok(Segment { file, bytes: durable.bytes, durable, opened: Instant::now() })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn cut_back(&mut self) -> io::Result<()> {
        self.file.set_len(self.durable.bytes)?;
        self.file.seek(SeekFrom::Start(self.durable.bytes))?;
        self.bytes = self.durable.bytes;
        Ok(())
    }
}
