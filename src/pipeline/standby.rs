//! A generation that hydrates beside a running one: it follows what that makes durable, and takes over from it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration as Wait, Instant};

use super::outlets::Prepared;
use super::run_error::RunError;
use crate::config::StartKind;
use crate::model::{Slot, Slots};
use crate::registry::{Answer, FindAnswer};
use crate::sinks::kafka::follow::{self, Life, Sign};
use crate::sinks::kafka::progress::{self, CLAIM, Claim, Kept, Positions, START};
use crate::sinks::kafka::{OutletError, Successor};
use crate::sources::SourceError;
use crate::worker::LogPartition;

/// What is read by then counts as read as soon as it is.
const BEHIND: Wait = Wait::from_secs(1);
/// How long the last look before a claim may take.
const LAST_LOOK: Wait = Wait::from_secs(10);

/// A generation that runs, as seen from its progress topics.
pub struct Following {
    kind: StartKind,
    standby_after: Wait,
    successors: Vec<Successor>,
    seen: Mutex<Seen>,
    ended: AtomicBool,
    /// It is no more: this run has its outlets.
    is_ours: AtomicBool,
}

struct Seen {
    /// By outlet and shard.
    shards: Vec<BTreeMap<u16, Positions>>,
    counts: Vec<u16>,
    /// The partitions that it reads, by the keys that say from where.
    starts: BTreeMap<String, BTreeMap<u32, u64>>,
    answers: HashMap<String, Vec<u8>>,
    /// By outlet: the last record that was heard of, and for how long none has come since, while the cluster answered.
    heard: Vec<Option<i64>>,
    silence: Vec<Wait>,
    /// Why it cannot be followed any more.
    trouble: Option<String>,
    /// Where it was some time ago, to see whether we have come as far.
    target: Option<(Instant, HashMap<Slot, u64>)>,
}

impl Following {
    /// Nothing is followed where nobody has ever claimed the outlets.
    pub fn new(
        kind: StartKind,
        standby_after: Wait,
        prepared: &Prepared,
        kept: &[Kept],
    ) -> Result<Option<Following>, RunError> {
        let successors: Option<Vec<Successor>> = kept.iter().map(Successor::of).collect::<Result<_, _>>()?;
        let Some(successors) = successors.filter(|successors| !successors.is_empty()) else {
            return Ok(None);
        };
        let counts = prepared.topics().map(|(_, _, shards)| shards).collect();
        Ok(Some(Following::of(kind, standby_after, successors, Seen::new(counts, kept))))
    }

    fn of(kind: StartKind, standby_after: Wait, successors: Vec<Successor>, seen: Seen) -> Following {
        let (ended, is_ours) = (AtomicBool::new(false), AtomicBool::new(false));
        Following { kind, standby_after, successors, seen: Mutex::new(seen), ended, is_ours }
    }

    /// The claims that this run makes when it takes over.
    pub fn successors(&self) -> &[Successor] {
        &self.successors
    }

    /// That of this run.
    pub fn generation(&self) -> Option<Arc<str>> {
        self.successors.first().map(Successor::generation)
    }

    /// Follows the outlets on threads of its own, until it is taken over or given up.
    pub fn spawn(self: &Arc<Following>, prepared: &Prepared) -> Result<(), RunError> {
        for (outlet, (cluster, topic, _)) in prepared.topics().enumerate() {
            let (following, of) = (Arc::clone(self), (cluster.clone(), topic.to_owned()));
            let follow = move || follow::follow(&of.0, &of.1, |sign| following.hear(outlet, sign));
            self.spawn_one(format!("follow {outlet}"), follow)?;
            let (following, of) = (Arc::clone(self), (cluster.clone(), topic.to_owned()));
            let listen = move || follow::listen(&of.0, &of.1, |life| following.hear_life(outlet, life));
            self.spawn_one(format!("listen {outlet}"), listen)?;
        }
        Ok(())
    }

    fn spawn_one(
        self: &Arc<Following>,
        name: String,
        work: impl FnOnce() -> Result<(), OutletError> + Send + 'static,
    ) -> Result<(), RunError> {
        let following = Arc::clone(self);
        let work = move || {
            if let Err(error) = work() {
                following.seen().trouble.get_or_insert(error.to_string());
            }
        };
        thread::Builder::new().name(name).spawn(work).map(drop).map_err(RunError::Threads)
    }

