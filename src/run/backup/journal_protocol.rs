//! The protocol between a backup and a running service, on the service's socket.
//!
//! ```text
//! -> {"backup":1}    line   <- Offer                  line; nothing is trimmed from now on
//! -> {"ends":true}   line   <- [end of each partition] line: behind every acknowledged record
//!                           <- blocks: key (12 bytes), length (u32, little endian), block
//!                           <- key of 0xFF, length 0: all blocks were sent;
//!                              or the length of an error text, and the text
//!    the client closes the connection once it has copied everything that must not be trimmed
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::BlockHandler;
use crate::sources::journal::{Journal, JournalError};

/// The name of the socket in the data directory.
pub(super) const SOCKET: &str = "backup.sock";
/// The longest socket path to use; the system refuses longer ones.
const MAX_SOCKET_PATH: usize = 100;
pub(super) const LAST_KEY: [u8; 12] = [0xFF; 12];

#[derive(Serialize, Deserialize)]
pub(super) struct BackupRequest {
    /// The version of the protocol.
    pub backup: u32,
}

#[derive(Serialize, Deserialize)]
pub(super) struct BlocksRequest {
    pub ends: bool,
}

/// What the service offers to copy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct JournalOffer {
    pub journal_id: Option<String>,
    pub begins: Vec<u64>,
    /// The location of the checkpoints, if there are any.
    pub checkpoints: Option<String>,
}

impl JournalOffer {
    pub(super) fn of(journal: &Journal, checkpoints: Option<String>) -> JournalOffer {
        JournalOffer { journal_id: Some(journal.id()), begins: journal.log_starts(), checkpoints }
    }
}

/// A path that is short enough for a socket; it is valid while the returned folder is open.
pub(super) fn reachable_socket_path(folder: &Path, name: &str) -> io::Result<(Option<File>, PathBuf)> {
    let path = folder.join(name);
    if path.as_os_str().len() <= MAX_SOCKET_PATH {
        return Ok((None, path));
    }
    let folder = File::open(folder)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()));
    Ok((Some(folder), path))
}

/// Connects to the service that uses a data directory; none if no service runs.
pub(super) fn connect(data_dir: &Path) -> io::Result<Option<UnixStream>> {
    let (_folder, path) = match reachable_socket_path(data_dir, SOCKET) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        reachable => reachable?,
    };
    match UnixStream::connect(path) {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Passes the stored blocks of a partition to `each` one by one.
pub(super) fn for_each_stored_block<E>(
    journal: &Journal,
    partition: u32,
    begin: u64,
    end: u64,
    each: &mut BlockHandler<'_, E>,
) -> Result<Result<(), E>, JournalError> {
    let mut from = begin;
    loop {
        let blocks = journal.stored_blocks(partition, from, end)?;
        let Some((last, _)) = blocks.last() else { return Ok(Ok(())) };
        // A key ends with the position of the block's last record; the next block begins behind it.
        let position = last.last_chunk::<8>().map_or(end, |position| u64::from_be_bytes(*position));
        from = position.saturating_add(1);
        for (key, stored) in &blocks {
            if let Err(error) = each(key, stored) {
                return Ok(Err(error));
            }
        }
    }
}

pub(super) fn parse_line<'a, T: Deserialize<'a>>(line: &'a [u8]) -> io::Result<T> {
    serde_json::from_slice(line).map_err(io::Error::from)
}

pub(super) fn write_line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")?;
    out.flush()
}

pub(super) fn write_block(out: &mut impl Write, key: &[u8], stored: &[u8]) -> io::Result<()> {
    out.write_all(key)?;
    out.write_all(&(stored.len() as u32).to_le_bytes())?;
    out.write_all(stored)
}
