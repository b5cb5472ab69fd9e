//! CSV with a header line (RFC 4180).

use memchr::memchr;

use super::field::{Field, FieldValue};
use super::field_values::FieldValues;
use super::file_columns::map_columns;
use super::options::RecordNormalizer;
use super::panic_guard::catch_decoder_panic;
use super::record_lines::{Advance, RecordLines, too_long_detail};
use super::unknown_fields::UnknownFields;
use super::{DecodeError, DecodeSettings, Framing, LocalTimeCounts, MAX_FIELD_LINES, ReadOptions};
use crate::model::refusal::quoted_excerpt;
use crate::model::{Reason, Refusal, Upsert};

/// The most bytes up to the end of the header, blank lines included.
const MAX_HEADER_BYTES: u64 = 1 << 20;

pub(super) struct CsvReader {
    lines: RecordLines,
    settings: DecodeSettings,
    preparation: Option<Box<RecordNormalizer>>,
    delimiter: u8,
    /// The field of each column.
    columns: Vec<Option<Field>>,
    ignored_columns: u64,
    rows: u64,
    /// The fields of a record with quotes, one behind the other, and the end of each.
    unquoted: String,
    field_ends: Vec<usize>,
}

impl CsvReader {
    /// Reads the header, unless the options give one.
    pub(super) fn new(mut lines: RecordLines, options: &ReadOptions) -> Result<CsvReader, DecodeError> {
        let delimiter = options.layout.delimiter();
        let columns = match &options.layout.header {
            Some(header) => map_columns(header.iter().map(String::as_str), options)?,
            None => {
                let (mut unquoted, mut ends) = (String::new(), Vec::new());
                read_header(&mut lines, delimiter, &mut unquoted, &mut ends)?;
                let names = unquoted_fields(&unquoted, &ends).map(|name| name.trim_matches(' '));
                map_columns(names, options)?
            }
        };
        let ignored_columns = columns.iter().filter(|column| column.is_none()).count() as u64;
        Ok(CsvReader {
            lines,
            settings: options.settings,
            preparation: RecordNormalizer::if_needed(options),
            delimiter,
            columns,
            ignored_columns,
            rows: 0,
            unquoted: String::new(),
            field_ends: Vec::new(),
        })
    }

    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<Result<Upsert<'_>, Refusal>>, DecodeError> {
        match self.lines.advance()? {
            Advance::Line => {}
            Advance::End => return Ok(None),
            Advance::Truncated => {
                return Ok(Some(Err(Refusal::new(Reason::NotDecodable, too_long_detail()))));
            }
        }
        let has_quotes = memchr(b'"', self.lines.record()).is_some();
        if has_quotes && !close_quotes(&mut self.lines, self.delimiter)? {
            return Ok(Some(Err(bad_quotes_refusal(self.lines.framing()))));
        }
        let Ok(line) = std::str::from_utf8(self.lines.record()) else {
            return Ok(Some(Err(Refusal::new(Reason::NotDecodable, "the line is not UTF-8"))));
        };
        let (columns, settings, rows) = (&self.columns, &self.settings, &mut self.rows);
        let (unquoted, ends, delimiter) = (&mut self.unquoted, &mut self.field_ends, self.delimiter);
        let (preparation, ignored_columns) = (&mut self.preparation, self.ignored_columns);
        Ok(Some(catch_decoder_panic(move || {
            let mut record = FieldValues::new();
            let count = if has_quotes {
                unquote_fields(line, delimiter, unquoted, ends);
                for (column, text) in columns.iter().zip(unquoted_fields(unquoted, ends)) {
                    if let &Some(field) = column {
                        record.set(field, FieldValue::Untyped(text));
                    }
                }
                ends.len()
            } else if delimiter == b',' {
                // A delimiter that is a constant makes this faster.
                split_unquoted(line, b',', columns, &mut record)
            } else {
                split_unquoted(line, delimiter, columns, &mut record)
            };
            if count != columns.len() {
                return Err(wrong_field_count(count, columns.len(), line));
            }
            *rows += 1;
            if ignored_columns > 0 {
                UnknownFields::count_known(ignored_columns);
            }
            if let Some(preparation) = preparation {
                preparation.normalize(&mut record)?;
            }
            record.to_upsert(settings)
        })))
    }

    pub(super) fn lines(&mut self) -> &mut RecordLines {
        &mut self.lines
    }

    pub(super) fn skip(&mut self) -> Result<bool, DecodeError> {
        let advanced = self.lines.advance()?;
        if advanced == Advance::Line && memchr(b'"', self.lines.record()).is_some() {
            close_quotes(&mut self.lines, self.delimiter)?;
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

    pub(super) fn local_times(&self) -> LocalTimeCounts {
        self.preparation.as_ref().map(|preparation| preparation.local_times()).unwrap_or_default()
    }

    pub(super) fn ignored_fields(&self) -> u64 {
        self.ignored_columns * self.rows
    }
}

/// Sets the fields of a record without quotes, and returns their number. Fields are so short that
/// checking byte after byte beats a search for each comma.
#[inline(always)]
fn split_unquoted<'a>(
    line: &'a str,
    delimiter: u8,
    columns: &[Option<Field>],
    record: &mut FieldValues<'a>,
) -> usize {
    let mut from = 0;
    let mut count = 0;
    let mut field_to = |to: usize| {
        if let Some(&Some(field)) = columns.get(count) {
            record.set(field, FieldValue::Untyped(&line[from..to]));
        }
        from = to + 1;
        count += 1;
    };
    for (at, byte) in line.bytes().enumerate() {
        if byte == delimiter {
            field_to(at);
        }
    }
    field_to(line.len());
    count
}

