//! The body of a `POST`: what it is, and what it is once it is decompressed.

use std::io::{Cursor, Read};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use warp::http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE};
use warp::http::{HeaderMap, HeaderValue};
use zstd::zstd_safe::{self, DCtx, get_error_name};

use crate::codec::GzipMemberReader;
use crate::serve::problem::{Problem, ProblemCode};

/// Room for so much is taken at a time.
const DECOMPRESSION_STEP_BYTES: usize = 64 * 1024;
/// What a decoder takes beside its output, about; where bodies are small, less is counted, so that any can be taken.
const DECODER_OVERHEAD_BYTES: usize = 256 * 1024;
/// As the library names what fits with more room.
const ZSTD_BUFFER_TOO_SMALL: &str = "Destination buffer is too small";

/// How records stand in a body.
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

/// What the headers say of the body.
pub(super) fn body_format(headers: &HeaderMap) -> Result<(BodyFormat, BodyCoding), Problem> {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let form = match kind.as_str() {
        "application/json" => BodyFormat::Json,
        "application/x-ndjson" => BodyFormat::Lines,
        _ => {
            let detail = "send application/json (a reading or an array of them) or application/x-ndjson (a reading a line)";
            let accepted = HeaderValue::from_static("application/json, application/x-ndjson");
            return Err(Problem::new(ProblemCode::UnsupportedMediaType, detail).with_header(ACCEPT, accepted));
        }
    };
    Ok((form, body_coding(headers)?))
}

/// All header lines together are one list.
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

/// Adds room for so many bytes to what is held.
pub(super) fn extend_permit(
    room: &Arc<Semaphore>,
    held: &mut Option<OwnedSemaphorePermit>,
    bytes: usize,
) -> Result<(), Problem> {
    let busy =
        || Problem::new(ProblemCode::Busy, "too many readings wait for the log: try again in a moment");
    let wanted = u32::try_from(bytes).map_err(|_| busy())?;
    let more = room.clone().try_acquire_many_owned(wanted).map_err(|_| busy())?;
    match held {
        Some(held) => held.merge(more),
        None => *held = Some(more),
    }
    Ok(())
}

/// Room for what is decompressed, taken before it is there.
pub(super) struct DecompressionPermit {
    budget: Arc<Semaphore>,
    limit: usize,
    permit: Option<OwnedSemaphorePermit>,
    bytes: usize,
}

impl DecompressionPermit {
    pub(super) fn new(room: Arc<Semaphore>, limit: usize) -> DecompressionPermit {
        DecompressionPermit { budget: room, limit, permit: None, bytes: 0 }
    }

    /// Makes it so much, and what a decoder needs itself.
    fn resize_with_decoder(&mut self, bytes: usize) -> Result<(), Problem> {
        self.resize(bytes + DECODER_OVERHEAD_BYTES.min(self.limit / 4))
    }

    fn resize(&mut self, bytes: usize) -> Result<(), Problem> {
        if bytes > self.bytes {
            extend_permit(&self.budget, &mut self.permit, bytes - self.bytes)?;
        } else if let Some(held) = &mut self.permit {
            drop(held.split(self.bytes - bytes));
        }
        self.bytes = bytes;
        Ok(())
    }

    pub(super) fn into_permit(self) -> Option<OwnedSemaphorePermit> {
        self.permit
    }
}

impl BodyCoding {
    /// Decompresses a whole body, with room for it and the decoder.
    ///
    /// # Errors
    ///
    /// If it is cut off, damaged, or becomes larger than the limit.
    pub(super) fn decompress_body(
        self,
        packed: &[u8],
        room: &mut DecompressionPermit,
    ) -> Result<Vec<u8>, Problem> {
        let bytes = match self {
            BodyCoding::Identity => packed.to_vec(),
            BodyCoding::Gzip => decompress_gzip(packed, room)?,
            BodyCoding::Zstd => decompress_zstd(packed, room)?,
        };
        room.resize(bytes.len())?;
        Ok(bytes)
    }
}

fn malformed_body(coding: &str, error: &str) -> Problem {
    Problem::new(
        ProblemCode::BadRequest,
        format!("the body is cut off, or is not {coding} as its Content-Encoding says: {error}"),
    )
}

fn decompress_gzip(packed: &[u8], room: &mut DecompressionPermit) -> Result<Vec<u8>, Problem> {
    let mut members = GzipMemberReader::new(Cursor::new(packed));
    let mut bytes = Vec::new();
    loop {
        // One more than the limit shows that there is more.
        let step = DECOMPRESSION_STEP_BYTES.min(room.limit + 1 - bytes.len());
        room.resize_with_decoder(bytes.len() + step)?;
        bytes.reserve_exact(step);
        let read = members.by_ref().take(step as u64).read_to_end(&mut bytes);
        let read = read.map_err(|error| malformed_body("gzip", &error.to_string()))?;
        match () {
            () if bytes.len() > room.limit => return Err(body_too_large(room.limit)),
            () if read < step => return Ok(bytes),
            () => {}
        }
    }
}

/// All frames at once, to one buffer: so no window is kept beside it, however large a frame says that it is. Where nothing says how much
/// there is, the buffer is doubled until all fits.
fn decompress_zstd(packed: &[u8], room: &mut DecompressionPermit) -> Result<Vec<u8>, Problem> {
    let limit = room.limit;
    let said = zstd_safe::get_frame_content_size(packed).ok().flatten();
    if said.is_some_and(|size| size > limit as u64) {
        return Err(body_too_large(limit));
    }
    let said = said.and_then(|size| usize::try_from(size).ok());
    let mut size =
        said.unwrap_or_else(|| packed.len().saturating_mul(4)).max(DECOMPRESSION_STEP_BYTES).min(limit);
    room.resize_with_decoder(size)?;
    let mut decoder = DCtx::create();
    loop {
        let mut bytes = Vec::with_capacity(size);
        match decoder.decompress(&mut bytes, packed) {
            Ok(_) => return Ok(bytes),
            Err(code) if get_error_name(code) == ZSTD_BUFFER_TOO_SMALL && size < limit => {
                size = size.saturating_mul(2).min(limit);
                drop(bytes);
                room.resize_with_decoder(size)?;
            }
            Err(code) if get_error_name(code) == ZSTD_BUFFER_TOO_SMALL => return Err(body_too_large(limit)),
            Err(code) => return Err(malformed_body("zstd", get_error_name(code))),
        }
    }
}
