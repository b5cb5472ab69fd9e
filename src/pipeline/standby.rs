//! A generation that hydrates beside a running one: it follows what that makes durable, and takes over from it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration as Wait, Instant};

use super::live::RunError;
use super::outlets::Prepared;
use crate::config::StartKind;
use crate::model::{Slot, Slots};
use crate::registry::{Answer, FindAnswer};
use crate::sinks::kafka::Successor;
use crate::sinks::kafka::progress::{self, Kept, Positions, Sign};

/// What is read by then counts as read as soon as it is.
const BEHIND: Wait = Wait::from_secs(1);

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
    answers: HashMap<String, Vec<u8>>,
    last_sign: Instant,
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
        let counts: Vec<u16> = prepared.topics().map(|(_, _, shards)| shards).collect();
        let seen = Seen {
            shards: vec![BTreeMap::new(); counts.len()],
            counts,
            answers: HashMap::new(),
            last_sign: Instant::now(),
            trouble: None,
            target: None,
        };
        let (ended, is_ours) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Some(Following { kind, standby_after, successors, seen: Mutex::new(seen), ended, is_ours }))
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
            let (following, cluster, topic) = (Arc::clone(self), cluster.clone(), topic.to_owned());
            let follow = move || {
                let hear = |sign| following.hear(outlet, sign);
                if let Err(error) = progress::follow(&cluster, &topic, hear) {
                    following.seen().trouble.get_or_insert(error.to_string());
                }
            };
            let name = format!("follow {outlet}");
            thread::Builder::new().name(name).spawn(follow).map_err(RunError::Threads)?;
        }
        Ok(())
    }

    fn hear(&self, outlet: usize, sign: Option<Sign>) -> bool {
        let mut seen = self.seen();
        if sign.is_some() {
            seen.last_sign = Instant::now();
        }
        match sign {
            Some(Sign::Shard(shard, progress)) => drop(seen.shards[outlet].insert(shard, progress.positions)),
            Some(Sign::Claim(claim)) => {
                // All earlier ones are in the topic as well.
                let expected = self.successors.get(outlet);
                if expected.is_some_and(|expected| expected.is_overtaken_by(&claim)) {
                    seen.trouble.get_or_insert(format!(
                        "generation {} has taken over from the one that was followed: this one begins anew",
                        claim.generation
                    ));
                }
            }
            Some(Sign::Kept(key, value)) => drop(seen.answers.insert(key, value)),
            None => {}
        }
        !self.ended.load(Ordering::Relaxed)
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
            StartKind::Standby => Ok(seen.last_sign.elapsed() >= self.standby_after),
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
                Ok(is_there && (is_recent || seen.last_sign.elapsed() >= self.standby_after))
            }
        }
    }

    /// The outlets are this run's now.
    pub fn end(&self) {
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

impl Drop for Following {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}
