//! The body of a `POST`: its format and content coding, and its decompression within a memory
//! budget.

use std::io::{Cursor, Read};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use warp::http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE};
use warp::http::{HeaderMap, HeaderValue};
use zstd::zstd_safe::{self, DCtx, get_error_name};

use crate::codec::GzipMemberReader;
use crate::serve::problem::{Problem, ProblemCode};

/// Memory is acquired in steps of this length.
const DECOMPRESSION_STEP_BYTES: usize = 64 * 1024;
/// Bytes that a decoder takes beside its output, about. If the limit of bodies is low, less is
/// counted, so that a body of that length can be accepted.
const DECODER_OVERHEAD_BYTES: usize = 256 * 1024;
/// The library's name of the error that a longer output buffer avoids.
const ZSTD_BUFFER_TOO_SMALL: &str = "Destination buffer is too small";

/// How records are written in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyFormat {
    /// One object, or an array of them.
    Json,
    /// One a line.
    Lines,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyCoding {
    Identity,
    Gzip,
    Zstd,
}

/// The format and coding that the headers give the body.
pub(super) fn body_format(headers: &HeaderMap) -> Result<(BodyFormat, BodyCoding), Problem> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let format = match media_type.as_str() {
        "application/json" => BodyFormat::Json,
        "application/x-ndjson" => BodyFormat::Lines,
        _ => {
            let detail = "send application/json (a reading or an array of them) or application/x-ndjson (a reading a line)";
            let accepted = HeaderValue::from_static("application/json, application/x-ndjson");
            return Err(Problem::new(ProblemCode::UnsupportedMediaType, detail).with_header(ACCEPT, accepted));
        }
    };
    Ok((format, body_coding(headers)?))
}

/// The coding of the `Content-Encoding` headers, whose lines together are one list.
fn body_coding(headers: &HeaderMap) -> Result<BodyCoding, Problem> {
    let mut coding = BodyCoding::Identity;
    for line in headers.get_all(CONTENT_ENCODING) {
        for name in line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            let next = match name.to_ascii_lowercase().as_slice() {
                b"" | b"identity" => continue,
                b"gzip" | b"x-gzip" => BodyCoding::Gzip,
                b"zstd" => BodyCoding::Zstd,
                _ => return Err(unsupported_coding()),
            };
            if coding != BodyCoding::Identity {
                return Err(unsupported_coding());
            }
            coding = next;
        }
    }
    Ok(coding)
}

fn unsupported_coding() -> Problem {
    let detail = "send the body plain, or compressed once by gzip or zstd";
    let accepted = HeaderValue::from_static("gzip, zstd, identity");
    Problem::new(ProblemCode::UnsupportedMediaType, detail).with_header(ACCEPT_ENCODING, accepted)
}

pub(super) fn body_too_large(limit: usize) -> Problem {
    Problem::new(
        ProblemCode::BodyTooLarge,
        format!("send at most {limit} bytes at once, decompressed if they are compressed"),
    )
}

/// Acquires `bytes` more of the budget.
pub(super) fn extend_permit(
    budget: &Arc<Semaphore>,
    permit: &mut Option<OwnedSemaphorePermit>,
    bytes: usize,
) -> Result<(), Problem> {
    let busy =
        || Problem::new(ProblemCode::Busy, "too many readings wait for the log: try again in a moment");
    let wanted = u32::try_from(bytes).map_err(|_| busy())?;
    let more = budget.clone().try_acquire_many_owned(wanted).map_err(|_| busy())?;
    match permit {
        Some(permit) => permit.merge(more),
        None => *permit = Some(more),
    }
    Ok(())
}

/// Memory for the decompressed body, acquired before it is used.
pub(super) struct DecompressionPermit {
    budget: Arc<Semaphore>,
    limit: usize,
    permit: Option<OwnedSemaphorePermit>,
    bytes: usize,
}

impl DecompressionPermit {
    /// Within `budget`, for a body of at most `limit` bytes.
    pub(super) fn new(budget: Arc<Semaphore>, limit: usize) -> DecompressionPermit {
        DecompressionPermit { budget, limit, permit: None, bytes: 0 }
    }

