//! Turns JSON that is an array of records, or has records that span lines, into one record a line.
//!
//! The stream's beginning decides: `[` and `{`, with only blanks between them, begin an array; a
//! line with `{` alone, and `"` behind it, begin a record that spans lines; anything else is lines.
//! Line ends within a record become blanks, and each record becomes a line. So a record has the
//! bytes that it had but for those, and the number of a line is that of the record.

use std::io::{self, Read};

/// The most blanks before the first character. A stream with more is read as lines.
const MAX_BLANK_BYTES: usize = 64 * 1024;
const BUFFER_BYTES: usize = 64 * 1024;

/// The stream with one record a line.
pub(super) fn one_record_per_line(mut reader: Box<dyn Read + Send>) -> Box<dyn Read + Send> {
    let mut first = Vec::new();
    let mut failure = None;
    let shape = loop {
        let read = reader.by_ref().take(256).read_to_end(&mut first);
        match (detect_layout(&first), read) {
            (Some(shape), Ok(_)) => break shape,
            (shape, Err(error)) => {
                failure = Some(error);
                break shape.unwrap_or(JsonLayout::Lines);
            }
            (None, Ok(read)) if read == 0 || first.len() > MAX_BLANK_BYTES => break JsonLayout::Lines,
            (None, Ok(_)) => {}
        }
    };
    let all = io::Cursor::new(first).chain(FailOnce(failure)).chain(reader);
    match shape {
        JsonLayout::Lines => Box::new(all),
        JsonLayout::Array => Box::new(RecordSplitter::new(all, true)),
        JsonLayout::Objects => Box::new(RecordSplitter::new(all, false)),
    }
}

/// Whether a stream has one record a line already.
#[cfg(any(test, fuzzing))]
pub(crate) fn is_one_record_per_line(text: &[u8]) -> bool {
    matches!(detect_layout(text), None | Some(JsonLayout::Lines))
}

/// Returns a read error at its place in the stream.
struct FailOnce(Option<io::Error>);

impl Read for FailOnce {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        self.0.take().map_or(Ok(0), Err)
    }
}

enum JsonLayout {
    Lines,
    Array,
    Objects,
}

/// The layout of a stream; `None` if more bytes must decide.
fn detect_layout(first: &[u8]) -> Option<JsonLayout> {
    let text = first.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(first).trim_ascii_start();
    match text {
        [] => None,
        [b'[', rest @ ..] => {
            let next = rest.trim_ascii_start().first()?;
            Some(if *next == b'{' { JsonLayout::Array } else { JsonLayout::Lines })
        }
        [b'{', rest @ ..] => {
            let after = rest.trim_ascii_start();
            let has_line_end = rest[..rest.len() - after.len()].contains(&b'\n');
            Some(if has_line_end && *after.first()? == b'"' {
                JsonLayout::Objects
            } else {
                JsonLayout::Lines
            })
        }
        _ => Some(JsonLayout::Lines),
    }
}

/// The state of the scan behind a byte.
#[derive(Clone, Copy, PartialEq, Eq)]
enum JsonScanState {
    /// Before an array.
    Start,
    /// Within so many brackets; 0 is between records.
    Nested(u32),
    /// In a string within so many brackets.
    Text(u32),
    /// In a string, behind a backslash.
    Escape(u32),
    /// Behind the end of an array.
    End,
}

struct RecordSplitter<R> {
    reader: R,
    is_array: bool,
    scan: JsonScanState,
    input: Box<[u8]>,
    /// The bytes that can be read, and how many of them were.
    output: Vec<u8>,
    output_given: usize,
    /// The error behind `output`, until it is returned.
    failure: Option<io::Error>,
    has_failed: bool,
}

