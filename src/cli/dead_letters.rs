//! `swelter dead-letters`: lists, exports, retries and resubmits refused readings.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{CliError, unused_data_dir_error};
use crate::config::layers::ConfigLayers;
use crate::config::{Config, ServicePlan};
use crate::kafka::dead_letter_retry::{DeadLetterFilter, RetryOutcome};
use crate::model::dead_letter::ExportedDeadLetter;
use crate::model::printable::{printable, printable_json};
use crate::model::{DeadLetter, EventTime, Reason, RecordAddress};
use crate::run::dead_letters::{DeadLetterStores, DlqCommandError};
use crate::run::permissions::restrict_new_files;
use crate::sinks::output::OutputFile;

/// List refused readings, and retry or correct them
///
/// Dead letters of a topic are in its topics .failed.1 and .failed.2, those of the journal and of
/// files in the data directory. A retried reading that is refused again goes to .failed.2, or to
/// dead-letters.2.jsonl, and is not retried any more.
#[derive(Args, Debug)]
pub struct DeadLettersArgs {
    #[command(subcommand)]
    command: DeadLettersCommand,
}

#[derive(Debug, Subcommand)]
enum DeadLettersCommand {
    List(ListArgs),
    Show(ShowArgs),
    Export(ExportArgs),
    Retry(RetryArgs),
    Resubmit(ResubmitArgs),
}

/// What is configured.
#[derive(Args, Debug)]
struct ServiceConfigArgs {
    /// The configuration file of the service, TOML
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data directory, which holds the dead letters of the journal [default: that of the
    /// configuration]
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<String>,
}

/// Count dead letters by source, reason and attempt, and show the newest
#[derive(Args, Debug)]
struct ListArgs {
    #[command(flatten)]
    service_config: ServiceConfigArgs,
    #[command(flatten)]
    filter: DeadLetterFilterArgs,
    /// The number of the newest dead letters to show
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Show all of one dead letter
///
/// Control characters are shown as in \\x1b; --raw prints the exact bytes of the record.
#[derive(Args, Debug)]
struct ShowArgs {
    #[command(flatten)]
    service_config: ServiceConfigArgs,
    /// The position of the refused record, as in readings/3/1017: source or topic, partition,
    /// position
    position: RecordAddress,
    /// Print the bytes of the record unchanged, and nothing else; control characters act on a
    /// terminal
    #[arg(long)]
    raw: bool,
}

/// Write dead letters as JSON lines that can be edited and resubmitted
#[derive(Args, Debug)]
struct ExportArgs {
    #[command(flatten)]
    service_config: ServiceConfigArgs,
    #[command(flatten)]
    filter: DeadLetterFilterArgs,
    /// The file of the lines; - is standard output
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Send dead letters again to their source, each one once, even if the command is repeated
///
/// A retried reading counts only if its city and time have no reading now and none was withdrawn.
/// Without --reason, all dead letters are sent except those that are too late. Withdrawals are
/// never retried.
#[derive(Args, Debug)]
struct RetryArgs {
    #[command(flatten)]
    service_config: ServiceConfigArgs,
    #[command(flatten)]
    filter: DeadLetterFilterArgs,
}

/// Append edited lines of an export to their sources as ordinary new arrivals
///
/// They count like any other reading, and replace one that arrived since. If a line is wrong,
/// nothing is sent.
#[derive(Args, Debug)]
struct ResubmitArgs {
    #[command(flatten)]
    service_config: ServiceConfigArgs,
    /// The file of edited lines of an export
    file: PathBuf,
}

#[derive(Args, Debug)]
struct DeadLetterFilterArgs {
    /// Only dead letters with this reason; can be repeated
    #[arg(long = "reason", value_name = "CODE", value_parser = reason)]
    reasons: Vec<String>,
    /// Only dead letters of this source
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
}

fn reason(text: &str) -> Result<String, String> {
    let codes = Reason::ALL.map(Reason::code);
    match codes.contains(&text) {
        true => Ok(text.to_owned()),
        false => Err(format!("it is one of {}", codes.join(", "))),
    }
}

impl DeadLetterFilterArgs {
    fn matches_filter(&self, source: &str, dead_letter: &DeadLetter) -> bool {
        self.source.as_deref().is_none_or(|chosen| chosen == source)
            && (self.reasons.is_empty() || self.reasons.contains(&dead_letter.reason))
    }
}

impl ServiceConfigArgs {
    fn load_plan(&self) -> Result<ServicePlan, CliError> {
        let flags = self.data_dir.iter().map(|dir| ("data_dir".to_owned(), "--data-dir", dir.clone()));
        let layers = ConfigLayers {
            file: self.config.clone(),
            environment: std::env::vars_os().collect(),
            flags: flags.collect(),
        };
        let plan = Config::load(&layers).map_err(CliError::Config)?.plan;
        if let Some(dir) = self.data_dir.as_ref().filter(|_| !DeadLetterStores::of(&plan).has_journal()) {
            return Err(unused_data_dir_error(dir, "dead letters of a journal"));
        }
        Ok(plan)
    }
}

impl DeadLettersArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        match self.command {
            DeadLettersCommand::List(args) => args.run(),
            DeadLettersCommand::Show(args) => args.run(),
            DeadLettersCommand::Export(args) => args.run(),
            DeadLettersCommand::Retry(args) => args.run(),
            DeadLettersCommand::Resubmit(args) => args.run(),
        }
    }
}

fn dead_letters_error(error: DlqCommandError) -> CliError {
    match error {
        DlqCommandError::UnknownSource { .. } => CliError::Usage(error.to_string()),
        error => CliError::Failed(error.to_string()),
    }
}

fn write_to_stdout(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), CliError> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    write(&mut out).and_then(|()| out.flush()).map_err(|error| CliError::write_error(None, &error))
}

