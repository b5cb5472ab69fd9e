//! Content codings: negotiation (RFC 9110, section 12.5.3) and compression.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::LazyLock;

use bytes::Bytes;
use warp::http::header::ACCEPT_ENCODING;
use warp::http::{HeaderMap, HeaderValue};

use crate::panics::locks::SharedMutex;
use crate::panics::run_blocking;

/// Smaller bodies fit a packet with or without compression.
const MIN_COMPRESSED_BODY_BYTES: usize = 1_024;
/// Larger bodies are compressed on a thread for blocking work.
const BLOCKING_COMPRESSION_BYTES: usize = 32 * 1_024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ContentCoding {
    Identity,
    Gzip,
    Zstd,
}

impl ContentCoding {
    /// The value of `Content-Encoding`; `None` for the identity.
    pub(super) fn header_value(self) -> Option<HeaderValue> {
        match self {
            ContentCoding::Identity => None,
            ContentCoding::Gzip => Some(HeaderValue::from_static("gzip")),
            ContentCoding::Zstd => Some(HeaderValue::from_static("zstd")),
        }
    }

    /// The coding for a body of `bytes` bytes; `None` if the client accepts none that is served.
    pub(super) fn negotiate(headers: &HeaderMap, bytes: usize) -> Option<ContentCoding> {
        let accepted = AcceptedCodings::from_headers(headers);
        let identity = accepted.identity_weight();
        if identity > 0 && bytes < MIN_COMPRESSED_BODY_BYTES {
            return Some(ContentCoding::Identity);
        }
        [
            (accepted.zstd_weight(), ContentCoding::Zstd),
            (accepted.gzip_weight(), ContentCoding::Gzip),
            (identity, ContentCoding::Identity),
        ]
        .into_iter()
        .filter(|(weight, _)| *weight > 0)
        // The first of equal weights.
        .reduce(|best, next| if next.0 > best.0 { next } else { best })
        .map(|(_, coding)| coding)
    }

    fn compress(self, bytes: &[u8], effort: CompressionEffort) -> io::Result<Vec<u8>> {
        match self {
            ContentCoding::Identity => Ok(bytes.to_vec()),
            ContentCoding::Zstd => {
                zstd::bulk::compress(bytes, if effort == CompressionEffort::Static { 15 } else { 1 })
            }
            ContentCoding::Gzip => {
                let level = flate2::Compression::new(if effort == CompressionEffort::Static { 9 } else { 3 });
                let mut out = flate2::write::GzEncoder::new(Vec::with_capacity(bytes.len() / 4 + 64), level);
                out.write_all(bytes)?;
                out.finish()
            }
        }
    }

    /// Compresses a body that is made for one response.
    pub(super) async fn compress_response(self, bytes: Vec<u8>) -> io::Result<Bytes> {
        if self == ContentCoding::Identity {
            return Ok(bytes.into());
        }
        if bytes.len() < BLOCKING_COMPRESSION_BYTES {
            return self.compress(&bytes, CompressionEffort::PerResponse).map(Bytes::from);
        }
        let compress = move || self.compress(&bytes, CompressionEffort::PerResponse);
        run_blocking(compress).await.map_err(io::Error::other)?.map(Bytes::from)
    }

