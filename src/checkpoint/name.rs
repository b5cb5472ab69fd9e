//! The names of checkpoints.

use std::fmt;
use std::str::FromStr;

/// The name of a checkpoint. A later checkpoint has a greater name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckpointName {
    /// The number of the generation, without its nonce.
    pub generation: u64,
    pub epoch: u64,
}

impl fmt::Display for CheckpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:010}-{:015}", self.generation, self.epoch)
    }
}

impl FromStr for CheckpointName {
    type Err = String;

    fn from_str(text: &str) -> Result<CheckpointName, String> {
        let parsed = text.split_once('-').and_then(|(generation, epoch)| {
            Some(CheckpointName { generation: generation.parse().ok()?, epoch: epoch.parse().ok()? })
        });
        parsed.ok_or_else(|| {
            format!("{text:?} is not the name of a checkpoint: `swelter checkpoints list` shows the names")
        })
    }
}

/// The number and the nonce of a generation such as `17-9f2c41d06b3e8a55`.
pub fn parse_generation(generation: &str) -> Option<(u64, &str)> {
    let (number, nonce) = generation.split_once('-')?;
    let is_plain = (1..=64).contains(&nonce.len()) && nonce.bytes().all(|byte| byte.is_ascii_alphanumeric());
    Some((number.parse().ok()?, nonce)).filter(|_| is_plain)
}