/// The newest dead letters, up to a limit.
struct NewestDeadLetters {
    limit: usize,
    dead_letters: Vec<(String, DeadLetter)>,
}

impl NewestDeadLetters {
    fn add_dead_letter(&mut self, source: &str, dead_letter: DeadLetter) {
        if self.limit > 0 {
            self.dead_letters.push((source.to_owned(), dead_letter));
        }
        if self.dead_letters.len() >= 2 * self.limit.max(1_000) {
            self.keep_newest();
        }
    }

    fn keep_newest(&mut self) {
        self.dead_letters
            .sort_by(|(_, a), (_, b)| (b.arrived_at, &b.address).cmp(&(a.arrived_at, &a.address)));
        self.dead_letters.truncate(self.limit);
    }
}

impl ListArgs {
    fn run(self) -> Result<(), CliError> {
        let plan = self.service_config.load_plan()?;
        let mut counts: BTreeMap<(String, String, u32), u64> = BTreeMap::new();
        let mut newest = NewestDeadLetters { limit: self.limit, dead_letters: Vec::new() };
        DeadLetterStores::of(&plan)
            .check_source_has_dead_letters(self.filter.source.as_deref())
            .map_err(dead_letters_error)?;
        let read = DeadLetterStores::of(&plan).read_all(|source, letter| {
            if self.filter.matches_filter(source, &letter) {
                let key = (source.to_owned(), letter.reason.clone(), letter.attempt());
                *counts.entry(key).or_default() += 1;
                newest.add_dead_letter(source, letter);
            }
        });
        read.map_err(dead_letters_error)?;
        newest.keep_newest();
        write_to_stdout(|out| match self.json {
            true => write_list_json(&counts, &newest.dead_letters, out),
            false => write_list_text(&counts, &newest.dead_letters, out),
        })
    }
}

fn write_list_text(
    counts: &BTreeMap<(String, String, u32), u64>,
    newest: &[(String, DeadLetter)],
    out: &mut dyn Write,
) -> io::Result<()> {
    if counts.is_empty() {
        return writeln!(out, "no dead letters");
    }
    writeln!(out, "{:>10}  {:<16} {:<16} attempt", "letters", "source", "reason")?;
    for ((source, reason, attempt), count) in counts {
        let (source, reason) = (printable(source), printable(reason));
        writeln!(out, "{count:>10}  {source:<16} {reason:<16} {attempt}")?;
    }
    if !newest.is_empty() {
        writeln!(out, "\nthe newest:")?;
    }
    for (_, letter) in newest {
        let at = letter.arrived_at.map_or_else(|| "-".to_owned(), |at| at.to_string());
        let line = format!("{at}  {}  {}: {}", letter.address, letter.reason, letter.detail);
        writeln!(out, "{}", printable(&line))?;
    }
    Ok(())
}

fn write_list_json(
    counts: &BTreeMap<(String, String, u32), u64>,
    newest: &[(String, DeadLetter)],
    out: &mut dyn Write,
) -> io::Result<()> {
    let count = |((source, reason, attempt), letters): (&(String, String, u32), &u64)| serde_json::json!({"source": source, "reason": reason, "attempt": attempt, "letters": letters});
    let lines: Vec<ExportedDeadLetter> =
        newest.iter().map(|(source, letter)| ExportedDeadLetter::from_dead_letter(source, letter)).collect();
    let counts: Vec<_> = counts.iter().map(count).collect();
    let json = serde_json::json!({"counts": counts, "newest": lines}).to_string();
    writeln!(out, "{}", printable_json(&json))
}

impl ShowArgs {
    fn run(self) -> Result<(), CliError> {
        let plan = self.service_config.load_plan()?;
        let dead_letters =
            DeadLetterStores::of(&plan).find_by_position(&self.position).map_err(dead_letters_error)?;
        if dead_letters.is_empty() {
            return Err(CliError::Failed(format!(
                "there is no dead letter of {}: `swelter dead-letters list` shows the positions of the newest",
                self.position
            )));
        }
        if let (true, Some((_, dead_letter))) = (self.raw, dead_letters.first()) {
            return write_to_stdout(|out| out.write_all(dead_letter.value.as_deref().unwrap_or_default()));
        }
        write_to_stdout(|out| {
            dead_letters
                .iter()
                .try_for_each(|(source, dead_letter)| write_dead_letter(source, dead_letter, out))
        })
    }
}

