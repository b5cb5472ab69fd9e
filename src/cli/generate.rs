//! `swelter generate`: writes a generated log of readings.

use std::io;
use std::path::PathBuf;

use clap::Args;

use super::{CliError, parse_file_argument};
use crate::codec::{Format, ReadingsWriter, RecordFields};
use crate::model::time::TimeProblem;
use crate::model::{EventTime, Millis};
use crate::sinks::output::OutputFile;
use crate::sources::generator::{BadReading, GeneratedRecord, Generator, GeneratorPlan};
use crate::sources::weather::WeatherKind;

/// Write a log of generated readings, in the order of their arrival
///
/// The same arguments make the same readings on every host. Each share is one of the scheduled
/// readings, from 0 to 1, and is drawn independently.
#[derive(Args, Debug)]
pub struct GenerateArgs {
    #[command(flatten)]
    log: GeneratorArgs,
    /// The file of the log; - is standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The format of the log [default: from the name of the file; csv on standard output]
    #[arg(long, value_name = "FORMAT")]
    output_format: Option<Format>,
}

/// What is made up.
#[derive(Args, Debug)]
pub struct GeneratorArgs {
    /// The number of cities; plausible weather has at most 34,006
    #[arg(long, value_name = "N", default_value_t = 100)]
    cities: u32,
    /// The time between two readings of a city, as in 1s, 5m or 1h
    #[arg(long, default_value = "60s")]
    interval: Millis,
    /// The time of the first readings: RFC 3339, or a date, which is 00:00 UTC
    #[arg(long, value_name = "TIME", default_value = "2025-01-01", value_parser = time)]
    from: EventTime,
    /// The time before which readings are due [default: one day after --from]
    #[arg(long, value_name = "TIME", value_parser = time)]
    to: Option<EventTime>,
    /// The share of readings, 0 to 1, that arrive late, by up to 2 hours
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    late: f64,
    /// The share of readings, 0 to 1, that are corrected, within a day
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    corrections: f64,
    /// The share of readings, 0 to 1, that are withdrawn, within a day; the log then has a field
    /// op, which is upsert or delete
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    withdrawals: f64,
    /// The share of readings, 0 to 1, that arrive twice
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    duplicates: f64,
    /// The number of additional bad records, as a share of the readings, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    invalid: f64,
    /// The kind of weather: plausible, as stations in the world's cities could have measured it, or
    /// uniform, whole numbers with equal probability
    #[arg(long, value_name = "KIND", default_value = "plausible")]
    weather: WeatherKind,
    /// The seed of random numbers: another one makes another log; uniform weather itself does not
    /// depend on it
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

impl GenerateArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        let (path, format, compression) =
            parse_file_argument(&self.output, self.output_format, Some(Format::Csv), "--output-format")?;
        let ops = self.log.withdrawals > 0.0;
        let generator = self.log.into_generator()?;
        let writing = |error: io::Error| CliError::write_error(path.as_deref(), &error);
        let file = path.as_deref().map(OutputFile::create).transpose().map_err(writing)?;
        let out = match &file {
            Some(file) => file.writer().map_err(writing)?,
            None => Box::new(io::stdout()),
        };
        let writer = ReadingsWriter::new(format, compression, ops, out).map_err(writing)?;
        write_log(&generator, GeneratedLogWriter { writer, format, ops }).map_err(writing)?;
        file.map_or(Ok(()), OutputFile::commit).map_err(writing)
    }
}

impl GeneratorArgs {
    pub(super) fn into_generator(self) -> Result<Generator, CliError> {
        Generator::new(self.into_plan()?).map_err(|error| CliError::Usage(error.to_string()))
    }

    fn into_plan(self) -> Result<GeneratorPlan, CliError> {
        let day_after = || EventTime::from_millis(self.from.millis() + Millis::DAY.millis());
        let to = self.to.or_else(day_after).ok_or_else(|| CliError::Usage("--from is too late".into()))?;
        Ok(GeneratorPlan {
            cities: self.cities,
            interval: self.interval,
            staggered: false,
            from: self.from,
            to,
            late: self.late,
            corrections: self.corrections,
            withdrawals: self.withdrawals,
            duplicates: self.duplicates,
            invalid: self.invalid,
            weather: self.weather,
            seed: self.seed,
        })
    }
}

/// Parses a time, or a date, which is its first instant in UTC.
fn time(text: &str) -> Result<EventTime, String> {
    let read = text.parse::<EventTime>().or_else(|error| match error.problem {
        TimeProblem::NoTimeOfDay if text.len() == "2025-01-01".len() => {
            format!("{text}T00:00:00Z").parse::<EventTime>()
        }
        _ => Err(error),
    });
    read.map_err(|error| format!("{error}, or a date as in 2013-07-18 for its beginning in UTC"))
}

/// The writer of a generated log.
struct GeneratedLogWriter {
    writer: ReadingsWriter,
    format: Format,
    ops: bool,
}

fn write_log(generator: &Generator, mut log: GeneratedLogWriter) -> io::Result<()> {
    for delivery in generator.timed_records() {
        match delivery.record {
            GeneratedRecord::Upsert { city, at, event } => log.writer.write(city, at, &event)?,
            GeneratedRecord::Invalid(bad) => log.write_bad(&bad)?,
        }
    }
    log.writer.finish()
}

