//! The other processes of a run: what this one asks of them and does for them, beside the dataflow.

mod forward;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use self::forward::{Appends, Forward};
use super::run_error::RunError;
use super::shutdown::Shutdown;
use crate::cluster::message::Message;
use crate::cluster::supervisor::TAKEN_OVER_EXIT_CODE;
use crate::cluster::{Cluster, ClusterError, ClusterPlan, LinkHandler, Links, ValueName};
use crate::model::{Appender, PartitionIndex, PartitionName, PartitionTable, Reason, Topology};
use crate::registry::{ResponseFetcher, SchemaCache, SchemaLookup};
use crate::sinks::kafka::progress::Positions;
use crate::worker::SharedState;

/// How long another process may take to find out about a schema, and how often it is asked.
const SCHEMA_PATIENCE: Duration = Duration::from_secs(10);
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// How long the end of one process waits for the others', and that of one that has not started.
const LAST_WAIT: Duration = Duration::from_secs(30);
const GIVE_UP: Duration = Duration::from_secs(1);

/// The processes of this run.
pub struct Processes {
    cluster: Cluster,
    desk: Arc<Desk>,
}

/// Where what others say arrives.
struct Desk {
    topology: Topology,
    /// This process is about to end, so that others may, too.
    ending: AtomicBool,
    stops: Shutdown,
    links: OnceLock<Links>,
    shared: OnceLock<Arc<SharedState>>,
    slots: OnceLock<PartitionTable>,
    /// At process 0: takes what the others forward.
    appender: OnceLock<Arc<dyn Appender>>,
    appends: Mutex<Appends>,
    /// At process 0, by source.
    schemas: Mutex<HashMap<String, SchemaCache>>,
    schema_calls: Mutex<HashMap<u64, SyncSender<Result<String, String>>>>,
    calls: AtomicU64,
    /// At process 0: the greatest epoch that another process uses or wants.
    newest: AtomicU64,
    /// Refused at each process.
    refused: Mutex<BTreeMap<usize, Vec<u64>>>,
    /// A bit for each process that does not take its results fast enough.
    congested: Mutex<u64>,
    /// Partitions that have come and that not all know of yet.
    coming: Mutex<Vec<Coming>>,
    parts: Mutex<Vec<CheckpointPart>>,
    sealed: Mutex<Option<(u64, Positions)>>,
    given_up: AtomicU64,
    follow: Mutex<Vec<(PartitionIndex, u64)>>,
    take_over: AtomicBool,
}

/// A process, the number of a checkpoint, and the process's part of it.
pub type CheckpointPart = (usize, u64, Result<Vec<u8>, String>);

/// A partition that came after the start.
struct Coming {
    slot: PartitionIndex,
    name: PartitionName,
    start: u64,
    /// At process 0: how many others know of it.
    known: usize,
    /// All do.
    may_be_read: bool,
}

impl Processes {
    /// Meets the others. `stops` hears that it is time for all to stop, and ends the wait for them.
    pub fn meet(
        plan: &ClusterPlan,
        listener: Option<TcpListener>,
        stops: &Shutdown,
    ) -> Result<Processes, ClusterError> {
        let desk = Arc::new(Desk {
            topology: plan.topology,
            ending: AtomicBool::new(false),
            stops: stops.clone(),
            links: OnceLock::new(),
            shared: OnceLock::new(),
            slots: OnceLock::new(),
            appender: OnceLock::new(),
            appends: Mutex::default(),
            schemas: Mutex::default(),
            schema_calls: Mutex::default(),
            calls: AtomicU64::new(0),
            newest: AtomicU64::new(0),
            refused: Mutex::default(),
            congested: Mutex::default(),
            coming: Mutex::default(),
            parts: Mutex::default(),
            sealed: Mutex::default(),
            given_up: AtomicU64::new(0),
            follow: Mutex::default(),
            take_over: AtomicBool::new(false),
        });
        let (hearing, losing) = (Arc::clone(&desk), Arc::clone(&desk));
        let heard = LinkHandler {
            on_message: Arc::new(move |process, message| hearing.hear(process, message)),
            on_lost: Arc::new(move |process, why| losing.lose(process, &why)),
        };
        let cluster = Cluster::connect(plan, listener, heard, stops.flag())?;
        // What was heard before could not be answered, and was nothing that has an answer.
        let _ = desk.links.set(cluster.links().clone());
        Ok(Processes { cluster, desk })
    }

    pub fn topology(&self) -> Topology {
        self.desk.topology
    }

