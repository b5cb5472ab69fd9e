//! A connection between two processes, encrypted or not, used by links and the dataflow.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

use timely::communication::allocator::zero_copy::stream::Stream;

use super::tls::TlsStream;

#[derive(Debug)]
pub enum PeerStream {
    Plain(TcpStream),
    Tls(TlsStream),
}

impl PeerStream {
    /// The underlying socket, for its timeouts.
    pub fn socket(&self) -> &TcpStream {
        match self {
            PeerStream::Plain(socket) => socket,
            PeerStream::Tls(stream) => stream.socket(),
        }
    }

    /// Waits for bytes and copies them; the next read returns them again.
    pub(super) fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            PeerStream::Plain(socket) => socket.peek(buffer),
            PeerStream::Tls(stream) => stream.peek(buffer),
        }
    }

    /// A value that only the two ends of this connection share; empty without TLS.
    pub(super) fn channel_binding(&self) -> Result<Vec<u8>, String> {
        match self {
            PeerStream::Plain(_) => Ok(Vec::new()),
            PeerStream::Tls(stream) => stream.channel_binding(),
        }
    }

    /// Checks that the certificate of the peer is valid for this host.
    pub(super) fn check_host(&self, host: &str) -> Result<(), String> {
        match self {
            PeerStream::Plain(_) => Ok(()),
            PeerStream::Tls(stream) => stream.check_host(host),
        }
    }
}

impl Read for PeerStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            PeerStream::Plain(socket) => socket.read(buffer),
            PeerStream::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for PeerStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            PeerStream::Plain(socket) => socket.write(bytes),
            PeerStream::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            PeerStream::Plain(socket) => socket.flush(),
            PeerStream::Tls(stream) => stream.flush(),
        }
    }
}

impl Stream for PeerStream {
    fn try_clone(&self) -> io::Result<PeerStream> {
        match self {
            PeerStream::Plain(socket) => socket.try_clone().map(PeerStream::Plain),
            PeerStream::Tls(stream) => Ok(PeerStream::Tls(stream.clone())),
        }
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.socket().set_nonblocking(nonblocking)
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            PeerStream::Plain(socket) => socket.shutdown(how),
            PeerStream::Tls(stream) => stream.shutdown(how),
        }
    }
}

/// Sets the options of every socket between processes.
pub(super) fn configure_socket(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    socket.set_nonblocking(false)
}
