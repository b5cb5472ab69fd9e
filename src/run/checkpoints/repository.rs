//! The location of a run's checkpoints, and the identity of the results that they hold.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::place::{checkpoint_place, open_checkpoints};
use super::written_parts::WrittenParts;
use crate::checkpoint::{
    CheckpointError, CheckpointLocation, Checkpoints, Manifest, PartWriter, PositionsBySource, WorkerPart,
};
use crate::config::{CheckpointPlan, ServicePlan};
use crate::model::{
    CheckpointBarrier, LogIdentity, LogPosition, PartitionIndex, PartitionName, PartitionTable, STATE_SHARDS,
    Topology,
};
use crate::run::durable_sinks::log_identity;
use crate::run::protocol::{CheckpointSettings, LoadFailure, LoadFailureKind};
use crate::run::run_error::RunError;
use crate::worker::{RestoredCity, RestoredWorkers, WorkerState};

/// The checkpoints that this run reads and writes.
#[derive(Clone)]
pub struct CheckpointRepository {
    pub(super) checkpoints: Checkpoints,
    pub(super) plan: CheckpointPlan,
    pub(super) identity: BTreeMap<String, String>,
    /// Ids of the logs that have one, by source.
    pub(super) log_ids: BTreeMap<String, String>,
    /// The generation in the names of this run's checkpoints.
    pub(super) generation: String,
}

/// The state of a checkpoint, as the workers of a process restore it.
pub struct RestoredState {
    /// By worker of this process.
    workers: Vec<WorkerState>,
    cities: HashMap<PartitionIndex, Vec<RestoredCity>>,
}

/// At process 0: the location of this run's checkpoints; none if it makes none.
pub fn choose_checkpoint_settings(
    plan: &ServicePlan,
    in_data_dir: bool,
    log_ids: BTreeMap<String, String>,
    generation: &str,
) -> Result<Option<CheckpointSettings>, RunError> {
    let Some(location) = checkpoint_place(plan, in_data_dir) else { return Ok(None) };
    let name = open_checkpoints(&location)?.unused_generation_name(generation)?;
    if name != generation {
        tracing::info!(
            generation,
            named = name,
            "the generation count has restarted below that of earlier checkpoints; the names of checkpoints continue the earlier count"
        );
    }
    Ok(Some(CheckpointSettings { place: location, generation: name, log_ids }))
}

/// The settings that decide results.
fn results_identity(plan: &ServicePlan) -> BTreeMap<String, String> {
    let mut identity = log_identity(plan);
    identity.insert("results.formula".into(), plan.formula.name().to_owned());
    identity.insert("results.window".into(), plan.retention.window.to_string());
    identity.insert("results.history".into(), plan.retention.history.to_string());
    identity
}

impl CheckpointRepository {
    pub fn open(plan: &ServicePlan, settings: &CheckpointSettings) -> Result<CheckpointRepository, RunError> {
        let CheckpointSettings { place, generation, log_ids } = settings.clone();
        let without = || {
            RunError::Failed("process 0 restores a checkpoint, and this process has no checkpoints configured: give all processes the same configuration".into())
        };
        Ok(CheckpointRepository {
            checkpoints: open_checkpoints(&place)?,
            plan: plan.checkpoints.clone().ok_or_else(without)?,
            identity: results_identity(plan),
            log_ids,
            generation,
        })
    }

    pub fn location(&self) -> &CheckpointLocation {
        self.checkpoints.location()
    }

    /// Loads the states of the workers of this process.
    pub fn load(
        &self,
        name: &str,
        partitions: &PartitionTable,
        topology: Topology,
    ) -> Result<RestoredState, CheckpointError> {
        let manifest = self.checkpoints.read_manifest(name.parse().map_err(CheckpointError::Unreadable)?)?;
        let first = topology.serving_worker_of(topology.process);
        let mut workers = Vec::new();
        for worker in first..first + topology.workers_per_process {
            let shards =
                (0..STATE_SHARDS).filter(|shard| *shard as usize % topology.total_workers() == worker);
            let cities = self.checkpoints.load_shards(&manifest, &shards.collect::<Vec<_>>(), partitions)?;
            workers.push(WorkerState { cities, snapshots: None });
        }
        let indexes: HashMap<PartitionName, PartitionIndex> =
            (0..).map(PartitionIndex).zip(partitions.names()).map(|(index, name)| (name, index)).collect();
        let mut cities: HashMap<PartitionIndex, Vec<RestoredCity>> = HashMap::new();
        for state in self.checkpoints.admission_states(&manifest, &|_| true)? {
            if let Some(index) = indexes.get(&state.partition) {
                let readings = u32::try_from(state.readings).unwrap_or(u32::MAX);
                let city = RestoredCity { city: state.city, high: state.high, readings };
                cities.entry(*index).or_default().push(city);
            }
        }
        Ok(RestoredState { workers, cities })
    }

