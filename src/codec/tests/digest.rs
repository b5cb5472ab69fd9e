//! The running digest covers the bytes up to the end of each record, however they arrive.

use std::collections::HashMap;
use std::io::Read;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use xxhash_rust::xxh3::xxh3_64;

use super::*;

/// Returns a text in pieces, and `WouldBlock` between them.
struct ChunkedReader {
    text: Vec<u8>,
    at: usize,
    sizes: Vec<usize>,
    calls: usize,
}

impl Read for ChunkedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.calls += 1;
        if !self.sizes.is_empty() && self.calls.is_multiple_of(3) && self.at < self.text.len() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let size = self.sizes.get(self.calls % self.sizes.len().max(1)).copied().unwrap_or(usize::MAX);
        let size = size.min(buffer.len()).min(self.text.len() - self.at);
        buffer[..size].copy_from_slice(&self.text[self.at..self.at + size]);
        self.at += size;
        Ok(size)
    }
}

/// Each record's bytes and digest; `skips` says which records are skipped.
fn digests(text: &[u8], format: Format, sizes: &[usize], skips: &[bool]) -> Vec<(Vec<u8>, u64)> {
    let pieces = ChunkedReader { text: text.to_vec(), at: 0, sizes: sizes.to_vec(), calls: 0 };
    let mut pieces = Some(pieces);
    let mut decoder = loop {
        // A header that is incomplete is read anew, with all of it in one piece.
        let (reader, settings) = (pieces.take().unwrap(), DecodeSettings::default());
        let whole = ChunkedReader { text: text.to_vec(), at: 0, sizes: Vec::new(), calls: 0 };
        match FileDecoder::with_digest(Box::new(reader), format, Compression::None, settings, Framing::Quotes)
        {
            Ok(decoder) => break decoder,
            Err(DecodeError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => pieces = Some(whole),
            Err(error) => panic!("{error}"),
        }
    };
    let mut found: Vec<(Vec<u8>, u64)> = Vec::new();
    loop {
        let skip = skips.get(found.len() % skips.len().max(1)).copied().unwrap_or(false);
        let next = if skip { decoder.skip() } else { decoder.next().map(|next| next.is_some()) };
        match next {
            Ok(true) => {
                let raw = decoder.raw().into_owned();
                found.push((raw, decoder.digest().unwrap()));
            }
            Ok(false) => {
                assert!(found.last().is_none_or(|(_, last)| decoder.digest() == Some(*last)), "at the end");
                return found;
            }
            Err(DecodeError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                assert!(found.last().is_none_or(|(_, last)| decoder.digest() == Some(*last)), "in between");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "[a-z]{1,12},2025-01-01T00:00:00Z,70,50",
        1 => Just(String::new()),
        1 => Just("  ".to_owned()),
        1 => Just("\"a\nb\",2025-01-01T00:00:00Z,70,50".to_owned()),
        1 => Just("\"never closed".to_owned()),
        1 => (0..3usize).prop_map(|more| "x".repeat(MAX_RECORD_BYTES - 1 + more)),
        1 => (0..600_000usize).prop_map(|more| "y".repeat(MAX_RECORD_BYTES + more)),
    ]
}

#[test]
fn running_digest_covers_bytes_up_to_record_end() {
    let texts = (
        any::<bool>(),
        proptest::collection::vec((line(), prop_oneof![Just("\n"), Just("\r\n")]), 1..14),
        any::<bool>(),
        proptest::collection::vec(prop_oneof![1..90usize, 1000..700_000usize], 0..4),
        proptest::collection::vec(any::<bool>(), 0..4),
    );
    let config = ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() };
    let ran = TestRunner::new(config).run(&texts, |(mark, lines, ended, sizes, skips)| {
        let mut text = if mark { "\u{FEFF}".to_owned() } else { String::new() };
        text += "city,reading_at,temperature,humidity\n";
        lines.iter().for_each(|(line, end)| text.extend([line, *end]));
        if !ended {
            text.truncate(text.trim_end().len());
        }
        for format in [Format::Csv, Format::Json] {
            let text = text.as_bytes();
            let found = digests(text, format, &[], &[]);
            prop_assert_eq!(&digests(text, format, &sizes, &skips), &found);
            // Long lines would make it slow to try all ends.
            let ends = (0..=text.len()).filter(|end| matches!(text.get(*end), None | Some(b'\n' | b'\r')));
            let ends: HashMap<u64, usize> = ends.map(|end| (xxh3_64(&text[..end]), end)).collect();
            let header = text.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(text.len());
            let mut before = if format == Format::Csv { header } else { 0 };
            for (raw, digest) in found {
                let end = *ends.get(&digest).expect("a digest of the beginning");
                prop_assert!(end > before);
                let lies = text[before..end].trim_ascii_start();
                prop_assert!(lies.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(lies).starts_with(&raw));
                // A file that ends there has the same digest.
                prop_assert_eq!(
                    digests(&text[..end], format, &sizes, &[]).last().map(|(_, last)| *last),
                    Some(digest)
                );
                before = end;
            }
        }
        Ok(())
    });
    ran.unwrap();
}

#[test]
fn running_digest_covers_decompressed_bytes() {
    let text = "city,reading_at,temperature,humidity\na,2025-01-01T00:00:00Z,70,50\n";
    for compression in [Compression::Gzip, Compression::Zstd] {
        let shared = Shared::default();
        let mut writer = compressing_writer(Box::new(shared.clone()), compression).unwrap();
        writer.write_all(text.as_bytes()).unwrap();
        writer.finish().unwrap();
        let reader = Box::new(io::Cursor::new(shared.bytes()));
        let mut decoder = FileDecoder::with_digest(
            reader,
            Format::Csv,
            compression,
            DecodeSettings::default(),
            Framing::Quotes,
        )
        .unwrap();
        assert!(decoder.skip().unwrap());
        assert_eq!(decoder.digest(), Some(xxh3_64(text.trim_end().as_bytes())));
    }
}
