//! Process 0 verifies checkpoints during a run by reading them: a new one at once, and all of them
//! periodically. Older checkpoints and records of the journal are removed only after the checkpoint
//! that replaces them was verified.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::repository::CheckpointRepository;
use crate::checkpoint::{CheckpointError, CheckpointName, Checkpoints, FileEntry, Manifest, NamedManifest};
use crate::run::log_identity::{LogVerdict, compare_log, recorded_logs};
use crate::sources::Source;
use crate::sources::journal::{self, Journal};

/// Read rate in bytes per second.
const BYTES_A_SECOND: u64 = 64 << 20;
/// How soon a failed store is tried again.
const STORE_RETRY: Duration = Duration::from_secs(60);
/// Interval at which a wait checks whether to end.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long a stop waits for the thread.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Verifies checkpoints on a thread of its own, until dropped.
pub(super) struct Verifier {
    published: Sender<CheckpointName>,
    has_damage: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Verifier {
    pub(super) fn start(
        repository: &CheckpointRepository,
        journal: Option<Arc<Journal>>,
    ) -> io::Result<Verifier> {
        let (published, named) = mpsc::channel();
        let (has_damage, stop) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let work = VerifierThread {
            checkpoints: repository.checkpoints.clone(),
            identity: repository.identity.clone(),
            journal_id: repository.log_ids.get(journal::SOURCE_NAME).cloned(),
            keep: repository.plan.keep_full,
            verify_every: Duration::from_millis(repository.plan.verify_interval.millis().unsigned_abs()),
            journal,
            read: BTreeSet::new(),
            verified: BTreeSet::new(),
            damaged: BTreeSet::new(),
            has_damage: Arc::clone(&has_damage),
            stop: Arc::clone(&stop),
        };
        let thread = thread::Builder::new().name("verify".into()).spawn(move || work.run(&named))?;
        Ok(Verifier { published, has_damage, stop, thread: Some(thread) })
    }

    /// Requests verification of a new checkpoint.
    pub(super) fn enqueue(&self, name: CheckpointName) {
        let _ = self.published.send(name);
    }

    /// Whether damage was found since the last call.
    pub(super) fn take_damage(&self) -> bool {
        self.has_damage.swap(false, Ordering::Relaxed)
    }
}

impl Drop for Verifier {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + STOP_TIMEOUT;
        // The thread waits only for the store. Do not wait for a store that takes longer.
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) && Instant::now() < deadline {
            thread::sleep(POLL_INTERVAL / 10);
        }
        drop(self.thread.take());
    }
}

struct VerifierThread {
    checkpoints: Checkpoints,
    identity: BTreeMap<String, String>,
    /// The id of the journal, if it has one.
    journal_id: Option<String>,
    keep: usize,
    verify_every: Duration,
    journal: Option<Arc<Journal>>,
    /// Checkpoints that were read, and those that were intact.
    read: BTreeSet<CheckpointName>,
    verified: BTreeSet<CheckpointName>,
    /// Objects that are known to be damaged or missing.
    damaged: BTreeSet<String>,
    has_damage: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

impl VerifierThread {
    fn run(mut self, published: &Receiver<CheckpointName>) {
        // Verify the checkpoints of earlier runs first.
        let mut due = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let is_new = match published.recv_timeout(POLL_INTERVAL) {
                Ok(_) => true,
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let is_due = Instant::now() >= due;
            if !is_new && !is_due {
                continue;
            }
            let verified = self.verify_all(is_due).and_then(|()| self.trim());
            match verified {
                Ok(()) if is_due => due = Instant::now() + self.verify_every,
                Ok(()) | Err(CheckpointError::Cancelled) => {}
                Err(error) => {
                    tracing::warn!(
                        "checkpoints cannot be verified, so no older ones are removed; it is retried: {error}"
                    );
                    due = Instant::now() + STORE_RETRY.min(self.verify_every);
                }
            }
        }
    }

    /// Verifies new checkpoints, or all.
    fn verify_all(&mut self, all: bool) -> Result<(), CheckpointError> {
        let began = Instant::now();
        let manifests = self.checkpoints.read_manifests()?;
        self.forget_others(&manifests);
        // Newest first, because a start would restore that one.
        for (name, manifest) in manifests.into_iter().rev() {
            if all || !self.read.contains(&name) {
                self.verify_checkpoint(name, manifest)?;
                self.read.insert(name);
            }
        }
        if all {
            metrics::counter!("swelter_checkpoint_verifications_total").increment(1);
            metrics::gauge!("swelter_checkpoint_verify_seconds").set(began.elapsed().as_secs_f64());
        }
        metrics::gauge!("swelter_checkpoint_damaged_files").set(self.damaged.len() as f64);
        Ok(())
    }

    /// Forgets checkpoints that were removed.
    fn forget_others(&mut self, manifests: &[NamedManifest]) {
        let names: BTreeSet<CheckpointName> = manifests.iter().map(|(name, _)| *name).collect();
        self.read.retain(|name| names.contains(name));
        self.verified.retain(|name| names.contains(name));
        let files = manifests.iter().filter_map(|(_, manifest)| manifest.as_ref().ok());
        let files = files.flat_map(|manifest| manifest.files().map(|file| &file.path));
        let mut paths: BTreeSet<&String> = files.collect();
        let unreadable: Vec<String> = names.iter().map(manifest_path).collect();
        paths.extend(&unreadable);
        self.damaged.retain(|path| paths.contains(path));
    }

