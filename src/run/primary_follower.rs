//! Follows the running generation while this one hydrates: its durable positions, and whether it is
//! alive.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::durable_sinks::InspectedSinks;
use super::run_error::RunError;
use crate::config::StartMode;
use crate::model::{PartitionIndex, PartitionTable};
use crate::registry::{RegistryResponse, ResponseFetcher};
use crate::sinks::error::SinkError;
use crate::sinks::kafka::KafkaSinkError;
use crate::sinks::kafka::follow::{self, Liveness, ProgressRecord};
use crate::sinks::progress::{self, CLAIM, Claim, Positions, ProgressSnapshot, START_PREFIX, SuccessorClaim};
use crate::sources::SourceError;
use crate::worker::LogPartition;

/// A follower less than this far behind counts as caught up.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(1);
/// How long the last inspection before a claim may take.
const LAST_INSPECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// The running generation (the primary), as its progress topics show it.
pub struct PrimaryFollower {
    kind: StartMode,
    standby_after: Duration,
    successors: Vec<SuccessorClaim>,
    seen: Mutex<PrimaryState>,
    ended: AtomicBool,
    /// This run has claimed the sinks.
    is_ours: AtomicBool,
}

struct PrimaryState {
    /// Durable positions, by sink and shard.
    shards: Vec<BTreeMap<u16, Positions>>,
    counts: Vec<u16>,
    /// The partitions that the primary reads and their start positions, by key of the progress
    /// topic.
    starts: BTreeMap<String, BTreeMap<u32, u64>>,
    answers: HashMap<String, Vec<u8>>,
    /// By sink: the offset of the last record, and how long no record has followed while the
    /// cluster answered.
    heard: Vec<Option<i64>>,
    silence: Vec<Duration>,
    /// Why the primary cannot be followed any more.
    trouble: Option<String>,
    /// A past position of the primary: the follower has caught up once it reaches it.
    target: Option<(Instant, HashMap<PartitionIndex, u64>)>,
}

impl PrimaryFollower {
    /// None if the sinks were never claimed.
    pub fn new(
        kind: StartMode,
        standby_after: Duration,
        prepared: &InspectedSinks,
        kept: &[ProgressSnapshot],
    ) -> Result<Option<PrimaryFollower>, RunError> {
        // Other sinks follow the authority.
        let counts: Vec<u16> = prepared.progress_topics().map(|(_, _, shards)| shards).collect();
        let successors: Option<Vec<SuccessorClaim>> =
            kept[..counts.len()].iter().map(SuccessorClaim::after).collect::<Result<_, _>>()?;
        let Some(successors) = successors.filter(|successors| !successors.is_empty()) else {
            return Ok(None);
        };
        Ok(Some(PrimaryFollower::of(kind, standby_after, successors, PrimaryState::new(counts, kept))))
    }

    fn of(
        kind: StartMode,
        standby_after: Duration,
        successors: Vec<SuccessorClaim>,
        seen: PrimaryState,
    ) -> PrimaryFollower {
        let (ended, is_ours) = (AtomicBool::new(false), AtomicBool::new(false));
        PrimaryFollower { kind, standby_after, successors, seen: Mutex::new(seen), ended, is_ours }
    }

    /// The claims that this run makes when it takes over.
    pub fn successors(&self) -> &[SuccessorClaim] {
        &self.successors
    }

    /// The generation of this run.
    pub fn generation(&self) -> Option<Arc<str>> {
        self.successors.first().map(SuccessorClaim::generation)
    }

    /// Follows the sinks on threads of its own, until the takeover or until this is dropped.
    pub fn spawn_followers(self: &Arc<PrimaryFollower>, prepared: &InspectedSinks) -> Result<(), RunError> {
        for (outlet, (cluster, topic, _)) in prepared.progress_topics().enumerate() {
            let (following, of) = (Arc::clone(self), (cluster.clone(), topic.to_owned()));
            let follow =
                move || follow::follow_committed(&of.0, &of.1, |sign| following.on_committed(outlet, sign));
            self.spawn_one(format!("follow {outlet}"), follow)?;
            let (following, of) = (Arc::clone(self), (cluster.clone(), topic.to_owned()));
            let listen =
                move || follow::follow_liveness(&of.0, &of.1, |life| following.on_liveness(outlet, life));
            self.spawn_one(format!("listen {outlet}"), listen)?;
        }
        Ok(())
    }

