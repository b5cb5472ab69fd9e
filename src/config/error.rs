//! Errors of a configuration.

use std::fmt;

use super::value_origin::ValueOrigin;

/// All errors of a configuration, one per line.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ConfigError::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// One error of a configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigError {
    /// `None` if the error concerns a whole file or variable.
    pub key: Option<String>,
    /// The origin of the value; `None` if it is missing.
    pub origin: Option<ValueOrigin>,
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.key, &self.origin) {
            (Some(key), Some(origin)) => write!(f, "{key} ({origin}): {}", self.problem),
            (Some(key), None) => write!(f, "{key}: {}", self.problem),
            (None, Some(origin)) => write!(f, "{origin}: {}", self.problem),
            (None, None) => f.write_str(&self.problem),
        }
    }
}
