//! Errors that end the reading of a file.

use std::io;

use super::options::OptionProblem;

/// Why a file cannot be read, or not to its end.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The error texts say it.
pub enum DecodeError {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error(
        "is a pipe, a device or a socket, and nothing of it could be read again after a restart: write it to a file, or post it"
    )]
    NotAFile,
    /// `at` is the line that could not be read, from 1; in Parquet the row.
    #[error("is damaged or cut off at line or row {at} ({detail}): fetch or write the file again")]
    Corrupt { at: u64, detail: String },
    #[error(
        "is empty, without a header line: the first line must name the columns, as in city,reading_at,temperature,humidity"
    )]
    NoHeader,
    #[error("is {what}, not a file of readings: {remedy}")]
    Foreign { what: &'static str, remedy: &'static str },
    #[error("has a first line that cannot be a header ({0}): it must name the columns, separated by commas")]
    BadHeader(String),
    #[error(
        "has no column {column} (its columns: {columns}): add it, or name the one that holds it (--columns, or columns of the source)"
    )]
    MissingColumn { column: &'static str, columns: String },
    #[error("has no column {name}, which was named for {column} (its columns: {columns}): name one of these")]
    MissingNamedColumn { name: String, column: &'static str, columns: String },
    #[error("has more than one column for {column} (its columns: {columns}): remove or rename all but one")]
    DuplicateColumn { column: &'static str, columns: String },
    #[error("has column {column} of type {kind}, which cannot be read as one: write it as {expected}")]
    UnsupportedColumn { column: String, kind: String, expected: &'static str },
    #[error("is compressed inside by {0}, which is not read: write it with zstd, snappy, gzip or none")]
    UnsupportedCompression(String),
    #[error(
        "cannot be read as Parquet inside compression: decompress it first, Parquet compresses by itself"
    )]
    CompressedParquet,
    #[error("{0}")]
    Wide(String),
    #[error("cannot be read with {}: it {}", .0.key, .0.problem)]
    Option(OptionProblem),
    #[error("is Parquet, which only `swelter batch` reads: convert it to CSV or JSON lines")]
    NoText,
}