    /// Holds `bytes`, and the memory of the decoder itself.
    fn resize_with_decoder(&mut self, bytes: usize) -> Result<(), Problem> {
        self.resize(bytes + DECODER_OVERHEAD_BYTES.min(self.limit / 4))
    }

    fn resize(&mut self, bytes: usize) -> Result<(), Problem> {
        if bytes > self.bytes {
            extend_permit(&self.budget, &mut self.permit, bytes - self.bytes)?;
        } else if let Some(permit) = &mut self.permit {
            drop(permit.split(self.bytes - bytes));
        }
        self.bytes = bytes;
        Ok(())
    }

    pub(super) fn into_permit(self) -> Option<OwnedSemaphorePermit> {
        self.permit
    }
}

impl BodyCoding {
    /// Decompresses a whole body within its permit.
    ///
    /// # Errors
    ///
    /// If the body is incomplete, damaged, or longer than the limit once it is decompressed.
    pub(super) fn decompress_body(
        self,
        compressed: &[u8],
        permit: &mut DecompressionPermit,
    ) -> Result<Vec<u8>, Problem> {
        let bytes = match self {
            BodyCoding::Identity => compressed.to_vec(),
            BodyCoding::Gzip => decompress_gzip(compressed, permit)?,
            BodyCoding::Zstd => decompress_zstd(compressed, permit)?,
        };
        permit.resize(bytes.len())?;
        Ok(bytes)
    }
}

fn malformed_body(coding: &str, error: &str) -> Problem {
    Problem::new(
        ProblemCode::BadRequest,
        format!("the body is cut off, or is not {coding} as its Content-Encoding says: {error}"),
    )
}

fn decompress_gzip(compressed: &[u8], permit: &mut DecompressionPermit) -> Result<Vec<u8>, Problem> {
    let mut members = GzipMemberReader::new(Cursor::new(compressed));
    let mut bytes = Vec::new();
    loop {
        // One byte more than the limit shows that the body is too long.
        let step = DECOMPRESSION_STEP_BYTES.min(permit.limit + 1 - bytes.len());
        permit.resize_with_decoder(bytes.len() + step)?;
        bytes.reserve_exact(step);
        let read = members.by_ref().take(step as u64).read_to_end(&mut bytes);
        let read = read.map_err(|error| malformed_body("gzip", &error.to_string()))?;
        if bytes.len() > permit.limit {
            return Err(body_too_large(permit.limit));
        }
        if read < step {
            return Ok(bytes);
        }
    }
}

/// Decompresses all frames at once to one buffer, so that no window is in memory beside it, however
/// large a frame says that its window is. If no frame gives its length, the buffer is doubled until
/// all fits.
fn decompress_zstd(compressed: &[u8], permit: &mut DecompressionPermit) -> Result<Vec<u8>, Problem> {
    let limit = permit.limit;
    let announced = zstd_safe::get_frame_content_size(compressed).ok().flatten();
    if announced.is_some_and(|size| size > limit as u64) {
        return Err(body_too_large(limit));
    }
    let announced = announced.and_then(|size| usize::try_from(size).ok());
    let guess = announced.unwrap_or_else(|| compressed.len().saturating_mul(4));
    let mut size = guess.max(DECOMPRESSION_STEP_BYTES).min(limit);
    permit.resize_with_decoder(size)?;
    let mut decoder = DCtx::create();
    loop {
        let mut bytes = Vec::with_capacity(size);
        match decoder.decompress(&mut bytes, compressed) {
            Ok(_) => return Ok(bytes),
            Err(code) if get_error_name(code) == ZSTD_BUFFER_TOO_SMALL && size < limit => {
                size = size.saturating_mul(2).min(limit);
                drop(bytes);
                permit.resize_with_decoder(size)?;
            }
            Err(code) if get_error_name(code) == ZSTD_BUFFER_TOO_SMALL => return Err(body_too_large(limit)),
            Err(code) => return Err(malformed_body("zstd", get_error_name(code))),
        }
    }
}
