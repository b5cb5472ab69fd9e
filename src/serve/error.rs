//! Why the server cannot start.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::fault::{limit_remedy, remedy_for, start_failure_text};

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address} ({error}): {}", listen_remedy(error))]
    Listen { address: SocketAddr, error: std::io::Error },
    #[error("{}: {source}: {}", path.display(), remedy_for(source, path))]
    PemFile { path: PathBuf, source: std::io::Error },
    #[error("{}: {problem}: it must be a readable PEM file", path.display())]
    Pem { path: PathBuf, problem: String },
    #[error("the certificate and its key cannot be used ({0}): check that they belong together")]
    Certificate(String),
    #[error("the publisher: {}", start_failure_text(.0))]
    Thread(std::io::Error),
}

fn listen_remedy(error: &std::io::Error) -> &'static str {
    limit_remedy(error).unwrap_or(
        "take another address or a free port (--listen, or serve.listen), or stop what listens there",
    )
}
