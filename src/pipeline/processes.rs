//! The other processes of a run: what this one asks of them and does for them, beside the dataflow.

use std::collections::{BTreeMap, HashMap};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration as Wait, Instant};

use crate::cluster::message::Message;
use crate::cluster::{Cluster, ClusterError, ClusterPlan, Heard, Links};
use crate::model::{
    Acknowledge, AppendError, Appended, Appender, NewRecord, PartitionName, Reason, Slot, Topology,
};
use crate::registry::{FindAnswer, Lookup, Schemas};
use crate::sinks::kafka::progress::Positions;
use crate::worker::Shared;

/// How long another process may take to find out about a schema, and how often it is asked.
const SCHEMA_PATIENCE: Wait = Wait::from_secs(10);
const ASK_AGAIN: Wait = Wait::from_millis(50);
/// How long the end of one process waits for the others'.
const LAST_WAIT: Wait = Wait::from_secs(30);

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
    asked_to_stop: Box<dyn Fn() + Send + Sync>,
    links: OnceLock<Links>,
    shared: OnceLock<Arc<Shared>>,
    /// At process 0: takes what the others forward.
    appender: OnceLock<Arc<dyn Appender>>,
    appends: Mutex<Appends>,
    /// At process 0, by source.
    schemas: Mutex<HashMap<String, Schemas>>,
    schema_calls: Mutex<HashMap<u64, SyncSender<Result<String, String>>>>,
    calls: AtomicU64,
    /// At process 0: the greatest epoch that another process uses or wants.
    newest: AtomicU64,
    /// Refused at each process.
    refused: Mutex<BTreeMap<usize, Vec<u64>>>,
    partitions: Mutex<Vec<(Slot, PartitionName, u64)>>,
    parts: Mutex<Vec<CheckpointPart>>,
    sealed: Mutex<Option<(u64, Positions)>>,
    given_up: AtomicU64,
    follow: Mutex<Vec<(Slot, u64)>>,
    take_over: AtomicBool,
}

/// A process, the number of a checkpoint, and the process's part of it.
pub type CheckpointPart = (usize, u64, Result<Vec<u8>, String>);

/// Appends that wait for their acknowledgement.
#[derive(Default)]
struct Appends {
    waiting: HashMap<u64, (Acknowledge, usize, usize)>,
    records: usize,
    bytes: usize,
}

impl Processes {
    /// Meets the others. `asked_to_stop` hears that it is time for all to stop.
    pub fn meet(
        plan: &ClusterPlan,
        listener: Option<TcpListener>,
        asked_to_stop: Box<dyn Fn() + Send + Sync>,
    ) -> Result<Processes, ClusterError> {
        let desk = Arc::new(Desk {
            topology: plan.topology,
            ending: AtomicBool::new(false),
            asked_to_stop,
            links: OnceLock::new(),
            shared: OnceLock::new(),
            appender: OnceLock::new(),
            appends: Mutex::default(),
            schemas: Mutex::default(),
            schema_calls: Mutex::default(),
            calls: AtomicU64::new(0),
            newest: AtomicU64::new(0),
            refused: Mutex::default(),
            partitions: Mutex::default(),
            parts: Mutex::default(),
            sealed: Mutex::default(),
            given_up: AtomicU64::new(0),
            follow: Mutex::default(),
            take_over: AtomicBool::new(false),
        });
        let (hearing, losing) = (Arc::clone(&desk), Arc::clone(&desk));
        let heard = Heard {
            message: Arc::new(move |process, message| hearing.hear(process, message)),
            lost: Arc::new(move |process, why| losing.lose(process, &why)),
        };
        let cluster = Cluster::meet(plan, listener, heard)?;
        // What was heard before could not be answered, and was nothing that has an answer.
        let _ = desk.links.set(cluster.links().clone());
        Ok(Processes { cluster, desk })
    }

    pub fn topology(&self) -> Topology {
        self.desk.topology
    }

    /// See [`Cluster::share`].
    pub fn share<T, E>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<T, E>
    where
        T: serde::Serialize + serde::de::DeserializeOwned,
        E: From<ClusterError> + ToString,
    {
        self.cluster.share(make)
    }

