//! Connections from outside to every port of a case, which send garbage and stay open.

use std::collections::VecDeque;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::cluster::TrialCluster;
use crate::support::Random;

/// Connections held at once.
const HELD_CONNECTIONS: usize = 300;
/// Between two connections.
const CALL_INTERVAL: Duration = Duration::from_millis(1);
/// Between two searches for ports.
const PORT_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Openings that are sent beside random bytes.
const GARBAGE_PREFIXES: &[&[u8]] = &[
    b"",
    b"GET x HTTP/1.1\r\n\r\n",
    b"CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n",
    b"GET /v1/cities HTTP/1.1\r\nhost: localhost\r\nx: ",
    b"POST /v1/readings HTTP/1.1\r\nhost: localhost\r\ncontent-length: 900\r\n\r\n[{\"city\":",
    b"\x16\x03\x01\x02\x00\x01\x00",
    b"swelter cluster",
];

/// They connect until this is dropped.
pub struct StrangerFlood {
    ports: Arc<Mutex<Vec<u16>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl StrangerFlood {
    pub fn start(lot: u64) -> StrangerFlood {
        let (ports, ended) = (Arc::<Mutex<Vec<u16>>>::default(), Arc::<AtomicBool>::default());
        let (of_thread, has_ended) = (Arc::clone(&ports), Arc::clone(&ended));
        let call = move || {
            let (mut random, mut held) = (Random::new(lot), VecDeque::new());
            while !has_ended.load(Ordering::Relaxed) {
                thread::sleep(CALL_INTERVAL);
                let port = {
                    let ports = of_thread.lock();
                    ports.get(random.below(1 << 32) as usize % ports.len().max(1)).copied()
                };
                held.extend(port.and_then(|port| call_port(port, &mut random)));
                if held.len() > HELD_CONNECTIONS {
                    held.pop_front();
                }
            }
        };
        StrangerFlood { ports, ended, thread: Some(thread::spawn(call)) }
    }

    /// Connects to the ports of all processes for so long.
    pub fn flood(&self, cluster: &TrialCluster, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            *self.ports.lock() = cluster.ports();
            thread::sleep(PORT_POLL_INTERVAL);
        }
    }
}

impl Drop for StrangerFlood {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn call_port(port: u16, random: &mut Random) -> Option<TcpStream> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(100)).ok()?;
    let random_bytes: Vec<u8> = (0..random.below(2_000)).map(|_| random.below(256) as u8).collect();
    let said = GARBAGE_PREFIXES.get(random.below(GARBAGE_PREFIXES.len() as u64 + 3) as usize);
    // It may have been refused by then.
    let _ = stream.write_all(said.copied().unwrap_or(&random_bytes));
    Some(stream)
}
