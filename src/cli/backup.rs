//! `swelter backup` and `swelter restore`.

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{CliError, logging};
use crate::checkpoint::CheckpointLocation;
use crate::config::layers::ConfigLayers;
use crate::config::{Config, LoggingFormat, LoggingPlan, ServicePlan};
use crate::run::backup::{self, BackupError, BackupSummary};

/// Copy a data directory, its journal, checkpoints and dead letters, to a folder or an object store
///
/// The service may be running: it makes the copy of its journal itself, and what was acknowledged
/// before is in it. Each backup is a folder of its own below the place, named by time, and there as
/// a whole or not at all. It is read back before this ends.
#[derive(Args, Debug)]
pub struct BackupArgs {
    /// Where backups are: a folder, or s3://bucket/prefix; for that see AWS_ENDPOINT_URL and the
    /// like
    #[arg(long, value_name = "URL", required_unless_present = "verify")]
    to: Option<CheckpointLocation>,
    /// Read all of the backup at this place, or of the newest below it, and say whether it is whole
    #[arg(long, value_name = "URL", conflicts_with_all = ["to", "config", "data_dir"])]
    verify: Option<CheckpointLocation>,
    /// The configuration of the service, TOML
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data directory
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<String>,
    /// Write one JSON object
    #[arg(long)]
    json: bool,
}

/// Make a data directory of a backup
///
/// The journal gets an id of its own, so that it and the one that was copied are never taken for
/// each other.
#[derive(Args, Debug)]
pub struct RestoreArgs {
    /// A backup, or the place of many, of which the newest is taken
    #[arg(long, value_name = "URL")]
    from: CheckpointLocation,
    /// The data directory to make: not there yet, or empty
    #[arg(long, value_name = "FOLDER")]
    data_dir: PathBuf,
    /// Write one JSON object
    #[arg(long)]
    json: bool,
}

impl From<BackupError> for CliError {
    fn from(error: BackupError) -> CliError {
        CliError::Failed(error.to_string())
    }
}

impl BackupArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        start_warning_log();
        if let Some(place) = &self.verify {
            let checked = backup::verify_backup(place)?;
            return print_report(self.json, &checked, &format!("whole: {}\n", contents_text(&checked)));
        }
        let Some(to) = &self.to else { return Err(CliError::Usage("--to says where backups are".into())) };
        let plan = self.load_plan()?;
        // The folder that the service would use by default.
        let checkpoints = match &plan.checkpoints {
            Some(checkpoints) => checkpoints.location.to_string(),
            None => plan.data_dir.join(crate::checkpoint::DEFAULT_FOLDER).display().to_string(),
        };
        let report = backup::create_backup(&plan.data_dir, Some(checkpoints), to)?;
        let how = if report.online { "while the service runs" } else { "of a service that does not run" };
        let mut text = format!(
            "{}\ntaken {how} in {:.1} s, and read back whole\n",
            contents_text(&report.checked),
            report.seconds
        );
        report.left_out.iter().for_each(|what| text.push_str(&format!("left out: {what}\n")));
        print_report(self.json, &report, &text)
    }

    fn load_plan(&self) -> Result<ServicePlan, CliError> {
        let flags =
            self.data_dir.iter().map(|dir| ("data_dir".to_owned(), "--data-dir", dir.clone())).collect();
        let layers =
            ConfigLayers { file: self.config.clone(), environment: std::env::vars_os().collect(), flags };
        Ok(Config::load(&layers).map_err(CliError::Config)?.plan)
    }
}

impl RestoreArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        start_warning_log();
        let restored = backup::restore_backup(&self.from, &self.data_dir)?;
        let parent = restored.parent_id.as_ref().map_or_else(|| "one without an id".into(), String::clone);
        let text = format!(
            "{}\nrestored to {}; its journal has the id {}, made from {parent}\n",
            contents_text(&restored.checked),
            restored.data_dir,
            restored.journal_id
        );
        print_report(self.json, &restored, &text)
    }
}

/// Starts a log of warnings on standard error, so that a waiting command says why.
fn start_warning_log() {
    logging::start_logging(&LoggingPlan { format: LoggingFormat::Human, filter: "warn".into() }, None);
}

fn contents_text(checked: &BackupSummary) -> String {
    let BackupSummary { backup, created_at, records, checkpoints, files, bytes } = checked;
    format!(
        "{backup}\nof {created_at}: {records} records of the journal, {checkpoints} checkpoints, {files} other files; {bytes} bytes"
    )
}

fn print_report(as_json: bool, value: &impl Serialize, text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    let written = match as_json {
        true => serde_json::to_writer(&mut out, value).map_err(io::Error::from).and_then(|()| writeln!(out)),
        false => out.write_all(text.as_bytes()),
    };
    written.and_then(|()| out.flush()).map_err(|error| CliError::write_error(None, &error))
}
