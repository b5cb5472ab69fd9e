//! `swelter batch`: computes all results of files.

use std::collections::HashSet;
use std::io::{self, IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::read_args::ReadArgs;
use super::{CliError, parse_file_argument};
use crate::cluster::signals;
use crate::codec::{Format, unknown_field_names};
use crate::dataflow::heat_index::Formula;
use crate::fault::start_failure_text;
use crate::model::Millis;
use crate::model::printable::printable;
use crate::model::time::DayZone;
use crate::model::{OutputUnits, TemperatureUnit, WindUnit};
use crate::run::batch::{self, BatchError, BatchPlan, BatchSummary, OutputTarget, PlotPlan};
use crate::run::process_limits::raise_open_files;
use crate::sinks::output;
use crate::sources::file::InputFile;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

/// Compute the rolling heat index of all readings in files
///
/// The files are read as one log, in the given order: of two readings of one city and time, the
/// later one counts. Results are sorted by city and time.
#[derive(Args, Debug)]
pub struct BatchArgs {
    /// Files of readings: .csv, .json or .parquet, the first two also with .gz or .zst; - is
    /// standard input
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// The format of all inputs [default: from their names]
    #[arg(long, value_name = "FORMAT")]
    input_format: Option<Format>,
    #[command(flatten)]
    read: ReadArgs,

    /// The file of result rows [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The format of --output [default: from its name; csv on standard output]
    #[arg(long, value_name = "FORMAT")]
    output_format: Option<Format>,
    /// The unit of temperatures and heat indexes in every output; each output names its unit
    #[arg(long, value_name = "UNIT", default_value = "fahrenheit")]
    output_units: TemperatureUnit,
    /// The unit of wind speeds in --output
    #[arg(long, value_name = "UNIT", default_value = "mph")]
    output_wind_units: WindUnit,
    /// A file for every change of a row, as JSON lines, epoch by epoch
    #[arg(long, value_name = "FILE")]
    changes: Option<PathBuf>,
    /// A file for a summary of each city and day; days are those of --time-zone, or of UTC without
    /// it
    #[arg(long, value_name = "FILE")]
    daily: Option<PathBuf>,
    /// A file for refused records and the reasons, as JSON lines; without it, the first ten are
    /// shown
    #[arg(long, value_name = "FILE")]
    dead_letters: Option<PathBuf>,
    /// A plot of one city's heat index, its rolling mean, and the changes by corrections
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// The city of --plot [default: the first one of the log]
    #[arg(long, requires = "plot")]
    city: Option<String>,

    /// The heat index formula
    #[arg(long, default_value = "nws")]
    formula: Formula,
    /// The window of the rolling mean, as in 90s, 15m, 6h or 1d; both of its ends are included
    #[arg(long, default_value = "1d")]
    window: Millis,
    /// How much older than its city's newest reading an arrival may be, as in 6h [default:
    /// unlimited]
    #[arg(long)]
    lateness: Option<Millis>,
    /// The number of worker threads, 1 to 64
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// The number of records of an epoch, after which results become visible as changes
    #[arg(long, default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..))]
    epoch_size: u32,
    /// Exit with 0 even if no record of any file was accepted
    #[arg(long)]
    allow_empty: bool,
}

impl BatchArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        let allow_empty = self.allow_empty;
        let plan = self.into_plan()?;
        raise_open_files();
        signals::catch_file_size_limit().map_err(|error| CliError::Failed(start_failure_text(&error)))?;
        let start = Instant::now();
        let bar = progress_bar();
        let shared_bar = bar.clone();
        let result = batch::run(&plan, move |records| shared_bar.set_position(records));
        bar.finish_and_clear();
        let summary = result.map_err(|error| match &error {
            BatchError::Output { name, error: io } if name == STDOUT_NAME => CliError::write_error(None, io),
            _ => CliError::Failed(error.to_string()),
        })?;
        let _ = report_summary(&summary, start.elapsed().as_secs_f64());
        if summary.accepted() == 0 && !allow_empty {
            return Err(CliError::NothingTaken(NOTHING_TAKEN_TEXT.into()));
        }
        Ok(())
    }

    fn into_plan(self) -> Result<BatchPlan, CliError> {
        let input = |path: &PathBuf| {
            let (path, format, compression) =
                parse_file_argument(path, self.input_format, None, "--input-format")?;
            Ok(InputFile { path, format, compression })
        };
        let inputs = self.inputs.iter().map(input).collect::<Result<Vec<_>, CliError>>()?;
        if inputs.iter().filter(|input| input.path.is_none()).count() > 1 {
            return Err(CliError::Usage("standard input can be read only once: give - once".into()));
        }
        let read = self.read.read_options_for(&inputs)?;
        let lines = |path: &Option<PathBuf>| {
            path.as_deref().map(|path| output_target(path, Some(Format::Json), None)).transpose()
        };
        let (changes, dead_letters) = (lines(&self.changes)?, lines(&self.dead_letters)?);
        let daily =
            self.daily.as_deref().map(|path| output_target(path, None, Some(Format::Csv))).transpose()?;
        let stdout_is_taken =
            [&changes, &dead_letters, &daily].into_iter().flatten().any(|target| target.path.is_none());
        let output = match &self.output {
            Some(path) => Some(output_target(path, self.output_format, Some(Format::Csv))?),
            // Standard output belongs to the output that explicitly requested it.
            None if stdout_is_taken && self.output_format.is_some() => {
                let problem = "--output-format has no effect, because standard output is used by another option: give --output too";
                return Err(CliError::Usage(problem.into()));
            }
            None if stdout_is_taken => None,
            None => Some(output_target(Path::new("-"), self.output_format, Some(Format::Csv))?),
        };
        let plan = BatchPlan {
            inputs,
            read,
            day_zone: self.read.time_zone.map_or(DayZone::Utc, DayZone::Zone),
            formula: self.formula,
            window: self.window,
            lateness: self.lateness.unwrap_or(Millis::MAX),
            workers: usize::from(self.workers),
            epoch_size: self.epoch_size as usize,
            output_units: OutputUnits { temperature: self.output_units, wind: self.output_wind_units },
            output,
            changes,
            daily,
            dead_letters,
            plot: self.plot.map(|path| PlotPlan { path, city: self.city }),
        };
        check_outputs(&plan)?;
        Ok(plan)
    }
}

