//! Compares a log with the one that a checkpoint or a sink has recorded: by its id, and by the
//! records before its positions.
//!
//! | id of the log | comparison of its records | verdict |
//! |---|---|---|
//! | recorded, or one id is unknown | fits | [`Same`] |
//! | another | fits | [`Copy`] |
//! | any | a record before a position differs | [`Another`] |
//! | recorded, or one id is unknown | ends before a position | [`Behind`] |
//! | recorded, or one id is unknown | begins after a position, or missing | [`Unreachable`] |
//! | another | ends before or begins after a position, or nothing is comparable | [`Another`] |
//!
//! [`Same`]: LogVerdict::Same
//! [`Copy`]: LogVerdict::Copy
//! [`Another`]: LogVerdict::Another
//! [`Behind`]: LogVerdict::Behind
//! [`Unreachable`]: LogVerdict::Unreachable

use std::collections::BTreeMap;

use crate::checkpoint::Manifest;
use crate::model::{LogIdentity, LogPosition};
use crate::sources::SourceError;

/// The relation of a log to the recorded one. The texts give the reason but no remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogVerdict {
    /// It continues at the recorded position.
    Same,
    /// It has another id and the same records: a restored journal or a mirrored topic. An operator
    /// may allow a run to continue with it.
    Copy(String),
    Another(String),
    /// It ends before the recorded position: it was restored from an older state, or truncated.
    Behind(String),
    /// It no longer has the recorded position, or is missing.
    Unreachable(String),
}

impl LogVerdict {
    /// The rank of a verdict; the verdict on several logs is the one with the highest rank.
    fn rank(&self) -> u8 {
        match self {
            LogVerdict::Same => 0,
            LogVerdict::Copy(_) => 1,
            LogVerdict::Unreachable(_) => 2,
            LogVerdict::Behind(_) => 3,
            LogVerdict::Another(_) => 4,
        }
    }

    fn or_worse(self, other: LogVerdict) -> LogVerdict {
        if other.rank() > self.rank() { other } else { self }
    }
}

/// The recorded state of one log.
#[derive(Clone, Copy, Debug)]
pub struct RecordedLog<'a> {
    pub source: &'a str,
    /// Positions by partition.
    pub positions: &'a BTreeMap<u32, u64>,
    pub log: Option<&'a LogIdentity>,
}

/// All logs that a checkpoint includes.
pub fn recorded_logs(manifest: &Manifest) -> impl Iterator<Item = RecordedLog<'_>> {
    manifest.positions.iter().map(|(source, positions)| RecordedLog {
        source,
        positions,
        log: manifest.logs.get(source),
    })
}

/// Compares a log with its recorded state. `id` is the log's own id; `check` is
/// [`Source::check_position`](crate::sources::Source::check_position).
///
/// # Errors
///
/// If the log does not answer now.
pub fn compare_log(
    recorded: RecordedLog<'_>,
    id: Option<&str>,
    check: &dyn Fn(u32, LogPosition) -> Result<(), SourceError>,
) -> Result<LogVerdict, SourceError> {
    let RecordedLog { source, positions, log } = recorded;
    let of_source = |why: String| format!("source {source}: {why}");
    let recorded_id = log.and_then(|log| log.id.as_deref());
    let other_id = recorded_id.zip(id).filter(|(recorded, id)| recorded != id);
    let mut verdict = LogVerdict::Same;
    let (mut is_comparable, mut has_records) = (false, false);
    for (partition, position) in positions {
        let before = log.and_then(|log| log.before.get(partition)).copied();
        has_records |= *position > 0;
        is_comparable |= before.is_some();
        let of_partition = match check(*partition, LogPosition { position: *position, before }) {
            Ok(()) => continue,
            Err(error @ SourceError::Transient(_)) => return Err(error),
            Err(SourceError::RecordDiffers(why)) => LogVerdict::Another(of_source(why)),
            Err(SourceError::EndsBefore(why)) => LogVerdict::Behind(of_source(why)),
            Err(SourceError::Fatal(why)) => LogVerdict::Unreachable(of_source(why)),
        };
        verdict = verdict.or_worse(of_partition);
    }
    let Some((recorded_id, id)) = other_id else { return Ok(verdict) };
    let ids = format!("the log has the id {id}, and {recorded_id} was read");
    Ok(match verdict {
        LogVerdict::Same if has_records && !is_comparable => {
            LogVerdict::Another(of_source(format!("{ids}; none of its records can be compared")))
        }
        LogVerdict::Same => LogVerdict::Copy(of_source(format!(
            "{ids}, though its records match as far as they can be compared"
        ))),
        LogVerdict::Another(why) => LogVerdict::Another(format!("{why}; {ids}")),
        // The log is another one, so how to recover these positions is of no use.
        LogVerdict::Copy(_) | LogVerdict::Behind(_) | LogVerdict::Unreachable(_) => {
            LogVerdict::Another(of_source(format!("{ids}; it does not have the records that were read")))
        }
    })
}

