//! Moves the readings of files in time, so that an old year can be played as if it had just been.

use std::str::FromStr;

use super::Stop;
use crate::codec::ReadOptions;
use crate::model::EventTime;
use crate::model::clock::wall_clock_ms;
use crate::sources::file::Input;

/// Where the newest reading is moved to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ShiftTo {
    /// The second that has just passed.
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

/// By how much all readings are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shift {
    ms: i64,
}

impl Shift {
    /// Reads all files once, for their newest reading. Where there is none there is nothing to move.
    pub(super) fn of(files: &[Input], options: &ReadOptions, to: ShiftTo) -> Result<Shift, Stop> {
        if files.iter().any(|file| file.path.is_none()) {
            return Err(Stop::Usage(
                "--shift-to reads its files twice, and standard input can be read once".into(),
            ));
        }
        let mut newest = None;
        for file in files {
            newest = newest.max(newest_of(file, options)?);
        }
        let to = match to {
            ShiftTo::Now => i64::try_from(wall_clock_ms() / 1_000 * 1_000).unwrap_or(i64::MAX),
            ShiftTo::At(at) => at.millis(),
        };
        Ok(Shift { ms: newest.map_or(0, |newest: EventTime| to - newest.millis()) })
    }

    /// Nothing is moved beyond the first time that there is.
    pub(super) fn apply(self, at: EventTime) -> EventTime {
        EventTime::from_millis(at.millis() + self.ms).unwrap_or(EventTime::MIN)
    }
}

fn newest_of(file: &Input, options: &ReadOptions) -> Result<Option<EventTime>, Stop> {
    let failed = |error: &dyn std::fmt::Display| Stop::Failed(format!("{}: {error}", file.name()));
    let mut decoder = file.open(options).map_err(|error| failed(&error))?;
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
    fn newest_reading_of_all_files_is_moved_to_the_time_and_all_others_by_as_much() {
        let folder = tempfile::tempdir().unwrap();
        let files =
            [("a.csv", "2013-12-30T23:00:00Z"), ("b.csv", "2013-06-01T00:00:00Z")].map(|(name, last)| {
                let path = folder.path().join(name);
                let first = "JFK,2013-01-01T06:00:00Z,39,60";
                let text = format!(
                    "city,reading_at,temperature,humidity\n{first}\nJFK,{last},50,60\nJFK,never,50,60\n"
                );
                fs::write(&path, text).unwrap();
                Input { path: Some(path), format: Format::Csv, compression: Compression::None }
            });
        let to = "2026-11-30T10:00:00Z".parse().unwrap();
        let shift = Shift::of(&files, &ReadOptions::default(), to).unwrap();
        assert_eq!(shift.apply(at("2013-12-30T23:00:00Z")), at("2026-11-30T10:00:00Z"));
        assert_eq!(shift.apply(at("2013-12-30T22:00:00.5Z")), at("2026-11-30T09:00:00.5Z"));
        let now = Shift::of(&files, &ReadOptions::default(), ShiftTo::Now).unwrap();
        let age = wall_clock_ms() as i64 - now.apply(at("2013-12-30T23:00:00Z")).millis();
        assert!((0..60_000).contains(&age), "{age}");
        assert_eq!(now.apply(at("2013-12-30T23:00:00Z")).millis() % 1_000, 0);
    }

    #[test]
    fn files_without_readings_are_not_moved_and_standard_input_is_refused() {
        let empty = tempfile::Builder::new().suffix(".jsonl").tempfile().unwrap();
        let input = |path| Input { path, format: Format::Json, compression: Compression::None };
        let shift =
            Shift::of(&[input(Some(empty.path().into()))], &ReadOptions::default(), ShiftTo::Now).unwrap();
        assert_eq!(shift, Shift { ms: 0 });
        let refused = Shift::of(&[input(None)], &ReadOptions::default(), ShiftTo::Now);
        assert!(matches!(refused, Err(Stop::Usage(_))));
        assert!("yesterday".parse::<ShiftTo>().unwrap_err().contains("or now"));
    }
}
