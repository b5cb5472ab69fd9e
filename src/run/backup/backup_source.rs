//! The source of a journal's backup: the service that has the journal open, or the journal's
//! folder.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::error::{BackupError, BlockHandler};
use super::journal_protocol::{
    self, BackupRequest, BlocksRequest, JournalOffer, LAST_KEY, for_each_stored_block,
};
use crate::run::data_dir::{self, DataDirError};
use crate::sources::journal::{Journal, JournalPlan};

const LINE_BYTES: u64 = 1 << 20;
/// The limit of a block, larger than any.
const MAX_BLOCK_BYTES: u32 = 64 << 20;

/// While this exists, neither the journal nor its checkpoints are trimmed.
pub(super) struct BackupSource {
    pub offer: JournalOffer,
    from: JournalAccess,
}

enum JournalAccess {
    Service(BufReader<UnixStream>),
    /// The lock is released last.
    Folder {
        journal: Journal,
        _lock: File,
    },
}

impl BackupSource {
    /// Opens the source. `checkpoints` is their location, used if no service runs.
    pub(super) fn open(data_dir: &Path, checkpoints: Option<String>) -> Result<BackupSource, BackupError> {
        let at_dir = |source| BackupError::Io { path: data_dir.into(), source };
        if let Some(stream) = journal_protocol::connect(data_dir).map_err(at_dir)? {
            let mut reader = BufReader::new(stream);
            journal_protocol::write_line(reader.get_mut(), &BackupRequest { backup: 1 })
                .map_err(connection_ended)?;
            let offer: JournalOffer =
                journal_protocol::parse_line(&read_line(&mut reader)?).map_err(connection_ended)?;
            return Ok(BackupSource { offer, from: JournalAccess::Service(reader) });
        }
        let folder = data_dir.join("journal");
        if !folder.is_dir() {
            return Err(BackupError::Refused(format!(
                "{} has no journal: name the data directory with --data-dir or --config; topics of Kafka are backed up in their cluster",
                data_dir.display()
            )));
        }
        let lock = data_dir::lock_data_dir(data_dir).map_err(|error| match error {
            DataDirError::InUse(_) => BackupError::Refused(format!(
                "{} is in use by a process that does not answer backups now, as while it starts or stops: try again, or stop it first",
                data_dir.display()
            )),
            error => error.into(),
        })?;
        let partitions = Journal::partition_count_in(&folder)?;
        let journal = Journal::open(&folder, JournalPlan { partitions, ..JournalPlan::default() })?;
        let offer = JournalOffer::of(&journal, checkpoints);
        Ok(BackupSource { offer, from: JournalAccess::Folder { journal, _lock: lock } })
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.from, JournalAccess::Service(_))
    }

    /// Passes the blocks of all partitions to `each`, and returns where the partitions end: behind
    /// every record acknowledged before this call.
    pub(super) fn copy_journal(
        &mut self,
        each: &mut BlockHandler<'_, BackupError>,
    ) -> Result<Vec<u64>, BackupError> {
        match &mut self.from {
            JournalAccess::Service(reader) => receive_blocks(reader, each),
            JournalAccess::Folder { journal, .. } => {
                let ends = journal.log_ends();
                for (partition, (begin, end)) in (0..).zip(self.offer.begins.iter().zip(&ends)) {
                    for_each_stored_block(journal, partition, *begin, *end, each)??;
                }
                Ok(ends)
            }
        }
    }
}

fn receive_blocks(
    reader: &mut BufReader<UnixStream>,
    each: &mut BlockHandler<'_, BackupError>,
) -> Result<Vec<u64>, BackupError> {
    journal_protocol::write_line(reader.get_mut(), &BlocksRequest { ends: true })
        .map_err(connection_ended)?;
    let ends: Vec<u64> = journal_protocol::parse_line(&read_line(reader)?).map_err(connection_ended)?;
    loop {
        let (mut key, mut length) = ([0; 12], [0; 4]);
        reader
            .read_exact(&mut key)
            .and_then(|()| reader.read_exact(&mut length))
            .map_err(connection_ended)?;
        let length = u32::from_le_bytes(length);
        if length > MAX_BLOCK_BYTES {
            return Err(BackupError::Service(format!(
                "it sent a block of {length} bytes, more than a block can have"
            )));
        }
        let mut stored = vec![0; length as usize];
        reader.read_exact(&mut stored).map_err(connection_ended)?;
        match key {
            LAST_KEY if stored.is_empty() => return Ok(ends),
            LAST_KEY => return Err(BackupError::Service(String::from_utf8_lossy(&stored).into_owned())),
            key => each(&key, &stored)?,
        }
    }
}

fn read_line(reader: &mut BufReader<UnixStream>) -> Result<Vec<u8>, BackupError> {
    let mut line = Vec::new();
    reader.take(LINE_BYTES).read_until(b'\n', &mut line).map_err(connection_ended)?;
    Ok(line)
}

fn connection_ended(error: io::Error) -> BackupError {
    BackupError::Service(format!("{error}; see the log of the service"))
}
