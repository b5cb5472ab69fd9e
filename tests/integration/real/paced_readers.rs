//! Clients that read responses at a given rate. The bench of the service includes this file too.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The request of a client, and the rate at which it reads the response.
pub struct PacedReader {
    pub request: Vec<u8>,
    pub bytes_per_second: usize,
}

/// They read until they are stopped.
pub struct PacedReaders {
    stop: Arc<AtomicBool>,
    bytes: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<()>>,
}

impl PacedReaders {
    /// Each on a thread, which connects again after `session`, or when it is closed.
    pub fn start(at: SocketAddr, readers: Vec<PacedReader>, session: Duration) -> PacedReaders {
        let (stop, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients = readers.into_iter().map(|reader| {
            let (stop, bytes) = (stop.clone(), bytes.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    reader.read_once(at, session, &stop, &bytes);
                }
            })
        });
        PacedReaders { clients: clients.collect(), stop, bytes }
    }

    /// What all have read so far.
    pub fn bytes_read(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Waits until none reads any more.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.into_iter().for_each(|client| client.join().unwrap());
    }
}

impl PacedReader {
    fn read_once(&self, at: SocketAddr, session: Duration, stop: &AtomicBool, bytes: &AtomicUsize) {
        let Ok(mut stream) = TcpStream::connect(at) else { return pause_between_reads() };
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        // A rejected client is closed while it still sends.
        let _ = stream.write_all(&self.request);
        let (began, mut read, mut piece) = (Instant::now(), 0, vec![0; 16 * 1024]);
        while !stop.load(Ordering::Relaxed) && began.elapsed() < session {
            if read as f64 > began.elapsed().as_secs_f64() * self.bytes_per_second as f64 {
                pause_between_reads();
                continue;
            }
            match stream.read(&mut piece) {
                Ok(0) => return pause_between_reads(),
                Ok(more) => {
                    read += more;
                    bytes.fetch_add(more, Ordering::Relaxed);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return pause_between_reads(),
            }
        }
    }
}

/// Keeps the pace, and keeps clients from reconnecting without a pause, which would leave the
/// service no CPU time.
fn pause_between_reads() {
    thread::sleep(Duration::from_millis(20));
}

pub fn get_request(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").into_bytes()
}

/// A handshake for `/v1/subscribe`, and messages with masks of zeros.
pub fn subscribe_request(messages: &[String]) -> Vec<u8> {
    let mut bytes =
        b"GET /v1/subscribe HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            .to_vec();
    for message in messages {
        bytes.extend([0x81, 0x80 | 127]);
        bytes.extend((message.len() as u64).to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(message.bytes());
    }
    bytes
}
