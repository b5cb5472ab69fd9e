//! The origin of a configuration value.

use std::fmt;
use std::path::PathBuf;

/// The origin of a configuration value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueOrigin {
    ShippedDefault,
    File { path: PathBuf, line: usize },
    Variable(String),
    Flag(&'static str),
}

impl fmt::Display for ValueOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueOrigin::ShippedDefault => f.write_str("default"),
            ValueOrigin::File { path, line } => write!(f, "{}, line {line}", path.display()),
            ValueOrigin::Variable(name) => f.write_str(name),
            ValueOrigin::Flag(name) => f.write_str(name),
        }
    }
}
