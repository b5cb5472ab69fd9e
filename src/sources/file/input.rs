//! A file, or standard input, as it is written in a command or a configuration.

use std::io;
use std::path::PathBuf;

use crate::codec::{Compression, DecodeError, DecodeSettings, Decoder, Format};

/// One file of a log, or standard input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// `None` is standard input.
    pub path: Option<PathBuf>,
    pub format: Format,
    pub compression: Compression,
}

impl Input {
    /// As the user named it.
    pub fn name(&self) -> String {
        self.path.as_ref().map_or("-".into(), |path| path.display().to_string())
    }

    pub fn open(&self, settings: DecodeSettings) -> Result<Decoder, DecodeError> {
        match &self.path {
            Some(path) => Decoder::open(path, self.format, self.compression, settings),
            None => Decoder::from_reader(Box::new(io::stdin()), self.format, self.compression, settings),
        }
    }

    /// Whether it could be read at all, for an error before the work instead of after it. What can be read only once, such as
    /// a pipe, is left alone.
    pub fn check(&self, settings: DecodeSettings) -> Result<(), DecodeError> {
        match &self.path {
            Some(path) if !path.exists() || path.is_file() => self.open(settings).map(drop),
            _ => Ok(()),
        }
    }
}
