//! The lines of a stream, as slices of one buffer of fixed size.

use std::io::{self, Read};

use memchr::memchr;

use super::digest::RunningDigest;
use super::{DecodeError, Framing, MAX_RECORD_BYTES, foreign_formats};

/// Several times the longest record, so that an unfinished record is rarely moved to the front.
const BUFFER_BYTES: usize = 8 * MAX_RECORD_BYTES;

/// The current record is `buffer[start..end]`, its line end `buffer[end..next]`.
pub(super) struct RecordLines {
    reader: Box<dyn Read + Send>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    next: usize,
    filled: usize,
    /// Bytes of the stream that may be read before the next call of [`RecordLines::allow_bytes`].
    allowance: u64,
    /// The stream has ended or failed.
    has_ended: bool,
    framing: Framing,
    /// The first line of the current record, from 1, and its number of lines.
    line: u64,
    lines: u64,
    /// The digest of the stream up to the end of the current record, if it is wanted.
    digest: Option<Box<RunningDigest>>,
}

/// The result of [`RecordLines::advance`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Advance {
    End,
    Line,
    /// A line of more than [`MAX_RECORD_BYTES`], of which only those are kept.
    Truncated,
}

impl RecordLines {
    /// Skips a byte order mark.
    ///
    /// # Errors
    ///
    /// If the stream is not text, such as a workbook, or not UTF-8.
    pub(super) fn new(
        reader: Box<dyn Read + Send>,
        framing: Framing,
        with_digest: bool,
    ) -> Result<RecordLines, DecodeError> {
        let mut lines = RecordLines {
            reader,
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            next: 0,
            filled: 0,
            allowance: u64::MAX,
            has_ended: false,
            framing,
            line: 1,
            lines: 0,
            digest: with_digest.then(Box::default),
        };
        while !lines.has_ended && foreign_formats::may_be_foreign(&lines.buffer[..lines.filled]) {
            lines.fill_buffer()?;
        }
        foreign_formats::check_is_text(&lines.buffer[..lines.filled])?;
        if lines.buffer[..lines.filled].starts_with(b"\xEF\xBB\xBF") {
            lines.next = 3;
        }
        Ok(lines)
    }

    /// Allows `bytes` more bytes of the stream to be read, and a buffer beyond. Then a read fails
    /// with [`io::ErrorKind::WouldBlock`], and goes on where it was after the next call.
    pub(super) fn allow_bytes(&mut self, bytes: u64) {
        self.allowance = bytes;
    }

    /// Whether the next read needs a call of [`RecordLines::allow_bytes`].
    pub(super) fn is_allowance_exhausted(&self) -> bool {
        self.allowance == 0
    }

    /// Skips so many lines, blank ones included.
    pub(super) fn skip_lines(&mut self, count: u32) -> Result<(), DecodeError> {
        (0..count).try_for_each(|_| self.skip_line())
    }

    fn skip_line(&mut self) -> Result<(), DecodeError> {
        self.note_end_for_digest();
        self.line += self.lines;
        self.lines = 1;
        self.start = self.next;
        loop {
            let line_end = memchr(b'\n', &self.buffer[self.start..self.filled]);
            if line_end.is_some() || self.has_ended {
                self.set_end(self.start, line_end);
                return Ok(());
            }
            if self.filled - self.start > MAX_RECORD_BYTES + 1 {
                return self.skip_long_line().map(drop);
            }
            self.fill_buffer()?;
        }
    }

    pub(super) fn line(&self) -> u64 {
        self.line
    }

    /// What ends a record.
    pub(super) fn framing(&self) -> Framing {
        self.framing
    }

