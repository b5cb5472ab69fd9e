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
    schema_responses: HashMap<String, Vec<u8>>,
    /// By sink: the offset of the last record, and how long no record has followed while the
    /// cluster answered.
    last_offsets: Vec<Option<i64>>,
    silence: Vec<Duration>,
    /// Why the primary cannot be followed any more.
    failure: Option<String>,
    /// A past position of the primary: the follower has caught up once it reaches it.
    target: Option<(Instant, HashMap<PartitionIndex, u64>)>,
}

impl PrimaryFollower {
    /// None if the sinks were never claimed.
    pub fn new(
        kind: StartMode,
        standby_after: Duration,
        sinks: &InspectedSinks,
        progress: &[ProgressSnapshot],
    ) -> Result<Option<PrimaryFollower>, RunError> {
        // Other sinks follow the authority.
        let counts: Vec<u16> = sinks.progress_topics().map(|(_, _, shards)| shards).collect();
        let successors: Option<Vec<SuccessorClaim>> =
            progress[..counts.len()].iter().map(SuccessorClaim::after).collect::<Result<_, _>>()?;
        let Some(successors) = successors.filter(|successors| !successors.is_empty()) else {
            return Ok(None);
        };
        Ok(Some(PrimaryFollower::of(kind, standby_after, successors, PrimaryState::new(counts, progress))))
    }

