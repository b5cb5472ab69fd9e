//! The decoder of files and pipes, over the readers of the formats.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::csv::CsvReader;
use super::json::JsonReader;
use super::parquet::ParquetReader;
use super::record_lines::RecordLines;
use super::wide::WideReader;
use super::{Compression, DecodeError, Format, Framing, LocalTimeCounts, ReadOptions, compress, json_stream};
use crate::model::{Refusal, Upsert};

/// Reads the records of one file or pipe.
pub struct FileDecoder(FormatReader);

enum FormatReader {
    Csv(CsvReader),
    Wide(Box<WideReader>),
    Json(JsonReader),
    Parquet(Box<ParquetReader>),
}

impl FormatReader {
    /// The lines of a text format.
    fn lines(&mut self) -> Option<&mut RecordLines> {
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
    /// Opens a file and reads its columns.
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
                let reader = ParquetReader::new(file, &options)?;
                Ok(FileDecoder(FormatReader::Parquet(Box::new(reader))))
            }
            _ => FileDecoder::from_reader(Box::new(file), format, compression, options),
        }
    }

    /// Reads a stream, such as standard input. Parquet must be read from its end, so it is first
    /// copied to a temporary file.
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
                FormatReader::Parquet(Box::new(ParquetReader::new(file, &options)?))
            }
        };
        Ok(FileDecoder(inner))
    }

    /// Reads a stream of a text format and computes its digest.
    ///
    /// # Errors
    ///
    /// Also for Parquet, which is read from its end.
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
        // A followed file may not have its first bytes yet, so only foreign formats are looked for.
        let reader = if is_followed { reader } else { compress::decompressing_reader(reader, compression)? };
        let skip_lines = options.layout.skip_lines;
        let reader = match (format, framing) {
            (Format::Json, Framing::Quotes) if skip_lines == 0 => json_stream::one_record_per_line(reader),
            _ => reader,
        };
        let mut lines = RecordLines::new(reader, framing, with_digest)?;
        lines.skip_lines(skip_lines)?;
        if let Some(wide) = &options.layout.wide {
            return Ok(FileDecoder(FormatReader::Wide(Box::new(WideReader::new(lines, wide, options)?))));
        }
        Ok(FileDecoder(match format {
            Format::Csv => FormatReader::Csv(CsvReader::new(lines, options)?),
            _ => FormatReader::Json(JsonReader::new(lines, options)),
        }))
    }

    /// The next record, or `None` at the end. After an error no record follows, except after
    /// [`io::ErrorKind::WouldBlock`] from the reader of a text format: the record comes once the
    /// reader has more bytes.
    ///
    /// # Errors
    ///
    /// If the rest of the file cannot be read. Earlier records were complete.
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

    /// Allows `bytes` more bytes of a text format to be read, decompressed, and about 512 KiB
    /// beyond. Then [`FileDecoder::next`] and [`FileDecoder::skip`] fail with
    /// [`io::ErrorKind::WouldBlock`] until the next call: so no line, however long, keeps the
    /// reader's thread from other work.
    pub fn allow_bytes(&mut self, bytes: u64) {
        if let Some(lines) = self.0.lines() {
            lines.allow_bytes(bytes);
        }
    }

    /// Whether the decoder waits for [`FileDecoder::allow_bytes`].
    pub fn is_allowance_exhausted(&mut self) -> bool {
        self.0.lines().is_some_and(|lines| lines.is_allowance_exhausted())
    }

    /// Skips the next record without decoding it; false at the end.
    ///
    /// # Errors
    ///
    /// Those of [`FileDecoder::next`].
    pub fn skip(&mut self) -> Result<bool, DecodeError> {
        match &mut self.0 {
            FormatReader::Csv(reader) => reader.skip(),
            FormatReader::Wide(reader) => Ok(reader.next()?.is_some()),
            FormatReader::Json(reader) => reader.skip(),
            FormatReader::Parquet(reader) => Ok(reader.next()?.is_some()),
        }
    }

    /// The xxh3 digest of all bytes of the stream, decompressed, up to the end of the last record,
    /// without its line end: so it is the same whether the file goes on behind the record or not.
    /// It includes all bytes of a record that is too long. `None` unless the decoder was made [with
    /// a digest](FileDecoder::with_digest).
    pub fn digest(&mut self) -> Option<u64> {
        match &mut self.0 {
            FormatReader::Csv(reader) => reader.digest(),
            FormatReader::Wide(reader) => reader.digest(),
            FormatReader::Json(reader) => reader.digest(),
            FormatReader::Parquet(_) => None,
        }
    }

    /// The line at which the last record begins, from 1; in Parquet its row, from 1.
    pub fn line(&self) -> u64 {
        match &self.0 {
            FormatReader::Csv(reader) => reader.line(),
            FormatReader::Wide(reader) => reader.line(),
            FormatReader::Json(reader) => reader.line(),
            FormatReader::Parquet(reader) => reader.row_number(),
        }
    }

    /// The exact bytes of the last record without its line end, at most
    /// `MAX_RECORD_BYTES` of them. A Parquet row is read again as a JSON
    /// object of all columns but nested ones; it is empty if that fails.
    pub fn raw(&mut self) -> Cow<'_, [u8]> {
        match &mut self.0 {
            FormatReader::Csv(reader) => Cow::Borrowed(reader.raw()),
            FormatReader::Wide(reader) => Cow::Borrowed(reader.raw()),
            FormatReader::Json(reader) => Cow::Borrowed(reader.raw()),
            FormatReader::Parquet(reader) => Cow::Owned(reader.raw()),
        }
    }

    /// Local times so far that the zone's clocks showed twice or never.
    pub fn local_times(&self) -> LocalTimeCounts {
        match &self.0 {
            FormatReader::Csv(reader) => reader.local_times(),
            FormatReader::Wide(reader) => reader.local_times(),
            FormatReader::Json(reader) => reader.local_times(),
            FormatReader::Parquet(reader) => reader.local_times(),
        }
    }

    /// The number of fields so far that a reading does not have.
    pub fn ignored_fields(&self) -> u64 {
        match &self.0 {
            FormatReader::Csv(reader) => reader.ignored_fields(),
            FormatReader::Wide(_) => 0,
            FormatReader::Json(reader) => reader.ignored_fields(),
            FormatReader::Parquet(reader) => reader.ignored_fields(),
        }
    }
}
