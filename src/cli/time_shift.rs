//! A shift of readings in time, so that an old year can be replayed as if it were current.

use std::str::FromStr;

use super::CliError;
use crate::codec::ReadOptions;
use crate::model::EventTime;
use crate::model::clock::wall_clock_ms;
use crate::sources::file::InputFile;

/// The target time of the newest reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ShiftTo {
    /// The current second, rounded down.
    Now,
    At(EventTime),
}

impl FromStr for ShiftTo {
    type Err = String;

    fn from_str(text: &str) -> Result<ShiftTo, String> {
        match text {
            "now" => Ok(ShiftTo::Now),
            _ => text.parse().map(ShiftTo::At).map_err(|error| format!("{error}, or now")),
        }
    }
}

/// The offset that is added to all readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TimeShift {
    ms: i64,
}

impl TimeShift {
    /// Reads all files once to find their newest reading. Without readings there is nothing to
    /// shift.
    pub(super) fn measure(
        files: &[InputFile],
        options: &ReadOptions,
        to: ShiftTo,
    ) -> Result<TimeShift, CliError> {
        if files.iter().any(|file| file.path.is_none()) {
            return Err(CliError::Usage(
                "--shift-to reads its files twice, and standard input can be read once".into(),
            ));
        }
        let mut newest = None;
        for file in files {
            newest = newest.max(newest_reading_of(file, options)?);
        }
        let to = match to {
            ShiftTo::Now => i64::try_from(wall_clock_ms() / 1_000 * 1_000).unwrap_or(i64::MAX),
            ShiftTo::At(at) => at.millis(),
        };
        Ok(TimeShift { ms: newest.map_or(0, |newest: EventTime| to - newest.millis()) })
    }

    /// Clamps to the first representable time.
    pub(super) fn apply_to(self, at: EventTime) -> EventTime {
        EventTime::from_millis(at.millis() + self.ms).unwrap_or(EventTime::MIN)
    }
}

fn newest_reading_of(file: &InputFile, options: &ReadOptions) -> Result<Option<EventTime>, CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::Failed(format!("{}: {error}", file.name()));
    let mut decoder = file.open_decoder(options).map_err(|error| failed(&error))?;
    let mut newest = None;
    while let Some(decoded) = decoder.next().map_err(|error| failed(&error))? {
        newest = newest.max(decoded.ok().map(|upsert| upsert.reading_at));
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::codec::{Compression, Format};

    fn at(text: &str) -> EventTime {
        text.parse().unwrap()
    }

    #[test]
    fn shift_moves_newest_reading_to_target_and_others_by_same_amount() {
        let folder = tempfile::tempdir().unwrap();
        let files =
            [("a.csv", "2013-12-30T23:00:00Z"), ("b.csv", "2013-06-01T00:00:00Z")].map(|(name, last)| {
                let path = folder.path().join(name);
                let first = "JFK,2013-01-01T06:00:00Z,39,60";
                let text = format!(
                    "city,reading_at,temperature,humidity\n{first}\nJFK,{last},50,60\nJFK,never,50,60\n"
                );
                fs::write(&path, text).unwrap();
                InputFile { path: Some(path), format: Format::Csv, compression: Compression::None }
            });
        let to = "2026-11-30T10:00:00Z".parse().unwrap();
        let shift = TimeShift::measure(&files, &ReadOptions::default(), to).unwrap();
        assert_eq!(shift.apply_to(at("2013-12-30T23:00:00Z")), at("2026-11-30T10:00:00Z"));
        assert_eq!(shift.apply_to(at("2013-12-30T22:00:00.5Z")), at("2026-11-30T09:00:00.5Z"));
        let now = TimeShift::measure(&files, &ReadOptions::default(), ShiftTo::Now).unwrap();
        let age = wall_clock_ms() as i64 - now.apply_to(at("2013-12-30T23:00:00Z")).millis();
        assert!((0..60_000).contains(&age), "{age}");
        assert_eq!(now.apply_to(at("2013-12-30T23:00:00Z")).millis() % 1_000, 0);
    }

    #[test]
    fn shift_ignores_empty_files_and_refuses_stdin() {
        let empty = tempfile::Builder::new().suffix(".jsonl").tempfile().unwrap();
        let input = |path| InputFile { path, format: Format::Json, compression: Compression::None };
        let shift =
            TimeShift::measure(&[input(Some(empty.path().into()))], &ReadOptions::default(), ShiftTo::Now)
                .unwrap();
        assert_eq!(shift, TimeShift { ms: 0 });
        let refused = TimeShift::measure(&[input(None)], &ReadOptions::default(), ShiftTo::Now);
        assert!(matches!(refused, Err(CliError::Usage(_))));
        assert!("yesterday".parse::<ShiftTo>().unwrap_err().contains("or now"));
    }
}
