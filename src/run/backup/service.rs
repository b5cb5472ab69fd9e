//! The service's end of a backup: copies its journal to clients of a socket in the data directory,
//! which only the service's user can reach.

use std::fs::{self, Permissions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::journal_protocol::{
    BackupRequest, BlocksRequest, JournalOffer, LAST_KEY, SOCKET, for_each_stored_block, parse_line,
    reachable_socket_path, write_block, write_line,
};
use crate::sources::journal::Journal;

/// Interval at which a wait checks whether to end.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// A client that reads nothing for this long is disconnected, so that it does not block trimming of
/// the journal.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a backup may block trimming of the journal.
const MAX_BACKUP_TIME: Duration = Duration::from_secs(24 * 3_600);
const LINE_BYTES: u64 = 1 << 20;

/// Serves backups one after the other, on a thread of its own, until dropped.
pub struct BackupService {
    stop: Arc<AtomicBool>,
    socket: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl BackupService {
    /// Starts the thread. This process must hold the lock of the directory.
    pub fn start(
        journal: Arc<Journal>,
        data_dir: &Path,
        checkpoints: Option<String>,
    ) -> io::Result<BackupService> {
        let listener = listen(data_dir)?;
        listener.set_nonblocking(true)?;
        let stop = Arc::<AtomicBool>::default();
        let serving = BackupServer { journal, checkpoints, stop: Arc::clone(&stop) };
        let thread = thread::Builder::new().name("backup".into()).spawn(move || serving.run(&listener))?;
        Ok(BackupService { stop, socket: data_dir.join(SOCKET), thread: Some(thread) })
    }
}

impl Drop for BackupService {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the thread that copies the journal has panicked");
        }
        let _ = fs::remove_file(&self.socket);
    }
}

/// Listens on a socket that no other user can open at any moment.
fn listen(data_dir: &Path) -> io::Result<UnixListener> {
    let private = tempfile::Builder::new().prefix(".backup").tempdir_in(data_dir)?;
    let (_folder, path) = reachable_socket_path(private.path(), SOCKET)?;
    let listener = UnixListener::bind(path)?;
    let socket = private.path().join(SOCKET);
    fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
    fs::rename(socket, data_dir.join(SOCKET))?;
    Ok(listener)
}

struct BackupServer {
    journal: Arc<Journal>,
    checkpoints: Option<String>,
    stop: Arc<AtomicBool>,
}

impl BackupServer {
    fn run(self, listener: &UnixListener) {
        while !self.stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => match self.answer(&stream) {
                    Ok(()) => tracing::info!("the journal was copied for a backup"),
                    Err(error) => {
                        tracing::warn!(%error, "a copy of the journal for a backup failed; `swelter backup` reports it and can be repeated")
                    }
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(POLL_INTERVAL),
                Err(error) => {
                    tracing::warn!(%error, "the socket for backups accepts no connection; it is retried");
                    thread::sleep(POLL_INTERVAL * 5);
                }
            }
        }
    }

    fn answer(&self, stream: &UnixStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(POLL_INTERVAL))?;
        stream.set_write_timeout(Some(POLL_INTERVAL))?;
        let began = Instant::now();
        let mut lines = LineReader { reader: BufReader::new(stream), stop: &self.stop };
        let BackupRequest { backup } =
            parse_line(&lines.next(CLIENT_TIMEOUT)?.ok_or(io::ErrorKind::UnexpectedEof)?)?;
        if backup != 1 {
            return Err(io::Error::other(format!(
                "the client requests version {backup} of the copy protocol, and this swelter has version 1"
            )));
        }
        let _held = self.journal.block_trimming();
        let mut out = BufWriter::new(StallingWriter { stream, stop: &self.stop });
        let offer = JournalOffer::of(&self.journal, self.checkpoints.clone());
        write_line(&mut out, &offer)?;
        let Some(line) = lines.next(MAX_BACKUP_TIME)? else { return Ok(()) };
        let BlocksRequest { .. } = parse_line(&line)?;
        let ends = self.journal.log_ends();
        write_line(&mut out, &ends)?;
        match self.send_blocks(&offer.begins, &ends, &mut out)? {
            Ok(()) => write_block(&mut out, &LAST_KEY, &[])?,
            Err(why) => write_block(&mut out, &LAST_KEY, why.as_bytes())?,
        }
        out.flush()?;
        // The client still copies the checkpoints.
        match lines.next(MAX_BACKUP_TIME.saturating_sub(began.elapsed()))? {
            None => Ok(()),
            Some(_) => {
                Err(io::Error::other("the client sent a request that the copy protocol does not have"))
            }
        }
    }

    fn send_blocks(
        &self,
        begins: &[u64],
        ends: &[u64],
        out: &mut impl Write,
    ) -> io::Result<Result<(), String>> {
        for (partition, (begin, end)) in (0..).zip(begins.iter().zip(ends)) {
            let copied =
                for_each_stored_block(&self.journal, partition, *begin, *end, &mut |key, stored| match self
                    .stop
                    .load(Ordering::Relaxed)
                {
                    true => Err(io::Error::other("the service is stopping")),
                    false => write_block(out, key, stored),
                });
            match copied {
                Ok(sent) => sent?,
                Err(error) => return Ok(Err(error.to_string())),
            }
        }
        Ok(Ok(()))
    }
}

/// Reads lines, and returns early if a stop is requested.
struct LineReader<'a> {
    reader: BufReader<&'a UnixStream>,
    stop: &'a AtomicBool,
}

impl LineReader<'_> {
    /// The next line; none at the end.
    fn next(&mut self, patience: Duration) -> io::Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + patience;
        let mut line = Vec::new();
        loop {
            let max_bytes = LINE_BYTES.saturating_sub(line.len() as u64);
            match self.reader.by_ref().take(max_bytes).read_until(b'\n', &mut line) {
                Ok(_) if line.ends_with(b"\n") => return Ok(Some(line)),
                Ok(_) if line.is_empty() => return Ok(None),
                Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::Error::other("the service is stopping"));
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

/// A writer that waits for a slow client, up to a timeout.
struct StallingWriter<'a> {
    stream: &'a UnixStream,
    stop: &'a AtomicBool,
}

impl Write for StallingWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let deadline = Instant::now() + CLIENT_TIMEOUT;
        loop {
            match self.stream.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::Error::other("the service is stopping"));
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
