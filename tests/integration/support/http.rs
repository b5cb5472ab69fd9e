//! An HTTP client for tests: one request a connection, and nothing hidden.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use crate::service_process::WAIT_TIMEOUT;

pub struct HttpResponse {
    pub status: u16,
    pub body: Vec<u8>,
}

impl HttpResponse {
    pub fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}: {text}", self.status))
    }
}

pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, WAIT_TIMEOUT)?;
    stream.set_read_timeout(Some(WAIT_TIMEOUT))?;
    stream.set_write_timeout(Some(WAIT_TIMEOUT))?;
    Ok(stream)
}

pub fn get(address: SocketAddr, path: &str) -> io::Result<HttpResponse> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    send_raw(address, request.as_bytes())
}

pub fn post(address: SocketAddr, path: &str, body: &Value) -> io::Result<HttpResponse> {
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    send_raw(address, format!("{head}{body}").as_bytes())
}

/// Sends bytes as they are and reads one answer.
pub fn send_raw(address: SocketAddr, request: &[u8]) -> io::Result<HttpResponse> {
    let mut stream = connect(address)?;
    // The answer may come before all of the request is taken.
    let sent = stream.write_all(request);
    let mut bytes = Vec::new();
    let mut piece = [0; 64 * 1024];
    loop {
        // Not every server closes the connection when it is asked to.
        if let Some(answer) = parse_response(&bytes) {
            return Ok(answer);
        }
        match stream.read(&mut piece) {
            Ok(0) => return sent.and(Err(io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => bytes.extend_from_slice(&piece[..read]),
            Err(error) => return sent.and(Err(error)),
        }
    }
}

/// The answer, once all of it is there.
fn parse_response(bytes: &[u8]) -> Option<HttpResponse> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let status = head.strip_prefix("http/1.")?.get(2..5)?.parse().ok()?;
    let rest = &bytes[end + 4..];
    let header = |name| head.lines().find_map(|line| Some(line.strip_prefix(name)?.trim_start()));
    if header("transfer-encoding:") == Some("chunked") {
        return Some(HttpResponse { status, body: decode_chunked(rest)? });
    }
    let length = header("content-length:").map_or(Some(0), |length| length.parse().ok())?;
    Some(HttpResponse { status, body: rest.get(..length)?.to_vec() })
}

fn decode_chunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|two| two == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).ok()?, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(line + 2..line + 2 + size)?);
        rest = rest.get(line + 4 + size..)?;
    }
}
