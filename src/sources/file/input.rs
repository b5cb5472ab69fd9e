//! An input file, or standard input, of a command or a configuration.

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
    /// The name as the user wrote it.
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

    /// Checks that the file can be opened, so that an error is reported before the work begins. An
    /// input that can be read only once, such as a pipe, is not checked.
    pub fn check_readable(&self, options: &ReadOptions) -> Result<(), DecodeError> {
        match &self.path {
            Some(path) if !path.exists() || path.is_file() => self.open_decoder(options).map(drop),
            _ => Ok(()),
        }
    }
}
