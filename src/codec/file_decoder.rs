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
    /// Of a text format.
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
                let reader = ParquetReader::new(file, &options)?;
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
                FormatReader::Parquet(Box::new(ParquetReader::new(file, &options)?))
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
