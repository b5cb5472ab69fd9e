//! WebSocket clients by the thousand on one thread: raw sockets and as much of RFC 6455 as a
//! server's frames need.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use memchr::memmem;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

const READ_BUFFER_BYTES: usize = 256 * 1024;
const PING_OPCODE: u8 = 9;
const CLOSE_OPCODE: u8 = 8;

pub struct SubscriberFleet {
    poll: Poll,
    events: Events,
    clients: Vec<FleetClient>,
    space: Vec<u8>,
}

struct FleetClient {
    stream: TcpStream,
    /// Of a frame that is not complete.
    left: Vec<u8>,
    /// Of a message that is not complete.
    begun: Vec<u8>,
}

impl SubscriberFleet {
    /// Opens so many WebSockets.
    pub fn connect(address: SocketAddr, count: usize) -> SubscriberFleet {
        let poll = Poll::new().unwrap();
        let mut clients = Vec::with_capacity(count);
        for number in 0..count {
            let mut client = FleetClient::connect(address);
            poll.registry().register(&mut client.stream, Token(number), Interest::READABLE).unwrap();
            clients.push(client);
        }
        SubscriberFleet {
            poll,
            events: Events::with_capacity(1024),
            clients,
            space: vec![0; READ_BUFFER_BYTES],
        }
    }

    /// Sends a message.
    pub fn send_text(&mut self, client: usize, text: &str) {
        self.clients[client].send_frame(0x81, text.as_bytes());
    }

    /// Reads what comes within a time, or has come, and calls `each` with client and message.
    pub fn poll_messages(&mut self, wait: Duration, each: &mut impl FnMut(usize, &[u8])) {
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return,
            polled => polled.unwrap(),
        }
        for event in &self.events {
            let Token(number) = event.token();
            self.clients[number].read(&mut self.space, &mut |message| each(number, message));
        }
    }
}

impl FleetClient {
    fn connect(address: SocketAddr) -> FleetClient {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        let request = format!(
            "GET /v1/subscribe HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let (mut left, mut space) = (Vec::new(), [0; 1024]);
        let head = loop {
            let read = stream.read(&mut space).unwrap();
            assert!(read > 0, "the server has closed a connection");
            left.extend_from_slice(&space[..read]);
            if let Some(at) = memmem::find(&left, b"\r\n\r\n") {
                break at + 4;
            }
        };
        assert!(left.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&left));
        left.drain(..head);
        stream.set_nonblocking(true).unwrap();
        FleetClient { stream: TcpStream::from_std(stream), left, begun: Vec::new() }
    }

    /// Writes a frame; what clients say is short, so that the socket always has room for it.
    fn send_frame(&mut self, first: u8, payload: &[u8]) {
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..126 => frame.push(0x80 | length as u8),
            length => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&(length as u16).to_be_bytes());
            }
        }
        // A mask of zeros is a mask.
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(payload);
        self.stream.write_all(&frame).unwrap();
    }

    /// Reads until there is no more. What is complete is used where it was read; only the rest is
    /// copied.
    fn read(&mut self, space: &mut [u8], each: &mut impl FnMut(&[u8])) {
        loop {
            let read = match self.stream.read(space) {
                Ok(0) => panic!("the server has closed a connection"),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}"),
            };
            if self.left.is_empty() {
                let used = self.handle_frames(&space[..read], each);
                self.left.extend_from_slice(&space[used..read]);
            } else {
                let mut left = std::mem::take(&mut self.left);
                left.extend_from_slice(&space[..read]);
                let used = self.handle_frames(&left, each);
                left.drain(..used);
                self.left = left;
            }
            if self.left.is_empty() && self.left.capacity() > 0 {
                self.left = Vec::new();
            }
            // A read that did not fill its space has taken all: what comes later is another event.
            if read < space.len() {
                return;
            }
        }
    }

    /// Takes the complete frames; returns their length.
    fn handle_frames(&mut self, bytes: &[u8], each: &mut impl FnMut(&[u8])) -> usize {
        let mut used = 0;
        while let Some((first, start, length)) = parse_frame(&bytes[used..]) {
            let payload = &bytes[used + start..used + start + length];
            used += start + length;
            match (first & 0x0f, first & 0x80 != 0) {
                (PING_OPCODE, _) => self.send_frame(0x8a, payload),
                (CLOSE_OPCODE, _) => {
                    panic!("closed by the server: {}", String::from_utf8_lossy(&payload[2..]))
                }
                (_, true) if self.begun.is_empty() => each(payload),
                (_, true) => {
                    let mut message = std::mem::take(&mut self.begun);
                    message.extend_from_slice(payload);
                    each(&message);
                }
                (_, false) => self.begun.extend_from_slice(payload),
            }
        }
        used
    }
}

/// The first byte of a complete frame, where its payload begins, and its length.
fn parse_frame(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let [first, short, rest @ ..] = bytes else { return None };
    let (start, length) = match short & 0x7f {
        126 => (4, usize::from(u16::from_be_bytes(*rest.first_chunk()?))),
        127 => (10, u64::from_be_bytes(*rest.first_chunk()?) as usize),
        short => (2, usize::from(short)),
    };
    (bytes.len() >= start + length).then_some((*first, start, length))
}

/// A request to subscribe; `cities` is a list, or all.
pub fn subscribe_request(id: &str, cities: Option<&[String]>, rows: &str) -> String {
    let cities = match cities {
        Some(cities) => format!("[\"{}\"]", cities.join("\",\"")),
        None => "\"all\"".into(),
    };
    format!("{{\"type\":\"subscribe\",\"id\":\"{id}\",\"cities\":{cities},\"rows\":\"{rows}\"}}")
}

/// As many open files as may be.
pub fn check_open_files(wanted: u64) -> io::Result<()> {
    let limits = std::fs::read_to_string("/proc/self/limits")?;
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
    let open = line.split_whitespace().nth(3).and_then(|soft| soft.parse().ok()).unwrap_or(u64::MAX);
    assert!(open >= wanted, "ulimit -n is {open}: {wanted} are needed");
    Ok(())
}