/// Compares all logs that a checkpoint includes with the present ones. Returns the worst verdict.
pub fn compare_logs(
    manifest: &Manifest,
    ids: &BTreeMap<String, String>,
    check: &dyn Fn(&str, u32, LogPosition) -> Result<(), SourceError>,
) -> Result<LogVerdict, SourceError> {
    let mut verdict = LogVerdict::Same;
    for recorded in recorded_logs(manifest) {
        let id = ids.get(recorded.source).map(String::as_str);
        let of_log = compare_log(recorded, id, &|partition, at| check(recorded.source, partition, at))?;
        verdict = verdict.or_worse(of_log);
    }
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Fingerprint;

    fn compare(recorded: Option<&str>, own: Option<&str>, check: Result<(), SourceError>) -> LogVerdict {
        let before = Fingerprint { position: 4, digest: 7, leader_epoch: None };
        let log = LogIdentity { id: recorded.map(Into::into), before: [(0, before)].into() };
        let positions = BTreeMap::from([(0, 5)]);
        let recorded = RecordedLog { source: "journal", positions: &positions, log: Some(&log) };
        compare_log(recorded, own, &|partition, at| {
            assert_eq!((partition, at), (0, LogPosition { position: 5, before: Some(before) }));
            check.clone()
        })
        .unwrap()
    }

    #[test]
    fn log_verdict_compares_id_and_records() {
        use LogVerdict::{Another, Behind, Copy, Unreachable};
        let why = || "so".to_owned();
        let (behind, differs, fatal) =
            (SourceError::EndsBefore(why()), SourceError::RecordDiffers(why()), SourceError::Fatal(why()));
        for (recorded, own) in [(None, None), (Some("a"), Some("a")), (Some("a"), None), (None, Some("a"))] {
            assert_eq!(compare(recorded, own, Ok(())), LogVerdict::Same);
            assert!(matches!(compare(recorded, own, Err(behind.clone())), Behind(_)));
            assert!(matches!(compare(recorded, own, Err(differs.clone())), Another(_)));
            assert!(matches!(compare(recorded, own, Err(fatal.clone())), Unreachable(_)));
        }
        let other = |check| compare(Some("a"), Some("b"), check);
        assert!(matches!(other(Ok(())), Copy(_)));
        for error in [behind, differs, fatal] {
            assert!(matches!(other(Err(error)), Another(_)));
        }
    }

    #[test]
    fn log_with_other_id_and_no_record_is_other_log() {
        let log = LogIdentity { id: Some("a".into()), ..LogIdentity::default() };
        let compare = |positions: &[(u32, u64)]| {
            let positions = positions.iter().copied().collect();
            let recorded = RecordedLog { source: "journal", positions: &positions, log: Some(&log) };
            compare_log(recorded, Some("b"), &|_, _| Ok(())).unwrap()
        };
        assert!(matches!(compare(&[(0, 5)]), LogVerdict::Another(_)));
        // None of its records were read.
        assert!(matches!(compare(&[(0, 0)]), LogVerdict::Copy(_)));
    }

    #[test]
    fn log_verdict_waits_for_a_log_that_does_not_answer() {
        let positions = BTreeMap::from([(0, 5)]);
        let recorded = RecordedLog { source: "journal", positions: &positions, log: None };
        let answer = compare_log(recorded, None, &|_, _| Err(SourceError::Transient("away".into())));
        assert!(matches!(answer, Err(SourceError::Transient(_))));
    }

    #[test]
    fn log_verdict_on_several_partitions_is_the_worst() {
        let positions = BTreeMap::from([(0, 5), (1, 5), (2, 5)]);
        let recorded = RecordedLog { source: "journal", positions: &positions, log: None };
        let verdict = compare_log(recorded, None, &|partition, _| match partition {
            0 => Err(SourceError::Fatal("begins later".into())),
            1 => Err(SourceError::RecordDiffers("differs".into())),
            _ => Err(SourceError::EndsBefore("ends before".into())),
        });
        assert_eq!(verdict.unwrap(), LogVerdict::Another("source journal: differs".into()));
    }
}