    /// See [`Cluster::share`]. The others hear at once why it could not be made.
    pub fn share<T>(&self, name: ValueName, make: impl FnOnce() -> Result<T, RunError>) -> Result<T, RunError>
    where
        T: serde::Serialize + serde::de::DeserializeOwned,
    {
        self.cluster.share(name, make).inspect_err(|error| {
            if !error.is_stop_request() {
                self.fail(error);
            }
        })
    }

    /// See [`Cluster::gather`].
    pub fn gather<T: serde::Serialize + serde::de::DeserializeOwned>(
        &self,
        name: ValueName,
        mine: T,
    ) -> Result<Vec<T>, ClusterError> {
        self.cluster.gather(name, mine)
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Says something to all that there is a link to.
    pub fn tell(&self, message: &Message) {
        self.cluster.links().send_all(message);
    }

    /// From now on, what is heard is for this run; at process 0, what is forwarded is appended.
    pub fn serve(
        &self,
        shared: Arc<SharedState>,
        slots: PartitionTable,
        appender: Option<Arc<dyn Appender>>,
    ) {
        let desk = Arc::downgrade(&self.desk);
        shared.on_congestion(Box::new(move |is_congested| {
            if let Some(desk) = desk.upgrade() {
                desk.say_congested(is_congested);
            }
        }));
        let _ = self.desk.slots.set(slots);
        let _ = self.desk.shared.set(shared);
        if let (true, Some(appender)) = (self.topology().is_first_process(), appender) {
            let _ = self.desk.appender.set(appender);
        }
    }

    /// Appends at process 0; not more records and bytes than this wait for it.
    pub fn forward(&self, records: usize, bytes: usize) -> Arc<dyn Appender> {
        Arc::new(Forward::new(Arc::clone(&self.desk), records, bytes))
    }

    /// Finds answers of a source's registry at process 0.
    pub fn ask_schemas(&self, source: &str) -> ResponseFetcher {
        let (desk, source) = (Arc::clone(&self.desk), source.to_owned());
        Box::new(move |id| desk.ask_schema(&source, id))
    }

    /// Answers such questions.
    pub fn answer_schemas(&self, source: &str, schemas: SchemaCache) {
        locked(&self.desk.schemas).insert(source.to_owned(), schemas);
    }

    /// Asks all to stop: process 0 tells them when.
    pub fn ask_to_stop(&self) {
        match self.topology().is_first_process() {
            true => {
                self.tell(&Message::Stop);
                self.desk.stops.confirm_stop();
            }
            false => self.tell(&Message::Stop),
        }
    }

    /// At process 0: a partition has come, which is read once all processes know of it: what any of them writes says of each partition how
    /// far it was read.
    pub fn introduce(&self, slot: PartitionIndex, name: PartitionName, start: u64) {
        let may_be_read = self.topology().is_single_process();
        let coming = Coming { slot, name: name.clone(), start, known: 0, may_be_read };
        locked(&self.desk.coming).push(coming);
        self.tell(&Message::Partition { slot, name, start });
    }

    /// The partitions that all know of since the last call.
    pub fn partitions_to_read(&self) -> Vec<(PartitionIndex, PartitionName, u64)> {
        let mut coming = locked(&self.desk.coming);
        let ready = coming.extract_if(.., |coming| coming.may_be_read);
        ready.map(|Coming { slot, name, start, .. }| (slot, name, start)).collect()
    }

    /// Where something was not said for want of room, it is said now.
    pub fn say_congestion_again(&self) {
        if let Some(shared) = self.desk.shared.get() {
            self.desk.say_congested(shared.is_congested());
        }
    }

    /// At process 0: the parts of checkpoints that have come since the last call.
    pub fn parts_that_came(&self) -> Vec<CheckpointPart> {
        std::mem::take(&mut locked(&self.desk.parts))
    }

    /// At other processes than the first: the last checkpoint whose epoch is complete, once.
    pub fn take_sealed(&self) -> Option<(u64, Positions)> {
        locked(&self.desk.sealed).take()
    }

    /// At other processes than the first: the last checkpoint that is not wanted any more; 0 before there is any.
    pub fn given_up_checkpoint(&self) -> u64 {
        self.desk.given_up.load(Ordering::Relaxed)
    }

    /// At other processes than the first: how far the generation that is followed has come since the last call, and whether it is time to
    /// take over from it.
    pub fn followed(&self) -> (Vec<(PartitionIndex, u64)>, bool) {
        (std::mem::take(&mut locked(&self.desk.follow)), self.desk.take_over.load(Ordering::Acquire))
    }

    /// The greatest epoch that the other processes want to use.
    pub fn newest_epoch(&self) -> u64 {
        self.desk.newest.load(Ordering::Relaxed)
    }

    /// Exchanges what has been refused: a number for each reason.
    pub fn exchange_refused(&self, shared: &SharedState) {
        let own = shared.refusals.local_counts();
        if self.topology().is_single_process() {
            return;
        }
        if !self.topology().is_first_process() {
            return self.tell(&Message::Refused(numbered(&own)));
        }
        let mut all = locked(&self.desk.refused).clone();
        all.insert(0, own);
        for process in 0..self.topology().processes {
            let mut others = vec![0; Reason::ALL.len()];
            for (_, counts) in all.iter().filter(|(other, _)| **other != process) {
                others.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            }
            match process {
                0 => shared.refusals.set_remote_counts(&others),
                _ => self.cluster.links().send(process, &Message::Refused(numbered(&others))),
            }
        }
    }

    /// This process ends for a reason that ends the others.
    pub fn fail(&self, why: &RunError) {
        self.desk.ending.store(true, Ordering::Relaxed);
        self.cluster.fail(&why.to_string(), why.is_takeover());
        self.cluster.links().flush();
    }

    /// This process stops before it has started, and the others with it.
    pub fn give_up(&self) {
        self.desk.ending.store(true, Ordering::Relaxed);
        self.tell(&Message::Stop);
        self.cluster.links().close(Instant::now() + GIVE_UP);
    }

    /// All have stopped: waits for the others to say so, since they may need this process until then.
    pub fn end(&self) {
        self.desk.ending.store(true, Ordering::Relaxed);
        self.cluster.links().close(Instant::now() + LAST_WAIT);
    }
}

fn numbered(counts: &[u64]) -> Vec<(u8, u64)> {
    (0..).zip(counts.iter().copied()).filter(|(_, count)| *count > 0).collect()
}

fn counts_of(numbered: &[(u8, u64)]) -> Vec<u64> {
    let mut counts = vec![0; Reason::ALL.len()];
    for (number, count) in numbered {
        if let Some(slot) = counts.get_mut(usize::from(*number)) {
            *slot = *count;
        }
    }
    counts
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desk {
    fn send(&self, process: usize, message: &Message) {
        if let Some(links) = self.links.get() {
            links.send(process, message);
        }
    }

    fn hear(self: &Arc<Desk>, process: usize, message: Message) {
        match message {
            Message::Append { call, records } => self.append(process, call, records),
            Message::Appended { call, result } => self.appended(call, result),
            Message::Newest { epoch } => drop(self.newest.fetch_max(epoch, Ordering::Relaxed)),
            Message::Reserved { upto } => {
                self.shared.get().into_iter().for_each(|shared| shared.reserve(upto))
            }
            Message::Refused(counts) if self.topology.is_first_process() => {
                locked(&self.refused).insert(process, counts_of(&counts));
            }
            Message::Refused(counts) => {
                self.shared
                    .get()
                    .into_iter()
                    .for_each(|shared| shared.refusals.set_remote_counts(&counts_of(&counts)));
            }
            Message::AskSchema { call, source, id } => {
                let answer = self.schema(&source, id);
                self.send(process, &Message::Schema { call, answer });
            }
            Message::Schema { call, answer } => {
                if let Some(waiting) = locked(&self.schema_calls).remove(&call) {
                    let _ = waiting.try_send(answer);
                }
            }
            Message::Congested(is_congested) if self.topology.is_first_process() => {
                self.note_congested(process, is_congested);
            }
            Message::Congested(is_congested) => {
                let shared = self.shared.get();
                shared.into_iter().for_each(|shared| shared.set_congested_elsewhere(is_congested));
            }
            Message::Partition { slot, name, start } => self.learn(slot, name, start),
            Message::PartitionKnown { slot } => self.note_known(slot),
            Message::ReadPartition { slot } => {
                let mut coming = locked(&self.coming);
                let of_slot = coming.iter_mut().filter(|coming| coming.slot == slot);
                of_slot.for_each(|coming| coming.may_be_read = true);
            }
            Message::Checkpoint { checkpoint, part } => locked(&self.parts).push((process, checkpoint, part)),
            Message::Follow(positions) => locked(&self.follow).extend(positions),
            Message::TakeOver => self.take_over.store(true, Ordering::Release),
            Message::Sealed { checkpoint, positions } => {
                *locked(&self.sealed) = Some((checkpoint, positions));
            }
            Message::GivenUp { checkpoint } => {
                self.given_up.fetch_max(checkpoint, Ordering::Relaxed);
            }
            Message::Stop => {
                if let (true, Some(links)) = (self.topology.is_first_process(), self.links.get()) {
                    links.send_all(&Message::Stop);
                }
                self.stops.confirm_stop();
            }
            Message::Failed { why, taken_over } => self.end_with(process, &why, taken_over),
            // These the link takes itself.
            Message::Value(_) | Message::Alive | Message::Bye => {}
        }
    }

    /// Another process has failed, and said why.
    fn end_with(&self, process: usize, why: &str, taken_over: bool) {
        if self.ending.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::error!(peer = process, "a process of the cluster has failed, so all end: {why}");
        if let (true, Some(links)) = (self.topology.is_first_process(), self.links.get()) {
            links.send_all(&Message::Failed { why: format!("process {process}: {why}"), taken_over });
            links.flush();
        }
        std::process::exit(if taken_over { i32::from(TAKEN_OVER_EXIT_CODE) } else { 1 });
    }

    fn lose(&self, process: usize, why: &str) {
        self.end_with(process, &format!("it is gone: {why}"), false);
    }

    /// Tells process 0 of this process, or all of any. What finds no room is said again before long.
    fn say_congested(&self, is_congested: bool) {
        match (self.topology.is_first_process(), self.links.get()) {
            (true, _) => self.note_congested(0, is_congested),
            (false, Some(links)) => links.try_send_all(&Message::Congested(is_congested)),
            (false, None) => {}
        }
    }

    /// At process 0.
    fn note_congested(&self, process: usize, is_congested: bool) {
        // Under the lock, so that what is said last is what is so.
        let mut congested = locked(&self.congested);
        let bit = 1u64 << process;
        *congested = if is_congested { *congested | bit } else { *congested & !bit };
        if let Some(shared) = self.shared.get() {
            shared.set_congested_elsewhere(*congested & !1 != 0);
        }
        if let Some(links) = self.links.get() {
            links.try_send_all(&Message::Congested(*congested != 0));
        }
    }

    /// A partition gets the number here that it has at process 0.
    fn learn(&self, slot: PartitionIndex, name: PartitionName, start: u64) {
        let (Some(slots), Some(shared)) = (self.slots.get(), self.shared.get()) else { return };
        if slots.push(name.clone()) != slot {
            return shared
                .fail(format!("the partitions have other numbers here than at process 0: {name:?}"));
        }
        let coming = Coming { slot, name, start, known: 0, may_be_read: false };
        locked(&self.coming).push(coming);
        self.send(0, &Message::PartitionKnown { slot });
    }

    /// At process 0: one more knows of it.
    fn note_known(&self, slot: PartitionIndex) {
        let mut coming = locked(&self.coming);
        let Some(coming) = coming.iter_mut().find(|coming| coming.slot == slot) else { return };
        coming.known += 1;
        coming.may_be_read = coming.known == self.topology.processes - 1;
        if let (true, Some(links)) = (coming.may_be_read, self.links.get()) {
            links.send_all(&Message::ReadPartition { slot });
        }
    }

    fn schema(&self, source: &str, id: u32) -> Result<String, String> {
        let schemas = locked(&self.schemas).get(source).cloned();
        let schemas = schemas.ok_or_else(|| "it is still starting".to_owned())?;
        match schemas.lookup(id) {
            SchemaLookup::Known(answer) => serde_json::to_string(&answer).map_err(|error| error.to_string()),
            SchemaLookup::Pending => Err(String::new()),
            SchemaLookup::Unavailable(why) => Err(why.to_string()),
        }
    }

    /// Asks process 0, until it knows or has waited for long.
    fn ask_schema(&self, source: &str, id: u32) -> Result<crate::registry::RegistryResponse, String> {
        let deadline = Instant::now() + SCHEMA_PATIENCE;
        loop {
            let call = self.calls.fetch_add(1, Ordering::Relaxed);
            let (sender, answer) = mpsc::sync_channel(1);
            locked(&self.schema_calls).insert(call, sender);
            self.send(0, &Message::AskSchema { call, source: source.to_owned(), id });
            let answered = answer.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            locked(&self.schema_calls).remove(&call);
            match answered {
                Ok(Ok(json)) => return serde_json::from_str(&json).map_err(|error| error.to_string()),
                Ok(Err(why)) if Instant::now() >= deadline => return Err(why),
                Ok(Err(_)) => std::thread::sleep(ASK_AGAIN),
                Err(_) => return Err("process 0 does not answer".into()),
            }
        }
    }
}
