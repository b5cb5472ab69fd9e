//! Bytes to readings, results to bytes: CSV, JSON lines and Parquet, plain or compressed; JSON and Avro record by record.
//!
//! A [`Decoder`] turns a file or a pipe into [`Upsert`]s, one record at a time, and keeps the bytes of the record at
//! hand for whoever refuses it; a [`RecordDecoder`] takes records of JSON that are already apart, an [`AvroDecoder`] those of Avro. A record that cannot be taken is a [`Refusal`] and reading goes on; a file that cannot
//! be read is a [`DecodeError`] and ends it. The writers are its counterparts.

mod avro;
mod compress;
mod csv;
mod decimal;
mod digest;
mod field_values;
mod foreign_formats;
mod json;
mod json_stream;
mod options;
mod panic_guard;
mod parquet;
mod read_statistics;
mod readings;
mod record_lines;
mod reports;
mod results;
mod row_json;
mod text_output;
mod unknown_fields;
mod wide;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

pub use self::avro::{
    AvroDecoder, CURRENT_SCHEMA, READING_SCHEMA, ROW_SCHEMA, SchemaError, current_to_avro, push_wire_header,
    reading_to_avro, row_to_avro, split_wire_header,
};
pub use self::compress::{CompressedWriter, GzipMemberReader, compressing_writer};
pub use self::json::JsonRecordDecoder;
#[cfg(any(test, fuzzing))]
pub(crate) use self::json_stream::is_one_record_per_line;
pub use self::options::{
    ColumnNames, LOCAL_TIMES_METRIC, LocalTimeCounts, OptionProblem, ReadOptions, RecordOptions, TextLayout,
    TimeFormat, parse_delimiter, parse_list,
};
pub use self::read_statistics::ReadStatistics;
pub use self::readings::{ReadingsWriter, RecordFields, push_json_record};
pub use self::reports::{ChangesWriter, DailyWriter, DeadLettersWriter};
pub use self::results::ResultRowsWriter;
pub use self::row_json::{
    push_aged_current_json, push_current_json, push_current_values, push_key_json, push_row_json,
    push_row_values, push_units,
};
pub(crate) use self::text_output::{push_integer, push_json_text, push_number};
pub use self::unknown_fields::{unknown_field_count, unknown_field_names};
use crate::model::{LocalTimePolicy, Refusal, Upsert};

/// The longest record of a text format, in bytes without its line end. What is longer is refused, so that a quote
/// that never closes cannot swallow a file.
pub const MAX_RECORD_BYTES: usize = 64 * 1024;

/// The most lines of a quoted field of CSV. The first line of a longer one is refused alone, and reading goes on at the next line.
pub const MAX_FIELD_LINES: usize = 100;

/// What ends a record of a text format: always decided by the bytes alone, never by how they come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// The end of its line, but for the line ends within a quoted field of CSV. JSON may also be an array of records, or records
    /// that span lines.
    #[default]
    Quotes,
    /// The end of its line, whatever it holds: so nothing that comes later can belong to it.
    Line,
}

/// How records are written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Format {
    /// Comma-separated values (RFC 4180), with a header line
    #[value(name = "csv")]
    Csv,
    /// One JSON object a line; where a file is read once also an array of them, or objects that span lines
    #[value(name = "json")]
    Json,
    /// Apache Parquet
    #[value(name = "parquet")]
    Parquet,
}

/// What the whole file went through. Parquet compresses inside and takes none.
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

/// The format and the compression that a file's name says, by its suffixes in small or capital letters.
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

/// The compression alone that a file's name says, for a file whose format is given.
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

/// The unit of a source's temperatures, its dew points included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum InputTemperatureUnit {
    #[default]
    #[value(name = "fahrenheit")]
    Fahrenheit,
    #[value(name = "celsius")]
    Celsius,
    #[value(name = "kelvin")]
    Kelvin,
}

/// The unit of a source's wind speeds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum InputWindUnit {
    #[default]
    #[value(name = "mph")]
    Mph,
    #[value(name = "km/h")]
    KilometresPerHour,
    #[value(name = "m/s")]
    MetresPerSecond,
    #[value(name = "knots")]
    Knots,
}

impl InputWindUnit {
    /// Miles an hour in one of it.
    fn mph_per_unit(self) -> f64 {
        match self {
            InputWindUnit::Mph => 1.0,
            InputWindUnit::KilometresPerHour => 1.0 / 1.609_344,
            InputWindUnit::MetresPerSecond => 3.6 / 1.609_344,
            InputWindUnit::Knots => 1.852 / 1.609_344,
        }
    }
}

/// How a source writes relative humidities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum HumidityScale {
    /// 0 to 100
    #[default]
    #[value(name = "percent")]
    Percent,
    /// 0 to 1
    #[value(name = "fraction")]
    Fraction,
}

