//! Detects what a file is by its first bytes, whatever its name says.

use std::io::{self, Read};

use super::{Compression, DecodeError};

/// A format other than text with readings, and the bytes that it begins with.
struct ForeignFormat {
    magic: &'static [u8],
    what: &'static str,
    remedy: &'static str,
}

const REMEDY_DECOMPRESS: &str = "decompress it first, or compress it with gzip or zstd";
const REMEDY_CONVERT: &str = "convert it to CSV or JSON lines";
const REMEDY_SAVE_AS_CSV: &str = "save the sheet as CSV (UTF-8)";
const REMEDY_TO_UTF_8: &str = "convert it to UTF-8, as iconv does";

const FOREIGN_FORMATS: [ForeignFormat; 16] = [
    ForeignFormat { magic: b"\x1f\x8b\x08", what: "gzip", remedy: "it is read once, not followed" },
    ForeignFormat { magic: b"\x28\xb5\x2f\xfd", what: "zstd", remedy: "it is read once, not followed" },
    ForeignFormat { magic: b"BZh", what: "bzip2", remedy: REMEDY_DECOMPRESS },
    ForeignFormat { magic: b"\xfd7zXZ\0", what: "xz", remedy: REMEDY_DECOMPRESS },
    ForeignFormat { magic: b"\x04\x22\x4d\x18", what: "lz4", remedy: REMEDY_DECOMPRESS },
    ForeignFormat { magic: b"7z\xbc\xaf\x27\x1c", what: "a 7-Zip archive", remedy: "unpack it first" },
    ForeignFormat {
        magic: b"PK\x03\x04",
        what: "a zip archive or an Excel workbook (.xlsx)",
        remedy: "unpack it, or save the sheet as CSV (UTF-8)",
    },
    ForeignFormat {
        magic: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        what: "an Excel workbook (.xls)",
        remedy: REMEDY_SAVE_AS_CSV,
    },
    ForeignFormat {
        magic: b"PAR1",
        what: "Parquet",
        remedy: "name it .parquet, or give that as the format; only `swelter batch` and `produce` read it",
    },
    ForeignFormat { magic: b"Obj\x01", what: "an Avro file", remedy: REMEDY_CONVERT },
    ForeignFormat { magic: b"ORC", what: "an ORC file", remedy: REMEDY_CONVERT },
    ForeignFormat { magic: b"SQLite format 3\0", what: "an SQLite database", remedy: REMEDY_CONVERT },
    ForeignFormat { magic: b"\x89HDF\r\n\x1a\n", what: "HDF5 or NetCDF", remedy: REMEDY_CONVERT },
    ForeignFormat { magic: b"\xff\xfe", what: "UTF-16", remedy: REMEDY_TO_UTF_8 },
    ForeignFormat { magic: b"\xfe\xff", what: "UTF-16", remedy: REMEDY_TO_UTF_8 },
    ForeignFormat { magic: b"\0\0\xfe\xff", what: "UTF-32", remedy: REMEDY_TO_UTF_8 },
];

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Magic numbers that are also words, with which a header or a record may begin.
const MAGIC_THAT_ARE_WORDS: [&[u8]; 3] = [b"BZh", b"ORC", b"PAR1"];

/// Whether more bytes could show that this is a foreign format. Every header and every record has
/// more than are needed.
pub(super) fn may_be_foreign(first: &[u8]) -> bool {
    let may_be = |magic: &[u8]| magic.len() > first.len() && magic.starts_with(first);
    first.is_empty()
        || may_be(BYTE_ORDER_MARK)
        || FOREIGN_FORMATS.iter().any(|foreign| may_be(foreign.magic))
        || {
            // UTF-16 without a byte order mark shows in two bytes, and the bytes behind a word tell
            // text from binary.
            first.len() < 2
                || MAGIC_THAT_ARE_WORDS
                    .iter()
                    .any(|keyword| first.starts_with(keyword) && first.len() < keyword.len() + 1)
        }
}

/// Refuses a file of another format by its first bytes.
pub(super) fn check_is_text(first: &[u8]) -> Result<(), DecodeError> {
    let foreign = FOREIGN_FORMATS.iter().find(|foreign| first.starts_with(foreign.magic));
    let is_word = foreign.is_some_and(|foreign| {
        let next = first.get(foreign.magic.len()).copied();
        // A header such as PAR1,PAR2 is text all the same.
        MAGIC_THAT_ARE_WORDS.contains(&foreign.magic)
            && next.is_some_and(|next| b",;\t \"\r\n_".contains(&next))
    });
    if let Some(ForeignFormat { what, remedy, .. }) = foreign.filter(|_| !is_word) {
        return Err(DecodeError::Foreign { what, remedy });
    }
    match first {
        [0, 1..=255, ..] | [1..=255, 0, ..] => {
            Err(DecodeError::Foreign { what: "UTF-16", remedy: REMEDY_TO_UTF_8 })
        }
        _ => Ok(()),
    }
}

/// The number of bytes that show whether a file with declared compression is plain text.
const TEXT_SAMPLE_BYTES: usize = 64;

/// The compression of a stream: by its first bytes, or as declared if they show neither compression
/// nor text.
pub(super) fn detect_stream_compression(
    mut reader: Box<dyn Read + Send>,
    declared: Compression,
) -> io::Result<(Compression, Box<dyn Read + Send>)> {
    let mut first = Vec::with_capacity(TEXT_SAMPLE_BYTES);
    fill_until(&mut *reader, &mut first, 4)?;
    let compression = match &first[..] {
        [0x1f, 0x8b, 8, ..] => Compression::Gzip,
        // A frame, or a skippable frame.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ if declared == Compression::None => declared,
        _ => {
            fill_until(&mut *reader, &mut first, TEXT_SAMPLE_BYTES)?;
            if is_text(&first) { Compression::None } else { declared }
        }
    };
    Ok((compression, Box::new(io::Cursor::new(first).chain(reader))))
}

/// Reads until there are so many bytes, or until the end.
fn fill_until(reader: &mut dyn Read, first: &mut Vec<u8>, until: usize) -> io::Result<()> {
    let more = until.saturating_sub(first.len()) as u64;
    reader.take(more).read_to_end(first).map(drop)
}

fn is_text(first: &[u8]) -> bool {
    // The last character may be incomplete.
    let is_utf_8 = std::str::from_utf8(first).map_or_else(|error| error.error_len().is_none(), |_| true);
    is_utf_8 && !first.iter().any(|byte| *byte < b' ' && !b"\t\n\r".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_content_is_named() {
        for (first, named) in [
            (&b"PK\x03\x04\x14\0"[..], "zip archive"),
            (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0", ".xls"),
            (b"BZh91AY&SY", "bzip2"),
            (b"\xfd7zXZ\0\0", "xz"),
            (b"PAR1\x15\x04", "Parquet"),
            (b"\xff\xfec\0i\0", "UTF-16"),
            (b"\xfe\xff\0c\0i", "UTF-16"),
            (b"c\0i\0t\0y\0", "UTF-16"),
            (b"\0c\0i\0t\0y", "UTF-16"),
            (b"SQLite format 3\0\x10", "SQLite"),
        ] {
            let error = check_is_text(first).unwrap_err().to_string();
            assert!(error.contains(named), "{first:?}: {error}");
            // More bytes decide nothing.
            assert!(!may_be_foreign(first), "{first:?}");
        }
        for text in
            ["city,reading_at\n", "BZh,b", "PAR1,temperature", "ORC\n", "\u{FEFF}city", "x", "", "{}\n"]
        {
            assert!(check_is_text(text.as_bytes()).is_ok(), "{text}");
        }
    }
}
