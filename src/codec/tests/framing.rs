//! Records depend on the bytes alone, however they arrive, and a stray quote costs one line.

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// A file of which a part is there yet.
struct GrowingReader {
    text: Vec<u8>,
    at: usize,
    there: Arc<AtomicUsize>,
}

impl Read for GrowingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let there = self.there.load(Ordering::Relaxed).min(self.text.len());
        if self.at == there && there < self.text.len() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let length = buffer.len().min(there - self.at);
        buffer[..length].copy_from_slice(&self.text[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

fn would_block(error: &DecodeError) -> bool {
    matches!(error, DecodeError::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// A record: its line, its bytes, the city or the refusal, and the digest up to its end.
type FramedRecord = (u64, Vec<u8>, Result<String, Refusal>, Option<u64>);

/// The records that are read while the file grows to these lengths, and then is complete.
fn framed_records(
    text: &str,
    framing: Framing,
    lengths: impl IntoIterator<Item = usize>,
) -> Vec<FramedRecord> {
    let there = Arc::new(AtomicUsize::new(0));
    let mut lengths = lengths.into_iter().chain([text.len()]);
    let mut grow = || there.store(lengths.next().expect("it is whole"), Ordering::Relaxed);
    let mut decoder = loop {
        let file = GrowingReader { text: text.into(), at: 0, there: Arc::clone(&there) };
        let (format, settings) = (Format::Csv, DecodeSettings::default());
        match FileDecoder::with_digest(Box::new(file), format, Compression::None, settings, framing) {
            Ok(decoder) => break decoder,
            Err(error) if would_block(&error) => grow(),
            Err(error) => panic!("{error}"),
        }
    };
    let mut all = Vec::new();
    loop {
        let city = match decoder.next() {
            Ok(None) => return all,
            Ok(Some(decoded)) => decoded.map(|upsert| upsert.city.to_owned()),
            Err(error) if would_block(&error) => {
                grow();
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let raw = decoder.raw().into_owned();
        all.push((decoder.line(), raw, city, decoder.digest()));
    }
}

fn cities(records: &[FramedRecord]) -> Vec<&str> {
    records.iter().map(|(_, _, city, _)| city.as_deref().unwrap_or("-")).collect()
}

const HEADER: &str = "city,reading_at,temperature,humidity,wind_speed\n";

fn line(city: &str) -> String {
    format!("{city},2025-01-01T00:00:00Z,70,50,\n")
}

#[test]
fn records_do_not_depend_on_chunk_boundaries() {
    let quoted = ["\"x", "\"y\"\"", "z\"", "\"\"\"", "\"", "\"a\"b"].map(line).concat();
    let texts = [
        [HEADER, &line("a"), &line("\"oops"), &line("b"), &line("c")].concat(),
        [HEADER, &quoted, &line("d"), "\r\n", &line("\"e\""), "\"f"].concat(),
        [HEADER, "g,2025-01-01T00:00:00Z,70,50,\"\n1\"\r\n", &line("h"), "\"\n\"\n", &line("i")].concat(),
    ];
    for text in &texts {
        for framing in [Framing::Quotes, Framing::Line] {
            let whole = framed_records(text, framing, []);
            assert_eq!(framed_records(text, framing, 1..text.len()), whole, "byte by byte");
            if framing == Framing::Line {
                for at in 1..text.len() {
                    assert_eq!(framed_records(text, framing, [at]), whole, "split at {at}");
                }
            }
        }
    }
    assert_eq!(cities(&framed_records(&texts[0], Framing::Line, [])), ["a", "-", "b", "c"]);
    assert_eq!(cities(&framed_records(&texts[0], Framing::Quotes, [])), ["a", "-", "b", "c"]);
}

#[test]
fn unclosed_quote_in_followed_file_refuses_line_at_once() {
    let text = [HEADER, &line("\"oops"), &line("b")].concat();
    let there = Arc::new(AtomicUsize::new(text.len()));
    let file = GrowingReader { text: [text.as_str(), "more"].concat().into(), at: 0, there };
    let (format, settings) = (Format::Csv, DecodeSettings::default());
    let mut decoder =
        FileDecoder::with_digest(Box::new(file), format, Compression::None, settings, Framing::Line).unwrap();
    let refusal = decoder.next().unwrap().unwrap().unwrap_err();
    assert!(refusal.detail.contains("followed file"), "{refusal}");
    assert_eq!(&*decoder.raw(), line("\"oops").trim_end().as_bytes());
    assert_eq!(decoder.next().unwrap().unwrap().unwrap().city, "b");
}

#[test]
fn quoted_field_spans_at_most_a_hundred_lines() {
    let field = |lines: usize| format!("\"{}\"", vec!["x"; lines].join("\n"));
    let text = |fields: [usize; 2]| {
        let [first, second] = fields.map(field);
        format!("{HEADER}{first},{second},70,50,\n{}", line("b"))
    };
    // A field that ends is one record, which is refused since its time is none.
    for fields in [[1, 1], [MAX_FIELD_LINES, 1], [1, MAX_FIELD_LINES], [60, 60], [MAX_FIELD_LINES; 2]] {
        let records = framed_records(&text(fields), Framing::Quotes, []);
        assert_eq!(cities(&records), ["-", "b"], "{fields:?}");
        assert!(records[0].1.len() > fields.iter().sum::<usize>(), "{fields:?}");
    }
    for lines in [MAX_FIELD_LINES + 1, MAX_FIELD_LINES + 50] {
        let records = framed_records(&text([lines, 1]), Framing::Quotes, []);
        // The first line alone, then each of the others.
        assert_eq!(records.len(), lines + 1);
        assert_eq!(records[0].1, b"\"x");
        let refusal = records[0].2.as_ref().unwrap_err();
        assert!(refusal.detail.contains("within 100 lines"), "{refusal}");
        assert_eq!((records[1].0, &*records[1].1), (3, &b"x"[..]));
        assert_eq!(records.last().unwrap().2.as_deref(), Ok("b"));
    }
}