fn write_dead_letter(source: &str, dead_letter: &DeadLetter, out: &mut dyn Write) -> io::Result<()> {
    let time = |time: Option<EventTime>| time.map_or_else(|| "unknown".to_owned(), |time| time.to_string());
    let line = ExportedDeadLetter::from_dead_letter(source, dead_letter);
    writeln!(out, "position    {}", printable(&line.position))?;
    writeln!(out, "source      {}", printable(source))?;
    writeln!(out, "reason      {}", printable(&line.reason))?;
    writeln!(out, "detail      {}", printable(&line.detail))?;
    writeln!(out, "arrived     {}", time(dead_letter.arrived_at))?;
    writeln!(out, "first seen  {}", time(dead_letter.first_seen))?;
    writeln!(out, "attempt     {}", line.attempt)?;
    if let Some(origin) = &line.origin {
        writeln!(out, "origin      {}", printable(origin))?;
    }
    for (what, text, base64) in [("key", &line.key, &line.key_base64), ("bytes", &line.raw, &line.raw_base64)]
    {
        match (text, base64) {
            (Some(text), _) => writeln!(out, "{what:<11} {}", printable(text))?,
            (None, Some(base64)) => writeln!(out, "{what:<11} not UTF-8, in base64: {base64}")?,
            (None, None) => writeln!(out, "{what:<11} none")?,
        }
    }
    Ok(())
}

impl ExportArgs {
    fn run(self) -> Result<(), CliError> {
        let plan = self.service_config.load_plan()?;
        DeadLetterStores::of(&plan)
            .check_source_has_dead_letters(self.filter.source.as_deref())
            .map_err(dead_letters_error)?;
        let path = Some(&*self.out).filter(|path| *path != Path::new("-"));
        let writing = |error: io::Error| CliError::write_error(path, &error);
        let file = path.map(OutputFile::create).transpose().map_err(writing)?;
        let mut out: Box<dyn Write> = match &file {
            Some(file) => Box::new(io::BufWriter::new(file.writer().map_err(writing)?)),
            None => Box::new(io::BufWriter::new(io::stdout())),
        };
        let (mut written, mut count) = (Ok(()), 0u64);
        let read = DeadLetterStores::of(&plan).read_all(|source, letter| {
            if written.is_ok() && self.filter.matches_filter(source, &letter) {
                count += 1;
                let line = ExportedDeadLetter::from_dead_letter(source, &letter);
                let text = serde_json::to_writer(&mut out, &line).map_err(io::Error::from);
                written = text.and_then(|()| writeln!(out));
            }
        });
        read.map_err(dead_letters_error)?;
        written.and_then(|()| out.flush()).map_err(writing)?;
        drop(out);
        file.map_or(Ok(()), OutputFile::commit).map_err(writing)?;
        let _ = writeln!(io::stderr(), "exported {count} dead letters");
        Ok(())
    }
}

impl RetryArgs {
    fn run(self) -> Result<(), CliError> {
        let plan = self.service_config.load_plan()?;
        restrict_new_files(plan.data_dir_mode);
        let reasons: BTreeSet<String> = self.filter.reasons.into_iter().collect();
        let filter = DeadLetterFilter { reasons, written_before_ms: None };
        let outcome = DeadLetterStores::of(&plan)
            .retry(self.filter.source.as_deref(), &filter)
            .map_err(dead_letters_error)?;
        write_to_stdout(|out| write_retry_report(&outcome, out))
    }
}

fn write_retry_report(outcome: &RetryOutcome, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "sent {} dead letters", outcome.total_sent())?;
    for (reason, sent) in &outcome.sent {
        writeln!(out, "  {}: {sent}", printable(reason))?;
    }
    let not_sent = [
        (outcome.already_sent, "were sent by an earlier retry"),
        (outcome.withdrawals, "are withdrawals, which are not retried: resubmit those that you still want"),
        (
            outcome.without_origin,
            "come from a source that accepts no records: correct them there, or resubmit them",
        ),
    ];
    for (count, why) in not_sent.into_iter().filter(|(count, _)| *count > 0) {
        writeln!(out, "{count} {why}")?;
    }
    Ok(())
}

impl ResubmitArgs {
    fn run(self) -> Result<(), CliError> {
        let plan = self.service_config.load_plan()?;
        restrict_new_files(plan.data_dir_mode);
        let text = std::fs::read_to_string(&self.file);
        let text = text
            .map_err(|error| CliError::Failed(format!("{} cannot be read: {error}", self.file.display())))?;
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let resubmitted = DeadLetterStores::of(&plan).resubmit(&lines);
        let resubmitted = resubmitted.map_err(|error| match error {
            DlqCommandError::Line { .. } => CliError::Failed(format!("{}: {error}", self.file.display())),
            error => dead_letters_error(error),
        })?;
        write_to_stdout(|out| writeln!(out, "resubmitted {resubmitted} records"))
    }
}
