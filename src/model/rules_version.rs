//! The version of the rules by which a log becomes results, and errors about the data of other
//! versions.

use std::fmt;

/// The version of the rules that, besides the configuration, decide which readings a log has and
/// what their results are. A change of the rules needs another number: results and dead letters of
/// another number are not appended to.
///
/// 1: swelter 0.1.0 up to November 2026. 2: heat indexes like the NWS's own calculator, times by
/// one grammar, trends of one hour, records that end with their lines.
pub const RULES_VERSION: u32 = 2;

/// The key of the version in the identity of results, and in the first line of the rules of dead
/// letters.
pub const RULES_VERSION_KEY: &str = "rules version";

/// What to do if the recorded value of a key differs; it is appended to an error's text.
pub fn rebuild_hint(key: &str) -> &'static str {
    match key {
        "results.formula" => {
            ". The state keeps heat indexes, not measurements, so another formula needs the readings again: from the topic, or from an archive \
             of them (docs/rebuild.md)"
        }
        _ => "",
    }
}

/// Data that was written under a version of the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VersionedArtifact {
    /// The checkpoint's name, and where it is.
    Checkpoint {
        name: String,
    },
    ProgressTopic {
        topic: String,
    },
    DeadLetters {
        path: String,
    },
    /// The folder of a sink.
    Folder {
        path: String,
    },
    /// The schema of a sink, with its database.
    Schema {
        name: String,
    },
}

/// Data that was written under another version of the rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{artifact} by {}, and this is {}: the same readings may have other results now, so nothing is added to it. {} \
     (docs/troubleshooting.md, \"Made by another version\")",
    ProducerVersion(.version.as_deref()),
    ProducerVersion(Some(&RULES_VERSION.to_string())),
    .artifact.recovery_steps()
)]
pub struct RulesVersionMismatch {
    artifact: VersionedArtifact,
    /// As recorded.
    version: Option<String>,
}

impl RulesVersionMismatch {
    /// Refuses data that was recorded under another version than this run's.
    pub fn check_version(
        recorded: Option<&String>,
        current: Option<&String>,
        artifact: impl FnOnce() -> VersionedArtifact,
    ) -> Result<(), RulesVersionMismatch> {
        if recorded == current {
            return Ok(());
        }
        Err(RulesVersionMismatch { artifact: artifact(), version: recorded.cloned() })
    }
}

impl VersionedArtifact {
    fn recovery_steps(&self) -> &'static str {
        match self {
            VersionedArtifact::Checkpoint { .. } | VersionedArtifact::DeadLetters { .. } => {
                "To begin anew, stop the service, move dead-letters* and checkpoints out of the data directory (or name another checkpoints.url), and start again: the logs are read from their beginnings; if they do not reach back, use an empty data directory and send the readings again"
            }
            VersionedArtifact::Folder { .. } => {
                "To begin anew, name another folder, or move this one away, and start again; if the logs do not reach back to their beginnings, use an empty data directory and send the readings again"
            }
            VersionedArtifact::Schema { .. } => {
                "To begin anew, name another schema, or drop or rename this one, and start again: where the logs do not reach back to their \
                 beginnings, take an empty data directory and send the readings again"
            }
            VersionedArtifact::ProgressTopic { .. } => {
                "To begin anew, name new result and progress topics and another location for checkpoints, or delete the topics of results, progress and dead letters, and start again: the input is read from its beginning"
            }
        }
    }
}

impl fmt::Display for VersionedArtifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VersionedArtifact::Checkpoint { name } => write!(f, "the checkpoint {name} was made"),
            VersionedArtifact::ProgressTopic { topic } => {
                write!(f, "the results of progress topic {topic} were made")
            }
            VersionedArtifact::Folder { path } => write!(f, "the results in folder {path} were made"),
            VersionedArtifact::Schema { name } => write!(f, "the results in schema {name} were made"),
            VersionedArtifact::DeadLetters { path } => write!(f, "the dead letters {path} were written"),
        }
    }
}

/// Who writes results under a version of the rules, as an error's text says it.
struct ProducerVersion<'a>(Option<&'a str>);

impl fmt::Display for ProducerVersion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let current = RULES_VERSION.to_string();
        match self.0 {
            Some("1") => f.write_str("swelter 0.1.0 of November 2026 or before (rules version 1)"),
            Some(version) if version == current => {
                write!(f, "swelter {} (rules version {version})", env!("CARGO_PKG_VERSION"))
            }
            Some(version) => write!(f, "another swelter (rules version {version})"),
            None => f.write_str("a swelter of no known version"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_rules_version_error_names_maker_and_steps() {
        let current = RULES_VERSION.to_string();
        let check = |recorded: Option<&str>, made: VersionedArtifact| {
            RulesVersionMismatch::check_version(recorded.map(String::from).as_ref(), Some(&current), || made)
                .map_err(|e| e.to_string())
        };
        let topic = || VersionedArtifact::ProgressTopic { topic: "p".into() };
        assert_eq!(check(Some(&current), topic()), Ok(()));
        let line = check(Some("1"), topic()).unwrap_err();
        for says in
            ["progress topic p", "swelter 0.1.0 of November 2026 or before", "rules version 2", "new result"]
        {
            assert!(line.contains(says), "{line}");
        }
        assert!(check(Some("9"), topic()).unwrap_err().contains("another swelter (rules version 9)"));
        let line = check(None, VersionedArtifact::Checkpoint { name: "1-2".into() }).unwrap_err();
        assert!(line.contains("the checkpoint 1-2 was made by a swelter of no known version"), "{line}");
        assert!(!line.contains('\n') && line.contains("dead-letters*"), "{line}");
    }
}
