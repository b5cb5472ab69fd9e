//! Connections between process 0 and the others, for what is no data: messages in order, and signs of life.

use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use timely::communication::allocator::zero_copy::stream::Stream as _;

use super::message::{Message, Value, ValueName};
use super::stream::PeerStream;
use super::{ClusterError, StopFlag};

/// Messages that may wait for a peer.
const MAX_QUEUED_MESSAGES: usize = 1_024;
/// The greatest message: a posted body, or what a progress topic keeps.
const MAX_FRAME: usize = 128 * 1024 * 1024;
/// What there is room for before any of a message has come; then as much again as has come.
const FIRST_ALLOCATION: usize = 64 * 1024;
/// Between two signs of life, or less where peers are given up soon: several come in the shortest timeout that a peer may have.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(250);
const HEARTBEATS_PER_TIMEOUT: u32 = 4;
/// How long what was said last may take on its way.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);
/// Between two looks whether a wait is over.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Who hears what peers say, by process, from a thread of the link's own that it must not hold up; and why a peer is lost, once.
#[derive(Clone)]
pub struct LinkHandler {
    pub on_message: Arc<dyn Fn(usize, Message) + Send + Sync>,
    pub on_lost: Arc<dyn Fn(usize, String) + Send + Sync>,
}

/// What all links of a process begin with.
#[derive(Clone)]
pub(super) struct LinkPlan {
    pub handler: LinkHandler,
    /// After this long without a sign of life a peer counts as gone.
    pub timeout: Duration,
    /// All have come: from now on one that is gone is lost. Before, another one may take its place.
    pub all_connected: Arc<AtomicBool>,
}

/// The links of this process: process 0 has one to each other, the others one to process 0.
#[derive(Clone, Default)]
pub struct Links(Arc<Vec<(usize, Peer)>>);

pub(super) struct Peer {
    outgoing: SyncSender<Vec<u8>>,
    values: Mutex<Receiver<Value>>,
    state: Arc<LinkState>,
}

#[derive(Default)]
struct LinkState {
    /// It has said that nothing more comes.
    bye: AtomicBool,
    /// Nothing more comes from it, whatever it has said.
    ended: AtomicBool,
    /// Messages that are queued and not yet written.
    waiting: AtomicUsize,
}

/// Why a message is not on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("there is no room for it now")]
    Full,
    #[error("it is longer than {} MiB, the most that processes say to each other at once", MAX_FRAME >> 20)]
    TooLong,
}

impl Links {
    /// Those of a process that is alone.
    pub fn none() -> Links {
        Links::default()
    }

    pub(super) fn new(peers: Vec<(usize, Peer)>) -> Links {
        Links(Arc::new(peers))
    }

    /// Waits for room to say it; a peer that takes nothing is lost before long, which ends the wait.
    pub fn send(&self, process: usize, message: &Message) {
        if let (Some(peer), Some(frame)) = (self.peer(process), frame_or_log(message)) {
            peer.send(frame);
        }
    }

    /// Says it where there is room for it.
    pub fn try_send(&self, process: usize, message: &Message) -> Result<(), SendError> {
        let peer = self.peer(process).ok_or(SendError::Full)?;
        let frame = frame(message)?;
        peer.state.waiting.fetch_add(1, Ordering::AcqRel);
        let queued = peer.outgoing.try_send(frame);
        if queued.is_err() {
            peer.state.waiting.fetch_sub(1, Ordering::AcqRel);
        }
        queued.map_err(|_| SendError::Full)
    }

    /// Says it to all that there is a link to.
    pub fn send_all(&self, message: &Message) {
        if self.0.is_empty() {
            return;
        }
        if let Some(frame) = frame_or_log(message) {
            self.0.iter().for_each(|(_, peer)| peer.send(frame.clone()));
        }
    }

    /// Says it to all that have room for it.
    pub fn try_send_all(&self, message: &Message) {
        for (process, _) in self.0.iter() {
            let _ = self.try_send(*process, message);
        }
    }

