//! Checkpoints of a run: taken up at its start, and made while it goes on.
//!
//! Process 0 asks for one with a mark, which is data: it has an epoch, the same at all workers. Each worker writes the state after that epoch
//! ([`PartWriter`]). Once all workers of a process have, and its shards have made durable all that the epoch includes, the process hands
//! in its part; with the parts of all, process 0 publishes. What was published it reads back, and gives up what only older checkpoints needed
//! once that is whole (`verifying`).

mod candidates;
mod coordinator;
#[cfg(test)]
mod tests;
mod verifier;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use self::candidates::CheckpointCandidates;
pub use self::candidates::RestoreContext;
pub use self::coordinator::CheckpointCoordinator;
use super::logs::Logs;
use super::processes::Processes;
use super::run_error::RunError;
use crate::checkpoint::{
    CheckpointError, CheckpointLocation, Checkpoints, Manifest, PartWriter, PartWriterControl,
    PositionsBySource, SOURCE_KEY_PREFIX, WorkerPart,
};
use crate::cluster::ValueName;
use crate::config::{CheckpointPlan, ServicePlan, SourceKind};
use crate::model::{
    CheckpointBarrier, LogIdentity, LogPosition, PartitionIndex, PartitionName, PartitionTable, STATE_SHARDS,
};
use crate::worker::{RestoredCity, RestoredWorkers, WorkerState};

/// Where a run has its checkpoints, and what they are computed with.
pub struct CheckpointRepository {
    checkpoints: Checkpoints,
    plan: CheckpointPlan,
    identity: BTreeMap<String, String>,
    /// By source: the ids of the logs that have one.
    ids: BTreeMap<String, String>,
    /// As checkpoints of this run are named.
    generation: String,
}

/// Why a process has not loaded a checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct LoadFailure {
    why: String,
    kind: LoadFailureKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum LoadFailureKind {
    Damaged,
    Missing,
    /// It is whole, and not for this run.
    Unfit,
    /// It is the store that fails.
    Store,
}

impl LoadFailure {
    fn of(error: &CheckpointError) -> LoadFailure {
        let kind = match error {
            CheckpointError::Damaged { .. } | CheckpointError::Unreadable(_) => LoadFailureKind::Damaged,
            CheckpointError::Missing(_) => LoadFailureKind::Missing,
            error if error.is_specific_to_checkpoint() => LoadFailureKind::Unfit,
            _ => LoadFailureKind::Store,
        };
        LoadFailure { why: error.to_string(), kind }
    }
}

/// The state that a run begins with.
pub struct RestoredState {
    /// The epoch of the checkpoint, and up to where it includes the logs.
    pub epoch: u64,
    pub positions: PositionsBySource,
    pub logs: BTreeMap<String, LogIdentity>,
    /// By worker of this process.
    states: Vec<WorkerState>,
    highs: HashMap<PartitionIndex, Vec<RestoredCity>>,
}

impl CheckpointRepository {
    /// None where the run makes none.
    pub fn open(
        plan: &ServicePlan,
        logs: &Logs,
        ids: BTreeMap<String, String>,
        processes: &Processes,
        generation: &str,
    ) -> Result<Option<CheckpointRepository>, RunError> {
        let in_data_dir = logs.data_dir().is_some();
        let place = processes
            .share(ValueName::OPTIONAL_TEXT, || Ok::<_, RunError>(checkpoint_place(plan, in_data_dir)))?;
        let Some((place, checkpoints)) = place.zip(plan.checkpoints.clone()) else { return Ok(None) };
        let place: CheckpointLocation =
            place.parse().map_err(|error| RunError::Failed(format!("checkpoints.url: {error}")))?;
        let (kept, plan_) = (Checkpoints::open(&place)?, checkpoints);
        let named = processes
            .share(ValueName::TEXT, || Ok::<_, RunError>(kept.unused_generation_name(generation)?))?;
        if named != generation {
            tracing::info!(
                generation,
                named,
                "generations are counted anew: in the names of checkpoints they go on"
            );
        }
        Ok(Some(CheckpointRepository {
            checkpoints: kept,
            plan: plan_,
            identity: results_identity(plan),
            ids,
            generation: named,
        }))
    }

