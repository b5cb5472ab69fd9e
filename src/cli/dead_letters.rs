//! `swelter dead-letters`: what was refused, looked at and sent once more.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{Stop, unused_data_dir};
use crate::config::layers::Layers;
use crate::config::{Config, Plan};
use crate::kafka::retry::{Outcome, Wanted};
use crate::model::letter::LetterLine;
use crate::model::printable::{printable, printable_json};
use crate::model::{EventTime, Letter, Reason, RecordPlace};
use crate::pipeline::letters::{DeadLetterError, Places};
use crate::pipeline::permissions::restrict_new_files;
use crate::sinks::output::OutputFile;

/// Look at refused readings, and send them once more
///
/// They lie in the places that the configuration names: the topics .failed.1 and .failed.2 of each topic that is read, and the
/// files of the journal. What is refused again goes to the second of them, and is not sent any more.
#[derive(Args, Debug)]
pub struct DeadLettersArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(ListArgs),
    Show(ShowArgs),
    Export(ExportArgs),
    Retry(RetryArgs),
    Resubmit(ResubmitArgs),
}

/// What is configured.
#[derive(Args, Debug)]
struct Configured {
    /// The configuration of the service, TOML
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The folder of the journal and of its dead letters
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<String>,
}

/// Count dead letters by source, reason and attempt, and show the newest
#[derive(Args, Debug)]
struct ListArgs {
    #[command(flatten)]
    configured: Configured,
    #[command(flatten)]
    chosen: Chosen,
    /// How many of the newest to show
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    /// Write one JSON object
    #[arg(long)]
    json: bool,
}

/// Show all of one dead letter
///
/// What a terminal would obey is shown as in \\x1b; --raw gives the exact bytes of the record.
#[derive(Args, Debug)]
struct ShowArgs {
    #[command(flatten)]
    configured: Configured,
    /// Where the refused record stands, as in readings/3/1017: source or topic, partition, position
    position: RecordPlace,
    /// Write the record's bytes as they are, and nothing else: a terminal obeys what is in them
    #[arg(long)]
    raw: bool,
}

/// Write dead letters as JSON lines that can be edited and resubmitted
#[derive(Args, Debug)]
struct ExportArgs {
    #[command(flatten)]
    configured: Configured,
    #[command(flatten)]
    chosen: Chosen,
    /// Where the lines go; - is standard output
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Send dead letters once more to where they come from, each once however often this is called
///
/// A reading that is sent again counts only where its city and time have no reading by now and none was withdrawn. Without
/// --reason all are sent but those that are too late. Withdrawals are never sent again.
#[derive(Args, Debug)]
struct RetryArgs {
    #[command(flatten)]
    configured: Configured,
    #[command(flatten)]
    chosen: Chosen,
}

/// Append edited lines of an export as ordinary new arrivals
///
/// They count like any other reading, also over one that came since. Where a line is wrong, nothing is sent.
#[derive(Args, Debug)]
struct ResubmitArgs {
    #[command(flatten)]
    configured: Configured,
    /// Edited lines of an export
    file: PathBuf,
}

#[derive(Args, Debug)]
struct Chosen {
    /// Only of this reason; may be given more than once
    #[arg(long = "reason", value_name = "CODE", value_parser = reason)]
    reasons: Vec<String>,
    /// Only of this source
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

impl Chosen {
    fn has(&self, source: &str, letter: &Letter) -> bool {
        self.source.as_deref().is_none_or(|chosen| chosen == source)
            && (self.reasons.is_empty() || self.reasons.contains(&letter.reason))
    }
}

impl Configured {
    fn plan(&self) -> Result<Plan, Stop> {
        let flags = self.data_dir.iter().map(|dir| ("data_dir".to_owned(), "--data-dir", dir.clone()));
        let layers = Layers {
            file: self.config.clone(),
            environment: std::env::vars_os().collect(),
            flags: flags.collect(),
        };
        let plan = Config::load(&layers).map_err(Stop::Config)?.plan;
        if let Some(dir) = self.data_dir.as_ref().filter(|_| !Places::of(&plan).has_journal()) {
            return Err(unused_data_dir(dir, "dead letters of a journal"));
        }
        Ok(plan)
    }
}

impl DeadLettersArgs {
    pub(super) fn run(self) -> Result<(), Stop> {
        match self.command {
            Command::List(args) => args.run(),
            Command::Show(args) => args.run(),
            Command::Export(args) => args.run(),
            Command::Retry(args) => args.run(),
            Command::Resubmit(args) => args.run(),
        }
    }
}

fn stop(error: DeadLetterError) -> Stop {
    match error {
        DeadLetterError::UnknownSource { .. } => Stop::Usage(error.to_string()),
        error => Stop::Failed(error.to_string()),
    }
}

fn to_stdout(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Stop> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    write(&mut out).and_then(|()| out.flush()).map_err(|error| Stop::writing(None, &error))
}

/// The newest letters.
struct Newest {
    limit: usize,
    letters: Vec<(String, Letter)>,
}

impl Newest {
    fn add(&mut self, source: &str, letter: Letter) {
        if self.limit > 0 {
            self.letters.push((source.to_owned(), letter));
        }
        if self.letters.len() >= 2 * self.limit.max(1_000) {
            self.cut();
        }
    }