/// The hint for pipelines that accept an empty result.
pub(super) const NOTHING_TAKEN_TEXT: &str =
    "no record of any file was accepted, for the reasons above; --allow-empty makes this a success";
/// The maximum number of ignored fields in the message.
const MAX_NAMED_FIELDS: usize = 10;

const STDOUT_NAME: &str = "standard output";

fn output_target(
    path: &Path,
    format: Option<Format>,
    default: Option<Format>,
) -> Result<OutputTarget, CliError> {
    let (path, format, compression) = parse_file_argument(path, format, default, "--output-format")?;
    Ok(OutputTarget { path, format, compression })
}

/// Refuses two outputs in one file, and an output that would overwrite an input.
fn check_outputs(plan: &BatchPlan) -> Result<(), CliError> {
    let inputs: HashSet<PathBuf> = plan
        .inputs
        .iter()
        .filter_map(|input| input.path.as_deref())
        .chain(plan.read.layout.wide.as_deref())
        .map(output::resolve_destination)
        .collect();
    let targets = [&plan.output, &plan.changes, &plan.daily, &plan.dead_letters].into_iter().flatten();
    let plot = plan.plot.as_ref().map(|plot| Some(plot.path.clone()));
    let mut destinations = HashSet::new();
    for path in targets.map(|target| target.path.clone()).chain(plot) {
        if path.as_deref().is_some_and(output::is_written_in_place) {
            continue;
        }
        let name = path.as_ref().map_or(STDOUT_NAME.into(), |path| path.display().to_string());
        let destination = path.as_deref().map(output::resolve_destination);
        if destination.as_ref().is_some_and(|path| inputs.contains(path)) {
            return Err(CliError::Usage(format!(
                "{name} is an input and would be overwritten: name another output file"
            )));
        }
        if !destinations.insert(destination) {
            return Err(CliError::Usage(format!(
                "two outputs go to {name}: name a file of its own for each"
            )));
        }
    }
    Ok(())
}

/// A progress bar that counts records; hidden unless standard error is a terminal.
pub(super) fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {human_pos} records  {per_sec}  {elapsed}");
    ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

/// Writes the summary to standard error. A failure to write is not an error of the command.
fn report_summary(summary: &BatchSummary, seconds: f64) -> io::Result<()> {
    let mut out = io::stderr().lock();
    if let Some(warning) = &summary.warning {
        writeln!(out, "warning: {warning}")?;
    }
    for example in &summary.examples {
        writeln!(out, "refused {}", printable(example))?;
    }
    let refused: u64 = summary.refused.values().sum();
    if refused > summary.examples.len() as u64 && !summary.examples.is_empty() {
        let more = refused - summary.examples.len() as u64;
        writeln!(out, "refused {} more; --dead-letters FILE writes all of them", group_digits(more))?;
    }
    let outcomes = &summary.outcomes;
    let mut parts = vec![
        (outcomes.inserted, "readings"),
        (outcomes.corrected, "corrections"),
        (outcomes.withdrawn, "withdrawals"),
    ];
    let rare = [
        (outcomes.nothing_to_withdraw, "withdrawals of nothing"),
        (outcomes.old_revision, "old revisions"),
        (refused, "refused"),
        (summary.ignored_fields, "fields ignored"),
    ];
    parts.extend(rare.into_iter().filter(|(count, _)| *count > 0));
    let parts: Vec<String> =
        parts.iter().map(|(count, what)| format!("{} {what}", group_digits(*count))).collect();
    writeln!(out, "{} records: {}", group_digits(summary.records), parts.join(", "))?;
    let ignored = unknown_field_names();
    if !ignored.is_empty() {
        let more = if ignored.len() > MAX_NAMED_FIELDS { ", .." } else { "" };
        let names = ignored[..ignored.len().min(MAX_NAMED_FIELDS)].join(", ");
        writeln!(out, "  fields ignored, also if they name units: {names}{more}")?;
    }
    for (reason, count) in &summary.refused {
        writeln!(out, "  {reason}: {}", group_digits(*count))?;
    }
    let rate = group_digits((summary.records as f64 / seconds.max(1e-9)) as u64);
    let (rows, cities) = (group_digits(summary.rows), group_digits(summary.cities as u64));
    writeln!(out, "{rows} rows of {cities} cities in {seconds:.2} s, {rate} records/s")?;
    for warning in &summary.warnings {
        writeln!(out, "warning: {}", printable(warning))?;
    }
    Ok(())
}

/// Formats a number with a comma after each three digits.
pub(super) fn group_digits(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