/// What a source says of the moisture of the air.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Moisture {
    /// Relative humidity, %, as `humidity`
    #[default]
    #[value(name = "humidity")]
    Humidity,
    /// The dew point, as `dew_point`
    #[value(name = "dew-point")]
    DewPoint,
}

/// What the records of a source leave unsaid.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DecodeSettings {
    /// What a time without an offset is.
    pub local_time: LocalTimePolicy,
    /// The unit of temperatures and dew points.
    pub temperature_unit: InputTemperatureUnit,
    /// Which field says how moist the air is.
    pub moisture: Moisture,
    /// The scale of relative humidities.
    pub humidity: HumidityScale,
    /// The unit of wind speeds.
    pub wind_unit: InputWindUnit,
}

impl DecodeSettings {
    /// Whether times without an offset are taken.
    pub fn has_local_times(&self) -> bool {
        self.local_time != LocalTimePolicy::Refuse
    }
}

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
    /// `at` is the line, in Parquet the row, that could not be read; from 1.
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
    #[error("has no column {column} (its columns: {columns}): add it, or rename the one that holds it")]
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

/// Reads the records of one file or pipe.
pub struct FileDecoder(FormatReader);

enum FormatReader {
    Csv(csv::CsvReader),
    Wide(Box<wide::WideReader>),
    Json(json::JsonReader),
    Parquet(Box<parquet::ParquetReader>),
}

impl FormatReader {
    /// Of a text format.
    fn lines(&mut self) -> Option<&mut record_lines::RecordLines> {
        match self {
            FormatReader::Csv(reader) => Some(reader.lines()),
            FormatReader::Wide(reader) => Some(reader.lines()),
            FormatReader::Json(reader) => Some(reader.lines()),
            FormatReader::Parquet(_) => None,
        }
    }
}

impl std::fmt::Debug for FileDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileDecoder").field("line", &self.line()).finish_non_exhaustive()
    }
}

impl FileDecoder {
    /// Opens a file and reads what it says of its columns.
    pub fn open(
        path: &Path,
        format: Format,
        compression: Compression,
        options: impl Into<ReadOptions>,
    ) -> Result<FileDecoder, DecodeError> {
        let options = options.into();
        let file = File::open(path)?;
        match format {
            Format::Parquet if compression == Compression::None && file.metadata()?.is_file() => {
                let reader = parquet::ParquetReader::new(file, &options)?;
                Ok(FileDecoder(FormatReader::Parquet(Box::new(reader))))
            }
            _ => FileDecoder::from_reader(Box::new(file), format, compression, options),
        }
    }

    /// Reads a stream, such as standard input. Parquet must be read from its end, so it is first copied to a
    /// temporary file.
    pub fn from_reader(
        reader: Box<dyn Read + Send>,
        format: Format,
        compression: Compression,
        options: impl Into<ReadOptions>,
    ) -> Result<FileDecoder, DecodeError> {
        let options = options.into();
        let inner = match format {
            Format::Csv | Format::Json => {
                return FileDecoder::from_text(reader, format, compression, &options, Framing::Quotes, false);
            }
            Format::Parquet if compression != Compression::None => {
                return Err(DecodeError::CompressedParquet);
            }
            Format::Parquet => {
                let mut reader = reader;
                let mut file = tempfile::tempfile()?;
                io::copy(&mut reader, &mut file)?;
                FormatReader::Parquet(Box::new(parquet::ParquetReader::new(file, &options)?))
            }
        };
        Ok(FileDecoder(inner))
    }

    /// Reads a stream of a text format and keeps a digest of it.
    ///
    /// # Errors
    ///
    /// Also of Parquet, which is read from its end.
    pub fn with_digest(
        reader: Box<dyn Read + Send>,
        format: Format,
        compression: Compression,
        options: impl Into<ReadOptions>,
        framing: Framing,
    ) -> Result<FileDecoder, DecodeError> {
        FileDecoder::from_text(reader, format, compression, &options.into(), framing, true)
    }

    fn from_text(
        reader: Box<dyn Read + Send>,
        format: Format,
        compression: Compression,
        options: &ReadOptions,
        framing: Framing,
        with_digest: bool,
    ) -> Result<FileDecoder, DecodeError> {
        options.check(format).map_err(DecodeError::Option)?;
        if format == Format::Parquet {
            return Err(DecodeError::NoText);
        }
        let is_followed = framing == Framing::Line && compression == Compression::None;
        // What is followed has perhaps not come yet: only what it is not is looked at.
        let reader = if is_followed { reader } else { compress::decompressing_reader(reader, compression)? };
        let skip_lines = options.layout.skip_lines;
        let reader = match (format, framing) {
            (Format::Json, Framing::Quotes) if skip_lines == 0 => json_stream::one_record_per_line(reader),
            _ => reader,
        };
        let mut lines = record_lines::RecordLines::new(reader, framing, with_digest)?;
        lines.skip_lines(skip_lines)?;
        if let Some(wide) = &options.layout.wide {
            return Ok(FileDecoder(FormatReader::Wide(Box::new(wide::WideReader::new(
                lines, wide, options,
            )?))));
        }
        Ok(FileDecoder(match format {
            Format::Csv => FormatReader::Csv(csv::CsvReader::new(lines, options)?),
            _ => FormatReader::Json(json::JsonReader::new(lines, options)),
        }))
    }

