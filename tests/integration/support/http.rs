//! The HTTP client of the tests: what it sends is written out here, and nothing is retried or
//! followed.

use std::fmt::Display;
use std::io::{self, Error, ErrorKind, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use serde_json::Value;

use super::wait::WAIT_TIMEOUT;

pub struct HttpResponse {
    pub status: u16,
    /// The status line and the headers, in lower case.
    pub head: String,
    pub body: String,
}

impl HttpResponse {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("{}: {error}: {}", self.status, self.body))
    }

    /// The field `code` of a problem; empty without one.
    pub fn error_code(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        body["code"].as_str().unwrap_or_default().to_owned()
    }
}

pub fn connect(address: impl ToSocketAddrs) -> io::Result<TcpStream> {
    connect_with_timeout(address, WAIT_TIMEOUT)
}

/// A connection whose reads and writes each fail after `timeout`.
pub fn connect_with_timeout(address: impl ToSocketAddrs, timeout: Duration) -> io::Result<TcpStream> {
    let address = address.to_socket_addrs()?.next().ok_or(ErrorKind::AddrNotAvailable)?;
    let stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    Ok(stream)
}

pub fn get(address: impl ToSocketAddrs + Display, path: &str) -> io::Result<HttpResponse> {
    get_with_timeout(address, path, WAIT_TIMEOUT)
}

pub fn get_with_timeout(
    address: impl ToSocketAddrs + Display,
    path: &str,
    timeout: Duration,
) -> io::Result<HttpResponse> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    exchange(&mut connect_with_timeout(address, timeout)?, request.as_bytes())
}

/// Posts readings.
pub fn post(
    address: impl ToSocketAddrs + Display,
    content_type: &str,
    body: &str,
) -> io::Result<HttpResponse> {
    let request =
        post_request(&address, &format!("Connection: close\r\nContent-Type: {content_type}\r\n"), body);
    send_raw(address, request.as_bytes())
}

/// The text of a post of readings, with further headers, each with its line end.
pub fn post_request(host: impl Display, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("POST /v1/readings HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: {length}\r\n\r\n{body}")
}

/// Sends bytes as they are and reads one response.
pub fn send_raw(address: impl ToSocketAddrs, request: &[u8]) -> io::Result<HttpResponse> {
    exchange(&mut connect(address)?, request)
}

/// A connection for many requests.
pub struct KeepAliveClient {
    stream: TcpStream,
    pub address: String,
}

impl KeepAliveClient {
    pub fn open(address: &str) -> KeepAliveClient {
        KeepAliveClient { stream: connect(address).unwrap(), address: address.into() }
    }

    pub fn get(&mut self, path: &str) -> HttpResponse {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address);
        exchange(&mut self.stream, request.as_bytes()).unwrap()
    }

    /// Posts readings, one a line.
    pub fn post(&mut self, lines: &str) -> HttpResponse {
        let request = post_request(&self.address, "Content-Type: application/x-ndjson\r\n", lines);
        exchange(&mut self.stream, request.as_bytes()).unwrap()
    }
}

/// Sends a request and reads its response, to the length that the response gives: not every server
/// closes the connection.
fn exchange(stream: &mut TcpStream, request: &[u8]) -> io::Result<HttpResponse> {
    // The response may come before all of the request is taken.
    let sent = stream.write_all(request);
    let mut bytes = Vec::new();
    let mut piece = [0; 64 * 1024];
    loop {
        if let Some(response) = parse_response(&bytes) {
            return response;
        }
        match stream.read(&mut piece) {
            Ok(0) => return sent.and(Err(ErrorKind::UnexpectedEof.into())),
            Ok(read) => bytes.extend_from_slice(&piece[..read]),
            Err(error) => return sent.and(Err(error)),
        }
    }
}

/// The response, once all of it has been read.
fn parse_response(bytes: &[u8]) -> Option<io::Result<HttpResponse>> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let rest = &bytes[end + 4..];
    let header = |name| head.lines().find_map(|line| Some(line.strip_prefix(name)?.trim_start()));
    let body = if header("transfer-encoding:") == Some("chunked") {
        decode_chunked(rest)?
    } else {
        let length = header("content-length:").map_or(Some(0), |length| length.parse().ok())?;
        rest.get(..length)?.to_vec()
    };
    let status = head.strip_prefix("http/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
    Some(match (status, String::from_utf8(body)) {
        (Some(status), Ok(body)) => Ok(HttpResponse { status, head, body }),
        _ => Err(Error::new(ErrorKind::InvalidData, head)),
    })
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
