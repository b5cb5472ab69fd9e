//! Formats, compressions and framings of files, and what a file's name says of them.

use std::path::Path;

/// The longest record of a text format, in bytes without its line end. A longer one is refused, so
/// that a quote that never closes cannot swallow a file.
pub const MAX_RECORD_BYTES: usize = 64 * 1024;

/// The most lines of a quoted field of CSV. If a field has more, its first line is refused alone,
/// and reading goes on at the next line.
pub const MAX_FIELD_LINES: usize = 100;

/// What ends a record of a text format. It depends on the bytes alone, and not on how they arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// The end of its line, except for line ends within a quoted field of CSV. JSON may also be an
    /// array of records, or records that span lines.
    #[default]
    Quotes,
    /// The end of its line, whatever the line holds: so no later bytes can belong to the record.
    Line,
}

/// The format of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Format {
    /// Comma-separated values (RFC 4180), with a header line
    #[value(name = "csv")]
    Csv,
    /// One JSON object a line; a file that is read once may also be an array of them, or have
    /// objects that span lines
    #[value(name = "json")]
    Json,
    /// Apache Parquet
    #[value(name = "parquet")]
    Parquet,
}

/// The compression of a whole file. Parquet compresses inside, and cannot be compressed again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// The bytes are the records.
    #[default]
    None,
    /// gzip (RFC 1952), with any number of members.
    Gzip,
    /// Zstandard (RFC 8878), with any number of frames.
    Zstd,
}

/// A file name that does not say how the file is written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The error texts say it.
pub enum FileNameError {
    #[error(
        "{0:?} does not say its format: name it .csv, .json, .jsonl, .ndjson or .parquet, the text formats also with .gz or .zst, or give the format"
    )]
    Unknown(String),
    #[error("{0:?} is Parquet inside a compressed file: decompress it, Parquet compresses by itself")]
    CompressedParquet(String),
    #[error(
        "{0:?} is compressed as .{1}, which is not read: decompress it first, or compress it with gzip or zstd"
    )]
    UnsupportedCompression(String, String),
    #[error("{0:?} is a workbook or an archive: save the sheet as CSV (UTF-8), or unpack it first")]
    ArchiveOrWorkbook(String),
}

/// The format and the compression that a file's name says, by its suffixes in small or capital
/// letters.
pub fn detect_format(path: &Path) -> Result<(Format, Compression), FileNameError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let (stem, compression) = split_compression(&name);
    let format = match stem.rsplit_once('.').map(|(_, suffix)| suffix) {
        Some("csv") => Format::Csv,
        Some("json" | "jsonl" | "ndjson") => Format::Json,
        Some("parquet") => Format::Parquet,
        Some(suffix @ ("bz2" | "xz" | "lz4" | "lzma" | "br" | "z")) => {
            return Err(FileNameError::UnsupportedCompression(path.display().to_string(), suffix.into()));
        }
        Some("xls" | "xlsx" | "ods" | "zip" | "7z" | "rar" | "tar" | "tgz") => {
            return Err(FileNameError::ArchiveOrWorkbook(path.display().to_string()));
        }
        _ => return Err(FileNameError::Unknown(path.display().to_string())),
    };
    if format == Format::Parquet && compression != Compression::None {
        return Err(FileNameError::CompressedParquet(path.display().to_string()));
    }
    Ok((format, compression))
}

/// The compression that a file's name says, if the format is given.
pub fn detect_compression(path: &Path) -> Compression {
    split_compression(&path.to_string_lossy().to_ascii_lowercase()).1
}

fn split_compression(name: &str) -> (&str, Compression) {
    match name.rsplit_once('.') {
        Some((stem, "gz")) => (stem, Compression::Gzip),
        Some((stem, "zst")) => (stem, Compression::Zstd),
        _ => (name, Compression::None),
    }
}
