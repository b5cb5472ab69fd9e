//! Checkpoints of a run: taken up at its start, and made while it goes on.
//!
//! Process 0 asks for one with a mark, which is data: it has an epoch, the same at all workers. Each worker writes the state after that epoch
//! ([`PartWriter`]). Once all workers of a process have, and its shards have made durable all that the epoch includes, the process hands
//! in its part; with the parts of all, process 0 publishes, and gives up what only older checkpoints needed.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration as Wait, Instant};

use super::live::RunError;
use super::logs::Logs;
use super::processes::Processes;
use crate::checkpoint::{CheckpointError, Checkpoints, Cut, Manifest, Part, PartWriter, Place, Positions};
use crate::cluster::message::Message;
use crate::config::{CheckpointPlan, Plan, SourceKind};
use crate::model::{Mark, PartitionName, STATE_SHARDS, Slot, Slots};
use crate::sinks::kafka::{Ends, progress as sinks};
use crate::sources::journal::Journal;
use crate::worker::{CityHigh, Marked, Shared, State, States};

/// After this long a checkpoint that is not there is given up.
const PATIENCE: Wait = Wait::from_secs(15 * 60);

/// Where a run has its checkpoints, and what they are computed with.
pub struct Checkpointed {
    checkpoints: Checkpoints,
    plan: CheckpointPlan,
    identity: BTreeMap<String, String>,
}

/// The state that a run begins with.
pub struct TakenUp {
    /// The epoch of the checkpoint, and up to where it includes the logs.
    pub epoch: u64,
    pub positions: Positions,
    /// By worker of this process.
    states: Vec<State>,
    highs: HashMap<Slot, Vec<CityHigh>>,
}

impl Checkpointed {
    /// None where the run makes none.
    pub fn open(plan: &Plan, logs: &Logs, processes: &Processes) -> Result<Option<Checkpointed>, RunError> {
        let in_data_dir = logs.data_dir().is_some();
        let place = processes.share(|| Ok::<_, RunError>(place(plan, in_data_dir)))?;
        let Some((place, checkpoints)) = place.zip(plan.checkpoints.clone()) else { return Ok(None) };
        let place: Place =
            place.parse().map_err(|error| RunError::Failed(format!("checkpoints.url: {error}")))?;
        let kept = Checkpointed {
            checkpoints: Checkpoints::open(&place)?,
            plan: checkpoints,
            identity: identity(plan),
        };
        Ok(Some(kept))
    }

    /// Takes up the newest checkpoint that all processes can load, if there is one.
    pub fn take_up(
        &self,
        logs: &Logs,
        slots: &Slots,
        processes: &Processes,
    ) -> Result<Option<TakenUp>, RunError> {
        let mut candidates = match processes.topology().is_first() {
            true => {
                self.checkpoints.usable(&self.identity)?.into_iter().filter(|one| fits(one, logs)).collect()
            }
            false => Vec::new(),
        }
        .into_iter();
        loop {
            let began = Instant::now();
            let next = candidates.next();
            let name = next.as_ref().map(|manifest: &Manifest| manifest.name().to_string());
            let name: Option<String> = processes.share(|| Ok::<_, RunError>(name))?;
            let Some(name) = name else { return Ok(None) };
            let loaded = self.load(&name, slots, processes);
            let failed = loaded.as_ref().err().map(|error| (error.to_string(), error.is_of_this_one()));
            let all = processes.gather(failed)?;
            let is_good = processes.share(|| self.judge(next.as_ref(), all))?;
            if let (true, Ok(taken)) = (is_good, loaded) {
                tracing::info!(checkpoint = name, took = ?began.elapsed(), "a checkpoint is taken up");
                return Ok(Some(taken));
            }
        }
    }

    fn load(&self, name: &str, slots: &Slots, processes: &Processes) -> Result<TakenUp, CheckpointError> {
        let topology = processes.topology();
        let manifest = self.checkpoints.read(name.parse().map_err(CheckpointError::Unreadable)?)?;
        let own = (0..topology.workers).map(|worker| topology.teller_of(topology.process) + worker);
        let mut states = Vec::new();
        for worker in own {
            let shards = (0..STATE_SHARDS).filter(|shard| *shard as usize % topology.peers() == worker);
            let cities = self.checkpoints.load(&manifest, &shards.collect::<Vec<_>>(), slots)?;
            states.push(State { cities, snapshots: None });
        }
        let names: HashMap<PartitionName, Slot> =
            (0..).map(Slot).zip(slots.all()).map(|(slot, name)| (name, slot)).collect();
        let mut highs: HashMap<Slot, Vec<CityHigh>> = HashMap::new();
        for known in self.checkpoints.highs(&manifest, &|_| true)? {
            if let Some(slot) = names.get(&known.partition) {
                let readings = u32::try_from(known.readings).unwrap_or(u32::MAX);
                highs.entry(*slot).or_default().push(CityHigh {
                    city: known.city,
                    high: known.high,
                    readings,
                });
            }
        }
        Ok(TakenUp { epoch: manifest.epoch, positions: manifest.positions, states, highs })
    }