    /// The next record, or nothing at the end. After an error nothing more comes, except where the reader of a text format
    /// has said [`io::ErrorKind::WouldBlock`]: then the record comes when it has more.
    ///
    /// # Errors
    ///
    /// Where the rest of the file cannot be read. What came before was whole.
    #[allow(clippy::should_implement_trait)] // The upsert borrows the decoder, which no iterator's item can.
    #[inline]
    pub fn next(&mut self) -> Result<Option<Result<Upsert<'_>, Refusal>>, DecodeError> {
        match &mut self.0 {
            FormatReader::Csv(reader) => reader.next(),
            FormatReader::Wide(reader) => reader.next(),
            FormatReader::Json(reader) => reader.next(),
            FormatReader::Parquet(reader) => reader.next(),
        }
    }

    /// Lets so many bytes of a text format be read, decompressed, and about 512 KiB more. Beyond that [`Decoder::next`] and [`Decoder::skip`] say
    /// [`io::ErrorKind::WouldBlock`] until this is called again: so that no line, however long, keeps who reads it from everything else.
    pub fn allow_bytes(&mut self, bytes: u64) {
        if let Some(lines) = self.0.lines() {
            lines.allow_bytes(bytes);
        }
    }

    /// Whether it waits for [`Decoder::allow`].
    pub fn is_allowance_exhausted(&mut self) -> bool {
        self.0.lines().is_some_and(|lines| lines.is_allowance_exhausted())
    }

    /// Goes over the next record without decoding it: false at the end.
    ///
    /// # Errors
    ///
    /// As of [`Decoder::next`].
    pub fn skip(&mut self) -> Result<bool, DecodeError> {
        match &mut self.0 {
            FormatReader::Csv(reader) => reader.skip(),
            FormatReader::Wide(reader) => Ok(reader.next()?.is_some()),
            FormatReader::Json(reader) => reader.skip(),
            FormatReader::Parquet(reader) => Ok(reader.next()?.is_some()),
        }
    }

    /// The xxh3 digest of all bytes of the stream, decompressed, up to the end of the record last returned or skipped, without its line end: so it is
    /// the same whether the file goes on behind the record or not. Of a record that is too long, all of it counts. Nothing unless the decoder was made
    /// [with a digest](Decoder::with_digest).
    pub fn digest(&mut self) -> Option<u64> {
        match &mut self.0 {
            FormatReader::Csv(reader) => reader.digest(),
            FormatReader::Wide(reader) => reader.digest(),
            FormatReader::Json(reader) => reader.digest(),
            FormatReader::Parquet(_) => None,
        }
    }

    /// The line, from 1, at which the record last returned begins; in Parquet its row, from 1.
    pub fn line(&self) -> u64 {
        match &self.0 {
            FormatReader::Csv(reader) => reader.line(),
            FormatReader::Wide(reader) => reader.line(),
            FormatReader::Json(reader) => reader.line(),
            FormatReader::Parquet(reader) => reader.row_number(),
        }
    }

    /// The exact bytes of the record last returned, without its line end; at most [`MAX_RECORD_BYTES`] of them. A
    /// Parquet row is given as a JSON object of all its columns but nested ones, read for the purpose: where that
    /// fails it is empty.
    pub fn raw(&mut self) -> Cow<'_, [u8]> {
        match &mut self.0 {
            FormatReader::Csv(reader) => Cow::Borrowed(reader.raw()),
            FormatReader::Wide(reader) => Cow::Borrowed(reader.raw()),
            FormatReader::Json(reader) => Cow::Borrowed(reader.raw()),
            FormatReader::Parquet(reader) => Cow::Owned(reader.raw()),
        }
    }

    /// Times that the zone's clocks do not show just once, in the records so far.
    pub fn local_times(&self) -> LocalTimeCounts {
        match &self.0 {
            FormatReader::Csv(reader) => reader.local_times(),
            FormatReader::Wide(reader) => reader.local_times(),
            FormatReader::Json(reader) => reader.local_times(),
            FormatReader::Parquet(reader) => reader.local_times(),
        }
    }

    /// How many fields were met that are none of a reading's, in the records so far.
    pub fn ignored_fields(&self) -> u64 {
        match &self.0 {
            FormatReader::Csv(reader) => reader.ignored_fields(),
            FormatReader::Wide(_) => 0,
            FormatReader::Json(reader) => reader.ignored_fields(),
            FormatReader::Parquet(reader) => reader.ignored_fields(),
        }
    }
}