    pub(super) fn send_value<T: Serialize>(
        &self,
        step: u64,
        name: ValueName,
        value: &T,
    ) -> Result<(), ClusterError> {
        let bytes = postcard::to_stdvec(value).map_err(|error| ClusterError::Malformed(error.to_string()))?;
        let value = Message::Value(Value { step, of: name.0.into(), bytes });
        let frame = frame(&value).map_err(|error| ClusterError::Malformed(error.to_string()))?;
        self.0.iter().for_each(|(_, peer)| peer.send(frame.clone()));
        Ok(())
    }

    /// Waits for the next value of a peer; where it `heeds` the wish to stop, not longer than until there is one.
    pub(super) fn value<T: DeserializeOwned>(
        &self,
        process: usize,
        (step, name): (u64, ValueName),
        (stop, heeds): (&StopFlag, bool),
    ) -> Result<T, ClusterError> {
        let peer = self.peer(process).ok_or(ClusterError::Gone(process))?;
        let values = peer.values.lock().unwrap_or_else(PoisonError::into_inner);
        let value = loop {
            match values.recv_timeout(POLL_INTERVAL) {
                Ok(value) => break value,
                Err(RecvTimeoutError::Timeout) if heeds && stop.is_raised() => {
                    return Err(ClusterError::Stopped);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) if stop.is_raised() => return Err(ClusterError::Stopped),
                Err(RecvTimeoutError::Disconnected) => return Err(ClusterError::Gone(process)),
            }
        };
        let (ours, Value { step: at, of, bytes }) = (name.0, value);
        if (at, &*of) != (step, ours) {
            return Err(ClusterError::OutOfStep { process, theirs: (at, of), ours: (step, ours.into()) });
        }
        match postcard::take_from_bytes(&bytes) {
            Ok((value, [])) => Ok(value),
            Ok(_) => Err(ClusterError::Malformed(format!("a {of} is too long"))),
            Err(error) => Err(ClusterError::Malformed(error.to_string())),
        }
    }

    /// The first one whose end is gone.
    pub(super) fn first_gone(&self) -> Option<usize> {
        self.0.iter().find(|(_, peer)| !peer.is_alive()).map(|(process, _)| *process)
    }