    /// The current record without its line end.
    #[inline]
    pub(super) fn record(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// The bytes of the current record from `from` on, with its line end.
    pub(super) fn record_and_line_end(&self, from: usize) -> &[u8] {
        &self.buffer[self.start + from..self.next]
    }

    /// The digest of all bytes of the stream up to the end of the last record, without its line
    /// end.
    pub(super) fn digest(&mut self) -> Option<u64> {
        self.note_end_for_digest();
        Some(self.digest.as_mut()?.digest_at_record_end(&self.buffer))
    }

    /// Notes the end of the current record for the digest, before the record is left.
    #[inline]
    fn note_end_for_digest(&mut self) {
        if let Some(digest) = &mut self.digest
            // Otherwise there is no current record: the last one was left already.
            && self.next > self.start
        {
            let end = match &self.buffer[self.end..self.next] {
                b"" | b"\n" | b"\r\n" | b"\r" => self.end,
                // The line was cut off: its missing bytes count too.
                rest => self.next - usize::from(rest.ends_with(b"\n")),
            };
            digest.end_record(end);
        }
    }

    /// Advances to the next line that is not blank.
    #[inline]
    pub(super) fn advance(&mut self) -> Result<Advance, DecodeError> {
        self.note_end_for_digest();
        loop {
            self.line += self.lines;
            self.lines = 1;
            self.start = self.next;
            let mut searched = self.start;
            let mut line_end = memchr(b'\n', &self.buffer[searched..self.filled]);
            while line_end.is_none() {
                if self.has_ended {
                    if self.start == self.filled {
                        self.end = self.start;
                        self.lines = 0;
                        return Ok(Advance::End);
                    }
                    break;
                }
                // One byte more than fits, for a CR.
                if self.filled - self.start > MAX_RECORD_BYTES + 1 {
                    return self.skip_long_line();
                }
                let unfinished = self.filled - self.start;
                self.fill_buffer()?;
                searched = self.start + unfinished;
                line_end = memchr(b'\n', &self.buffer[searched..self.filled]);
            }
            self.set_end(searched, line_end);
            match self.end - self.start {
                0 => {}
                length if length > MAX_RECORD_BYTES => {
                    self.end = self.start + MAX_RECORD_BYTES;
                    return Ok(Advance::Truncated);
                }
                _ if self.buffer[self.start] <= b' ' && self.record().trim_ascii().is_empty() => {}
                _ => return Ok(Advance::Line),
            }
        }
    }

    /// Adds the next line to the current record. False if there is none, if the record would be too
    /// long, or if a record ends with its line.
    pub(super) fn extend_record(&mut self) -> Result<bool, DecodeError> {
        if self.framing == Framing::Line {
            return Ok(false);
        }
        let length = self.next - self.start;
        let mut searched = length;
        let line_end = loop {
            let line_end = memchr(b'\n', &self.buffer[self.start + searched..self.filled]);
            if line_end.is_some() || self.has_ended {
                break line_end;
            }
            searched = self.filled - self.start;
            if searched > MAX_RECORD_BYTES + 1 {
                return Ok(false);
            }
            self.fill_buffer()?;
        };
        if line_end.is_none() && self.start + length == self.filled {
            return Ok(false);
        }
        let before = self.record_end();
        self.set_end(self.start + searched, line_end);
        if self.end - self.start > MAX_RECORD_BYTES {
            self.restore_record_end(before);
            return Ok(false);
        }
        self.lines += 1;
        Ok(true)
    }

    /// The end of the current record, for [`RecordLines::restore_record_end`].
    pub(super) fn record_end(&self) -> (usize, usize, u64) {
        (self.end - self.start, self.next - self.start, self.lines)
    }

    /// Removes the lines that were added since [`RecordLines::record_end`] was called.
    pub(super) fn restore_record_end(&mut self, (end, next, lines): (usize, usize, u64)) {
        (self.end, self.next, self.lines) = (self.start + end, self.start + next, lines);
    }

    fn set_end(&mut self, searched: usize, line_end: Option<usize>) {
        let end = line_end.map_or(self.filled, |at| searched + at);
        self.next = line_end.map_or(self.filled, |_| end + 1);
        self.end = end - usize::from(end > self.start && self.buffer[end - 1] == b'\r');
    }

    /// Reads a line to its end in pieces, over everything but its beginning.
    fn skip_long_line(&mut self) -> Result<Advance, DecodeError> {
        self.move_to_front();
        // Two bytes more than the limit are kept, so that the line is still too long when it is
        // scanned again.
        let retained_bytes = MAX_RECORD_BYTES + 2;
        self.end = MAX_RECORD_BYTES;
        let mut searched = self.end;
        loop {
            match memchr(b'\n', &self.buffer[searched..self.filled]) {
                Some(at) => {
                    self.next = searched + at + 1;
                    return Ok(Advance::Truncated);
                }
                None if self.has_ended => {
                    self.next = self.filled;
                    return Ok(Advance::Truncated);
                }
                None => {
                    if let Some(digest) = &mut self.digest {
                        digest.drop_after(&self.buffer[..self.filled], retained_bytes);
                    }
                    self.filled = retained_bytes;
                    searched = retained_bytes;
                    self.fill_buffer()?;
                }
            }
        }
    }

    fn move_to_front(&mut self) {
        if let Some(digest) = &mut self.digest {
            digest.drop_front(&self.buffer, self.start);
        }
        self.buffer.copy_within(self.start..self.filled, 0);
        self.end = self.end.saturating_sub(self.start);
        self.next = self.next.saturating_sub(self.start);
        self.filled -= self.start;
        self.start = 0;
    }

    /// Reads more bytes behind those in the buffer. The current record may move to the front.
    #[cold]
    fn fill_buffer(&mut self) -> Result<(), DecodeError> {
        if self.start > 0 {
            self.move_to_front();
        }
        if self.is_allowance_exhausted() {
            return Err(self.keep_unfinished_record(io::ErrorKind::WouldBlock.into()));
        }
        loop {
            match self.reader.read(&mut self.buffer[self.filled..]) {
                Ok(read) => {
                    self.filled += read;
                    self.allowance = self.allowance.saturating_sub(read as u64);
                    self.has_ended = read == 0;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(self.keep_unfinished_record(error));
                }
                Err(error) => {
                    // The remaining bytes are part of a record, and nothing more follows.
                    self.has_ended = true;
                    (self.start, self.end, self.next, self.filled) = (0, 0, 0, 0);
                    return Err(self.read_error(error));
                }
            }
        }
    }

    /// Scans the unfinished record again after the next read.
    fn keep_unfinished_record(&mut self, error: io::Error) -> DecodeError {
        (self.end, self.next, self.lines) = (self.start, self.start, 0);
        DecodeError::Io(error)
    }

    fn read_error(&self, error: io::Error) -> DecodeError {
        use io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
        match error.kind() {
            // The kinds of errors that decompressors return for damaged data.
            InvalidData | InvalidInput | Other | UnexpectedEof if error.raw_os_error().is_none() => {
                DecodeError::Corrupt { at: self.line, detail: error.to_string() }
            }
            _ => DecodeError::Io(error),
        }
    }
}

/// The detail of the refusal of a record that is too long.
pub(super) fn too_long_detail() -> String {
    format!(
        "the line is longer than {MAX_RECORD_BYTES} bytes, the longest that is read: the rest of it is left out"
    )
}