    /// See [`Cluster::gather`].
    pub fn gather<T: serde::Serialize + serde::de::DeserializeOwned>(
        &self,
        mine: T,
    ) -> Result<Vec<T>, ClusterError> {
        self.cluster.gather(mine)
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Says something to all that there is a link to.
    pub fn tell(&self, message: &Message) {
        self.cluster.links().send_all(message);
    }

    /// From now on, what is heard is for this run; at process 0, what is forwarded is appended.
    pub fn serve(&self, shared: Arc<Shared>, appender: Option<Arc<dyn Appender>>) {
        let _ = self.desk.shared.set(shared);
        if let (true, Some(appender)) = (self.topology().is_first(), appender) {
            let _ = self.desk.appender.set(appender);
        }
    }

    /// Appends at process 0; not more records and bytes than this wait for it.
    pub fn forward(&self, records: usize, bytes: usize) -> Arc<dyn Appender> {
        Arc::new(Forward { desk: Arc::clone(&self.desk), records, bytes })
    }

    /// Finds answers of a source's registry at process 0.
    pub fn ask_schemas(&self, source: &str) -> FindAnswer {
        let (desk, source) = (Arc::clone(&self.desk), source.to_owned());
        Box::new(move |id| desk.ask_schema(&source, id))
    }

    /// Answers such questions.
    pub fn answer_schemas(&self, source: &str, schemas: Schemas) {
        locked(&self.desk.schemas).insert(source.to_owned(), schemas);
    }

    /// Asks all to stop: process 0 tells them when.
    pub fn ask_to_stop(&self) {
        match self.topology().is_first() {
            true => {
                self.tell(&Message::Stop);
                (self.desk.asked_to_stop)();
            }
            false => self.tell(&Message::Stop),
        }
    }

    /// At other processes than the first: those that it has told of since the last call.
    pub fn partitions_that_came(&self) -> Vec<(Slot, PartitionName, u64)> {
        std::mem::take(&mut locked(&self.desk.partitions))
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
    pub fn followed(&self) -> (Vec<(Slot, u64)>, bool) {
        (std::mem::take(&mut locked(&self.desk.follow)), self.desk.take_over.load(Ordering::Acquire))
    }

    /// The greatest epoch that the other processes want to use.
    pub fn newest_epoch(&self) -> u64 {
        self.desk.newest.load(Ordering::Relaxed)
    }

    /// Exchanges what has been refused: a number for each reason.
    pub fn exchange_refused(&self, shared: &Shared) {
        let own = shared.refusals.own();
        if self.topology().is_alone() {
            return;
        }
        if !self.topology().is_first() {
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
                0 => shared.refusals.set_others(&others),
                _ => self.cluster.links().send(process, &Message::Refused(numbered(&others))),
            }
        }
    }

    /// This process ends for a reason that ends the others.
    pub fn fail(&self, why: &str) {
        self.desk.ending.store(true, Ordering::Relaxed);
        self.cluster.fail(why);
        self.cluster.links().flush();
    }

    /// All have stopped: waits for the others to say so, since they may need this process until then.
    pub fn end(&self) {
        self.desk.ending.store(true, Ordering::Relaxed);
        self.cluster.links().end(Instant::now() + LAST_WAIT);
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
            Message::Refused(counts) if self.topology.is_first() => {
                locked(&self.refused).insert(process, counts_of(&counts));
            }
            Message::Refused(counts) => {
                self.shared
                    .get()
                    .into_iter()
                    .for_each(|shared| shared.refusals.set_others(&counts_of(&counts)));
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
            Message::Partition { slot, name, start } => locked(&self.partitions).push((slot, name, start)),
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
                if let (true, Some(links)) = (self.topology.is_first(), self.links.get()) {
                    links.send_all(&Message::Stop);
                }
                (self.asked_to_stop)();
            }
            Message::Failed(why) => self.end_with(process, &why),
            // These the link takes itself.
            Message::Value(_) | Message::Alive | Message::Bye => {}
        }
    }

    /// Another process has failed, and said why.
    fn end_with(&self, process: usize, why: &str) {
        if self.ending.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::error!(process, "a process of the cluster has failed, so all end: {why}");
        if let (true, Some(links)) = (self.topology.is_first(), self.links.get()) {
            links.send_all(&Message::Failed(format!("process {process}: {why}")));
            links.flush();
        }
        std::process::exit(1);
    }

    fn lose(&self, process: usize, why: &str) {
        self.end_with(process, &format!("it is gone: {why}"));
    }

    fn append(self: &Arc<Desk>, process: usize, call: u64, records: Vec<NewRecord>) {
        let Some(appender) = self.appender.get() else {
            let result = Err(AppendError::Busy);
            return self.send(process, &Message::Appended { call, result });
        };
        let desk = Arc::clone(self);
        appender.append(
            records,
            Box::new(move |result| {
                let places = |places: Vec<Appended>| {
                    places.into_iter().map(|place| (place.partition, place.position)).collect()
                };
                desk.send(process, &Message::Appended { call, result: result.map(places) });
            }),
        );
    }

    fn appended(&self, call: u64, result: Result<Vec<(PartitionName, u64)>, AppendError>) {
        let mut appends = locked(&self.appends);
        let Some((done, records, bytes)) = appends.waiting.remove(&call) else { return };
        appends.records -= records;
        appends.bytes -= bytes;
        drop(appends);
        let place = |(partition, position)| Appended { partition, position };
        done(result.map(|places| places.into_iter().map(place).collect()));
    }

    fn schema(&self, source: &str, id: u32) -> Result<String, String> {
        let schemas = locked(&self.schemas).get(source).cloned();
        let schemas = schemas.ok_or_else(|| "it is still starting".to_owned())?;
        match schemas.lookup(id) {
            Lookup::Known(answer) => serde_json::to_string(&answer).map_err(|error| error.to_string()),
            Lookup::Pending => Err(String::new()),
            Lookup::Unavailable(why) => Err(why.to_string()),
        }
    }

    /// Asks process 0, until it knows or has waited for long.
    fn ask_schema(&self, source: &str, id: u32) -> Result<crate::registry::Answer, String> {
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

/// Appends to the log of process 0.
struct Forward {
    desk: Arc<Desk>,
    records: usize,
    bytes: usize,
}

impl Appender for Forward {
    fn append(&self, records: Vec<NewRecord>, done: Acknowledge) {
        let bytes = records.iter().map(|record| record.bytes.len()).sum::<usize>();
        let count = records.len();
        let mut appends = locked(&self.desk.appends);
        let fits = appends.records + count <= self.records && appends.bytes + bytes <= self.bytes;
        let links = self.desk.links.get().filter(|_| fits || appends.waiting.is_empty());
        let Some(links) = links else {
            drop(appends);
            return done(Err(AppendError::Busy));
        };
        let call = self.desk.calls.fetch_add(1, Ordering::Relaxed);
        // Under the lock, so that what one connection appends keeps its order.
        if links.try_send(0, &Message::Append { call, records }) {
            appends.records += count;
            appends.bytes += bytes;
            appends.waiting.insert(call, (done, count, bytes));
        } else {
            drop(appends);
            done(Err(AppendError::Busy));
        }
    }
}
