//! Control connections between process 0 and each other process: ordered messages and heartbeats.
//!
//! A link carries frames: a length, a kind, and bytes. It does not interpret messages.

use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use timely::communication::allocator::zero_copy::stream::Stream as _;

use super::stream::PeerStream;

/// Messages that may be queued for a peer.
const MAX_QUEUED_MESSAGES: usize = 1_024;
/// The longest message: a posted body, or the content of a progress topic.
const MAX_FRAME: usize = 128 * 1024 * 1024;
/// Bytes allocated before any byte of a message has arrived. The buffer then doubles as bytes
/// arrive.
const FIRST_ALLOCATION: usize = 64 * 1024;
/// The longest interval between two heartbeats. It is shorter if the timeout is short: several
/// heartbeats fit into the shortest timeout that a peer may have.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(250);
const HEARTBEATS_PER_TIMEOUT: u32 = 4;
/// How long sending the last message may take.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);
/// Handles messages of peers by process number. It runs on a thread of the link and must not block.
#[derive(Clone)]
pub struct LinkHandler {
    /// Handles a message. An error says why it cannot be decoded, and the peer is lost.
    pub on_message: OnMessage,
    /// Handles the end of a peer, or its request that all processes end.
    pub on_end: OnEnd,
}

pub type OnMessage = Arc<dyn Fn(usize, &[u8]) -> Result<(), String> + Send + Sync>;
pub type OnEnd = Arc<dyn Fn(usize, PeerEnd) + Send + Sync>;

/// Why a process ends, or requests that all end. Later messages of that process are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerEnd {
    /// The process was asked to stop; all processes stop.
    StopRequested,
    Failed(String),
    /// Another generation has taken over.
    TakenOver(String),
    /// The connection ended before the process gave a reason.
    Lost(String),
}

/// Kinds of frames: the first byte of a frame.
mod kind {
    /// Sent if there is no message to send.
    pub const HEARTBEAT: u8 = 0;
    pub const MESSAGE: u8 = 1;
    /// A `PeerEnd`.
    pub const END: u8 = 2;
    /// The sender has finished; no more frames follow.
    pub const GOODBYE: u8 = 3;
}

/// The settings shared by all links of a process.
#[derive(Clone)]
pub(super) struct LinkPlan {
    pub handler: LinkHandler,
    /// A peer that sends nothing for this long is lost.
    pub timeout: Duration,
    /// All processes are connected: a lost connection is now final. Before, the process may
    /// reconnect.
    pub all_connected: Arc<AtomicBool>,
}

/// The links of this process: process 0 has one to each other process, the others have one to
/// process 0.
#[derive(Clone, Default)]
pub struct Links(Arc<Vec<(usize, Peer)>>);

pub(super) struct Peer {
    outgoing: SyncSender<Vec<u8>>,
    state: Arc<LinkState>,
}

#[derive(Default)]
struct LinkState {
    /// The peer has sent its goodbye.
    bye: AtomicBool,
    /// The connection has ended.
    ended: AtomicBool,
    /// Messages that are queued and not yet written.
    waiting: AtomicUsize,
}

/// Why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("the queue is full")]
    Full,
    #[error("the message is longer than {} MiB, the greatest length of a message between processes", MAX_FRAME >> 20)]
    TooLong,
}

impl Links {
    /// No links, for a run of a single process.
    pub fn none() -> Links {
        Links::default()
    }

    pub(super) fn new(peers: Vec<(usize, Peer)>) -> Links {
        Links(Arc::new(peers))
    }

    /// Sends a message, and waits while the queue is full. A peer that reads nothing is lost after
    /// the timeout, which ends the wait.
    pub fn send(&self, process: usize, message: &impl Serialize) {
        if let (Some(peer), Some(frame)) = (self.peer(process), frame_or_log(kind::MESSAGE, message)) {
            peer.send(frame);
        }
    }

    /// Sends a message unless the queue is full.
    pub fn try_send(&self, process: usize, message: &impl Serialize) -> Result<(), SendError> {
        let peer = self.peer(process).ok_or(SendError::Full)?;
        let frame = frame(kind::MESSAGE, message)?;
        peer.state.waiting.fetch_add(1, Ordering::AcqRel);
        let queued = peer.outgoing.try_send(frame);
        if queued.is_err() {
            peer.state.waiting.fetch_sub(1, Ordering::AcqRel);
        }
        queued.map_err(|_| SendError::Full)
    }

    /// Sends a message to all linked processes; to none if the message is too long.
    pub fn send_all(&self, message: &impl Serialize) -> Result<(), SendError> {
        if !self.0.is_empty() {
            let frame = frame(kind::MESSAGE, message)?;
            self.0.iter().for_each(|(_, peer)| peer.send(frame.clone()));
        }
        Ok(())
    }

    /// Tells all linked processes why this process ends, or that all must stop.
    pub fn send_end(&self, end: &PeerEnd) {
        self.send_frames(kind::END, end);
    }