    fn cut(&mut self) {
        self.letters.sort_by(|(_, a), (_, b)| (b.at, &b.place).cmp(&(a.at, &a.place)));
        self.letters.truncate(self.limit);
    }
}

impl ListArgs {
    fn run(self) -> Result<(), Stop> {
        let plan = self.configured.plan()?;
        let mut counts: BTreeMap<(String, String, u32), u64> = BTreeMap::new();
        let mut newest = Newest { limit: self.limit, letters: Vec::new() };
        Places::of(&plan).check_letters_of(self.chosen.source.as_deref()).map_err(stop)?;
        let read = Places::of(&plan).read(|source, letter| {
            if self.chosen.has(source, &letter) {
                let key = (source.to_owned(), letter.reason.clone(), letter.attempt());
                *counts.entry(key).or_default() += 1;
                newest.add(source, letter);
            }
        });
        read.map_err(stop)?;
        newest.cut();
        to_stdout(|out| match self.json {
            true => list_json(&counts, &newest.letters, out),
            false => list_text(&counts, &newest.letters, out),
        })
    }
}

fn list_text(
    counts: &BTreeMap<(String, String, u32), u64>,
    newest: &[(String, Letter)],
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
        let at = letter.at.map_or_else(|| "-".to_owned(), |at| at.to_string());
        let line = format!("{at}  {}  {}: {}", letter.place, letter.reason, letter.detail);
        writeln!(out, "{}", printable(&line))?;
    }
    Ok(())
}

fn list_json(
    counts: &BTreeMap<(String, String, u32), u64>,
    newest: &[(String, Letter)],
    out: &mut dyn Write,
) -> io::Result<()> {
    let count = |((source, reason, attempt), letters): (&(String, String, u32), &u64)| serde_json::json!({"source": source, "reason": reason, "attempt": attempt, "letters": letters});
    let lines: Vec<LetterLine> =
        newest.iter().map(|(source, letter)| LetterLine::of(source, letter)).collect();
    let counts: Vec<_> = counts.iter().map(count).collect();
    let json = serde_json::json!({"counts": counts, "newest": lines}).to_string();
    writeln!(out, "{}", printable_json(&json))
}

impl ShowArgs {
    fn run(self) -> Result<(), Stop> {
        let plan = self.configured.plan()?;
        let found = Places::of(&plan).at(&self.position).map_err(stop)?;
        if found.is_empty() {
            return Err(Stop::Failed(format!(
                "there is no dead letter of {}: `swelter dead-letters list` shows where there are",
                self.position
            )));
        }
        if let (true, Some((_, letter))) = (self.raw, found.first()) {
            return to_stdout(|out| out.write_all(letter.value.as_deref().unwrap_or_default()));
        }
        to_stdout(|out| found.iter().try_for_each(|(source, letter)| show(source, letter, out)))
    }
}

fn show(source: &str, letter: &Letter, out: &mut dyn Write) -> io::Result<()> {
    let time = |time: Option<EventTime>| time.map_or_else(|| "unknown".to_owned(), |time| time.to_string());
    let line = LetterLine::of(source, letter);
    writeln!(out, "position    {}", printable(&line.position))?;
    writeln!(out, "source      {}", printable(source))?;
    writeln!(out, "reason      {}", printable(&line.reason))?;
    writeln!(out, "detail      {}", printable(&line.detail))?;
    writeln!(out, "arrived     {}", time(letter.at))?;
    writeln!(out, "first seen  {}", time(letter.first_seen))?;
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
    fn run(self) -> Result<(), Stop> {
        let plan = self.configured.plan()?;
        Places::of(&plan).check_letters_of(self.chosen.source.as_deref()).map_err(stop)?;
        let path = Some(&*self.out).filter(|path| *path != Path::new("-"));
        let writing = |error: io::Error| Stop::writing(path, &error);
        let file = path.map(OutputFile::create).transpose().map_err(writing)?;
        let mut out: Box<dyn Write> = match &file {
            Some(file) => Box::new(io::BufWriter::new(file.writer().map_err(writing)?)),
            None => Box::new(io::BufWriter::new(io::stdout())),
        };
        let (mut written, mut letters) = (Ok(()), 0u64);
        let read = Places::of(&plan).read(|source, letter| {
            if written.is_ok() && self.chosen.has(source, &letter) {
                letters += 1;
                let line = LetterLine::of(source, &letter);
                let text = serde_json::to_writer(&mut out, &line).map_err(io::Error::from);
                written = text.and_then(|()| writeln!(out));
            }
        });
        read.map_err(stop)?;
        written.and_then(|()| out.flush()).map_err(writing)?;
        drop(out);
        file.map_or(Ok(()), OutputFile::commit).map_err(writing)?;
        let _ = writeln!(io::stderr(), "exported {letters} dead letters");
        Ok(())
    }
}

impl RetryArgs {
    fn run(self) -> Result<(), Stop> {
        let plan = self.configured.plan()?;
        restrict_new_files(plan.data_dir_mode);
        let reasons: BTreeSet<String> = self.chosen.reasons.into_iter().collect();
        let wanted = Wanted { reasons, before: None };
        let outcome = Places::of(&plan).retry(self.chosen.source.as_deref(), &wanted).map_err(stop)?;
        to_stdout(|out| tell(&outcome, out))
    }
}

fn tell(outcome: &Outcome, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "sent {} dead letters", outcome.total())?;
    for (reason, sent) in &outcome.sent {
        writeln!(out, "  {}: {sent}", printable(reason))?;
    }
    let left = [
        (outcome.already, "were sent before"),
        (
            outcome.withdrawals,
            "are withdrawals, which are not sent again: resubmit those that are still meant",
        ),
        (outcome.homeless, "cannot go back to where they come from: correct them there, or resubmit them"),
    ];
    for (count, why) in left.into_iter().filter(|(count, _)| *count > 0) {
        writeln!(out, "{count} {why}")?;
    }
    Ok(())
}

impl ResubmitArgs {
    fn run(self) -> Result<(), Stop> {
        let plan = self.configured.plan()?;
        restrict_new_files(plan.data_dir_mode);
        let text = std::fs::read_to_string(&self.file);
        let text =
            text.map_err(|error| Stop::Failed(format!("{} cannot be read: {error}", self.file.display())))?;
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let resubmitted = Places::of(&plan).resubmit(&lines);
        let resubmitted = resubmitted.map_err(|error| match error {
            DeadLetterError::Line { .. } => Stop::Failed(format!("{}: {error}", self.file.display())),
            error => stop(error),
        })?;
        to_stdout(|out| writeln!(out, "resubmitted {resubmitted} records"))
    }
}
