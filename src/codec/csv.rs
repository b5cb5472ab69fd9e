//! CSV with a header line (RFC 4180).

use memchr::memchr;

use super::fields::{self, Field, Record, Value};
use super::guard::guarded;
use super::lines::{Advance, Lines, too_long};
use super::{DecodeError, DecodeSettings};
use crate::model::refusal::quoted;
use crate::model::{Reason, Refusal, Upsert};

/// What may stand up to the end of the header, blank lines included.
const MAX_HEADER_BYTES: u64 = 1 << 20;

pub(super) struct CsvReader {
    lines: Lines,
    settings: DecodeSettings,
    /// By column.
    columns: Vec<Option<Field>>,
    ignored_columns: u64,
    rows: u64,
    /// The fields of a record with quotes, one after the other, and where each ends.
    unquoted: String,
    ends: Vec<usize>,
}

impl CsvReader {
    /// Reads the header.
    pub(super) fn new(mut lines: Lines, settings: DecodeSettings) -> Result<CsvReader, DecodeError> {
        let (mut unquoted, mut ends) = (String::new(), Vec::new());
        // The rest of a line that is too long need not be read to say so.
        lines.allow(MAX_HEADER_BYTES);
        let advanced = lines.advance();
        let is_too_long = lines.is_allowance_used();
        lines.allow(u64::MAX);
        match advanced {
            Err(_) if is_too_long => return Err(DecodeError::BadHeader(too_long())),
            Err(error) => return Err(error),
            Ok(Advance::End) => return Err(DecodeError::NoHeader),
            Ok(Advance::Cut) => return Err(DecodeError::BadHeader(too_long())),
            Ok(Advance::Line) => {}
        }
        if memchr(b'"', lines.record()).is_some() && !close_quotes(&mut lines)? {
            return Err(DecodeError::BadHeader("its quotes do not match".into()));
        }
        let header = std::str::from_utf8(lines.record())
            .map_err(|_| DecodeError::BadHeader("it is not UTF-8".into()))?;
        unquote(header, &mut unquoted, &mut ends);
        let names = fields_of(&unquoted, &ends).map(|name| name.trim_matches(' '));
        let columns = fields::columns(names, &settings)?;
        let ignored_columns = columns.iter().filter(|column| column.is_none()).count() as u64;
        Ok(CsvReader { lines, settings, columns, ignored_columns, rows: 0, unquoted, ends })
    }

    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<Result<Upsert<'_>, Refusal>>, DecodeError> {
        match self.lines.advance()? {
            Advance::Line => {}
            Advance::End => return Ok(None),
            Advance::Cut => return Ok(Some(Err(Refusal::new(Reason::NotDecodable, too_long())))),
        }
        let has_quotes = memchr(b'"', self.lines.record()).is_some();
        if has_quotes && !close_quotes(&mut self.lines)? {
            let detail =
                "a quoted field does not end, or goes on after its closing quote: write \"\" for a quote";
            return Ok(Some(Err(Refusal::new(Reason::NotDecodable, detail))));
        }
        let Ok(line) = std::str::from_utf8(self.lines.record()) else {
            return Ok(Some(Err(Refusal::new(Reason::NotDecodable, "the line is not UTF-8"))));
        };
        let (columns, settings, rows) = (&self.columns, &self.settings, &mut self.rows);
        let (unquoted, ends) = (&mut self.unquoted, &mut self.ends);
        Ok(Some(guarded(move || {
            let mut record = Record::new();
            let count = if has_quotes {
                unquote(line, unquoted, ends);
                for (column, text) in columns.iter().zip(fields_of(unquoted, ends)) {
                    if let &Some(field) = column {
                        record.set(field, Value::Untyped(text));
                    }
                }
                ends.len()
            } else {
                split(line, columns, &mut record)
            };
            if count != columns.len() {
                return Err(wrong_count(count, columns.len(), line));
            }
            *rows += 1;
            record.upsert(settings)
        })))
    }

    pub(super) fn lines(&mut self) -> &mut Lines {
        &mut self.lines
    }

    pub(super) fn skip(&mut self) -> Result<bool, DecodeError> {
        let advanced = self.lines.advance()?;
        if advanced == Advance::Line && memchr(b'"', self.lines.record()).is_some() {
            close_quotes(&mut self.lines)?;
        }
        Ok(advanced != Advance::End)
    }

    pub(super) fn digest(&mut self) -> Option<u64> {
        self.lines.digest()
    }

    pub(super) fn line(&self) -> u64 {
        self.lines.line()
    }

    pub(super) fn raw(&self) -> &[u8] {
        self.lines.record()
    }

    pub(super) fn ignored_fields(&self) -> u64 {
        self.ignored_columns * self.rows
    }
}