    fn verify_checkpoint(
        &mut self,
        name: CheckpointName,
        manifest: Result<Arc<Manifest>, CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let manifest = match manifest {
            Ok(manifest) => {
                self.damaged.remove(&manifest_path(&name));
                manifest
            }
            Err(error) => {
                self.verified.remove(&name);
                self.report_damage(name, &manifest_path(&name), &error);
                return Ok(());
            }
        };
        let mut is_whole = true;
        for file in manifest.files() {
            match self.check_object(name, file) {
                Ok(()) => drop(self.damaged.remove(&file.path)),
                // Another process has removed it meanwhile.
                Err(CheckpointError::Damaged { .. }) if !self.is_there(name)? => return Ok(()),
                Err(error @ CheckpointError::Damaged { .. }) => {
                    is_whole = false;
                    self.report_damage(name, &file.path, &error);
                }
                Err(error) => return Err(error),
            }
        }
        match is_whole {
            true => drop(self.verified.insert(name)),
            false => drop(self.verified.remove(&name)),
        }
        Ok(())
    }

    fn is_there(&self, name: CheckpointName) -> Result<bool, CheckpointError> {
        Ok(self.checkpoints.list_names()?.contains(&name))
    }

    /// Checks an object. Damage is reported only if a second read confirms it.
    fn check_object(&self, name: CheckpointName, file: &FileEntry) -> Result<(), CheckpointError> {
        let began = Instant::now();
        let mut read = 0;
        let mut pace = |bytes: u64| {
            metrics::counter!("swelter_checkpoint_verified_bytes_total").increment(bytes);
            read += bytes;
            let earliest = began + Duration::from_micros(read * 1_000_000 / BYTES_A_SECOND);
            while let Some(pause) =
                earliest.checked_duration_since(Instant::now()).filter(|pause| !pause.is_zero())
            {
                if self.stop.load(Ordering::Relaxed) {
                    break;
                }
                thread::sleep(pause.min(POLL_INTERVAL));
            }
            match self.stop.load(Ordering::Relaxed) {
                true => Err(CheckpointError::Cancelled),
                false => Ok(()),
            }
        };
        match self.checkpoints.verify_file(name, file, &mut pace) {
            Err(CheckpointError::Damaged { .. }) if !self.damaged.contains(&file.path) => {
                self.checkpoints.verify_file(name, file, &mut pace)
            }
            checked => checked,
        }
    }

    /// Reports damage once, and renames the file; a full checkpoint is then due.
    fn report_damage(&mut self, name: CheckpointName, path: &str, error: &CheckpointError) {
        if !self.damaged.insert(path.to_owned()) {
            return;
        }
        metrics::counter!("swelter_checkpoint_damage_total").increment(1);
        self.has_damage.store(true, Ordering::Relaxed);
        let aside = error.damaged_path().map(|path| self.checkpoints.quarantine_object(path));
        if let Some(Err(error)) = aside {
            tracing::warn!("a damaged file of a checkpoint cannot be renamed: {error}");
        }
        tracing::warn!(
            checkpoint = %name,
            path,
            "a file of a checkpoint is damaged or missing: a full checkpoint is made now, and nothing is trimmed before it is complete; a damaged file is renamed to end in .damaged; restore the right file, and checkpoints that need it can be used again: {error}"
        );
    }

    /// Removes objects that only older checkpoints need, and the journal's records before all
    /// remaining checkpoints.
    fn trim(&self) -> Result<(), CheckpointError> {
        let trim = || {
            let remaining =
                self.checkpoints.prune_checkpoints(self.keep, &|manifest| self.is_trusted(manifest))?;
            let Some(journal) = &self.journal else { return Ok(()) };
            if let Err(error) = journal.trim_before(&covered_by_all(&remaining, &**journal)) {
                tracing::warn!("the journal cannot be trimmed below its checkpoints; it is retried: {error}");
            }
            Ok(())
        };
        match &self.journal {
            // A backup blocks removal; the next checkpoint tries again.
            Some(journal) => journal.trim_unless_blocked(trim).unwrap_or(Ok(())),
            None => trim(),
        }
    }

    /// Whether older checkpoints may be removed in favour of this one: it was verified, and this
    /// run could restore it.
    fn is_trusted(&self, manifest: &Manifest) -> bool {
        self.verified.contains(&manifest.name())
            && manifest.check_identity(&self.identity).is_ok()
            && self
                .journal
                .as_ref()
                .is_none_or(|journal| is_of_journal(manifest, self.journal_id.as_ref(), &**journal))
    }
}

fn manifest_path(name: &CheckpointName) -> String {
    format!("manifests/{name}.json")
}

/// Whether a checkpoint belongs to this journal. A checkpoint of a copy does not count, even if its
/// records fit: nothing is removed in its favour.
pub(super) fn is_of_journal(manifest: &Manifest, id: Option<&String>, journal: &dyn Source) -> bool {
    let recorded = recorded_logs(manifest).find(|recorded| recorded.source == journal.name());
    let compare = |recorded| {
        compare_log(recorded, id.map(String::as_str), &|partition, at| journal.check_position(partition, at))
    };
    recorded.is_some_and(|recorded| compare(recorded).is_ok_and(|verdict| verdict == LogVerdict::Same))
}

/// The journal positions that all of these checkpoints include; none if there is no checkpoint.
pub(super) fn covered_by_all(manifests: &[Arc<Manifest>], journal: &dyn Source) -> Vec<(u32, u64)> {
    let of_journal = |manifest: &Arc<Manifest>| manifest.positions.get(journal.name()).cloned();
    let all: Vec<BTreeMap<u32, u64>> =
        manifests.iter().map(|manifest| of_journal(manifest).unwrap_or_default()).collect();
    let Some(newest) = all.first() else { return Vec::new() };
    let least = |partition: &u32| all.iter().map(|of| of.get(partition).copied().unwrap_or(0)).min();
    newest.keys().filter_map(|partition| Some((*partition, least(partition)?))).collect()
}
