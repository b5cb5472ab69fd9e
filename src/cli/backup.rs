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

/// Back up a data directory (journal, checkpoints, dead letters) to a folder or an object store
///
/// The service may be running: it copies its journal itself, and every reading that it acknowledged
/// before is in the backup. Each backup is a folder of its own in the place, named by time, and
/// appears only once it is complete. It is verified before the command ends.
#[derive(Args, Debug)]
pub struct BackupArgs {
    /// The place of backups: a folder, or s3://bucket/prefix with the variables AWS_ACCESS_KEY_ID,
    /// AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL
    #[arg(long, value_name = "URL", required_unless_present = "verify")]
    to: Option<CheckpointLocation>,
    /// Read all of the backup at this place, or of the newest one in it, and report whether it is
    /// complete
    #[arg(long, value_name = "URL", conflicts_with_all = ["to", "config", "data_dir"])]
    verify: Option<CheckpointLocation>,
    /// The configuration file of the service, TOML
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data directory [default: that of the configuration]
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Restore a backup into a new data directory
///
/// The restored journal gets an id of its own, so that it is not confused with the original.
#[derive(Args, Debug)]
pub struct RestoreArgs {
    /// A backup, or the place of several, of which the newest is restored
    #[arg(long, value_name = "URL")]
    from: CheckpointLocation,
    /// The data directory to create; it must not exist yet, or be empty
    #[arg(long, value_name = "FOLDER")]
    data_dir: PathBuf,
    /// Print one JSON object
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
        if let Some(location) = &self.verify {
            let checked = backup::verify_backup(location)?;
            return print_report(self.json, &checked, &format!("complete: {}\n", contents_text(&checked)));
        }
        let Some(to) = &self.to else {
            return Err(CliError::Usage(
                "--to is missing: name the folder or object store of backups".into(),
            ));
        };
        let plan = self.load_plan()?;
        // The folder that the service would use by default.
        let checkpoints = match &plan.checkpoints {
            Some(checkpoints) => checkpoints.location.to_string(),
            None => plan.data_dir.join(crate::checkpoint::DEFAULT_FOLDER).display().to_string(),
        };
        let report = backup::create_backup(&plan.data_dir, Some(checkpoints), to)?;
        let how = if report.online { "while the service runs" } else { "while the service is stopped" };
        let mut text = format!(
            "{}\ntaken {how} in {:.1} s, and verified\n",
            contents_text(&report.checked),
            report.seconds
        );
        report.left_out.iter().for_each(|item| text.push_str(&format!("left out: {item}\n")));
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
