//! An encrypted stream that one thread reads while another one writes.
//!
//! The TLS state of both directions is one value. Its lock is held to encrypt or decrypt bytes in
//! memory, and never during socket I/O. A reader waits for ciphertext while holding a lock for
//! reading only, so a writer can proceed. A writer holds a lock for writing from encryption until
//! the socket has accepted the records, so they leave in the order of their numbers. Messages of
//! TLS itself (a reply to a key update) leave with the next write. Locks are always taken in the
//! same order, so there is no deadlock.

use std::fmt;
use std::io::{self, BufRead as _, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{Connection, Error};

use super::errors::{describe, server_name};

/// Ciphertext read from the socket at once.
const INCOMING_BYTES: usize = 64 * 1024;
const BINDING_LABEL: &[u8] = b"EXPORTER-swelter-cluster";
const BINDING_BYTES: usize = 32;

/// Clones share the same stream.
#[derive(Clone)]
pub struct TlsStream(Arc<TlsState>);

struct TlsState {
    socket: TcpStream,
    connection: Mutex<Connection>,
    incoming: Mutex<Ciphertext>,
    outgoing: Mutex<Vec<u8>>,
}

/// Ciphertext read from the socket that TLS has not processed yet.
struct Ciphertext {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

impl TlsStream {
    /// Wraps a connection after its handshake.
    pub(super) fn new(socket: TcpStream, mut connection: Connection) -> TlsStream {
        connection.set_buffer_limit(None);
        let incoming = Ciphertext { bytes: vec![0; INCOMING_BYTES].into(), start: 0, end: 0 };
        TlsStream(Arc::new(TlsState {
            socket,
            connection: Mutex::new(connection),
            incoming: Mutex::new(incoming),
            outgoing: Mutex::default(),
        }))
    }

    pub fn socket(&self) -> &TcpStream {
        &self.0.socket
    }

    pub fn channel_binding(&self) -> Result<Vec<u8>, String> {
        let exported =
            lock(&self.0.connection).export_keying_material(vec![0; BINDING_BYTES], BINDING_LABEL, None);
        exported.map_err(|error| error.to_string())
    }

    /// Checks that the peer's certificate is valid for a host.
    pub fn check_host(&self, host: &str) -> Result<(), String> {
        let connection = lock(&self.0.connection);
        let certificate = connection.peer_certificates().and_then(<[_]>::first);
        let certificate = certificate.ok_or(Error::NoCertificatesPresented);
        certificate.and_then(ParsedCertificate::try_from).map_err(|error| describe(&error)).and_then(
            |certificate| {
                verify_server_name(&certificate, &server_name(host)?).map_err(|error| describe(&error))
            },
        )
    }

    /// See [`PeerStream::peek`](super::super::stream::PeerStream).
    pub fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.receive(|mut plaintext| {
            let chunk = plaintext.fill_buf()?;
            let length = chunk.len().min(buffer.len());
            buffer[..length].copy_from_slice(&chunk[..length]);
            Ok(length)
        })
    }

    /// Waits until there is plaintext for `take`. No plaintext means that the peer has closed
    /// cleanly.
    fn receive(
        &self,
        mut take: impl FnMut(tokio_rustls::rustls::Reader<'_>) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut incoming = lock(&self.0.incoming);
        loop {
            {
                let mut connection = lock(&self.0.connection);
                loop {
                    match take(connection.reader()) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        taken => return taken,
                    }
                    if incoming.is_empty() {
                        break;
                    }
                    incoming.decrypt(&mut connection)?;
                }
            }
            // Release the lock of the connection while reading: the writer needs it.
            let length = incoming.fill(&self.0.socket)?;
            if length == 0 {
                // Tells TLS that no more bytes come, which reports whether the close was clean.
                lock(&self.0.connection).read_tls(&mut io::empty())?;
            }
        }
    }

    /// Encrypts the bytes that `say` writes, and sends them.
    fn send(&self, transfer: impl FnOnce(&mut Connection) -> io::Result<usize>) -> io::Result<usize> {
        let mut outgoing = lock(&self.0.outgoing);
        outgoing.clear();
        let said = {
            let mut connection = lock(&self.0.connection);
            let said = transfer(&mut connection)?;
            while connection.wants_write() {
                connection.write_tls(&mut *outgoing)?;
            }
            said
        };
        let written = (&self.0.socket).write_all(&outgoing);
        if written.is_err() {
            // Part of a record may have left, so the peer could not decode anything that follows.
            let _ = self.0.socket.shutdown(Shutdown::Both);
        }
        written.map(|()| said)
    }

    /// Ends the stream. Writing is closed cleanly; closing both directions does not wait for that.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        if how == Shutdown::Write {
            self.send(|connection| {
                connection.send_close_notify();
                Ok(0)
            })?;
        }
        self.0.socket.shutdown(how)
    }

    /// Starts new keys for sending, and asks the peer to do so.
    #[cfg(test)]
    pub fn refresh_keys(&self) -> io::Result<()> {
        self.send(|connection| connection.refresh_traffic_keys().map(|()| 0).map_err(io::Error::other))
            .map(drop)
    }
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TlsStream").field(&self.0.socket).finish()
    }
}

impl Ciphertext {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn fill(&mut self, mut socket: &TcpStream) -> io::Result<usize> {
        let length = loop {
            match socket.read(&mut self.bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        (self.start, self.end) = (0, length);
        Ok(length)
    }

    fn decrypt(&mut self, connection: &mut Connection) -> io::Result<()> {
        let mut rest = &self.bytes[self.start..self.end];
        self.start += connection.read_tls(&mut rest)?;
        let processed = connection.process_new_packets();
        processed.map(drop).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

impl Read for TlsStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        self.receive(|mut plaintext| plaintext.read(buffer))
    }
}

impl Write for TlsStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Limit the bytes at once, so that the locks are held for a short time only.
        let bytes = &bytes[..bytes.len().min(INCOMING_BYTES)];
        self.send(|connection| connection.writer().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