    /// What is committed says how far shards have come.
    fn hear(&self, outlet: usize, sign: Option<Sign>) -> bool {
        if let Some(Sign::Shard(shard, progress)) = sign {
            self.seen().shards[outlet].insert(shard, progress.positions);
        }
        !self.ended.load(Ordering::Relaxed)
    }

    /// All else counts as soon as it is written.
    fn hear_life(&self, outlet: usize, life: Life) -> bool {
        let mut seen = self.seen();
        match life {
            Life::Record(offset, sign) => {
                seen.heard[outlet] = Some(offset);
                seen.silence.fill(Wait::ZERO);
                self.hear_sign(&mut seen, outlet, sign);
            }
            Life::Silence(silence) => seen.silence[outlet] += silence,
            // Others may be as long in coming back as this one was.
            Life::Away => seen.silence[outlet] = Wait::ZERO,
            Life::Nothing => {}
        }
        !self.ended.load(Ordering::Relaxed)
    }

    fn hear_sign(&self, seen: &mut Seen, outlet: usize, sign: Option<Sign>) {
        match sign {
            Some(Sign::Claim(claim)) => self.hear_claim(seen, outlet, &claim),
            Some(Sign::Shard(_, progress)) => {
                for (source, partitions) in &progress.positions {
                    seen.hear_partitions(&progress::start_key(source), partitions.keys());
                }
            }
            Some(Sign::Kept(key, value)) if key.starts_with(START) => {
                let partitions: BTreeMap<u32, u64> = serde_json::from_slice(&value).unwrap_or_default();
                seen.hear_partitions(&key, partitions.keys());
            }
            Some(Sign::Kept(key, value)) => drop(seen.answers.insert(key, value)),
            None => {}
        }
    }

    /// All earlier claims are in the topic as well.
    fn hear_claim(&self, seen: &mut Seen, outlet: usize, claim: &Claim) {
        let expected = self.successors.get(outlet);
        if expected.is_some_and(|expected| expected.is_overtaken_by(claim)) {
            seen.trouble.get_or_insert(format!(
                "generation {} has taken over from the one that was followed: this one begins anew",
                claim.generation
            ));
        }
    }

    /// How far every shard has come with each partition; nothing of those of which some have written nothing.
    pub fn least(&self, slots: &Slots) -> Vec<(Slot, u64)> {
        let seen = self.seen();
        let whole =
            seen.shards.iter().zip(&seen.counts).all(|(shards, count)| shards.len() == usize::from(*count));
        if !whole {
            return Vec::new();
        }
        let least = |(slot, name): (Slot, crate::model::PartitionName)| {
            let each = seen.shards.iter().flat_map(BTreeMap::values);
            let at = |positions: &Positions| positions.get(&name.source)?.get(&name.partition).copied();
            each.map(at).collect::<Option<Vec<u64>>>()?.into_iter().min().map(|position| (slot, position))
        };
        (0..).map(Slot).zip(slots.all()).filter_map(least).collect()
    }

    /// Whether it is time to take over, where so much is read.
    pub fn is_time(&self, least: &[(Slot, u64)], read: &HashMap<Slot, u64>) -> Result<bool, RunError> {
        let mut seen = self.seen();
        if let Some(trouble) = &seen.trouble {
            return Err(RunError::Failed(trouble.clone()));
        }
        match self.kind {
            StartKind::Standby => Ok(seen.is_silent_for(self.standby_after)),
            StartKind::Claim | StartKind::Takeover => {
                let (since, target) =
                    seen.target.get_or_insert_with(|| (Instant::now(), least.iter().copied().collect()));
                let is_there =
                    target.iter().all(|(slot, at)| *at == 0 || read.get(slot).is_some_and(|read| read >= at));
                let is_recent = since.elapsed() < BEHIND;
                if !is_recent {
                    seen.target = None;
                }
                // A generation that is silent is not waited for.
                Ok(is_there && (is_recent || seen.is_silent_for(self.standby_after)))
            }
        }
    }