    fn of(
        kind: StartMode,
        standby_after: Duration,
        successors: Vec<SuccessorClaim>,
        state: PrimaryState,
    ) -> PrimaryFollower {
        let (ended, is_ours) = (AtomicBool::new(false), AtomicBool::new(false));
        PrimaryFollower { kind, standby_after, successors, seen: Mutex::new(state), ended, is_ours }
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
    pub fn spawn_followers(self: &Arc<PrimaryFollower>, sinks: &InspectedSinks) -> Result<(), RunError> {
        for (sink, (cluster, topic, _)) in sinks.progress_topics().enumerate() {
            let (follower, of) = (Arc::clone(self), (cluster.clone(), topic.to_owned()));
            let follow =
                move || follow::follow_committed(&of.0, &of.1, |record| follower.on_committed(sink, record));
            self.spawn_one(format!("follow {sink}"), follow)?;
            let (follower, of) = (Arc::clone(self), (cluster.clone(), topic.to_owned()));
            let listen = move || {
                follow::follow_liveness(&of.0, &of.1, |liveness| follower.on_liveness(sink, liveness))
            };
            self.spawn_one(format!("listen {sink}"), listen)?;
        }
        Ok(())
    }

    fn spawn_one(
        self: &Arc<PrimaryFollower>,
        name: String,
        work: impl FnOnce() -> Result<(), KafkaSinkError> + Send + 'static,
    ) -> Result<(), RunError> {
        let follower = Arc::clone(self);
        let work = move || {
            if let Err(error) = work() {
                follower.state().failure.get_or_insert(error.to_string());
            }
        };
        thread::Builder::new().name(name).spawn(work).map(drop).map_err(RunError::Threads)
    }

    /// Records a shard's committed progress: only a committed position is durable.
    fn on_committed(&self, sink: usize, record: Option<ProgressRecord>) -> bool {
        if let Some(ProgressRecord::Shard(shard, progress)) = record {
            self.state().shards[sink].insert(shard, progress.positions);
        }
        !self.ended.load(Ordering::Relaxed)
    }

    /// Records a sign of life. Any record counts once it is written, committed or not.
    fn on_liveness(&self, sink: usize, liveness: Liveness) -> bool {
        let mut state = self.state();
        match liveness {
            Liveness::Record(offset, record) => {
                state.last_offsets[sink] = Some(offset);
                state.silence.fill(Duration::ZERO);
                self.on_record(&mut state, sink, record);
            }
            Liveness::Silence(silence) => state.silence[sink] += silence,
            // The primary may need as long to reconnect as this follower did.
            Liveness::Unreachable => state.silence[sink] = Duration::ZERO,
            Liveness::TooEarly => {}
        }
        !self.ended.load(Ordering::Relaxed)
    }

    fn on_record(&self, state: &mut PrimaryState, sink: usize, record: Option<ProgressRecord>) {
        match record {
            Some(ProgressRecord::Claim(claim)) => self.on_claim(state, sink, &claim),
            Some(ProgressRecord::Shard(_, progress)) => {
                for (source, partitions) in &progress.positions {
                    state.on_partitions(&progress::start_key(source), partitions.keys());
                }
            }
            Some(ProgressRecord::Other(key, value)) if key.starts_with(START_PREFIX) => {
                let partitions: BTreeMap<u32, u64> = serde_json::from_slice(&value).unwrap_or_default();
                state.on_partitions(&key, partitions.keys());
            }
            Some(ProgressRecord::Other(key, value)) => drop(state.schema_responses.insert(key, value)),
            None => {}
        }
    }

    /// Checks a claim. The topic also has all earlier claims.
    fn on_claim(&self, state: &mut PrimaryState, sink: usize, claim: &Claim) {
        let expected = self.successors.get(sink);
        if expected.is_some_and(|expected| expected.is_overtaken_by(claim)) {
            state.failure.get_or_insert(format!(
                "generation {} has taken over from the followed one, so this process ends: start it again to follow the new one",
                claim.generation
            ));
        }
    }

    /// The lowest durable position of each partition over all shards. Leaves out partitions for
    /// which a shard has no position.
    pub fn durable_positions(&self, partitions: &PartitionTable) -> Vec<(PartitionIndex, u64)> {
        let state = self.state();
        let has_all_shards =
            state.shards.iter().zip(&state.counts).all(|(shards, count)| shards.len() == usize::from(*count));
        if !has_all_shards {
            return Vec::new();
        }
        let least = |(index, name): (PartitionIndex, crate::model::PartitionName)| {
            let each = state.shards.iter().flat_map(BTreeMap::values);
            let at = |positions: &Positions| positions.get(&name.source)?.get(&name.partition).copied();
            each.map(at).collect::<Option<Vec<u64>>>()?.into_iter().min().map(|position| (index, position))
        };
        (0..).map(PartitionIndex).zip(partitions.names()).filter_map(least).collect()
    }

    /// Whether to take over now, given how far this run has read.
    pub fn is_takeover_due(
        &self,
        least: &[(PartitionIndex, u64)],
        read: &HashMap<PartitionIndex, u64>,
    ) -> Result<bool, RunError> {
        let mut state = self.state();
        if let Some(failure) = &state.failure {
            return Err(RunError::Failed(failure.clone()));
        }
        match self.kind {
            StartMode::Standby => Ok(state.is_silent_for(self.standby_after)),
            StartMode::Claim | StartMode::Takeover => {
                let (since, target) =
                    state.target.get_or_insert_with(|| (Instant::now(), least.iter().copied().collect()));
                let has_reached_target = target.iter().all(|(index, position)| {
                    *position == 0 || read.get(index).is_some_and(|read| read >= position)
                });
                let is_recent = since.elapsed() < CAUGHT_UP_WITHIN;
                if !is_recent {
                    state.target = None;
                }
                // A silent primary makes no progress to wait for.
                Ok(has_reached_target && (is_recent || state.is_silent_for(self.standby_after)))
            }
        }
    }

    /// Whether the claim may be made: the primary has written nothing since, and this run can
    /// continue its results. If that cannot be checked now, this run continues to follow.
    ///
    /// # Errors
    ///
    /// If a claim would end both generations.
    pub fn may_claim(&self, sinks: &InspectedSinks, partitions: &[LogPartition]) -> Result<bool, RunError> {
        let inspected = sinks.inspect_progress(LAST_INSPECTION_TIMEOUT).and_then(|progress| {
            sinks.check_resumable(&progress, partitions)?;
            Ok(progress)
        });
        match inspected {
            Ok(progress) => self.recheck_takeover(&progress),
            Err(error) if is_transient(&error) => {
                tracing::warn!(%error, "the takeover is not possible yet; the run keeps following");
                self.state().restart_observation();
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn recheck_takeover(&self, snapshots: &[ProgressSnapshot]) -> Result<bool, RunError> {
        let mut state = self.state();
        for (sink, snapshot) in snapshots.iter().enumerate() {
            if let Some(claim) = snapshot.get::<Claim>(CLAIM)? {
                self.on_claim(&mut state, sink, &claim);
            }
            for (key, partitions) in start_positions(snapshot) {
                state.on_partitions(&key, partitions.keys());
            }
        }
        if let Some(failure) = &state.failure {
            return Err(RunError::Failed(failure.clone()));
        }
        let is_new = snapshots
            .iter()
            .zip(&state.last_offsets)
            .any(|(snapshot, last_offset)| snapshot.last_offset() > *last_offset);
        if is_new && self.kind == StartMode::Standby {
            state.restart_observation();
            return Ok(false);
        }
        Ok(true)
    }

    /// Ends following: this run has claimed the sinks, which have this progress.
    pub fn finish(&self, snapshots: &[&ProgressSnapshot]) {
        let all = snapshots.iter().flat_map(|snapshot| snapshot.with_prefix(""));
        let all = all.map(|(key, value)| (key.to_owned(), value.to_vec()));
        self.state().schema_responses.extend(all);
        self.ended.store(true, Ordering::Relaxed);
        self.is_ours.store(true, Ordering::Relaxed);
    }

    /// Finds a registry's responses. While the primary runs, only responses that it has recorded.
    pub fn find_schema(self: &Arc<PrimaryFollower>, source: &str, fetch: ResponseFetcher) -> ResponseFetcher {
        let (follower, prefix) = (Arc::clone(self), progress::schema_prefix(source));
        Box::new(move |id| {
            let recorded = follower.state().schema_responses.get(&format!("{prefix}{id}")).cloned();
            match recorded.and_then(|json| serde_json::from_slice::<RegistryResponse>(&json).ok()) {
                Some(answer) => Ok(answer),
                None if follower.is_ours.load(Ordering::Relaxed) => fetch(id),
                None => Err("the followed generation has not recorded the response yet".into()),
            }
        })
    }

    fn state(&self) -> MutexGuard<'_, PrimaryState> {
        self.seen.lock()
    }
}

impl PrimaryState {
    fn new(counts: Vec<u16>, progress: &[ProgressSnapshot]) -> PrimaryState {
        let sinks = counts.len();
        PrimaryState {
            shards: vec![BTreeMap::new(); sinks],
            counts,
            starts: progress.iter().flat_map(start_positions).collect(),
            schema_responses: HashMap::new(),
            last_offsets: vec![None; sinks],
            silence: vec![Duration::ZERO; sinks],
            failure: None,
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
        let starts = self.starts.get(key);
        let is_new = |partition: &&u32| starts.is_none_or(|starts| !starts.contains_key(partition));
        if let Some(partition) = partitions.find(is_new) {
            let source = key.strip_prefix(START_PREFIX).unwrap_or(key);
            self.failure.get_or_insert(format!(
                "the followed generation reads partition {partition} of source {source}, which was added after this start, so this process ends: start it again"
            ));
        }
    }
}

/// The first read positions of the sources' partitions, by their keys.
fn start_positions(snapshot: &ProgressSnapshot) -> BTreeMap<String, BTreeMap<u32, u64>> {
    let start = |(source, value): (&str, &[u8])| {
        Some((progress::start_key(source), serde_json::from_slice(value).ok()?))
    };
    snapshot.with_prefix(START_PREFIX).filter_map(start).collect()
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