/// Reads the first line, split into fields.
pub(super) fn read_header(
    lines: &mut RecordLines,
    delimiter: u8,
    unquoted: &mut String,
    ends: &mut Vec<usize>,
) -> Result<(), DecodeError> {
    // A line that is too long is refused without reading its rest.
    lines.allow_bytes(MAX_HEADER_BYTES);
    let advanced = lines.advance();
    let is_too_long = lines.is_allowance_exhausted();
    lines.allow_bytes(u64::MAX);
    match advanced {
        Err(_) if is_too_long => return Err(DecodeError::BadHeader(too_long_detail())),
        Err(error) => return Err(error),
        Ok(Advance::End) => return Err(DecodeError::NoHeader),
        Ok(Advance::Truncated) => return Err(DecodeError::BadHeader(too_long_detail())),
        Ok(Advance::Line) => {}
    }
    if memchr(b'"', lines.record()).is_some() && !close_quotes(lines, delimiter)? {
        return Err(DecodeError::BadHeader("its quotes do not match".into()));
    }
    let header =
        std::str::from_utf8(lines.record()).map_err(|_| DecodeError::BadHeader("it is not UTF-8".into()))?;
    unquote_fields(header, delimiter, unquoted, ends);
    Ok(())
}

#[cold]
fn wrong_field_count(count: usize, columns: usize, line: &str) -> Refusal {
    let line = quoted_excerpt(line);
    let detail = format!("{count} fields, but the header has {columns} columns: {line}");
    Refusal::new(Reason::NotDecodable, detail)
}

#[cold]
fn bad_quotes_refusal(framing: Framing) -> Refusal {
    let detail = match framing {
        Framing::Quotes => format!(
            "a quoted field does not end within {MAX_FIELD_LINES} lines, or goes on after its closing quote: write \"\" for a quote"
        ),
        Framing::Line => "a quoted field does not end in its line, which a followed file asks for, or goes on after its closing quote: \
                          write \"\" for a quote"
            .into(),
    };
    Refusal::new(Reason::NotDecodable, detail)
}

/// Adds lines to the current record until its quoted fields end. False if a field spans more than
/// [`MAX_FIELD_LINES`] lines, does not end at all, or is not as in RFC 4180: the record is then its
/// first line again, so that a stray quote costs one line and no more.
#[cold]
pub(super) fn close_quotes(lines: &mut RecordLines, delimiter: u8) -> Result<bool, DecodeError> {
    let first_line = lines.record_end();
    let mut quotes = QuoteScanner { at: CsvScanState::FieldStart, field_lines: 1, delimiter };
    let mut scanned = 0;
    loop {
        quotes.scan(&lines.record()[scanned..]);
        if !matches!(quotes.at, CsvScanState::Quoted | CsvScanState::Malformed) {
            return Ok(true);
        }
        scanned = lines.record().len();
        let line_end = lines.record_and_line_end(scanned);
        scanned += line_end.len();
        quotes.scan(line_end);
        quotes.field_lines += 1;
        let is_over = matches!(quotes.at, CsvScanState::Malformed) || quotes.field_lines > MAX_FIELD_LINES;
        if is_over || !lines.extend_record()? {
            lines.restore_record_end(first_line);
            return Ok(false);
        }
    }
}

/// The position in a record while it is scanned for quotes, and the number of lines of the current
/// field.
struct QuoteScanner {
    at: CsvScanState,
    field_lines: usize,
    delimiter: u8,
}

impl QuoteScanner {
    fn scan(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.at = self.at.after_byte(*byte, self.delimiter);
            if matches!(self.at, CsvScanState::FieldStart) {
                self.field_lines = 1;
            }
        }
    }
}

#[derive(Clone, Copy)]
enum CsvScanState {
    FieldStart,
    Unquoted,
    Quoted,
    /// Behind a quote in a quoted field: it ends the field, or a second quote follows and both
    /// stand for one.
    Quote,
    Malformed,
}

impl CsvScanState {
    fn after_byte(self, byte: u8, delimiter: u8) -> CsvScanState {
        match (self, byte) {
            (CsvScanState::FieldStart | CsvScanState::Quote, b'"') => CsvScanState::Quoted,
            (CsvScanState::FieldStart | CsvScanState::Unquoted | CsvScanState::Quote, byte)
                if byte == delimiter =>
            {
                CsvScanState::FieldStart
            }
            (CsvScanState::FieldStart | CsvScanState::Unquoted, _) => CsvScanState::Unquoted,
            (CsvScanState::Quoted, b'"') => CsvScanState::Quote,
            (CsvScanState::Quoted, _) => CsvScanState::Quoted,
            (CsvScanState::Quote | CsvScanState::Malformed, _) => CsvScanState::Malformed,
        }
    }
}

/// Splits a record whose quotes are balanced.
pub(super) fn unquote_fields(record: &str, delimiter: u8, unquoted: &mut String, ends: &mut Vec<usize>) {
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
            let end = memchr(delimiter, rest.as_bytes()).unwrap_or(rest.len());
            unquoted.push_str(&rest[..end]);
            rest = &rest[end..];
        }
        ends.push(unquoted.len());
        match rest.strip_prefix(char::from(delimiter)) {
            Some(more) => rest = more,
            None => return,
        }
    }
}

pub(super) fn unquoted_fields<'a>(
    unquoted: &'a str,
    ends: &'a [usize],
) -> impl Iterator<Item = &'a str> + Clone {
    let starts = std::iter::once(0).chain(ends.iter().copied());
    starts.zip(ends).map(|(start, &end)| &unquoted[start..end])
}