/// Sets the fields of a record without quotes and returns how many there are. Fields are so short that looking at
/// byte after byte beats searching for each comma.
#[inline]
fn split<'a>(line: &'a str, columns: &[Option<Field>], record: &mut Record<'a>) -> usize {
    let mut from = 0;
    let mut count = 0;
    let mut field_to = |to: usize| {
        if let Some(&Some(field)) = columns.get(count) {
            record.set(field, Value::Untyped(&line[from..to]));
        }
        from = to + 1;
        count += 1;
    };
    for (at, byte) in line.bytes().enumerate() {
        if byte == b',' {
            field_to(at);
        }
    }
    field_to(line.len());
    count
}

#[cold]
fn wrong_count(count: usize, columns: usize, line: &str) -> Refusal {
    let line = quoted(line);
    let detail = format!("{count} fields, but the header has {columns} columns: {line}");
    Refusal::new(Reason::NotDecodable, detail)
}

/// Adds lines to the record at hand until its quoted fields end: false where they do not, or are not RFC 4180's. The
/// first line is then alone again, so that a stray quote costs one line and no more.
#[cold]
fn close_quotes(lines: &mut Lines) -> Result<bool, DecodeError> {
    let first_line = lines.mark();
    let mut scan = Scan::FieldStart;
    let mut scanned = 0;
    loop {
        scan = scan.over(&lines.record()[scanned..]);
        if !matches!(scan, Scan::Quoted | Scan::Bad) {
            return Ok(true);
        }
        scanned = lines.record().len();
        let line_end = lines.record_and_line_end(scanned);
        scanned += line_end.len();
        scan = scan.over(line_end);
        if matches!(scan, Scan::Bad) || !lines.extend()? {
            lines.reset(first_line);
            return Ok(false);
        }
    }
}

/// Where in a record a byte stands.
#[derive(Clone, Copy)]
enum Scan {
    FieldStart,
    Unquoted,
    Quoted,
    /// Behind a quote in a quoted field: it ends the field, or another quote follows and both stand for one.
    Quote,
    Bad,
}

impl Scan {
    fn over(self, bytes: &[u8]) -> Scan {
        bytes.iter().fold(self, |scan, byte| match (scan, byte) {
            (Scan::FieldStart | Scan::Quote, b'"') => Scan::Quoted,
            (Scan::FieldStart | Scan::Unquoted | Scan::Quote, b',') => Scan::FieldStart,
            (Scan::FieldStart | Scan::Unquoted, _) => Scan::Unquoted,
            (Scan::Quoted, b'"') => Scan::Quote,
            (Scan::Quoted, _) => Scan::Quoted,
            (Scan::Quote | Scan::Bad, _) => Scan::Bad,
        })
    }
}

/// Splits a record whose quotes are known to match.
fn unquote(record: &str, unquoted: &mut String, ends: &mut Vec<usize>) {
    unquoted.clear();
    ends.clear();
    let mut rest = record;
    loop {
        if let Some(mut quoted) = rest.strip_prefix('"') {
            loop {
                let (text, after) = quoted.split_once('"').unwrap_or((quoted, ""));
                unquoted.push_str(text);
                match after.strip_prefix('"') {
                    Some(more) => {
                        unquoted.push('"');
                        quoted = more;
                    }
                    None => {
                        rest = after;
                        break;
                    }
                }
            }
        } else {
            let end = memchr(b',', rest.as_bytes()).unwrap_or(rest.len());
            unquoted.push_str(&rest[..end]);
            rest = &rest[end..];
        }
        ends.push(unquoted.len());
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return,
        }
    }
}

fn fields_of<'a>(unquoted: &'a str, ends: &'a [usize]) -> impl Iterator<Item = &'a str> + Clone {
    let starts = std::iter::once(0).chain(ends.iter().copied());
    starts.zip(ends).map(|(start, &end)| &unquoted[start..end])
}