    /// Whether all have loaded it; one that is damaged is put aside.
    fn judge(&self, manifest: Option<&Manifest>, all: Vec<Option<(String, bool)>>) -> Result<bool, RunError> {
        let mut is_good = true;
        for (process, (why, is_damaged)) in
            all.into_iter().enumerate().filter_map(|(process, failed)| Some((process, failed?)))
        {
            if !is_damaged {
                return Err(RunError::Failed(format!("process {process}: {why}")));
            }
            tracing::warn!(process, "a checkpoint is not used: {why}");
            is_good = false;
        }
        if let (false, Some(manifest)) = (is_good, manifest) {
            self.checkpoints.set_aside(manifest.name())?;
        }
        Ok(is_good)
    }

    /// What the workers of this process begin with; what they write is collected in `parts`.
    pub fn states(
        &self,
        taken: Option<TakenUp>,
        generation: &str,
        slots: &Slots,
        workers: usize,
        parts: &Arc<Parts>,
    ) -> Result<States, RunError> {
        let (mut states, highs) = taken.map_or_else(Default::default, |taken| (taken.states, taken.highs));
        states.resize_with(workers, State::default);
        for state in &mut states {
            let parts = Arc::clone(parts);
            let done = Box::new(move |mark: Mark, _, part: Result<Part, CheckpointError>| {
                parts.add(mark, part.map_err(|error| error.to_string()));
            });
            let writer = PartWriter::spawn(self.checkpoints.clone(), generation, slots.clone(), done)
                .map_err(RunError::Threads)?;
            state.snapshots = Some(Box::new(writer));
        }
        Ok(States::new(states, highs))
    }
}

/// Where checkpoints are, as all processes must write it: none where there are to be none.
fn place(plan: &Plan, in_data_dir: bool) -> Option<String> {
    let checkpoints = plan.checkpoints.as_ref()?;
    let is_generator = |kind: &SourceKind| matches!(kind, SourceKind::Generator(_));
    if plan.ingest.is_none() && plan.sources.iter().any(|source| is_generator(&source.kind)) {
        // What is made up is in no log then, so no position means anything later.
        return None;
    }
    match &checkpoints.place {
        _ if !checkpoints.is_given && !in_data_dir => {
            tracing::info!(
                "there are no checkpoints, so every start reads all of the logs: see checkpoints.url"
            );
            None
        }
        Place::Folder(folder) => {
            let absolute = std::path::absolute(folder).unwrap_or_else(|_| PathBuf::from(folder));
            Some(absolute.display().to_string())
        }
        place => Some(place.to_string()),
    }
}

/// What decides results.
fn identity(plan: &Plan) -> BTreeMap<String, String> {
    let mut identity = super::outlets::log_identity(plan);
    identity.insert("results.formula".into(), plan.formula.name().to_owned());
    identity.insert("results.window".into(), plan.retention.window.to_string());
    identity.insert("results.history".into(), plan.retention.history.to_string());
    identity
}

/// Whether the logs go on where a checkpoint ends; where not, the log says why.
fn fits(manifest: &Manifest, logs: &Logs) -> bool {
    let positions = manifest.positions.iter();
    let mut each =
        positions.flat_map(|(source, of)| of.iter().map(move |(partition, at)| (source, *partition, *at)));
    let refused = each.find_map(|(source, partition, at)| logs.check(source, partition, at).err());
    if let Some(why) = &refused {
        tracing::warn!(checkpoint = %manifest.name(), "a checkpoint is not used: {why}");
    }
    refused.is_none()
}

/// What the workers of this process have written.
#[derive(Default)]
pub struct Parts(Mutex<HashMap<u64, Vec<Result<Part, String>>>>);

impl Parts {
    fn add(&self, mark: Mark, part: Result<Part, String>) {
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Of those that were given up nobody asks any more.
        parts.retain(|checkpoint, _| *checkpoint >= mark.checkpoint);
        parts.entry(mark.checkpoint).or_default().push(part);
    }

