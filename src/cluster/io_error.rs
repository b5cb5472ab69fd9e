//! Texts for errors of connections between processes.

use std::io;

pub(super) fn handshake_timed_out() -> String {
    "it did not complete the handshake in time".into()
}

pub(super) fn text(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => handshake_timed_out(),
        io::ErrorKind::UnexpectedEof => "the connection was closed".into(),
        _ => error.to_string(),
    }
}