    /// Says goodbye, and waits until all peers have as well or are gone, or the deadline.
    pub fn close(&self, deadline: Instant) {
        self.send_all(&Message::Bye);
        self.flush();
        let has_said = |peer: &Peer| peer.state.bye.load(Ordering::Acquire) || !peer.is_alive();
        while !self.0.iter().all(|(_, peer)| has_said(peer)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits, not long, until what was said is on its way.
    pub fn flush(&self) {
        let deadline = Instant::now() + FLUSH_TIMEOUT;
        for (_, peer) in self.0.iter() {
            while peer.state.waiting.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    fn peer(&self, process: usize) -> Option<&Peer> {
        self.0.iter().find(|(number, _)| *number == process).map(|(_, peer)| peer)
    }
}

fn frame(message: &Message) -> Result<Vec<u8>, SendError> {
    // Nothing that is said cannot be written; an empty frame would be refused.
    let frame = postcard::to_stdvec(message).unwrap_or_default();
    if frame.len() > MAX_FRAME { Err(SendError::TooLong) } else { Ok(frame) }
}

fn frame_or_log(message: &Message) -> Option<Vec<u8>> {
    frame(message).map_err(|error| tracing::error!("a message to another process is not sent: {error}")).ok()
}

impl Peer {
    pub fn start(process: usize, stream: PeerStream, plan: &LinkPlan) -> io::Result<Peer> {
        stream.socket().set_read_timeout(Some(plan.timeout))?;
        stream.socket().set_write_timeout(Some(plan.timeout))?;
        let (outgoing, frames) = mpsc::sync_channel(MAX_QUEUED_MESSAGES);
        let (values, received) = mpsc::channel();
        let state = Arc::new(LinkState::default());
        let (writing, writer, alive) = (
            state.clone(),
            stream.try_clone()?,
            HEARTBEAT_INTERVAL.min(plan.timeout / HEARTBEATS_PER_TIMEOUT),
        );
        thread::Builder::new()
            .name(format!("link {process} out"))
            .spawn(move || write_frames(writer, &frames, &writing, alive))?;
        let (reading, plan) = (state.clone(), plan.clone());
        thread::Builder::new().name(format!("link {process} in")).spawn(move || {
            let why = read_frames(process, stream, &values, &reading, &plan);
            // Whoever waits for a value waits no more.
            drop(values);
            reading.ended.store(true, Ordering::SeqCst);
            if reading.bye.load(Ordering::Acquire) {
                return;
            }
            match plan.all_connected.load(Ordering::SeqCst) {
                true => (plan.handler.on_lost)(process, why),
                false => tracing::warn!(peer = process, "a process is gone before all have come: {why}"),
            }
        })?;
        Ok(Peer { outgoing, values: Mutex::new(received), state })
    }

    /// Its end is there still.
    pub fn is_alive(&self) -> bool {
        !self.state.ended.load(Ordering::SeqCst)
    }

    fn send(&self, frame: Vec<u8>) {
        self.state.waiting.fetch_add(1, Ordering::AcqRel);
        if self.outgoing.send(frame).is_err() {
            self.state.waiting.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Writes what is queued, and a sign of life where there is nothing. An error shows at the reading end.
fn write_frames(mut stream: PeerStream, frames: &Receiver<Vec<u8>>, state: &LinkState, every: Duration) {
    let alive = postcard::to_stdvec(&Message::Alive).unwrap_or_default();
    loop {
        let (body, queued) = match frames.recv_timeout(every) {
            Ok(body) => (body, 1),
            Err(RecvTimeoutError::Timeout) => (alive.clone(), 0),
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let mut bytes = Vec::with_capacity(4 + body.len());
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&body);
        let written = stream.write_all(&bytes);
        state.waiting.fetch_sub(queued, Ordering::AcqRel);
        if written.is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

/// Reads until the connection ends, and says why it has.
fn read_frames(
    process: usize,
    stream: PeerStream,
    values: &mpsc::Sender<Value>,
    state: &LinkState,
    plan: &LinkPlan,
) -> String {
    let mut stream = BufReader::new(stream);
    loop {
        let message = match read_frame(&mut stream) {
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
            Ok(Message::Value(value)) => drop(values.send(value)),
            Ok(Message::Bye) => state.bye.store(true, Ordering::Release),
            Ok(Message::Failed { why, .. }) if !plan.all_connected.load(Ordering::SeqCst) => return why,
            Ok(message) => (plan.handler.on_message)(process, message),
            Err(error) => return format!("what it says is not understood: {error}"),
        }
    }
}

/// Memory is taken as bytes come, not as their number is said.
fn read_frame(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
    }
    let mut body = Vec::new();
    while body.len() < length {
        let (start, step) = (body.len(), (length - body.len()).min(body.len().max(FIRST_ALLOCATION)));
        body.try_reserve_exact(step).map_err(io::Error::other)?;
        body.resize(start + step, 0);
        stream.read_exact(&mut body[start..])?;
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_buffer_grows_only_with_received_bytes() {
        let body: Vec<u8> = (0..3 * FIRST_ALLOCATION + 5).map(|at| at as u8).collect();
        let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(&body);
        assert_eq!(read_frame(&mut &*bytes).unwrap(), body);
        assert!(read_frame(&mut &[0; 4][..]).unwrap().is_empty());

        /// Says that the greatest frame follows, and then gives a byte at a time; keeps the longest buffer that it was given.
        struct Promise(usize, usize);
        impl Read for Promise {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.1 = self.1.max(buffer.len());
                self.0 += 1;
                match self.0 {
                    1 => {
                        buffer.copy_from_slice(&(MAX_FRAME as u32).to_le_bytes());
                        Ok(4)
                    }
                    2 => Ok(1),
                    _ => Ok(0),
                }
            }
        }
        let mut promise = Promise(0, 0);
        assert_eq!(read_frame(&mut promise).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(promise.1 <= FIRST_ALLOCATION, "{} bytes were made room for", promise.1);

        let too_long = ((MAX_FRAME + 1) as u32).to_le_bytes();
        assert_eq!(read_frame(&mut &too_long[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