    /// All of a checkpoint, once they are all there.
    fn take(&self, checkpoint: u64, workers: usize) -> Option<Result<Vec<Part>, String>> {
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let are_there = parts.get(&checkpoint).is_some_and(|parts| parts.len() >= workers);
        are_there.then(|| parts.remove(&checkpoint).unwrap_or_default().into_iter().collect())
    }
}

/// Makes the checkpoints of a run.
pub struct Making {
    kept: Checkpointed,
    generation: Arc<str>,
    slots: Slots,
    processes: Arc<Processes>,
    parts: Arc<Parts>,
    outlets: Vec<Ends>,
    /// At process 0.
    journal: Option<Arc<Journal>>,
    next: Instant,
    count: u64,
    running: Option<Running>,
    /// What the next one may add to.
    last: Option<Manifest>,
    /// Of this process: the checkpoint that it owes its part of, and what that includes.
    owed: Option<(u64, Arc<sinks::Positions>)>,
}

/// A checkpoint on its way, at process 0.
struct Running {
    mark: Mark,
    began: Instant,
    /// Once its epoch is complete.
    marked: Option<Marked>,
    /// By process.
    parts: BTreeMap<usize, Vec<Part>>,
    publishing: Option<JoinHandle<Result<Manifest, CheckpointError>>>,
}

impl Making {
    pub fn new(
        kept: Checkpointed,
        generation: Arc<str>,
        slots: Slots,
        processes: Arc<Processes>,
        (parts, outlets, journal): (Arc<Parts>, Vec<Ends>, Option<Arc<Journal>>),
    ) -> Making {
        let next = Instant::now() + every(&kept.plan);
        Making {
            kept,
            generation,
            slots,
            processes,
            parts,
            outlets,
            journal,
            next,
            count: 0,
            running: None,
            last: None,
            owed: None,
        }
    }

    /// Does what can be done now, without waiting. What was refused is durable.
    pub fn look(&mut self, shared: &Shared) {
        if self.processes.topology().is_first() {
            self.begin(shared);
            self.hear(shared);
        }
        if let Some((checkpoint, positions)) = self.processes.take_sealed() {
            self.owed = Some((checkpoint, Arc::new(positions)));
        }
        self.hand_in();
        if self.processes.topology().is_first() {
            self.publish();
        }
    }

    /// Asks for the next one, where it is time and there is anything new.
    fn begin(&mut self, shared: &Shared) {
        if self.running.is_some() || Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + every(&self.kept.plan);
        if !shared.has_moved() {
            return;
        }
        self.count += 1;
        let full = self.last.as_ref().is_none_or(Manifest::wants_full);
        let mark = Mark { checkpoint: self.count, full };
        let parts = BTreeMap::new();
        self.running = Some(Running { mark, began: Instant::now(), marked: None, parts, publishing: None });
        shared.mark(mark);
    }

    /// Hears of its epoch, and of the parts of other processes.
    fn hear(&mut self, shared: &Shared) {
        for marked in shared.marked_since() {
            let Some(running) = self.running.as_mut().filter(|running| running.mark == marked.mark) else {
                continue;
            };
            let mut positions = sinks::Positions::new();
            let names = self.slots.all();
            for (slot, position) in &marked.positions {
                if let Some(name) = names.get(usize::from(slot.0)) {
                    positions.entry(name.source.clone()).or_default().insert(name.partition, *position);
                }
            }
            let checkpoint = marked.mark.checkpoint;
            self.processes.tell(&Message::Sealed { checkpoint, positions: positions.clone() });
            self.owed = Some((checkpoint, Arc::new(positions)));
            running.marked = Some(marked);
        }
        for (process, checkpoint, part) in self.processes.parts_that_came() {
            let part = part.and_then(|json| serde_json::from_slice(&json).map_err(|error| error.to_string()));
            self.take(process, checkpoint, part);
        }
        if self.running.as_ref().is_some_and(|running| running.began.elapsed() > PATIENCE) {
            self.give_up("it takes too long");
        }
    }

    /// Hands in this process's part, once it is whole and its shards have come as far.
    fn hand_in(&mut self) {
        let Some((checkpoint, positions)) = &self.owed else { return };
        if !self.outlets.iter().all(|outlet| outlet.have_written(positions)) {
            return;
        }
        let topology = self.processes.topology();
        let Some(parts) = self.parts.take(*checkpoint, topology.workers) else { return };
        let checkpoint = *checkpoint;
        self.owed = None;
        if topology.is_first() {
            return self.take(0, checkpoint, parts);
        }
        let part = parts.and_then(|parts| serde_json::to_vec(&parts).map_err(|error| error.to_string()));
        self.processes.tell(&Message::Checkpoint { checkpoint, part });
    }

