//! Connections between process 0 and the others, for what is no data: messages in order, and signs of life.

use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration as Wait, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::message::Message;
use super::{ClusterError, ClusterPlan};

/// Messages that may wait for a peer.
const QUEUED: usize = 1_024;
/// The greatest message: a posted body, or what a progress topic keeps.
const MAX_FRAME: usize = 128 * 1024 * 1024;
/// Between two signs of life.
const ALIVE: Wait = Wait::from_secs(1);
/// How long what was said last may take on its way.
const FLUSH: Wait = Wait::from_millis(500);

/// Who hears what peers say, by process, from a thread of the link's own that it must not hold up; and why a peer is lost, once.
#[derive(Clone)]
pub struct Heard {
    pub message: Arc<dyn Fn(usize, Message) + Send + Sync>,
    pub lost: Arc<dyn Fn(usize, String) + Send + Sync>,
}

/// The links of this process: process 0 has one to each other, the others one to process 0.
#[derive(Clone, Default)]
pub struct Links(Arc<Vec<(usize, Peer)>>);

struct Peer {
    outgoing: SyncSender<Vec<u8>>,
    values: Mutex<Receiver<Vec<u8>>>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// It has said that nothing more comes.
    bye: AtomicBool,
    /// We have.
    said_bye: AtomicBool,
    /// Nothing more comes from it, whatever it has said.
    ended: AtomicBool,
    /// Messages that are queued and not yet written.
    waiting: AtomicUsize,
}

impl Links {
    /// Those of a process that is alone.
    pub fn none() -> Links {
        Links::default()
    }

    pub(super) fn start(
        plan: &ClusterPlan,
        peers: Vec<(usize, TcpStream)>,
        heard: Heard,
    ) -> Result<Links, ClusterError> {
        let start = |(process, socket): (usize, TcpStream)| {
            let peer = Peer::start(process, socket, plan.peer_timeout, heard.clone());
            peer.map(|peer| (process, peer)).map_err(|error| ClusterError::Threads(Arc::new(error)))
        };
        peers.into_iter().map(start).collect::<Result<_, _>>().map(|peers| Links(Arc::new(peers)))
    }

    /// Waits for room to say it; a peer that takes nothing is lost before long, which ends the wait.
    pub fn send(&self, process: usize, message: &Message) {
        if let Some(peer) = self.peer(process) {
            peer.state.waiting.fetch_add(1, Ordering::AcqRel);
            if peer.outgoing.send(frame(message)).is_err() {
                peer.state.waiting.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    /// Says it where there is room for it.
    pub fn try_send(&self, process: usize, message: &Message) -> bool {
        let Some(peer) = self.peer(process) else { return false };
        peer.state.waiting.fetch_add(1, Ordering::AcqRel);
        let queued = peer.outgoing.try_send(frame(message)).is_ok();
        if !queued {
            peer.state.waiting.fetch_sub(1, Ordering::AcqRel);
        }
        queued
    }

    /// Says it to all that there is a link to.
    pub fn send_all(&self, message: &Message) {
        for (process, _) in self.0.iter() {
            self.send(*process, message);
        }
    }

    pub(super) fn send_value(&self, value: &impl Serialize) -> Result<(), ClusterError> {
        let bytes = postcard::to_stdvec(value).map_err(|error| ClusterError::Malformed(error.to_string()))?;
        self.send_all(&Message::Value(bytes));
        Ok(())
    }

    /// Waits for the next value of a peer.
    pub(super) fn value<T: DeserializeOwned>(&self, process: usize) -> Result<T, ClusterError> {
        let peer = self.peer(process).ok_or(ClusterError::Gone(process))?;
        let values = peer.values.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = values.recv().map_err(|_| ClusterError::Gone(process))?;
        postcard::from_bytes(&bytes).map_err(|error| ClusterError::Malformed(error.to_string()))
    }

    /// Says goodbye, and waits until all peers have as well or are gone, or the deadline.
    pub fn end(&self, deadline: Instant) {
        for (process, peer) in self.0.iter() {
            peer.state.said_bye.store(true, Ordering::Relaxed);
            self.send(*process, &Message::Bye);
        }
        self.flush();
        let has_said =
            |peer: &Peer| peer.state.bye.load(Ordering::Acquire) || peer.state.ended.load(Ordering::Acquire);
        while !self.0.iter().all(|(_, peer)| has_said(peer)) && Instant::now() < deadline {
            thread::sleep(Wait::from_millis(5));
        }
    }

    /// Waits, not long, until what was said is on its way.
    pub fn flush(&self) {
        let deadline = Instant::now() + FLUSH;
        for (_, peer) in self.0.iter() {
            while peer.state.waiting.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
                thread::sleep(Wait::from_millis(1));
            }
        }
    }

    fn peer(&self, process: usize) -> Option<&Peer> {
        self.0.iter().find(|(number, _)| *number == process).map(|(_, peer)| peer)
    }
}

fn frame(message: &Message) -> Vec<u8> {
    // Nothing that is said cannot be written; an empty frame would be refused.
    postcard::to_stdvec(message).unwrap_or_default()
}

impl Peer {
    fn start(process: usize, socket: TcpStream, timeout: Wait, heard: Heard) -> io::Result<Peer> {
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        let (outgoing, frames) = mpsc::sync_channel(QUEUED);
        let (values, received) = mpsc::channel();
        let state = Arc::new(State::default());
        let (writing, writer) = (state.clone(), socket.try_clone()?);
        thread::Builder::new()
            .name(format!("link {process} out"))
            .spawn(move || write(writer, &frames, &writing))?;
        let reading = state.clone();
        thread::Builder::new().name(format!("link {process} in")).spawn(move || {
            let why = read(process, socket, &values, &reading, &heard);
            // Whoever waits for a value waits no more.
            drop(values);
            reading.ended.store(true, Ordering::Release);
            if !reading.bye.load(Ordering::Acquire) {
                (heard.lost)(process, why);
            }
        })?;
        Ok(Peer { outgoing, values: Mutex::new(received), state })
    }
}

/// Writes what is queued, and a sign of life where there is nothing. An error shows at the reading end.
fn write(mut socket: TcpStream, frames: &Receiver<Vec<u8>>, state: &State) {
    let alive = frame(&Message::Alive);
    loop {
        let (body, queued) = match frames.recv_timeout(ALIVE) {
            Ok(body) => (body, 1),
            Err(RecvTimeoutError::Timeout) => (alive.clone(), 0),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let mut bytes = Vec::with_capacity(4 + body.len());
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&body);
        let written = socket.write_all(&bytes);
        state.waiting.fetch_sub(queued, Ordering::AcqRel);
        if written.is_err() {
            let _ = socket.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
}

/// Reads until the connection ends, and says why it has.
fn read(
    process: usize,
    socket: TcpStream,
    values: &mpsc::Sender<Vec<u8>>,
    state: &State,
    heard: &Heard,
) -> String {
    let mut socket = BufReader::new(socket);
    loop {
        let message = match read_frame(&mut socket) {
            Ok(body) => postcard::from_bytes::<Message>(&body),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return "it gives no sign of life".into();
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return "its connection has ended".into();
            }
            Err(error) => return error.to_string(),
        };
        match message {
            Ok(Message::Alive) => {}
            Ok(Message::Value(bytes)) => drop(values.send(bytes)),
            Ok(Message::Bye) => state.bye.store(true, Ordering::Release),
            Ok(message) => (heard.message)(process, message),
            Err(error) => return format!("what it says is not understood: {error}"),
        }
    }
}

fn read_frame(socket: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body)?;
    Ok(body)
}
