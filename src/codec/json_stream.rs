//! JSON that is not one record a line, as if it were: an array of records, and records that span lines.
//!
//! What it is, is decided by how it begins: `[` and `{`, with nothing or blanks between them, begin an array; a line that is `{`
//! alone, and `"` behind it, begin a record that spans lines. Anything else is lines. Line ends within a record become blanks, and
//! each record a line of its own, so a record has the bytes that it had but for those, and the number of a line is that of the record.

use std::io::{self, Read};

/// Blanks before the first line, beyond which the stream is taken for lines.
const MAX_BLANK_BYTES: usize = 64 * 1024;
const BUFFER_BYTES: usize = 64 * 1024;

/// The stream with one record a line.
pub(super) fn one_record_a_line(mut reader: Box<dyn Read + Send>) -> Box<dyn Read + Send> {
    let mut first = Vec::new();
    let mut failure = None;
    let shape = loop {
        let read = reader.by_ref().take(256).read_to_end(&mut first);
        match (shape(&first), read) {
            (Some(shape), Ok(_)) => break shape,
            (shape, Err(error)) => {
                failure = Some(error);
                break shape.unwrap_or(Shape::Lines);
            }
            (None, Ok(read)) if read == 0 || first.len() > MAX_BLANK_BYTES => break Shape::Lines,
            (None, Ok(_)) => {}
        }
    };
    let all = io::Cursor::new(first).chain(FailOnce(failure)).chain(reader);
    match shape {
        Shape::Lines => Box::new(all),
        Shape::Array => Box::new(Records::new(all, true)),
        Shape::Objects => Box::new(Records::new(all, false)),
    }
}

/// Whether a stream is one record a line as it is.
#[cfg(any(test, fuzzing))]
pub(crate) fn is_one_record_a_line(text: &[u8]) -> bool {
    matches!(shape(text), None | Some(Shape::Lines))
}

/// Says at its place what reading has failed with.
struct FailOnce(Option<io::Error>);

impl Read for FailOnce {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        self.0.take().map_or(Ok(0), Err)
    }
}

enum Shape {
    Lines,
    Array,
    Objects,
}

/// Nothing while more bytes must say.
fn shape(first: &[u8]) -> Option<Shape> {
    let text = first.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(first).trim_ascii_start();
    match text {
        [] => None,
        [b'[', rest @ ..] => {
            let next = rest.trim_ascii_start().first()?;
            Some(if *next == b'{' { Shape::Array } else { Shape::Lines })
        }
        [b'{', rest @ ..] => {
            let after = rest.trim_ascii_start();
            let has_line_end = rest[..rest.len() - after.len()].contains(&b'\n');
            Some(if has_line_end && *after.first()? == b'"' { Shape::Objects } else { Shape::Lines })
        }
        _ => Some(Shape::Lines),
    }
}

/// Where in the stream a byte stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scan {
    /// Before an array.
    Start,
    /// Within so many brackets: 0 is between records.
    At(u32),
    /// In a string within so many brackets.
    Text(u32),
    /// In a string, behind a backslash.
    Escape(u32),
    /// Behind the end of an array.
    End,
}

struct Records<R> {
    reader: R,
    is_array: bool,
    scan: Scan,
    read: Box<[u8]>,
    /// What is ready to be given, and how much of it was.
    ready: Vec<u8>,
    given: usize,
    /// Why nothing more comes, until it was said.
    failure: Option<io::Error>,
    has_failed: bool,
}

impl<R: Read> Records<R> {
    fn new(reader: R, is_array: bool) -> Records<R> {
        let scan = if is_array { Scan::Start } else { Scan::At(0) };
        let read = vec![0; BUFFER_BYTES].into_boxed_slice();
        Records {
            reader,
            is_array,
            scan,
            read,
            ready: Vec::new(),
            given: 0,
            failure: None,
            has_failed: false,
        }
    }

    fn take(&mut self, byte: u8) -> io::Result<()> {
        let (next, out) = match (self.scan, byte) {
            (Scan::Start, b'[') => (Scan::At(0), None),
            (Scan::Start, _) => (Scan::Start, None),
            (Scan::End, byte) if byte.is_ascii_whitespace() => (Scan::End, None),
            (Scan::End, _) => return Err(invalid("something stands behind the end of the JSON array")),
            (Scan::At(0), b',' | b']') if self.is_array => {
                (if byte == b',' { Scan::At(0) } else { Scan::End }, Some(b'\n'))
            }
            (Scan::At(depth), b'{' | b'[') => (Scan::At(depth + 1), Some(byte)),
            (Scan::At(depth), b'}' | b']') => (Scan::At(depth.saturating_sub(1)), Some(byte)),
            (Scan::At(depth), b'"') => (Scan::Text(depth), Some(byte)),
            (Scan::At(depth), b'\n' | b'\r') => (Scan::At(depth), Some(b' ')),
            (Scan::Text(depth), b'"') => (Scan::At(depth), Some(byte)),
            (Scan::Text(depth), b'\\') => (Scan::Escape(depth), Some(byte)),
            // No string of JSON may have one, and none may have a tab.
            (Scan::Text(depth) | Scan::Escape(depth), b'\n') => (Scan::Text(depth), Some(b'\t')),
            (Scan::Escape(depth), _) => (Scan::Text(depth), Some(byte)),
            (scan, _) => (scan, Some(byte)),
        };
        let ends_object = !self.is_array && matches!((self.scan, next), (Scan::At(1), Scan::At(0)));
        self.scan = next;
        self.ready.extend(out);
        if ends_object {
            self.ready.push(b'\n');
        }
        Ok(())
    }

    /// Makes more ready: false at the end.
    fn more(&mut self) -> io::Result<bool> {
        self.ready.clear();
        self.given = 0;
        let length = self.reader.read(&mut self.read)?;
        if length == 0 {
            let is_whole = if self.is_array { self.scan == Scan::End } else { self.scan == Scan::At(0) };
            return if is_whole { Ok(false) } else { Err(cut_off(self.is_array)) };
        }
        for at in 0..length {
            self.take(self.read[at])?;
        }
        Ok(true)
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn cut_off(is_array: bool) -> io::Error {
    let what = if is_array { "the JSON array has no end" } else { "the last JSON object has no end" };
    io::Error::new(io::ErrorKind::UnexpectedEof, what)
}

impl<R: Read> Read for Records<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.given == self.ready.len() {
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
            if self.has_failed || buffer.is_empty() {
                return Ok(0);
            }
            match self.more() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) =>
                {
                    return Err(error);
                }
                // What was made ready before it is given first.
                Err(error) => (self.failure, self.has_failed) = (Some(error), true),
            }
        }
        let ready = &self.ready[self.given..];
        let length = ready.len().min(buffer.len());
        buffer[..length].copy_from_slice(&ready[..length]);
        self.given += length;
        Ok(length)
    }
}