    fn take(&mut self, process: usize, checkpoint: u64, part: Result<Vec<Part>, String>) {
        let Some(running) = self.running.as_mut().filter(|running| running.mark.checkpoint == checkpoint)
        else {
            return;
        };
        match part {
            Ok(parts) => drop(running.parts.insert(process, parts)),
            Err(why) => self.give_up(&why),
        }
    }

    /// Publishes what is whole, on a thread of its own, and hears what became of it.
    fn publish(&mut self) {
        let Some(running) = &mut self.running else { return };
        if let Some(publishing) = running.publishing.take_if(|publishing| publishing.is_finished()) {
            match publishing.join() {
                Ok(Ok(manifest)) => {
                    let took = running.began.elapsed();
                    tracing::debug!(checkpoint = %manifest.name(), full = running.mark.full, ?took, "a checkpoint is published");
                    metrics::gauge!("swelter_checkpoint_epoch").set(manifest.epoch as f64);
                    metrics::gauge!("swelter_checkpoint_seconds").set(took.as_secs_f64());
                    metrics::gauge!("swelter_checkpoint_bytes").set(manifest.bytes() as f64);
                    metrics::counter!("swelter_checkpoints_total").increment(1);
                    (self.last, self.running) = (Some(manifest), None);
                }
                Ok(Err(error)) => self.give_up(&error.to_string()),
                Err(_) => self.give_up("its publisher has panicked"),
            }
            return;
        }
        let all = running.parts.len() == self.processes.topology().processes;
        let Some(marked) = running.marked.as_ref().filter(|_| all && running.publishing.is_none()) else {
            return;
        };
        let mut positions = Positions::new();
        let names = self.slots.all();
        for (slot, position) in &marked.positions {
            if let Some(name) = names.get(usize::from(slot.0)) {
                positions.entry(name.source.to_string()).or_default().insert(name.partition, *position);
            }
        }
        let cut = Cut {
            generation: self.generation.to_string(),
            epoch: marked.epoch,
            identity: self.kept.identity.clone(),
            positions,
        };
        let parts = std::mem::take(&mut running.parts).into_values().flatten().collect();
        let adds_to = self.last.clone().filter(|_| !running.mark.full);
        let (checkpoints, keep, journal) =
            (self.kept.checkpoints.clone(), self.kept.plan.keep, self.journal.clone());
        let publish = move || {
            let manifest = Manifest::new(cut, parts, adds_to.as_ref())?;
            checkpoints.publish(&manifest)?;
            if let Err(error) = trim(&checkpoints, keep, journal.as_deref()) {
                tracing::warn!(
                    "what older checkpoints needed cannot be given up; it is tried again: {error}"
                );
            }
            Ok(manifest)
        };
        match thread::Builder::new().name("publish".into()).spawn(publish) {
            Ok(publishing) => running.publishing = Some(publishing),
            Err(error) => self.give_up(&format!("no thread can be started: {error}")),
        }
    }

    /// The next one is full, whatever became of this one.
    fn give_up(&mut self, why: &str) {
        tracing::warn!("a checkpoint could not be made; the next one is tried in its turn: {why}");
        metrics::counter!("swelter_checkpoint_failures_total").increment(1);
        (self.running, self.last) = (None, None);
    }
}

fn every(plan: &CheckpointPlan) -> Wait {
    Wait::from_millis(plan.every.millis().unsigned_abs())
}

/// Gives up checkpoints beyond those that are kept, and the records of the journal that lie before all of them.
fn trim(checkpoints: &Checkpoints, keep: usize, journal: Option<&Journal>) -> Result<(), String> {
    let positions = checkpoints.trim(keep).map_err(|error| error.to_string())?;
    if let (Some(positions), Some(journal)) = (positions, journal) {
        let own = positions.get(crate::sources::journal::NAME);
        let upto: Vec<(u32, u64)> =
            own.into_iter().flatten().map(|(partition, at)| (*partition, *at)).collect();
        journal.trim(&upto).map_err(|error| error.to_string())?;
    }
    Ok(())
}

impl TakenUp {
    /// Where a partition is read from that would otherwise be read from `start`.
    pub fn position(&self, name: &PartitionName, start: u64) -> u64 {
        let known = self.positions.get(&*name.source).and_then(|of| of.get(&name.partition));
        known.copied().unwrap_or(start)
    }
}