    pub fn place(&self) -> &CheckpointLocation {
        self.checkpoints.location()
    }

    /// Takes up the newest checkpoint that all processes can load, if there is one.
    ///
    /// # Errors
    ///
    /// Where there would be one if something else were as it should be.
    pub fn take_up(
        &self,
        beginning: &RestoreContext<'_>,
        slots: &PartitionTable,
        processes: &Processes,
    ) -> Result<Option<RestoredState>, RunError> {
        let mut candidates = CheckpointCandidates::new(self, beginning);
        loop {
            let began = Instant::now();
            let mut next = None;
            let name: Option<String> = processes.share(ValueName::OPTIONAL_TEXT, || {
                next = candidates.next()?;
                Ok::<_, RunError>(next.as_ref().map(|manifest| manifest.name().to_string()))
            })?;
            let Some(name) = name else { return Ok(None) };
            let loaded = self.load(&name, slots, processes);
            let all =
                processes.gather(ValueName::LOAD_FAILURE, loaded.as_ref().err().map(LoadFailure::of))?;
            let is_good = processes.share(ValueName::FLAG, || match &next {
                Some(manifest) => self.verdict(manifest, all, beginning.is_following),
                None => Ok(false),
            })?;
            if let (true, Ok(taken)) = (is_good, loaded) {
                tracing::info!(checkpoint = name, took = ?began.elapsed(), "a checkpoint is taken up");
                return Ok(Some(taken));
            }
        }
    }

    fn load(
        &self,
        name: &str,
        slots: &PartitionTable,
        processes: &Processes,
    ) -> Result<RestoredState, CheckpointError> {
        let topology = processes.topology();
        let manifest = self.checkpoints.read_manifest(name.parse().map_err(CheckpointError::Unreadable)?)?;
        let own = (0..topology.workers_per_process)
            .map(|worker| topology.serving_worker_of(topology.process) + worker);
        let mut states = Vec::new();
        for worker in own {
            let shards =
                (0..STATE_SHARDS).filter(|shard| *shard as usize % topology.total_workers() == worker);
            let cities = self.checkpoints.load_shards(&manifest, &shards.collect::<Vec<_>>(), slots)?;
            states.push(WorkerState { cities, snapshots: None });
        }
        let names: HashMap<PartitionName, PartitionIndex> =
            (0..).map(PartitionIndex).zip(slots.names()).map(|(slot, name)| (name, slot)).collect();
        let mut highs: HashMap<PartitionIndex, Vec<RestoredCity>> = HashMap::new();
        for known in self.checkpoints.admission_states(&manifest, &|_| true)? {
            if let Some(slot) = names.get(&known.partition) {
                let readings = u32::try_from(known.readings).unwrap_or(u32::MAX);
                highs.entry(*slot).or_default().push(RestoredCity {
                    city: known.city,
                    high: known.high,
                    readings,
                });
            }
        }
        let Manifest { epoch, positions, logs, .. } = manifest;
        Ok(RestoredState { epoch, positions, logs, states, highs })
    }

    /// Whether all have loaded it. What another process cannot read may be fine, so this one reads all of it before it is put aside.
    fn verdict(
        &self,
        manifest: &Manifest,
        all: Vec<Option<LoadFailure>>,
        is_following: bool,
    ) -> Result<bool, RunError> {
        let failed = (0..).zip(all).filter_map(|(process, failure)| Some((process, failure?)));
        let failed: Vec<(usize, LoadFailure)> = failed.collect();
        for (process, LoadFailure { why, kind }) in &failed {
            if *kind == LoadFailureKind::Store {
                return Err(RunError::Failed(format!("process {process}: {why}")));
            }
            tracing::warn!(peer = process, "a checkpoint is not used: {why}");
        }
        let is_doubtful = |failure: &LoadFailure| failure.kind != LoadFailureKind::Unfit;
        if let Some((process, failure)) = failed.iter().find(|(_, failure)| is_doubtful(failure)) {
            self.recheck(manifest, *process, &failure.why, is_following)?;
        }
        Ok(failed.is_empty())
    }

