//! The report of a trial, in Markdown.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::process::Command;
use std::time::Duration;

use super::case::CaseOutcome;
use super::plan::{CaseSettings, LogMode};

pub struct TrialReport<'a> {
    pub outcomes: &'a [CaseOutcome],
    /// Of seeds.
    pub range: &'a str,
    /// Of each case.
    pub faults: usize,
    pub lanes: usize,
    pub time: Duration,
}

/// A case in one line, with the command that repeats it if something is wrong.
pub fn case_line(outcome: &CaseOutcome, faults: usize) -> String {
    let CaseOutcome { seed, mode, settings, comparisons, records, starts, time, failure, folder, .. } =
        outcome;
    let mode = mode.map(mode_name).unwrap_or_default();
    let settings = settings.map(|settings| settings.to_string()).unwrap_or_default();
    let mut line = format!(
        "seed {seed} ({mode}, {settings}): {} faults, {starts} starts, {records} records, {} comparisons, {} differences, {:.1} s",
        outcome.faults.values().sum::<usize>(),
        comparisons.made,
        comparisons.differences.len(),
        time.as_secs_f64()
    );
    for difference in &comparisons.differences {
        line += &format!("\n  difference: {difference}");
    }
    if let Some(failure) = failure {
        line += &format!("\n  not finished: {failure}");
    }
    if let Some(folder) = folder {
        line += &format!("\n  what is left: {}", folder.display());
        line += &format!("\n  again: scripts/trial --seeds {seed}..{seed} --faults {faults}");
    }
    line
}

fn mode_name(mode: LogMode) -> &'static str {
    match mode {
        LogMode::Journal => "journal",
        LogMode::Kafka => "Kafka",
    }
}

/// The first line of a program's output, or nothing.
fn first_output_line(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_string()
}

fn version() -> String {
    let changed =
        if first_output_line("git", &["status", "--porcelain"]).is_empty() { "" } else { ", with changes" };
    format!(
        "{} ({}{changed})",
        env!("CARGO_PKG_VERSION"),
        first_output_line("git", &["rev-parse", "--short", "HEAD"])
    )
}

fn machine() -> String {
    let of = |file: &str, field: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(field)?.split_once(':').map(|(_, v)| v.trim().to_string()));
        line.unwrap_or_else(|| "unknown".into())
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = first_output_line("uname", &["-sr"]);
    format!(
        "{cores} cores ({}), {} memory, {kernel}",
        of("/proc/cpuinfo", "model name"),
        of("/proc/meminfo", "MemTotal")
    )
}

impl TrialReport<'_> {
    fn sum(&self, of: impl Fn(&CaseOutcome) -> usize) -> usize {
        self.outcomes.iter().map(of).sum()
    }

    /// The sinks of cases, with the number of each.
    fn sinks_row(&self) -> String {
        let mut counts = BTreeMap::<_, usize>::new();
        for outcome in self.outcomes {
            let (Some(mode), Some(settings)) = (outcome.mode, outcome.settings) else { continue };
            *counts.entry(format!("{} with {}", mode_name(mode), settings.sinks.name())).or_default() += 1;
        }
        counts.iter().map(|(sinks, count)| format!("{sinks}: {count}")).collect::<Vec<_>>().join("; ")
    }

    fn table_rows(&self) -> Vec<(&'static str, String)> {
        let of_mode = |mode| self.outcomes.iter().filter(|outcome| outcome.mode == Some(mode)).count();
        let of_setting = |has: fn(&CaseSettings) -> bool| {
            self.outcomes.iter().filter_map(|outcome| outcome.settings.as_ref()).filter(|s| has(s)).count()
        };
        let over_tls = |outcome: &CaseOutcome| {
            let tls = outcome.settings.is_some_and(|settings| settings.tls);
            outcome.topologies.iter().filter(|topology| tls && topology.processes > 1).count()
        };
        let now = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string();
        let differences = self.sum(|outcome| outcome.comparisons.differences.len());
        let unfinished = self.sum(|outcome| usize::from(outcome.failure.is_some()));
        vec![
            ("version", version()),
            ("when", now),
            ("machine", machine()),
            ("seeds", format!("{}, {} faults each, {} cases at once", self.range, self.faults, self.lanes)),
            (
                "cases",
                format!("{} of the journal, {} of Kafka", of_mode(LogMode::Journal), of_mode(LogMode::Kafka)),
            ),
            (
                "settings",
                format!(
                    "`cluster.tls` in {} cases ({} starts of several processes), few open files (`ulimit -n`) in {}",
                    of_setting(|settings| settings.tls),
                    self.sum(over_tls),
                    of_setting(|settings| settings.open_files.is_some())
                ),
            ),
            ("sinks", self.sinks_row()),
            ("faults", self.sum(|outcome| outcome.faults.values().sum()).to_string()),
            ("starts of the service", self.sum(|outcome| outcome.starts).to_string()),
            ("ends of its own", self.sum(|outcome| outcome.own_ends).to_string()),
            ("records", self.sum(|outcome| outcome.records as usize).to_string()),
            ("comparisons", self.sum(|outcome| outcome.comparisons.made).to_string()),
            (
                "comparisons of folder sinks",
                format!(
                    "{}, with {} changes of rows",
                    self.sum(|outcome| outcome.folder_comparisons),
                    self.sum(|outcome| outcome.folder_changes)
                ),
            ),
            ("values compared", self.sum(|outcome| outcome.comparisons.values).to_string()),
            (
                "subscriptions",
                format!(
                    "resumed {} times, reset {} times",
                    self.sum(|outcome| outcome.resumed),
                    self.sum(|outcome| outcome.resets)
                ),
            ),
            ("cases that did not finish", unfinished.to_string()),
            ("**differences**", format!("**{differences}**")),
            ("time", format!("{:.0} s", self.time.as_secs_f64())),
        ]
    }
}

impl fmt::Display for TrialReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TrialReport { range, faults, .. } = self;
        writeln!(
            f,
            "# Trial of faults\n\n`scripts/trial --seeds {range} --faults {faults}`\n\n| | |\n|---|---|"
        )?;
        for (fact, value) in self.table_rows() {
            writeln!(f, "| {fact} | {value} |")?;
        }
        let (mut kinds, mut topologies) = (BTreeMap::<_, usize>::new(), BTreeMap::<_, usize>::new());
        for outcome in self.outcomes {
            outcome.faults.iter().for_each(|(kind, count)| *kinds.entry(kind).or_default() += count);
            outcome.topologies.iter().for_each(|topology| *topologies.entry(topology).or_default() += 1);
        }
        writeln!(f, "\n| fault | times |\n|---|---|")?;
        kinds.iter().try_for_each(|(kind, count)| writeln!(f, "| {kind} | {count} |"))?;
        writeln!(f, "\n| processes x workers | starts |\n|---|---|")?;
        topologies.iter().try_for_each(|(topology, count)| writeln!(f, "| {topology} | {count} |"))?;
        let bad: Vec<_> = self.outcomes.iter().filter(|outcome| !outcome.is_good()).collect();
        writeln!(f, "\n## Differences\n")?;
        if bad.is_empty() {
            return writeln!(f, "None.");
        }
        bad.into_iter().try_for_each(|outcome| writeln!(f, "```text\n{}\n```", case_line(outcome, *faults)))
    }
}
