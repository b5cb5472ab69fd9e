//! Strangers who call every port of a case, say garbage and stay.

use std::collections::VecDeque;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::cluster::Cluster;
use crate::recovery::Random;

/// Connections that they hold at once.
const HELD: usize = 300;
/// Between two calls.
const PACE: Duration = Duration::from_millis(1);
/// How often ports are looked for.
const LOOK: Duration = Duration::from_millis(50);

/// What is said beside random bytes.
const SAID: &[&[u8]] = &[
    b"",
    b"GET x HTTP/1.1\r\n\r\n",
    b"CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n",
    b"GET /v1/cities HTTP/1.1\r\nhost: localhost\r\nx: ",
    b"POST /v1/readings HTTP/1.1\r\nhost: localhost\r\ncontent-length: 900\r\n\r\n[{\"city\":",
    b"\x16\x03\x01\x02\x00\x01\x00",
    b"swelter cluster",
];

/// They call until this is dropped.
pub struct Strangers {
    ports: Arc<Mutex<Vec<u16>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Strangers {
    pub fn start(lot: u64) -> Strangers {
        let (ports, ended) = (Arc::<Mutex<Vec<u16>>>::default(), Arc::<AtomicBool>::default());
        let (of_thread, has_ended) = (Arc::clone(&ports), Arc::clone(&ended));
        let call = move || {
            let (mut random, mut held) = (Random(lot), VecDeque::new());
            while !has_ended.load(Ordering::Relaxed) {
                thread::sleep(PACE);
                let port = {
                    let ports = of_thread.lock().unwrap();
                    ports.get(random.next(1 << 32) as usize % ports.len().max(1)).copied()
                };
                held.extend(port.and_then(|port| call(port, &mut random)));
                if held.len() > HELD {
                    held.pop_front();
                }
            }
        };
        Strangers { ports, ended, thread: Some(thread::spawn(call)) }
    }

    /// Has them call the ports that processes listen at, for so long.
    pub fn flood(&self, cluster: &Cluster, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            *self.ports.lock().unwrap() = cluster.ports();
            thread::sleep(LOOK);
        }
    }
}

impl Drop for Strangers {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn call(port: u16, random: &mut Random) -> Option<TcpStream> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(100)).ok()?;
    let random_bytes: Vec<u8> = (0..random.next(2_000)).map(|_| random.next(256) as u8).collect();
    let said = SAID.get(random.next(SAID.len() as u64 + 3) as usize);
    // It may have been refused by then.
    let _ = stream.write_all(said.copied().unwrap_or(&random_bytes));
    Some(stream)
}
