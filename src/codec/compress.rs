//! Compression of whole files.

use std::io::{self, BufRead, BufReader, Read, Write};

use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;

use super::{Compression, foreign_formats};

/// Fast rather than small: a result is written once and read a few times.
const ZSTD_LEVEL: i32 = 1;
const GZIP_LEVEL: u32 = 3;

/// The largest window of zstd, 2 GiB, which `zstd --long=31` writes. Reading a file takes as much
/// memory as its frames ask for, up to this.
const ZSTD_WINDOW_LOG: u32 = 31;

/// Decompresses a stream by its first bytes rather than by its declared compression: plain text
/// that is declared compressed is read as it is. All members of a gzip file are read, and all
/// frames of a zstd file.
pub(super) fn decompressing_reader(
    reader: Box<dyn Read + Send>,
    compression: Compression,
) -> io::Result<Box<dyn Read + Send>> {
    let (compression, reader) = foreign_formats::detect_stream_compression(reader, compression)?;
    Ok(match compression {
        Compression::None => reader,
        Compression::Gzip => Box::new(GzipMemberReader::new(BufReader::new(reader))),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(reader)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
    })
}

/// Reads all members of a gzip file, and the zeros behind them with which tapes and block devices
/// fill it up.
pub struct GzipMemberReader<R>(GzipReadState<R>);

enum GzipReadState<R> {
    Member(Box<GzDecoder<R>>),
    BetweenMembers(R),
    Ended,
}

impl<R: BufRead> GzipMemberReader<R> {
    pub fn new(reader: R) -> GzipMemberReader<R> {
        GzipMemberReader(GzipReadState::Member(Box::new(GzDecoder::new(reader))))
    }
}

impl<R: BufRead> Read for GzipMemberReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.0, GzipReadState::Ended) {
                GzipReadState::Member(mut member) => {
                    let read = member.read(buffer);
                    if matches!(read, Ok(0)) {
                        self.0 = GzipReadState::BetweenMembers(member.into_inner());
                        continue;
                    }
                    self.0 = GzipReadState::Member(member);
                    return read;
                }
                GzipReadState::BetweenMembers(mut reader) => match skip_zeros(&mut reader) {
                    Ok(true) => self.0 = GzipReadState::Member(Box::new(GzDecoder::new(reader))),
                    Ok(false) => return Ok(0),
                    Err(error) => {
                        self.0 = GzipReadState::BetweenMembers(reader);
                        return Err(error);
                    }
                },
                GzipReadState::Ended => return Ok(0),
            }
        }
    }
}

/// Skips zeros; true if other bytes follow.
fn skip_zeros(reader: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let bytes = reader.fill_buf()?;
        let (length, zeros) = (bytes.len(), bytes.iter().take_while(|byte| **byte == 0).count());
        reader.consume(zeros);
        if zeros < length || length == 0 {
            return Ok(zeros < length);
        }
    }
}

/// Compresses the bytes that are written to `writer`.
pub fn compressing_writer(
    writer: Box<dyn Write + Send>,
    compression: Compression,
) -> io::Result<CompressedWriter> {
    Ok(CompressedWriter(match compression {
        Compression::None => Inner::Plain(writer),
        Compression::Gzip => Inner::Gzip(GzEncoder::new(writer, flate2::Compression::new(GZIP_LEVEL))),
        Compression::Zstd => Inner::Zstd(zstd::stream::write::Encoder::new(writer, ZSTD_LEVEL)?),
    }))
}

/// A compressing writer. It must be [finished](CompressedWriter::finish): the file is complete only
/// then.
pub struct CompressedWriter(Inner);

enum Inner {
    Plain(Box<dyn Write + Send>),
    Gzip(GzEncoder<Box<dyn Write + Send>>),
    Zstd(zstd::stream::write::Encoder<'static, Box<dyn Write + Send>>),
}

impl CompressedWriter {
    /// Writes the remaining bytes and flushes.
    ///
    /// # Errors
    ///
    /// If not all bytes could be written: the file is then incomplete.
    pub fn finish(self) -> io::Result<()> {
        match self.0 {
            Inner::Plain(writer) => writer,
            Inner::Gzip(encoder) => encoder.finish()?,
            Inner::Zstd(encoder) => encoder.finish()?,
        }
        .flush()
    }
}

impl Write for CompressedWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::Plain(writer) => writer.write(bytes),
            Inner::Gzip(encoder) => encoder.write(bytes),
            Inner::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Inner::Plain(writer) => writer.flush(),
            Inner::Gzip(encoder) => encoder.flush(),
            Inner::Zstd(encoder) => encoder.flush(),
        }
    }
}

impl std::fmt::Debug for CompressedWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compressed")
    }
}