    fn spawn_one(
        self: &Arc<PrimaryFollower>,
        name: String,
        work: impl FnOnce() -> Result<(), KafkaSinkError> + Send + 'static,
    ) -> Result<(), RunError> {
        let following = Arc::clone(self);
        let work = move || {
            if let Err(error) = work() {
                following.state().trouble.get_or_insert(error.to_string());
            }
        };
        thread::Builder::new().name(name).spawn(work).map(drop).map_err(RunError::Threads)
    }

    /// Records a shard's committed progress: only a committed position is durable.
    fn on_committed(&self, outlet: usize, sign: Option<ProgressRecord>) -> bool {
        if let Some(ProgressRecord::Shard(shard, progress)) = sign {
            self.state().shards[outlet].insert(shard, progress.positions);
        }
        !self.ended.load(Ordering::Relaxed)
    }

    /// Records a sign of life. Any record counts once it is written, committed or not.
    fn on_liveness(&self, outlet: usize, life: Liveness) -> bool {
        let mut seen = self.state();
        match life {
            Liveness::Record(offset, sign) => {
                seen.heard[outlet] = Some(offset);
                seen.silence.fill(Duration::ZERO);
                self.on_record(&mut seen, outlet, sign);
            }
            Liveness::Silence(silence) => seen.silence[outlet] += silence,
            // The primary may need as long to reconnect as this follower did.
            Liveness::Unreachable => seen.silence[outlet] = Duration::ZERO,
            Liveness::TooEarly => {}
        }
        !self.ended.load(Ordering::Relaxed)
    }

    fn on_record(&self, seen: &mut PrimaryState, outlet: usize, sign: Option<ProgressRecord>) {
        match sign {
            Some(ProgressRecord::Claim(claim)) => self.on_claim(seen, outlet, &claim),
            Some(ProgressRecord::Shard(_, progress)) => {
                for (source, partitions) in &progress.positions {
                    seen.on_partitions(&progress::start_key(source), partitions.keys());
                }
            }
            Some(ProgressRecord::Other(key, value)) if key.starts_with(START_PREFIX) => {
                let partitions: BTreeMap<u32, u64> = serde_json::from_slice(&value).unwrap_or_default();
                seen.on_partitions(&key, partitions.keys());
            }
            Some(ProgressRecord::Other(key, value)) => drop(seen.answers.insert(key, value)),
            None => {}
        }
    }

    /// Checks a claim. The topic also has all earlier claims.
    fn on_claim(&self, seen: &mut PrimaryState, outlet: usize, claim: &Claim) {
        let expected = self.successors.get(outlet);
        if expected.is_some_and(|expected| expected.is_overtaken_by(claim)) {
            seen.trouble.get_or_insert(format!(
                "generation {} has taken over from the one that was followed: this one begins anew",
                claim.generation
            ));
        }
    }

    /// The lowest durable position of each partition over all shards. Leaves out partitions for
    /// which a shard has no position.
    pub fn durable_positions(&self, slots: &PartitionTable) -> Vec<(PartitionIndex, u64)> {
        let seen = self.state();
        let whole =
            seen.shards.iter().zip(&seen.counts).all(|(shards, count)| shards.len() == usize::from(*count));
        if !whole {
            return Vec::new();
        }
        let least = |(slot, name): (PartitionIndex, crate::model::PartitionName)| {
            let each = seen.shards.iter().flat_map(BTreeMap::values);
            let at = |positions: &Positions| positions.get(&name.source)?.get(&name.partition).copied();
            each.map(at).collect::<Option<Vec<u64>>>()?.into_iter().min().map(|position| (slot, position))
        };
        (0..).map(PartitionIndex).zip(slots.names()).filter_map(least).collect()
    }

    /// Whether to take over now, given how far this run has read.
    pub fn is_takeover_due(
        &self,
        least: &[(PartitionIndex, u64)],
        read: &HashMap<PartitionIndex, u64>,
    ) -> Result<bool, RunError> {
        let mut seen = self.state();
        if let Some(trouble) = &seen.trouble {
            return Err(RunError::Failed(trouble.clone()));
        }
        match self.kind {
            StartMode::Standby => Ok(seen.is_silent_for(self.standby_after)),
            StartMode::Claim | StartMode::Takeover => {
                let (since, target) =
                    seen.target.get_or_insert_with(|| (Instant::now(), least.iter().copied().collect()));
                let is_there =
                    target.iter().all(|(slot, at)| *at == 0 || read.get(slot).is_some_and(|read| read >= at));
                let is_recent = since.elapsed() < CAUGHT_UP_WITHIN;
                if !is_recent {
                    seen.target = None;
                }
                // A silent primary makes no progress to wait for.
                Ok(is_there && (is_recent || seen.is_silent_for(self.standby_after)))
            }
        }
    }