impl<R: Read> RecordSplitter<R> {
    fn new(reader: R, is_array: bool) -> RecordSplitter<R> {
        let scan = if is_array { JsonScanState::Start } else { JsonScanState::Nested(0) };
        let read = vec![0; BUFFER_BYTES].into_boxed_slice();
        RecordSplitter {
            reader,
            is_array,
            scan,
            input: read,
            output: Vec::new(),
            output_given: 0,
            failure: None,
            has_failed: false,
        }
    }

    fn scan_byte(&mut self, byte: u8) -> io::Result<()> {
        let (next, out) = match (self.scan, byte) {
            (JsonScanState::Start, b'[') => (JsonScanState::Nested(0), None),
            (JsonScanState::Start, _) => (JsonScanState::Start, None),
            (JsonScanState::End, byte) if byte.is_ascii_whitespace() => (JsonScanState::End, None),
            (JsonScanState::End, _) => {
                return Err(invalid_json("something stands behind the end of the JSON array"));
            }
            (JsonScanState::Nested(0), b',' | b']') if self.is_array => {
                (if byte == b',' { JsonScanState::Nested(0) } else { JsonScanState::End }, Some(b'\n'))
            }
            (JsonScanState::Nested(depth), b'{' | b'[') => (JsonScanState::Nested(depth + 1), Some(byte)),
            (JsonScanState::Nested(depth), b'}' | b']') => {
                (JsonScanState::Nested(depth.saturating_sub(1)), Some(byte))
            }
            (JsonScanState::Nested(depth), b'"') => (JsonScanState::Text(depth), Some(byte)),
            (JsonScanState::Nested(depth), b'\n' | b'\r') => (JsonScanState::Nested(depth), Some(b' ')),
            (JsonScanState::Text(depth), b'"') => (JsonScanState::Nested(depth), Some(byte)),
            (JsonScanState::Text(depth), b'\\') => (JsonScanState::Escape(depth), Some(byte)),
            // A string of JSON may have neither a raw line end nor a raw tab: the tab keeps it
            // invalid, and on one line.
            (JsonScanState::Text(depth) | JsonScanState::Escape(depth), b'\n') => {
                (JsonScanState::Text(depth), Some(b'\t'))
            }
            (JsonScanState::Escape(depth), _) => (JsonScanState::Text(depth), Some(byte)),
            (scan, _) => (scan, Some(byte)),
        };
        let ends_object = !self.is_array
            && matches!((self.scan, next), (JsonScanState::Nested(1), JsonScanState::Nested(0)));
        self.scan = next;
        self.output.extend(out);
        if ends_object {
            self.output.push(b'\n');
        }
        Ok(())
    }

    /// Adds bytes to `output`; false at the end.
    fn fill_output(&mut self) -> io::Result<bool> {
        self.output.clear();
        self.output_given = 0;
        let length = self.reader.read(&mut self.input)?;
        if length == 0 {
            let is_whole = if self.is_array {
                self.scan == JsonScanState::End
            } else {
                self.scan == JsonScanState::Nested(0)
            };
            return if is_whole { Ok(false) } else { Err(cut_off_error(self.is_array)) };
        }
        for at in 0..length {
            self.scan_byte(self.input[at])?;
        }
        Ok(true)
    }
}

fn invalid_json(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn cut_off_error(is_array: bool) -> io::Error {
    let what = if is_array { "the JSON array has no end" } else { "the last JSON object has no end" };
    io::Error::new(io::ErrorKind::UnexpectedEof, what)
}

impl<R: Read> Read for RecordSplitter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.output_given == self.output.len() {
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
            if self.has_failed || buffer.is_empty() {
                return Ok(0);
            }
            match self.fill_output() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) =>
                {
                    return Err(error);
                }
                // The bytes in `output` are returned before the error.
                Err(error) => (self.failure, self.has_failed) = (Some(error), true),
            }
        }
        let ready = &self.output[self.output_given..];
        let length = ready.len().min(buffer.len());
        buffer[..length].copy_from_slice(&ready[..length]);
        self.output_given += length;
        Ok(length)
    }
}