    /// Whether all processes have loaded the checkpoint. Another process may fail to read objects
    /// that are intact, so this one reads all of them before it quarantines the checkpoint.
    pub(super) fn verdict(
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

    /// Quarantines the object if it is damaged for this process, too. Checkpoints that extend this
    /// one stay unchanged.
    fn recheck(
        &self,
        manifest: &Manifest,
        process: usize,
        why: &str,
        is_following: bool,
    ) -> Result<(), RunError> {
        let name = manifest.name();
        let read = self.checkpoints.read_manifest(name);
        let read = read.and_then(|manifest| self.checkpoints.verify_contents(&manifest));
        match read.map_err(|error| (load_failure(&error).kind, error)) {
            Ok(_) if process != 0 => Err(RunError::Failed(format!(
                "process {process}: {why}: but process 0 can read all of this checkpoint, so the two read different stores: give all processes the same checkpoints.url, or a file system that they share"
            ))),
            // It was removed meanwhile, or can be read now.
            Ok(_) | Err((LoadFailureKind::Missing, _)) => Ok(()),
            // While another generation runs, the checkpoints belong to that one.
            Err((LoadFailureKind::Damaged, _)) if is_following => Ok(()),
            Err((LoadFailureKind::Damaged, error)) => {
                let Some(path) = error.damaged_path() else { return Ok(()) };
                self.checkpoints.quarantine_object(path)?;
                tracing::warn!(
                    checkpoint = %name,
                    path,
                    "a file of a checkpoint is damaged: it was renamed to end in .damaged, and an older checkpoint is tried; restore the right file, and checkpoints that need it can be used again"
                );
                Ok(())
            }
            Err((_, error)) => Err(error.into()),
        }
    }

    /// The log positions and log ids that a checkpoint includes.
    pub(super) fn covered_positions(
        &self,
        covered: &BTreeMap<PartitionIndex, LogPosition>,
        partitions: &PartitionTable,
    ) -> (PositionsBySource, BTreeMap<String, LogIdentity>) {
        let (mut positions, mut logs) = (PositionsBySource::new(), BTreeMap::<String, LogIdentity>::new());
        let names = partitions.names();
        let named = covered.iter().filter_map(|(index, at)| Some((names.get(usize::from(index.0))?, at)));
        for (PartitionName { source, partition }, at) in named {
            positions.entry(source.to_string()).or_default().insert(*partition, at.position);
            let id = || LogIdentity { id: self.log_ids.get(&**source).cloned(), ..LogIdentity::default() };
            let log = logs.entry(source.to_string()).or_insert_with(id);
            log.before.extend(at.before.map(|before| (*partition, before)));
        }
        (positions, logs)
    }

    /// The initial states of this process's workers. The parts that they write are collected in
    /// `parts`.
    pub fn worker_states(
        &self,
        restored: Option<RestoredState>,
        partitions: &PartitionTable,
        workers: usize,
        parts: &Arc<WrittenParts>,
    ) -> Result<RestoredWorkers, RunError> {
        let (mut states, cities) =
            restored.map_or_else(Default::default, |restored| (restored.workers, restored.cities));
        states.resize_with(workers, WorkerState::default);
        for state in &mut states {
            let (written_parts, checkpoints) = (Arc::clone(parts), self.checkpoints.clone());
            let on_part =
                Box::new(move |barrier: CheckpointBarrier, _, part: Result<WorkerPart, CheckpointError>| {
                    let unwanted = written_parts.add(barrier, part.map_err(|error| error.to_string()));
                    checkpoints.discard_parts(unwanted.as_slice());
                });
            let (checkpoints, writers) = (self.checkpoints.clone(), Arc::clone(&parts.writers));
            let writer =
                PartWriter::spawn(checkpoints, &self.generation, partitions.clone(), writers, on_part);
            state.snapshots = Some(Box::new(writer.map_err(RunError::Threads)?));
        }
        Ok(RestoredWorkers::new(states, cities))
    }
}

/// Classifies the error of a checkpoint that could not be loaded.
pub fn load_failure(error: &CheckpointError) -> LoadFailure {
    let kind = match error {
        CheckpointError::Damaged { .. } | CheckpointError::Unreadable(_) => LoadFailureKind::Damaged,
        CheckpointError::Missing(_) => LoadFailureKind::Missing,
        error if error.is_specific_to_checkpoint() => LoadFailureKind::Unfit,
        _ => LoadFailureKind::Store,
    };
    LoadFailure { why: error.to_string(), kind }
}