    /// Whether the claim may be made: the primary has written nothing since, and this run can
    /// continue its results. If that cannot be checked now, this run continues to follow.
    ///
    /// # Errors
    ///
    /// If a claim would end both generations.
    pub fn may_claim(
        &self,
        prepared: &InspectedSinks,
        partitions: &[LogPartition],
    ) -> Result<bool, RunError> {
        let looked = prepared.inspect_progress(LAST_INSPECTION_TIMEOUT).and_then(|kept| {
            prepared.check_resumable(&kept, partitions)?;
            Ok(kept)
        });
        match looked {
            Ok(kept) => self.recheck_takeover(&kept),
            Err(error) if is_transient(&error) => {
                tracing::warn!(%error, "it cannot be taken over yet");
                self.state().restart_observation();
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn recheck_takeover(&self, kept: &[ProgressSnapshot]) -> Result<bool, RunError> {
        let mut seen = self.state();
        for (outlet, kept) in kept.iter().enumerate() {
            if let Some(claim) = kept.get::<Claim>(CLAIM)? {
                self.on_claim(&mut seen, outlet, &claim);
            }
            for (key, partitions) in start_positions(kept) {
                seen.on_partitions(&key, partitions.keys());
            }
        }
        if let Some(trouble) = &seen.trouble {
            return Err(RunError::Failed(trouble.clone()));
        }
        let is_new = kept.iter().zip(&seen.heard).any(|(kept, heard)| kept.last_offset() > *heard);
        if is_new && self.kind == StartMode::Standby {
            seen.restart_observation();
            return Ok(false);
        }
        Ok(true)
    }

    /// Ends following: this run has claimed the sinks, which have this progress.
    pub fn finish(&self, kept: &[&ProgressSnapshot]) {
        let all = kept.iter().flat_map(|kept| kept.with_prefix(""));
        let all = all.map(|(key, value)| (key.to_owned(), value.to_vec()));
        self.state().answers.extend(all);
        self.ended.store(true, Ordering::Relaxed);
        self.is_ours.store(true, Ordering::Relaxed);
    }

    /// Finds a registry's responses. While the primary runs, only responses that it has recorded.
    pub fn find_schema(self: &Arc<PrimaryFollower>, source: &str, ask: ResponseFetcher) -> ResponseFetcher {
        let (following, prefix) = (Arc::clone(self), progress::schema_prefix(source));
        Box::new(move |id| {
            let recorded = following.state().answers.get(&format!("{prefix}{id}")).cloned();
            match recorded.and_then(|json| serde_json::from_slice::<RegistryResponse>(&json).ok()) {
                Some(answer) => Ok(answer),
                None if following.is_ours.load(Ordering::Relaxed) => ask(id),
                None => Err("the generation that is followed has not recorded it yet".into()),
            }
        })
    }

    fn state(&self) -> MutexGuard<'_, PrimaryState> {
        self.seen.lock()
    }
}

impl PrimaryState {
    fn new(counts: Vec<u16>, kept: &[ProgressSnapshot]) -> PrimaryState {
        let outlets = counts.len();
        PrimaryState {
            shards: vec![BTreeMap::new(); outlets],
            counts,
            starts: kept.iter().flat_map(start_positions).collect(),
            answers: HashMap::new(),
            heard: vec![None; outlets],
            silence: vec![Duration::ZERO; outlets],
            trouble: None,
            target: None,
        }
    }

    fn is_silent_for(&self, time: Duration) -> bool {
        self.silence.iter().all(|silence| *silence >= time)
    }

    fn restart_observation(&mut self) {
        self.silence.fill(Duration::ZERO);
        self.target = None;
    }

    /// Checks the primary's partitions. This run has assigned its partition indexes at its start,
    /// so it cannot continue with others.
    fn on_partitions<'a>(&mut self, key: &str, mut partitions: impl Iterator<Item = &'a u32>) {
        let known = self.starts.get(key);
        let is_new = |partition: &&u32| known.is_none_or(|known| !known.contains_key(partition));
        if let Some(partition) = partitions.find(is_new) {
            let source = key.strip_prefix(START_PREFIX).unwrap_or(key);
            self.trouble.get_or_insert(format!(
                "the generation that is followed reads partition {partition} of source {source}, which has come since: this one begins anew"
            ));
        }
    }
}

/// The first read positions of the sources' partitions, by their keys.
fn start_positions(kept: &ProgressSnapshot) -> BTreeMap<String, BTreeMap<u32, u64>> {
    let start = |(source, value): (&str, &[u8])| {
        Some((progress::start_key(source), serde_json::from_slice(value).ok()?))
    };
    kept.with_prefix(START_PREFIX).filter_map(start).collect()
}

/// Whether a later attempt may succeed.
fn is_transient(error: &RunError) -> bool {
    matches!(
        error,
        RunError::Sink(SinkError::Unavailable(_)) | RunError::Source { error: SourceError::Transient(_), .. }
    )
}

impl Drop for PrimaryFollower {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::progress::ShardProgress;