impl GeneratedLogWriter {
    fn write_bad(&mut self, reading: &BadReading<'_>) -> io::Result<()> {
        match reading.text(self.format, self.ops) {
            Some(text) => self.writer.write_raw(text.as_bytes()),
            // Parquet columns are typed: the only fault they can have is a missing value.
            None if reading.kind.needs_text() => {
                self.writer.write_fields(&RecordFields { temperature: None, ..reading.fields() })
            }
            None => self.writer.write_fields(&reading.fields()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Compression, DecodeSettings, FileDecoder};
    use crate::model::Reason;
    use crate::sources::generator::BadReadingKind;
    use std::collections::BTreeMap;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: GenerateArgs,
    }

    fn args(line: &str) -> Result<GenerateArgs, clap::Error> {
        let words = ["generate"].into_iter().chain(line.split_whitespace());
        <Command as clap::Parser>::try_parse_from(words).map(|command| command.args)
    }

    /// Runs the command in an empty folder, and returns the bytes of the file that it wrote.
    fn generate(line: &str, name: &str) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        args(&format!("{line} -o {}", path.display())).unwrap().run().unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        std::fs::read(path).unwrap()
    }

    #[test]
    fn start_time_accepts_rfc_3339_and_dates() {
        for (text, read) in
            [("2025-01-01", "2025-01-01T00:00:00Z"), ("2025-01-01T02:00:00+02:00", "2025-01-01T00:00:00Z")]
        {
            assert_eq!(time(text).unwrap().to_string(), read);
        }
        for text in [
            "",
            "today",
            "2025-02-29",
            "2025-01",
            "2025-01-01T00:00:00",
            "2025-01-01T00:00:60Z",
            "2025-01-01Z",
        ] {
            assert!(time(text).unwrap_err().contains("is not a time"), "{text}");
        }
    }

    #[test]
    fn default_log_length_is_one_day() {
        let plan = args("-o x.csv --from 2025-03-01").unwrap().log.into_plan().unwrap();
        assert_eq!((plan.cities, plan.to.to_string()), (100, "2025-03-02T00:00:00Z".into()));
        assert_eq!((plan.weather, plan.seed), (WeatherKind::Plausible, 1));
    }

    #[test]
    fn uniform_weather_writes_a_reading_each_minute() {
        let line = "--weather uniform --cities 2 --to 2025-01-01T00:02:00Z";
        let log = String::from_utf8(generate(line, "log.csv")).unwrap();
        assert_eq!(
            log.lines().take(4).collect::<Vec<_>>(),
            [
                "city,reading_at,temperature,humidity,wind_speed",
                "city_00000,2025-01-01T00:00:00Z,80,48,26",
                "city_00001,2025-01-01T00:00:00Z,40,64,14",
                "city_00000,2025-01-01T00:01:00Z,58,54,7",
            ]
        );
        assert_eq!(log.lines().count(), 5);
    }

    #[test]
    fn every_format_holds_the_same_log() {
        let line =
            "--cities 5 --interval 10m --late 0.2 --corrections 0.1 --withdrawals 0.1 --duplicates 0.1";
        let plan = args(&format!("{line} --invalid 0.5 -o x.csv")).unwrap().log.into_plan().unwrap();
        let generator = Generator::new(plan).unwrap();
        let mut faults = BTreeMap::new();
        let mut upserts = Vec::new();
        for delivery in generator.timed_records() {
            match delivery.record {
                GeneratedRecord::Upsert { city, at, event } => upserts.push((city.to_owned(), at, event)),
                GeneratedRecord::Invalid(bad) => *faults.entry(bad.kind).or_insert(0) += 1,
            }
        }
        for (name, format) in
            [("x.csv", Format::Csv), ("x.jsonl", Format::Json), ("x.parquet", Format::Parquet)]
        {
            let bytes = generate(&format!("{line} --invalid 0.5"), name);
            let settings = DecodeSettings::default();
            let bytes = Box::new(io::Cursor::new(bytes));
            let mut decoder = FileDecoder::from_reader(bytes, format, Compression::None, settings).unwrap();
            let (mut taken, mut refused) = (Vec::new(), BTreeMap::new());
            while let Some(result) = decoder.next().unwrap() {
                match result {
                    Ok(upsert) => taken.push((upsert.city.to_owned(), upsert.reading_at, upsert.event)),
                    Err(refusal) => *refused.entry(refusal.reason).or_insert(0) += 1,
                }
            }
            assert!(taken == upserts, "{name}");
            let of = |reason| refused.get(&reason).copied().unwrap_or(0);
            assert_eq!(of(Reason::OutOfRange), faults[&BadReadingKind::OutOfRange], "{name}");
            if format == Format::Parquet {
                assert_eq!(refused.len(), 2);
                continue;
            }
            assert_eq!(
                of(Reason::MissingField),
                faults[&BadReadingKind::MissingField],
                "{name}: {refused:?}"
            );
            assert_eq!(of(Reason::NoOffset), faults[&BadReadingKind::NoOffset], "{name}: {refused:?}");
            assert_eq!(of(Reason::BadNumber), faults[&BadReadingKind::BadNumber], "{name}: {refused:?}");
            assert_eq!(of(Reason::NotDecodable), faults[&BadReadingKind::CutLine], "{name}: {refused:?}");
        }
    }

    #[test]
    fn invalid_plan_leaves_no_output() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.csv");
        let refused = args(&format!("--late 2 -o {}", path.display())).unwrap().run();
        assert!(matches!(refused, Err(CliError::Usage(_))));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(args("--weather sunny -o x.csv").unwrap_err().to_string().contains("plausible or uniform"));
    }
}
