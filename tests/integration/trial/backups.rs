//! Backups that a case takes while records arrive.

use std::path::{Path, PathBuf};

use super::comparisons::check_dead_letters;
use super::feeder::{PostedLog, TrialControl};
use super::plan::RULES;
use crate::support::{
    Oracle, RUN_SETTINGS, ServiceProcess, ServiceStatus, WAIT_TIMEOUT, check_current, check_history,
    record_json, swelter_command, wait_for,
};

/// A copy of a journal, and what must be in it.
pub struct TakenBackup {
    place: PathBuf,
    /// Posts that were in the log when it was begun, and the most that can have been there when it
    /// was done.
    pub least: usize,
    pub most: usize,
}

/// Runs a command of the built program.
fn run_swelter(command: &str, arguments: &[(&str, &Path)]) -> Result<(), String> {
    let mut program = swelter_command();
    program.arg(command);
    for (flag, path) in arguments {
        program.arg(flag).arg(path);
    }
    let output = program.output().unwrap();
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)))
}

impl TakenBackup {
    /// Takes a backup of a data directory while records are posted.
    pub fn take(place: PathBuf, data: &Path, shared: &TrialControl) -> Result<TakenBackup, String> {
        let least = shared.posted_batches();
        run_swelter("backup", &[("--to", &place), ("--data-dir", data)])?;
        Ok(TakenBackup { place, least, most: shared.posted_batches() + 1 })
    }

    /// Restores the backup, starts one process from it, and compares that with the recomputation of
    /// its posts. Returns how many values were compared.
    pub fn check(&self, posted: &PostedLog, cities: u32) -> usize {
        let data = self.place.with_extension("restored");
        let restored = run_swelter("restore", &[("--from", &self.place), ("--data-dir", &data)]);
        restored.unwrap_or_else(|error| panic!("{error}"));
        let config = format!("[results]\n{}\n[ingest]\npartitions = 5\n", RULES);
        let service = ServiceProcess::start(&data, &config).wait_until_ready();
        let records = wait_for("that all of a restored journal is applied", || {
            let status = ServiceStatus::fetch_status(&service.address, WAIT_TIMEOUT)?;
            (status.ready && status.applied == status.end).then_some(status.end)
        });
        let (oracle, late) = self.recompute_posts(posted, records);
        let current = check_current(&service.address, &oracle);
        let rows: usize = (0..cities).map(|city| check_history(&service.address, &oracle, city)).sum();
        service.terminate();
        current + rows + check_dead_letters(&data.join("dead-letters.jsonl"), &late)
    }

    /// The posts that make up so many records, and those of their records that are too late.
    fn recompute_posts(&self, posted: &PostedLog, records: u64) -> (Oracle, Vec<String>) {
        let mut left = records as usize;
        let mut oracle = Oracle::new(RUN_SETTINGS);
        let (mut posts, mut late) = (0, Vec::new());
        while left > 0 {
            let batch = &posted.batches[posts];
            left = left
                .checked_sub(batch.len())
                .unwrap_or_else(|| panic!("{records} records are no whole posts"));
            late.extend(batch.iter().filter(|entry| oracle.apply_arrival(entry).is_none()).map(record_json));
            posts += 1;
        }
        let TakenBackup { least, most, .. } = self;
        assert!((*least..=*most).contains(&posts), "{posts} posts in a backup that has {least} to {most}");
        (oracle, late)
    }
}