    fn send_frames(&self, kind: u8, content: &impl Serialize) {
        if self.0.is_empty() {
            return;
        }
        if let Some(frame) = frame_or_log(kind, content) {
            self.0.iter().for_each(|(_, peer)| peer.send(frame.clone()));
        }
    }

    /// The first peer whose connection has ended.
    pub(super) fn first_gone(&self) -> Option<usize> {
        self.0.iter().find(|(_, peer)| !peer.is_alive()).map(|(process, _)| *process)
    }

    /// Sends a goodbye, and waits until every peer has sent one or is gone, or until the deadline.
    pub fn close(&self, deadline: Instant) {
        self.send_frames(kind::GOODBYE, &());
        self.flush();
        let has_said = |peer: &Peer| peer.state.bye.load(Ordering::Acquire) || !peer.is_alive();
        while !self.0.iter().all(|(_, peer)| has_said(peer)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits a short time until the queues are empty.
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

fn frame(kind: u8, content: &impl Serialize) -> Result<Vec<u8>, SendError> {
    // Serializing these messages cannot fail. A frame without content would be refused.
    let frame = postcard::to_extend(content, vec![kind]).unwrap_or_else(|_| vec![kind]);
    if frame.len() > MAX_FRAME { Err(SendError::TooLong) } else { Ok(frame) }
}

fn frame_or_log(kind: u8, content: &impl Serialize) -> Option<Vec<u8>> {
    frame(kind, content)
        .map_err(|error| tracing::error!("a message to another process is not sent: {error}"))
        .ok()
}

impl Peer {
    pub fn start(process: usize, stream: PeerStream, plan: &LinkPlan) -> io::Result<Peer> {
        stream.socket().set_read_timeout(Some(plan.timeout))?;
        stream.socket().set_write_timeout(Some(plan.timeout))?;
        let (outgoing, frames) = mpsc::sync_channel(MAX_QUEUED_MESSAGES);
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
            let why = read_frames(process, stream, &reading, &plan);
            reading.ended.store(true, Ordering::SeqCst);
            if reading.bye.load(Ordering::Acquire) {
                return;
            }
            if plan.all_connected.load(Ordering::SeqCst) {
                (plan.handler.on_end)(process, PeerEnd::Lost(why));
            } else {
                tracing::warn!(
                    peer = process,
                    "the connection to a process was lost before all processes were connected: {why}"
                );
            }
        })?;
        Ok(Peer { outgoing, state })
    }

    /// Whether the connection is open.
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

/// Writes queued frames, or a heartbeat if there are none. The reading end reports errors.
fn write_frames(mut stream: PeerStream, frames: &Receiver<Vec<u8>>, state: &LinkState, every: Duration) {
    let heartbeat = vec![kind::HEARTBEAT];
    loop {
        let (body, queued) = match frames.recv_timeout(every) {
            Ok(body) => (body, 1),
            Err(RecvTimeoutError::Timeout) => (heartbeat.clone(), 0),
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

/// Reads until the connection ends, and returns the reason.
fn read_frames(process: usize, stream: PeerStream, state: &LinkState, plan: &LinkPlan) -> String {
    let mut stream = BufReader::new(stream);
    let not_understood = |why: String| format!("its message cannot be decoded: {why}");
    loop {
        let frame = match read_frame(&mut stream) {
            Ok(frame) => frame,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return "it has sent no heartbeat for too long".into();
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return "its connection has ended".into();
            }
            Err(error) => return error.to_string(),
        };
        match frame.split_first() {
            Some((&kind::HEARTBEAT, _)) => {}
            Some((&kind::GOODBYE, _)) => state.bye.store(true, Ordering::Release),
            Some((&kind::MESSAGE, bytes)) => {
                if let Err(why) = (plan.handler.on_message)(process, bytes) {
                    return not_understood(why);
                }
            }
            Some((&kind::END, bytes)) => match postcard::from_bytes(bytes) {
                Ok(PeerEnd::Failed(why) | PeerEnd::TakenOver(why))
                    if !plan.all_connected.load(Ordering::SeqCst) =>
                {
                    return why;
                }
                Ok(end) => (plan.handler.on_end)(process, end),
                Err(error) => return not_understood(error.to_string()),
            },
            Some((other, _)) => return not_understood(format!("a frame of kind {other}")),
            None => return not_understood("an empty frame".into()),
        }
    }
}

/// Memory is allocated as bytes arrive, not by the announced length.
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
    fn frame_is_read_whole_and_takes_no_memory_for_what_does_not_come() {
        let body: Vec<u8> = (0..3 * FIRST_ALLOCATION + 5).map(|at| at as u8).collect();
        let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(&body);
        assert_eq!(read_frame(&mut &*bytes).unwrap(), body);
        assert!(read_frame(&mut &[0; 4][..]).unwrap().is_empty());

        /// Announces the longest frame, then sends one byte at a time; records the longest buffer
        /// passed to it.
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
