//! Lines of a stream as slices of one buffer of fixed size.

use std::io::{self, Read};

use memchr::memchr;

use super::digest::RunningDigest;
use super::{DecodeError, Framing, MAX_RECORD_BYTES, foreign_formats};

/// Several times the longest record, so that moving an unfinished record to the front is rare.
const BUFFER_BYTES: usize = 8 * MAX_RECORD_BYTES;

/// The record at hand lies in `buffer[start..end]`, its line end in `buffer[end..next]`.
pub(super) struct RecordLines {
    reader: Box<dyn Read + Send>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    next: usize,
    filled: usize,
    /// Bytes of the stream that may be read before [`Lines::allow`] is called again.
    allowance: u64,
    /// The stream has ended or failed.
    has_ended: bool,
    framing: Framing,
    /// Of the record at hand, from 1, and how many lines it has.
    line: u64,
    lines: u64,
    /// Of the stream up to the end of the record at hand, if somebody wants it.
    digest: Option<Box<RunningDigest>>,
}

/// What [`Lines::advance`] came to.
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
    /// Also of what is no text, such as a workbook, and of text that is not UTF-8.
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

    /// Lets so many bytes of the stream be read, and a buffer more. What would read on says [`io::ErrorKind::WouldBlock`], and goes on where it was
    /// after the next call.
    pub(super) fn allow_bytes(&mut self, bytes: u64) {
        self.allowance = bytes;
    }

    /// Nothing more is read before [`Lines::allow`] is called.
    pub(super) fn is_allowance_exhausted(&self) -> bool {
        self.allowance == 0
    }

    /// Goes past so many lines, blank ones too.
    pub(super) fn skip_lines(&mut self, count: u32) -> Result<(), DecodeError> {
        (0..count).try_for_each(|_| self.skip_line())
    }

    fn skip_line(&mut self) -> Result<(), DecodeError> {
        self.note_end_for_digest();
        self.line += self.lines;
        self.lines = 1;
        self.start = self.next;
        loop {
            let found = memchr(b'\n', &self.buffer[self.start..self.filled]);
            if found.is_some() || self.has_ended {
                self.set_end(self.start, found);
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

    /// The line or lines at hand without the line end.
    #[inline]
    pub(super) fn record(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// The bytes after `from` of the line or lines at hand, with the line end.
    pub(super) fn record_and_line_end(&self, from: usize) -> &[u8] {
        &self.buffer[self.start + from..self.next]
    }

    /// Of all bytes of the stream up to the end of the last record that was given, without its line end.
    pub(super) fn digest(&mut self) -> Option<u64> {
        self.note_end_for_digest();
        Some(self.digest.as_mut()?.digest_at_record_end(&self.buffer))
    }

    /// To be called before the record at hand is left.
    #[inline]
    fn note_end_for_digest(&mut self) {
        if let Some(digest) = &mut self.digest
            // Otherwise none is at hand since the last one was left.
            && self.next > self.start
        {
            let end = match &self.buffer[self.end..self.next] {
                b"" | b"\n" | b"\r\n" | b"\r" => self.end,
                // It was cut: what was left out counts.
                rest => self.next - usize::from(rest.ends_with(b"\n")),
            };
            digest.end_record(end);
        }
    }

    /// Goes on to the next line that is not blank.
    #[inline]
    pub(super) fn advance(&mut self) -> Result<Advance, DecodeError> {
        self.note_end_for_digest();
        loop {
            self.line += self.lines;
            self.lines = 1;
            self.start = self.next;
            let mut searched = self.start;
            let mut found = memchr(b'\n', &self.buffer[searched..self.filled]);
            while found.is_none() {
                if self.has_ended {
                    if self.start == self.filled {
                        self.end = self.start;
                        self.lines = 0;
                        return Ok(Advance::End);
                    }
                    break;
                }
                // One more than fits, for a CR.
                if self.filled - self.start > MAX_RECORD_BYTES + 1 {
                    return self.skip_long_line();
                }
                let unfinished = self.filled - self.start;
                self.fill_buffer()?;
                searched = self.start + unfinished;
                found = memchr(b'\n', &self.buffer[searched..self.filled]);
            }
            self.set_end(searched, found);
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

    /// Adds the next line to the record at hand: false where there is none, the record would grow too long, or ends with its line.
    pub(super) fn extend_record(&mut self) -> Result<bool, DecodeError> {
        if self.framing == Framing::Line {
            return Ok(false);
        }
        let length = self.next - self.start;
        let mut searched = length;
        let found = loop {
            let found = memchr(b'\n', &self.buffer[self.start + searched..self.filled]);
            if found.is_some() || self.has_ended {
                break found;
            }
            searched = self.filled - self.start;
            if searched > MAX_RECORD_BYTES + 1 {
                return Ok(false);
            }
            self.fill_buffer()?;
        };
        if found.is_none() && self.start + length == self.filled {
            return Ok(false);
        }
        let before = self.record_end();
        self.set_end(self.start + searched, found);
        if self.end - self.start > MAX_RECORD_BYTES {
            self.restore_record_end(before);
            return Ok(false);
        }
        self.lines += 1;
        Ok(true)
    }

    /// Where the record at hand ends, for [`Lines::reset`].
    pub(super) fn record_end(&self) -> (usize, usize, u64) {
        (self.end - self.start, self.next - self.start, self.lines)
    }

    /// Gives back the lines that were added since the mark was taken.
    pub(super) fn restore_record_end(&mut self, (end, next, lines): (usize, usize, u64)) {
        (self.end, self.next, self.lines) = (self.start + end, self.start + next, lines);
    }

    fn set_end(&mut self, searched: usize, found: Option<usize>) {
        let end = found.map_or(self.filled, |at| searched + at);
        self.next = found.map_or(self.filled, |_| end + 1);
        self.end = end - usize::from(end > self.start && self.buffer[end - 1] == b'\r');
    }

    /// Reads the line to its end in pieces, over everything but its beginning.
    fn skip_long_line(&mut self) -> Result<Advance, DecodeError> {
        self.move_to_front();
        // Two more are kept, so that it is still too long when it is looked at again.
        let kept = MAX_RECORD_BYTES + 2;
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
                        digest.drop_after(&self.buffer[..self.filled], kept);
                    }
                    self.filled = kept;
                    searched = kept;
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

    /// Reads more behind what is there. The record at hand may move to the front.
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
                    // What is left is part of a record: nothing more comes.
                    self.has_ended = true;
                    (self.start, self.end, self.next, self.filled) = (0, 0, 0, 0);
                    return Err(self.read_error(error));
                }
            }
        }
    }

    /// What is there of the record is looked at again, with more behind it.
    fn keep_unfinished_record(&mut self, error: io::Error) -> DecodeError {
        (self.end, self.next, self.lines) = (self.start, self.start, 0);
        DecodeError::Io(error)
    }

    fn read_error(&self, error: io::Error) -> DecodeError {
        use io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
        match error.kind() {
            // As the decompressors name what they cannot go on from.
            InvalidData | InvalidInput | Other | UnexpectedEof if error.raw_os_error().is_none() => {
                DecodeError::Corrupt { at: self.line, detail: error.to_string() }
            }
            _ => DecodeError::Io(error),
        }
    }
}

/// The detail of a record that was cut.
pub(super) fn too_long_detail() -> String {
    format!(
        "the line is longer than {MAX_RECORD_BYTES} bytes, the longest that is read: the rest of it is left out"
    )
}
