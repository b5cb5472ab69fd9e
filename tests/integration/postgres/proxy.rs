//! A proxy before a server that loses answers to COMMIT: the transaction is durable, and its writer
//! is not told.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Forwards every connection until the process of the test ends.
pub struct AnswerLosingProxy {
    pub url: String,
    losses: Arc<Losses>,
}

/// How many answers are still to be lost, and how many were.
#[derive(Default)]
struct Losses {
    wanted: AtomicU64,
    done: AtomicU64,
}

impl AnswerLosingProxy {
    pub fn start(server: &str) -> AnswerLosingProxy {
        let address = server.split('@').nth(1).unwrap().split('/').next().unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap().to_string();
        let losses = Arc::new(Losses::default());
        let proxy = AnswerLosingProxy { url: server.replace(&address, &own), losses: Arc::clone(&losses) };
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A server that is away refuses the client, too.
                let Ok(server) = TcpStream::connect(&address) else { continue };
                let losses = Arc::clone(&losses);
                thread::spawn(move || forward(client, server, &losses));
            }
        });
        proxy
    }

    /// Loses the next answers to COMMIT, with their connections.
    pub fn lose_answers(&self, count: u64) {
        self.losses.wanted.fetch_add(count, Ordering::SeqCst);
    }

    pub fn lost_answers(&self) -> u64 {
        self.losses.done.load(Ordering::SeqCst)
    }
}

/// Forwards both directions of a connection. Once the client has sent a COMMIT whose answer is to be
/// lost, what the server answers reaches nobody.
fn forward(client: TcpStream, server: TcpStream, losses: &Arc<Losses>) {
    let loses = Arc::new(AtomicU64::new(0));
    let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let (armed, wanted) = (Arc::clone(&loses), Arc::clone(losses));
    let sender = thread::spawn(move || {
        let mut buffer = [0; 64 * 1024];
        while let Ok(length @ 1..) = from_client.read(&mut buffer) {
            if has_commit(&buffer[..length]) && take_one(&wanted.wanted) {
                armed.store(1, Ordering::SeqCst);
            }
            if to_server.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let (mut from_server, mut to_client) = (server, client);
    let mut buffer = [0; 64 * 1024];
    while let Ok(length @ 1..) = from_server.read(&mut buffer) {
        let is_commit = buffer[..length].windows(7).any(|window| window == b"COMMIT\0");
        if is_commit && loses.load(Ordering::SeqCst) == 1 {
            losses.done.fetch_add(1, Ordering::SeqCst);
            break;
        }
        if to_client.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to_client.shutdown(Shutdown::Both);
    let _ = from_server.shutdown(Shutdown::Both);
    let _ = sender.join();
}

fn has_commit(bytes: &[u8]) -> bool {
    bytes.windows(7).any(|window| window.eq_ignore_ascii_case(b"commit\0"))
}

fn take_one(count: &AtomicU64) -> bool {
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1)).is_ok()
}
