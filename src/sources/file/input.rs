//! A file, or standard input, as it is written in a command or a configuration.

use std::io;
use std::path::PathBuf;

use crate::codec::{Compression, DecodeError, FileDecoder, Format, ReadOptions};

/// One file of a log, or standard input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputFile {
    /// `None` is standard input.
    pub path: Option<PathBuf>,
    pub format: Format,
    pub compression: Compression,
}

impl InputFile {
    /// As the user named it.
    pub fn name(&self) -> String {
        self.path.as_ref().map_or("-".into(), |path| path.display().to_string())
    }

    pub fn open_decoder(&self, options: &ReadOptions) -> Result<FileDecoder, DecodeError> {
        let options = options.for_file(self.path.as_deref());
        match &self.path {
            Some(path) => FileDecoder::open(path, self.format, self.compression, options),
            None => FileDecoder::from_reader(Box::new(io::stdin()), self.format, self.compression, options),
        }
    }

    /// Whether it could be read at all, for an error before the work instead of after it. What can
    /// be read only once, such as a pipe, is left alone.
    pub fn check_readable(&self, options: &ReadOptions) -> Result<(), DecodeError> {
        match &self.path {
            Some(path) if !path.exists() || path.is_file() => self.open_decoder(options).map(drop),
            _ => Ok(()),
        }
    }
}
