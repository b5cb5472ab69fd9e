//! As much of HTTP as clients here need.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use memchr::memmem;

/// One `GET` on a connection of its own: status and body, if there is an answer.
pub fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let (status, head) = parse_head(&answer)?;
    Some((status, String::from_utf8_lossy(&answer[head..]).into_owned()))
}

/// Status and length of an answer's head, once it is complete.
fn parse_head(bytes: &[u8]) -> Option<(u16, usize)> {
    let end = memmem::find(bytes, b"\r\n\r\n")? + 4;
    let status = std::str::from_utf8(bytes.get(9..12)?).ok()?.parse().ok()?;
    Some((status, end))
}

/// Status and length of an answer, once it is complete. It says its length.
pub fn parse_response(bytes: &[u8]) -> Option<(u16, usize)> {
    const LENGTH: &[u8] = b"content-length: ";
    let (status, end) = parse_head(bytes)?;
    let digits = &bytes[memmem::find(&bytes[..end], LENGTH)? + LENGTH.len()..end];
    let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
    let length = digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'));
    (bytes.len() >= end + length).then_some((status, end + length))
}

pub fn post_request(address: SocketAddr, content: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /v1/readings HTTP/1.1\r\nhost: {address}\r\ncontent-type: {content}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// A connection that is kept, for one request after the other.
pub struct KeepAliveClient {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl KeepAliveClient {
    pub fn connect(address: SocketAddr) -> KeepAliveClient {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        KeepAliveClient { stream, answer: Vec::new() }
    }

    /// Sends a request and waits for its answer's status.
    pub fn request_status(&mut self, request: &[u8]) -> u16 {
        self.stream.write_all(request).unwrap();
        self.answer.clear();
        let mut space = [0; 4096];
        loop {
            let read = self.stream.read(&mut space).unwrap();
            assert!(read > 0, "the server has closed a connection");
            self.answer.extend_from_slice(&space[..read]);
            if let Some((status, _)) = parse_response(&self.answer) {
                return status;
            }
        }
    }
}