    /// Puts the object aside that is damaged for this process, too. What adds to its checkpoint stays as it is.
    fn recheck(
        &self,
        manifest: &Manifest,
        process: usize,
        why: &str,
        is_following: bool,
    ) -> Result<(), RunError> {
        let name = manifest.name();
        let read = self
            .checkpoints
            .read_manifest(name)
            .and_then(|manifest| self.checkpoints.verify_contents(&manifest));
        match read.map_err(|error| (LoadFailure::of(&error).kind, error)) {
            Ok(_) if process != 0 => Err(RunError::Failed(format!(
                "process {process}: {why}: but process 0 can read all of it, so it is not the same store: make sure that all processes \
                 reach the same checkpoints"
            ))),
            // It was given up meanwhile, or can be read now.
            Ok(_) | Err((LoadFailureKind::Missing, _)) => Ok(()),
            // While another generation runs, they are that one's.
            Err((LoadFailureKind::Damaged, _)) if is_following => Ok(()),
            Err((LoadFailureKind::Damaged, error)) => {
                let Some(path) = error.damaged_path() else { return Ok(()) };
                self.checkpoints.quarantine_object(path)?;
                tracing::warn!(
                    checkpoint = %name,
                    path,
                    "a file of a checkpoint is damaged: it is renamed to end in .damaged; with the right file in its place, what needs it is used again"
                );
                Ok(())
            }
            Err((_, error)) => Err(error.into()),
        }
    }

    /// Up to where a checkpoint includes the logs, and what they are known by.
    fn covered_positions(
        &self,
        covered: &BTreeMap<PartitionIndex, LogPosition>,
        slots: &PartitionTable,
    ) -> (PositionsBySource, BTreeMap<String, LogIdentity>) {
        let (mut positions, mut logs) = (PositionsBySource::new(), BTreeMap::<String, LogIdentity>::new());
        let names = slots.names();
        let named = covered.iter().filter_map(|(slot, at)| Some((names.get(usize::from(slot.0))?, at)));
        for (PartitionName { source, partition }, at) in named {
            positions.entry(source.to_string()).or_default().insert(*partition, at.position);
            let id = || LogIdentity { id: self.ids.get(&**source).cloned(), ..LogIdentity::default() };
            let log = logs.entry(source.to_string()).or_insert_with(id);
            log.before.extend(at.before.map(|before| (*partition, before)));
        }
        (positions, logs)
    }

    /// What the workers of this process begin with; what they write is collected in `parts`.
    pub fn worker_states(
        &self,
        taken: Option<RestoredState>,
        slots: &PartitionTable,
        workers: usize,
        parts: &Arc<WrittenParts>,
    ) -> Result<RestoredWorkers, RunError> {
        let (mut states, highs) = taken.map_or_else(Default::default, |taken| (taken.states, taken.highs));
        states.resize_with(workers, WorkerState::default);
        for state in &mut states {
            let (own, checkpoints) = (Arc::clone(parts), self.checkpoints.clone());
            let done =
                Box::new(move |mark: CheckpointBarrier, _, part: Result<WorkerPart, CheckpointError>| {
                    let unwanted = own.add(mark, part.map_err(|error| error.to_string()));
                    checkpoints.discard_parts(unwanted.as_slice());
                });
            let (checkpoints, writers) = (self.checkpoints.clone(), Arc::clone(&parts.writers));
            let writer = PartWriter::spawn(checkpoints, &self.generation, slots.clone(), writers, done);
            let writer = writer.map_err(RunError::Threads)?;
            state.snapshots = Some(Box::new(writer));
        }
        Ok(RestoredWorkers::new(states, highs))
    }
}

