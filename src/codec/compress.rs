//! Compression of whole files.

use std::io::{self, Read, Write};

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

use super::Compression;

/// Fast rather than small: a result is written once and read a few times.
const ZSTD_LEVEL: i32 = 1;
const GZIP_LEVEL: u32 = 3;

/// What `reader` holds. All members of a gzip file are read, and all frames of a zstd file.
pub(super) fn decompressed(
    reader: Box<dyn Read + Send>,
    compression: Compression,
) -> io::Result<Box<dyn Read + Send>> {
    Ok(match compression {
        Compression::None => reader,
        Compression::Gzip => Box::new(MultiGzDecoder::new(reader)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(reader)?),
    })
}

/// Compresses what is written into `writer`.
pub fn compressed(writer: Box<dyn Write + Send>, compression: Compression) -> io::Result<Compressed> {
    Ok(Compressed(match compression {
        Compression::None => Inner::Plain(writer),
        Compression::Gzip => Inner::Gzip(GzEncoder::new(writer, flate2::Compression::new(GZIP_LEVEL))),
        Compression::Zstd => Inner::Zstd(zstd::stream::write::Encoder::new(writer, ZSTD_LEVEL)?),
    }))
}

/// A writer that must be [finished](Compressed::finish): only then is the file whole.
pub struct Compressed(Inner);

enum Inner {
    Plain(Box<dyn Write + Send>),
    Gzip(GzEncoder<Box<dyn Write + Send>>),
    Zstd(zstd::stream::write::Encoder<'static, Box<dyn Write + Send>>),
}

impl Compressed {
    /// Writes what is left and flushes.
    ///
    /// # Errors
    ///
    /// Where not everything could be written: the file is then not whole.
    pub fn finish(self) -> io::Result<()> {
        match self.0 {
            Inner::Plain(writer) => writer,
            Inner::Gzip(encoder) => encoder.finish()?,
            Inner::Zstd(encoder) => encoder.finish()?,
        }
        .flush()
    }
}

impl Write for Compressed {
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

impl std::fmt::Debug for Compressed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compressed")
    }
}