    const AFTER: Duration = Duration::from_secs(3);

    fn kept(values: &[(&str, &str)], last: i64) -> ProgressSnapshot {
        let values = values.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()));
        ProgressSnapshot::of("progress", values, last)
    }

    fn first() -> ProgressSnapshot {
        kept(&[("claim", r#"{"generation":3,"nonce":"a"}"#), ("start/log", r#"{"0":0,"1":0}"#)], 7)
    }

    fn following(kind: StartMode) -> Arc<PrimaryFollower> {
        let successors = vec![SuccessorClaim::after(&first()).unwrap().unwrap()];
        Arc::new(PrimaryFollower::of(kind, AFTER, successors, PrimaryState::new(vec![1], &[first()])))
    }

    fn is_time(following: &PrimaryFollower) -> Result<bool, RunError> {
        following.is_takeover_due(&[], &HashMap::new())
    }

    fn silence(following: &PrimaryFollower, millis: u64) {
        following.on_liveness(0, Liveness::Silence(Duration::from_millis(millis)));
    }

    #[test]
    fn standby_takes_over_after_observed_silence() {
        let following = following(StartMode::Standby);
        following.on_liveness(0, Liveness::Record(7, None));
        silence(&following, 2_900);
        assert!(!is_time(&following).unwrap());
        silence(&following, 100);
        assert!(is_time(&following).unwrap());
        // A record was written meanwhile that has not been read yet.
        assert!(!following.recheck_takeover(&[kept(&[], 8)]).unwrap());
        assert!(!is_time(&following).unwrap(), "it listens anew");
        silence(&following, 3_000);
        assert!(following.recheck_takeover(&[first()]).unwrap());
        for life in [Liveness::Unreachable, Liveness::Record(8, None)] {
            silence(&following, 3_000);
            following.on_liveness(0, life);
            assert!(!is_time(&following).unwrap());
        }
    }

    #[test]
    fn added_partitions_end_standby_before_claim() {
        let more = |partition: u32| {
            let positions = [("log".into(), [(0, 5), (partition, 9)].into())].into();
            Some(ProgressRecord::Shard(0, ShardProgress { epoch: 1, positions, before: Default::default() }))
        };
        let start = |value: &str| Some(ProgressRecord::Other("start/log".into(), value.into()));
        for (sign, is_known) in [
            (more(1), true),
            (more(2), false),
            (start(r#"{"0":0}"#), true),
            (start(r#"{"0":0,"1":0,"2":0}"#), false),
            (Some(ProgressRecord::Other("start/other".into(), b"{\"0\":0}".to_vec())), false),
        ] {
            let following = following(StartMode::Standby);
            following.on_liveness(0, Liveness::Record(8, sign.clone()));
            silence(&following, 9_000);
            assert_eq!(is_time(&following).is_ok(), is_known, "{sign:?}");
        }
        let added = kept(&[("start/log", r#"{"0":0,"1":0,"2":0}"#)], 7);
        assert!(following(StartMode::Takeover).recheck_takeover(&[added]).is_err());
        let claimed = kept(&[("claim", r#"{"generation":4,"nonce":"b"}"#)], 7);
        assert!(following(StartMode::Takeover).recheck_takeover(&[claimed]).is_err());
    }

    #[test]
    fn registry_responses_found_by_claim_are_used() {
        let following = following(StartMode::Takeover);
        let find = following.find_schema("log", Box::new(|id| panic!("{id} was asked for")));
        assert!(find(9).is_err());
        following.finish(&[&kept(&[("schema/log/9", "\"unknown\"")], 9)]);
        assert_eq!(find(9), Ok(RegistryResponse::Unknown));
    }

    #[test]
    fn losing_takeover_race_is_a_restartable_error() {
        let lost = RunError::Sink(SinkError::Fenced("generation 4 has it".into()));
        assert!(lost.is_takeover());
        let lost = lost.into_lost_race();
        assert!(!lost.is_takeover() && lost.to_string().contains("generation 4"), "{lost}");
    }
}