/// Where checkpoints are, as all processes must write it: none where there are to be none.
fn checkpoint_place(plan: &ServicePlan, in_data_dir: bool) -> Option<String> {
    let checkpoints = plan.checkpoints.as_ref()?;
    let is_generator = |kind: &SourceKind| matches!(kind, SourceKind::Generator(_));
    if plan.ingest.is_none() && plan.sources.iter().any(|source| is_generator(&source.kind)) {
        // What is made up is in no log then, so no position means anything later.
        return None;
    }
    match &checkpoints.location {
        _ if !checkpoints.is_configured && !in_data_dir => {
            tracing::info!(
                "there are no checkpoints, so every start reads all of the logs: see checkpoints.url"
            );
            None
        }
        CheckpointLocation::Folder(folder) => {
            let absolute = std::path::absolute(folder).unwrap_or_else(|_| PathBuf::from(folder));
            Some(absolute.display().to_string())
        }
        place => Some(place.to_string()),
    }
}

/// What decides results.
/// The topics of which the newest checkpoint that can be read includes records.
pub fn topics_in_checkpoints(plan: &ServicePlan, in_data_dir: bool) -> Result<BTreeSet<String>, RunError> {
    let Some(place) = checkpoint_place(plan, in_data_dir) else { return Ok(BTreeSet::new()) };
    let place: CheckpointLocation =
        place.parse().map_err(|error| RunError::Failed(format!("checkpoints.url: {error}")))?;
    let kept = Checkpoints::open(&place)?;
    let newest = kept.list_names()?.into_iter().find_map(|name| kept.read_manifest(name).ok());
    let Some(Manifest { positions, identity, .. }) = newest else { return Ok(BTreeSet::new()) };
    let topic = |source: &String| {
        let read = identity.get(&format!("{SOURCE_KEY_PREFIX}{source}"))?.strip_prefix("topic ")?;
        Some(read.split(" as ").next()?.to_owned())
    };
    Ok(positions.keys().filter_map(topic).collect())
}

fn results_identity(plan: &ServicePlan) -> BTreeMap<String, String> {
    let mut identity = super::durable_sinks::log_identity(plan);
    identity.insert("results.formula".into(), plan.formula.name().to_owned());
    identity.insert("results.window".into(), plan.retention.window.to_string());
    identity.insert("results.history".into(), plan.retention.history.to_string());
    identity
}

/// What the workers of this process have written.
#[derive(Default)]
pub struct WrittenParts {
    written: Mutex<HashMap<u64, Vec<Result<WorkerPart, String>>>>,
    writers: Arc<PartWriterControl>,
}

impl WrittenParts {
    /// Gives a part back that came too late.
    fn add(&self, mark: CheckpointBarrier, part: Result<WorkerPart, String>) -> Option<WorkerPart> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if self.writers.is_cancelled(mark.checkpoint) {
            return part.ok();
        }
        written.entry(mark.checkpoint).or_default().push(part);
        None
    }

    /// All of a checkpoint, once they are all there.
    fn take_complete(&self, checkpoint: u64, workers: usize) -> Option<Vec<Result<WorkerPart, String>>> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let are_there = written.get(&checkpoint).is_some_and(|parts| parts.len() >= workers);
        are_there.then(|| written.remove(&checkpoint).unwrap_or_default())
    }

    /// Nothing more is written of a checkpoint, nor of any before. Gives what was.
    fn cancel(&self, checkpoint: u64) -> Vec<WorkerPart> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        self.writers.cancel_checkpoint(checkpoint);
        let unwanted = written.extract_if(|known, _| *known <= checkpoint);
        unwanted.flat_map(|(_, parts)| parts).filter_map(Result::ok).collect()
    }
}

impl RestoredState {
    /// Where a partition is read from that would otherwise be read from `start`.
    pub fn start_position(&self, name: &PartitionName, start: u64) -> LogPosition {
        let known = self.positions.get(&*name.source).and_then(|of| of.get(&name.partition));
        let before = self.logs.get(&*name.source).and_then(|log| log.before.get(&name.partition));
        known.map_or(start.into(), |position| LogPosition { position: *position, before: before.copied() })
    }
}