    /// Compresses bytes that are compiled in, once, and caches the result: they are few and never
    /// change.
    pub(super) async fn compress_static(self, bytes: &'static [u8]) -> io::Result<Bytes> {
        type Cache = HashMap<(usize, ContentCoding), Bytes>;
        static CACHE: LazyLock<SharedMutex<Cache>> = LazyLock::new(SharedMutex::default);
        if self == ContentCoding::Identity {
            return Ok(Bytes::from_static(bytes));
        }
        let key = (bytes.as_ptr() as usize, self);
        if let Some(compressed) = CACHE.lock().get(&key) {
            return Ok(compressed.clone());
        }
        let compress = move || self.compress(bytes, CompressionEffort::Static);
        let compressed = Bytes::from(run_blocking(compress).await.map_err(io::Error::other)??);
        CACHE.lock().insert(key, compressed.clone());
        Ok(compressed)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum CompressionEffort {
    PerResponse,
    Static,
}

/// The weights that `Accept-Encoding` gives, in thousandths.
#[derive(Default)]
struct AcceptedCodings {
    has_header: bool,
    gzip: Option<u16>,
    zstd: Option<u16>,
    identity: Option<u16>,
    wildcard: Option<u16>,
}

impl AcceptedCodings {
    fn from_headers(headers: &HeaderMap) -> AcceptedCodings {
        let mut accepted = AcceptedCodings::default();
        for value in headers.get_all(ACCEPT_ENCODING) {
            accepted.has_header = true;
            for item in value.to_str().unwrap_or_default().split(',') {
                let (name, parameters) = item.split_once(';').unwrap_or((item, ""));
                let weight = Some(parse_weight(parameters));
                match name.trim().to_ascii_lowercase().as_str() {
                    "gzip" | "x-gzip" => accepted.gzip = weight,
                    "zstd" => accepted.zstd = weight,
                    "identity" => accepted.identity = weight,
                    "*" => accepted.wildcard = weight,
                    _ => {}
                }
            }
        }
        accepted
    }

    fn gzip_weight(&self) -> u16 {
        self.gzip.or(self.wildcard).unwrap_or(0)
    }

    fn zstd_weight(&self) -> u16 {
        self.zstd.or(self.wildcard).unwrap_or(0)
    }

    /// The identity is accepted unless a weight excludes it, with the least weight if other codings
    /// are named.
    fn identity_weight(&self) -> u16 {
        match (self.identity, self.wildcard) {
            (Some(weight), _) => weight,
            (None, Some(0)) => 0,
            _ if self.has_header => 1,
            _ => 1_000,
        }
    }
}

/// The `q` of an item, in thousandths; 0 if it is not a valid weight.
fn parse_weight(parameters: &str) -> u16 {
    let Some(text) =
        parameters.trim().strip_prefix(['q', 'Q']).and_then(|rest| rest.trim_start().strip_prefix('='))
    else {
        return if parameters.trim().is_empty() { 1_000 } else { 0 };
    };
    match text.trim().parse::<f64>() {
        Ok(weight) if (0.0..=1.0).contains(&weight) => (weight * 1_000.0).round() as u16,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn negotiated(accept: &str, bytes: usize) -> Option<ContentCoding> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, accept.parse().unwrap());
        ContentCoding::negotiate(&headers, bytes)
    }

    #[test]
    fn best_accepted_encoding_is_chosen() {
        use ContentCoding::{Gzip, Identity, Zstd};
        for (accept, expected) in [
            ("", Some(Identity)),
            ("gzip", Some(Gzip)),
            ("gzip, deflate, br, zstd", Some(Zstd)),
            ("GZIP;q=1.0, zstd;q=0.5", Some(Gzip)),
            ("zstd;q=0, *", Some(Gzip)),
            ("*", Some(Zstd)),
            ("*;q=0", None),
            ("*;q=0, identity", Some(Identity)),
            ("identity;q=0", None),
            ("identity;q=0, gzip", Some(Gzip)),
            ("gzip;q=0.2, identity", Some(Identity)),
            ("gzip;q=0.001", Some(Gzip)),
            ("gzip;q=2, zstd;q=x", Some(Identity)),
            ("br", Some(Identity)),
            (",;,=;q", Some(Identity)),
        ] {
            assert_eq!(negotiated(accept, 10_000), expected, "{accept:?}");
        }
        assert_eq!(ContentCoding::negotiate(&HeaderMap::new(), 10_000), Some(Identity));
    }

    #[test]
    fn small_bodies_are_not_compressed_if_identity_is_accepted() {
        assert_eq!(negotiated("gzip", 100), Some(ContentCoding::Identity));
        assert_eq!(negotiated("gzip, identity;q=0", 100), Some(ContentCoding::Gzip));
        assert_eq!(negotiated("identity;q=0", 100), None);
    }
}