    /// Whether nothing speaks against taking over at last: it has not written again, and what it has written can be gone on with.
    /// Where that cannot be found out now, it is followed on.
    ///
    /// # Errors
    ///
    /// Where a claim would end both.
    pub fn may_claim(&self, prepared: &Prepared, partitions: &[LogPartition]) -> Result<bool, RunError> {
        let looked = prepared.look(LAST_LOOK).and_then(|kept| {
            prepared.check(&kept, partitions)?;
            Ok(kept)
        });
        match looked {
            Ok(kept) => self.is_still_time(&kept),
            Err(error) if is_passing(&error) => {
                tracing::warn!(%error, "it cannot be taken over yet");
                self.seen().begin_anew();
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn is_still_time(&self, kept: &[Kept]) -> Result<bool, RunError> {
        let mut seen = self.seen();
        for (outlet, kept) in kept.iter().enumerate() {
            if let Some(claim) = kept.get::<Claim>(CLAIM)? {
                self.hear_claim(&mut seen, outlet, &claim);
            }
            for (key, partitions) in starts(kept) {
                seen.hear_partitions(&key, partitions.keys());
            }
        }
        if let Some(trouble) = &seen.trouble {
            return Err(RunError::Failed(trouble.clone()));
        }
        let is_new = kept.iter().zip(&seen.heard).any(|(kept, heard)| kept.last() > *heard);
        if is_new && self.kind == StartKind::Standby {
            seen.begin_anew();
            return Ok(false);
        }
        Ok(true)
    }

    /// The outlets are this run's now, and hold this.
    pub fn end(&self, kept: &[&Kept]) {
        let all = kept.iter().flat_map(|kept| kept.below(""));
        let all = all.map(|(key, value)| (key.to_owned(), value.to_vec()));
        self.seen().answers.extend(all);
        self.ended.store(true, Ordering::Relaxed);
        self.is_ours.store(true, Ordering::Relaxed);
    }

    /// Finds a registry's answers: what the other generation has recorded, as long as it runs.
    pub fn find(self: &Arc<Following>, source: &str, ask: FindAnswer) -> FindAnswer {
        let (following, prefix) = (Arc::clone(self), progress::schema_key(source));
        Box::new(move |id| {
            let recorded = following.seen().answers.get(&format!("{prefix}{id}")).cloned();
            match recorded.and_then(|json| serde_json::from_slice::<Answer>(&json).ok()) {
                Some(answer) => Ok(answer),
                None if following.is_ours.load(Ordering::Relaxed) => ask(id),
                None => Err("the generation that is followed has not recorded it yet".into()),
            }
        })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn new(counts: Vec<u16>, kept: &[Kept]) -> Seen {
        let outlets = counts.len();
        Seen {
            shards: vec![BTreeMap::new(); outlets],
            counts,
            starts: kept.iter().flat_map(starts).collect(),
            answers: HashMap::new(),
            heard: vec![None; outlets],
            silence: vec![Wait::ZERO; outlets],
            trouble: None,
            target: None,
        }
    }

    fn is_silent_for(&self, time: Wait) -> bool {
        self.silence.iter().all(|silence| *silence >= time)
    }

    fn begin_anew(&mut self) {
        self.silence.fill(Wait::ZERO);
        self.target = None;
    }

    /// This run has numbered its partitions at its start, so it cannot go on with others.
    fn hear_partitions<'a>(&mut self, key: &str, mut partitions: impl Iterator<Item = &'a u32>) {
        let known = self.starts.get(key);
        let is_new = |partition: &&u32| known.is_none_or(|known| !known.contains_key(partition));
        if let Some(partition) = partitions.find(is_new) {
            let source = key.strip_prefix(START).unwrap_or(key);
            self.trouble.get_or_insert(format!(
                "the generation that is followed reads partition {partition} of source {source}, which has come since: this one begins anew"
            ));
        }
    }
}

/// Where the partitions of sources were first read from, by their keys.
fn starts(kept: &Kept) -> BTreeMap<String, BTreeMap<u32, u64>> {
    let start = |(source, value): (&str, &[u8])| {
        Some((progress::start_key(source), serde_json::from_slice(value).ok()?))
    };
    kept.below(START).filter_map(start).collect()
}

/// Whether waiting may help.
fn is_passing(error: &RunError) -> bool {
    matches!(
        error,
        RunError::Outlet(OutletError::Hangs { .. })
            | RunError::Source { error: SourceError::Transient(_), .. }
    )
}

/// Why a claim that was to follow another one has failed. Whoever comes too late has lost nothing: it may be started again, to follow.
pub fn not_taken_over(error: RunError) -> RunError {
    match error {
        RunError::Outlet(error @ OutletError::Fenced { .. }) => RunError::Failed(error.to_string()),
        error => error,
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::kafka::progress::ShardProgress;

    const AFTER: Wait = Wait::from_secs(3);

    fn kept(values: &[(&str, &str)], last: i64) -> Kept {
        let values = values.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()));
        Kept::of("progress", values, last)
    }

    fn first() -> Kept {
        kept(&[("claim", r#"{"generation":3,"nonce":"a"}"#), ("start/log", r#"{"0":0,"1":0}"#)], 7)
    }

    fn following(kind: StartKind) -> Arc<Following> {
        let successors = vec![Successor::of(&first()).unwrap().unwrap()];
        Arc::new(Following::of(kind, AFTER, successors, Seen::new(vec![1], &[first()])))
    }

    fn is_time(following: &Following) -> Result<bool, RunError> {
        following.is_time(&[], &HashMap::new())
    }

    fn silence(following: &Following, millis: u64) {
        following.hear_life(0, Life::Silence(Wait::from_millis(millis)));
    }

    #[test]
    fn a_standby_waits_for_a_silence_that_it_has_listened_to() {
        let following = following(StartKind::Standby);
        following.hear_life(0, Life::Record(7, None));
        silence(&following, 2_900);
        assert!(!is_time(&following).unwrap());
        silence(&following, 100);
        assert!(is_time(&following).unwrap());
        // What was written meanwhile has not been heard of yet.
        assert!(!following.is_still_time(&[kept(&[], 8)]).unwrap());
        assert!(!is_time(&following).unwrap(), "it listens anew");
        silence(&following, 3_000);
        assert!(following.is_still_time(&[first()]).unwrap());
        for life in [Life::Away, Life::Record(8, None)] {
            silence(&following, 3_000);
            following.hear_life(0, life);
            assert!(!is_time(&following).unwrap());
        }
    }

    #[test]
    fn partitions_that_have_come_end_it_before_a_claim() {
        let more = |partition: u32| {
            let positions = [("log".into(), [(0, 5), (partition, 9)].into())].into();
            Some(Sign::Shard(0, ShardProgress { epoch: 1, positions, before: Default::default() }))
        };
        let start = |value: &str| Some(Sign::Kept("start/log".into(), value.into()));
        for (sign, is_known) in [
            (more(1), true),
            (more(2), false),
            (start(r#"{"0":0}"#), true),
            (start(r#"{"0":0,"1":0,"2":0}"#), false),
            (Some(Sign::Kept("start/other".into(), b"{\"0\":0}".to_vec())), false),
        ] {
            let following = following(StartKind::Standby);
            following.hear_life(0, Life::Record(8, sign.clone()));
            silence(&following, 9_000);
            assert_eq!(is_time(&following).is_ok(), is_known, "{sign:?}");
        }
        let added = kept(&[("start/log", r#"{"0":0,"1":0,"2":0}"#)], 7);
        assert!(following(StartKind::Takeover).is_still_time(&[added]).is_err());
        let claimed = kept(&[("claim", r#"{"generation":4,"nonce":"b"}"#)], 7);
        assert!(following(StartKind::Takeover).is_still_time(&[claimed]).is_err());
    }

    #[test]
    fn answers_that_the_claim_has_found_are_used() {
        let following = following(StartKind::Takeover);
        let find = following.find("log", Box::new(|id| panic!("{id} was asked for")));
        assert!(find(9).is_err());
        following.end(&[&kept(&[("schema/log/9", "\"unknown\"")], 9)]);
        assert_eq!(find(9), Ok(Answer::Unknown));
    }

    #[test]
    fn whoever_loses_the_race_is_started_again() {
        let lost = RunError::Outlet(OutletError::Fenced { topic: "progress".into(), generation: 4 });
        assert!(lost.is_takeover());
        let lost = not_taken_over(lost);
        assert!(!lost.is_takeover() && lost.to_string().contains("generation 4"), "{lost}");
    }
}
