//! One worker's loop: poll, advance, step, tell.
//!
//! Readings are sent at an epoch of the ingest clock, at most one a millisecond, and the epoch is closed with them. A worker that
//! hears of an epoch that others use closes it too, whatever its own clock says: so none holds the others up, and an
//! epoch is complete as soon as all have heard of it.

mod outgoing;
mod reader;
mod shared;
mod teller;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration as Wait, Instant};

use timely::worker::Worker;

use self::outgoing::Outgoing;
pub use self::outgoing::{Cuts, Gate};
use self::reader::{FULL, FULL_ROWS, Gathered, LONGEST_RETRY, RETRY as FIRST_RETRY, Reader};
pub use self::reader::{LetterPlaces, LogPartition, Refusals};
use self::shared::QUESTIONS;
pub use self::shared::Shared;
pub use self::teller::Marked;
use self::teller::Teller;
use crate::admission::{Admission, AdmissionRules};
use crate::config::PipelineLimits;
use crate::dataflow::rolling::Retention;
use crate::dataflow::rolling::snapshot::Resumed;
use crate::dataflow::rolling::told::Read;
use crate::dataflow::{self, Graph, GraphPlan};
use crate::model::clock::wall_clock_ms;
use crate::model::{
    Arrival, CityName, CityState, EventTime, LogPosition, Mark, Parcel, Parcels, Query, Slot, Slots,
    Snapshots, Topology,
};
use crate::serve::Publisher;
use crate::sources::SourceError;

/// Between two epochs of a worker; while it catches up it takes more into one.
const BETWEEN_EPOCHS: Wait = Wait::from_millis(1);
const CATCHING_UP: Wait = Wait::from_millis(20);
/// How often a worker that has nothing to send moves on with the clock.
const IDLE: Wait = Wait::from_millis(20);
/// A worker never parks without a limit, so that it does not sleep for ever should a wake-up get lost.
const LONGEST_PARK: Wait = Wait::from_millis(10);
/// How long it parks while it must not go on.
const HELD_BACK: Wait = Wait::from_millis(1);
/// How long a worker that stops tries to send what it has read.
const LAST_WAIT: Wait = Wait::from_secs(5);

/// What the workers of a run do.
#[derive(Clone)]
pub struct Job {
    pub topology: Topology,
    pub graph: GraphPlan,
    pub rules: AdmissionRules,
    pub limits: PipelineLimits,
    /// Those that this process can read. Each is read by one worker.
    pub partitions: Vec<LogPartition>,
    /// All of them.
    pub slots: Slots,
    pub publisher: Publisher,
    /// Durable sinks, and where a replay stops for them.
    pub gate: Arc<Gate>,
    /// Where each partition is read from, by slot.
    pub starts: Arc<[LogPosition]>,
    /// What the workers of this process begin with.
    pub states: Arc<States>,
    pub shared: Arc<Shared>,
}

/// What a worker begins with, and what becomes of its state.
#[derive(Default)]
pub struct State {
    pub cities: Vec<CityState>,
    pub snapshots: Option<Box<dyn Snapshots + Send>>,
}

/// The states of the workers of a process, each taken once; and what the readers of partitions know of cities.
#[derive(Default)]
pub struct States {
    workers: Mutex<Vec<State>>,
    highs: HashMap<Slot, Vec<CityHigh>>,
}

/// A city of a partition, as its admission takes it over.
#[derive(Clone, Debug)]
pub struct CityHigh {
    pub city: Arc<str>,
    pub high: Option<EventTime>,
    /// About how many readings are held.
    pub readings: u32,
}

impl States {
    pub fn new(workers: Vec<State>, highs: HashMap<Slot, Vec<CityHigh>>) -> States {
        States { workers: Mutex::new(workers), highs }
    }

    fn take(&self, worker: usize) -> State {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.get_mut(worker).map(std::mem::take).unwrap_or_default()
    }

    /// Has an admission know the cities that its partition had.
    fn resume(&self, slot: Slot, retention: Retention, admission: &mut Admission) {
        for CityHigh { city, high, readings } in self.highs.get(&slot).into_iter().flatten() {
            let held = high.and_then(|high| EventTime::from_millis(retention.oldest_held(high.millis())));
            admission.resume(city, *high, *readings, held.unwrap_or_default());
        }
    }
}

/// The ingest clock, ms since 1970-01-01T00:00:00Z.
pub fn clock() -> u64 {
    wall_clock_ms()
}

/// Runs one worker until it is asked to stop.
pub fn run(worker: &mut Worker, job: &Job, first_epoch: u64) {
    let own = worker.index() % job.topology.workers;
    let State { cities, snapshots, .. } = job.states.take(own);
    let resumed = Resumed { epoch: first_epoch, cities };
    let graph = dataflow::build(worker, &job.graph, resumed, snapshots.map(|own| own as Box<dyn Snapshots>));
    let mut own = Own::new(worker.index(), graph, job, first_epoch);
    loop {
        let now = Instant::now();
        let stopping = job.shared.stop.load(Ordering::Relaxed);
        if !stopping {
            own.poll(now);
        }
        own.advance(now, stopping);
        if stopping && (own.has_sent_all() || own.has_waited(now)) {
            break;
        }
        worker.step_or_park(Some(own.wait(now)));
        own.settle();
    }
    own.graph.close_inputs();
    while worker.has_dataflows() {
        worker.step_or_park(Some(LONGEST_PARK));
        own.settle();
    }
    own.finish();
}

/// A partition that came later, and could not be opened yet.
struct Unopened {
    log: LogPartition,
    at: Instant,
    backoff: Wait,
}

impl Unopened {
    fn later(self, now: Instant, error: &SourceError) -> Unopened {
        let LogPartition { name, .. } = &self.log;
        tracing::warn!(source = %name.source, partition = name.partition, %error, "a partition that has come cannot be opened; it is tried again");
        let backoff = (self.backoff * 2).min(LONGEST_RETRY);
        Unopened { at: now + self.backoff, backoff, ..self }
    }
}

/// An epoch that was sent.
struct SentEpoch {
    epoch: u64,
    arrivals: usize,
    /// Epochs may be ahead of the clock, so they do not tell how long ago it was.
    at: Instant,
}

/// What a worker keeps.
struct Own<'a> {
    job: &'a Job,
    index: usize,
    /// How many of those that came later were looked at, and which could not be opened yet.
    added: usize,
    unopened: Vec<Unopened>,
    graph: Graph,
    readers: Vec<Reader>,
    /// The reader that is polled first next time.
    first: usize,
    /// At the first worker of the process.
    teller: Option<Teller>,
    /// Checkpoints that are asked for; of worker 0.
    marks: Vec<Mark>,
    /// Where there are durable sinks.
    outgoing: Option<Outgoing>,
    /// The first epoch that is not closed here.
    open: u64,
    /// Not before this time is another epoch sent, or only the clock followed.
    gate: Instant,
    idle: Instant,
    stopping_since: Option<Instant>,
    /// Epochs that were sent and are not complete, oldest first.
    in_flight: VecDeque<SentEpoch>,
    arrivals_in_flight: usize,
    cities: Vec<CityName>,
    arrivals: Vec<Arrival>,
    queries: Vec<Query>,
    progress: Vec<Read>,
    letters: Parcels,
    /// About how many rows the arrivals may change.
    rows: usize,
}

impl<'a> Own<'a> {
    fn new(index: usize, mut graph: Graph, job: &'a Job, first_epoch: u64) -> Own<'a> {
        let topology = job.topology;
        let own = job.partitions.iter().filter(|log| topology.reader_of(log.slot, log.shared) == index);
        let readers = own.filter_map(|partition| {
            let (states, retention) = (&job.states, job.graph.retention);
            let resume = |admission: &mut Admission| states.resume(partition.slot, retention, admission);
            let failed = |error| job.shared.fail(reader::failed(&partition.name, &error));
            Reader::open(partition, job.rules, resume).map_err(failed).ok()
        });
        let readers = readers.collect();
        let teller = (index == topology.teller_of(topology.process)).then(|| {
            // Only one worker of the process gets here, and only once.
            let _ = job.shared.asked.set(thread::current());
            Teller::new(job.publisher.clone(), &job.starts)
        });
        let closed = graph.parcels.take().zip(graph.read.take());
        let outgoing = closed.map(|(parcels, read)| {
            Outgoing::new(
                parcels,
                read,
                (index, topology),
                Arc::clone(&job.gate),
                job.slots.clone(),
                &job.starts,
            )
        });
        let now = Instant::now();
        let mut own = Own {
            job,
            index,
            added: 0,
            unopened: Vec::new(),
            graph,
            readers,
            first: 0,
            teller,
            marks: Vec::new(),
            outgoing,
            // What was resumed is told at the first epoch.
            open: (first_epoch + 1).max(clock()),
            gate: now,
            idle: now,
            stopping_since: None,
            in_flight: VecDeque::new(),
            arrivals_in_flight: 0,
            cities: Vec::new(),
            arrivals: Vec::new(),
            queries: Vec::new(),
            progress: Vec::new(),
            letters: Parcels::default(),
            rows: 0,
        };
        own.graph.advance_to(own.open);
        own
    }

    /// Polls the partitions that may have something, and takes the questions.
    fn poll(&mut self, now: Instant) {
        if self.teller.is_some() {
            let questions = self.job.shared.questions.lock().unwrap_or_else(PoisonError::into_inner);
            let process = self.job.topology.process as u8;
            let asked = questions.try_iter().take(QUESTIONS).flatten();
            self.queries.extend(asked.map(|query| Query { process, ..query }));
            if self.index == 0 {
                let marks = &mut self.job.shared.marks.lock().unwrap_or_else(PoisonError::into_inner).0;
                self.marks.append(marks);
            }
            // What is said of progress tells the other workers to close the epoch.
            if !(self.queries.is_empty() && self.marks.is_empty()) && self.progress.is_empty() {
                self.progress.push(Read { epoch: 0, progress: None, caught_up: false });
            }
        }
        self.open_added(now);
        if self.readers.is_empty() || !self.may_poll() {
            return;
        }
        self.first = (self.first + 1) % self.readers.len();
        let (before, after) = self.readers.split_at_mut(self.first);
        for reader in after.iter_mut().chain(before) {
            if self.arrivals.len() >= FULL || self.rows >= FULL_ROWS {
                break;
            }
            let replay = self.outgoing.as_ref().map(Outgoing::replay);
            let upto = replay.map_or(u64::MAX, |replay| replay.limit(reader.slot(), reader.start()));
            let into = Gathered {
                cities: &mut self.cities,
                arrivals: &mut self.arrivals,
                letters: &mut self.letters,
                rows: &mut self.rows,
                refusals: &self.job.shared.refusals,
            };
            let polled = reader.poll(now, self.job.limits.poll_records, upto, into);
            if let Err(error) = polled {
                self.job.shared.fail(error);
            }
        }
    }

    /// Opens the partitions that have come since the last look, and those that could not be opened then.
    fn open_added(&mut self, now: Instant) {
        let shared = &self.job.shared;
        if shared.added_count.load(Ordering::Acquire) != self.added {
            let added = shared.added.lock().unwrap_or_else(PoisonError::into_inner);
            let topology = self.job.topology;
            let own = added[self.added..].iter();
            let own = own.filter(|log| topology.reader_of(log.slot, log.shared) == self.index);
            self.unopened.extend(own.map(|log| Unopened { log: log.clone(), at: now, backoff: FIRST_RETRY }));
            self.added = added.len();
        }
        for unopened in self.unopened.extract_if(.., |unopened| unopened.at <= now).collect::<Vec<_>>() {
            match Reader::open(&unopened.log, self.job.rules, |_| ()) {
                Ok(reader) => self.readers.push(reader),
                Err(error @ SourceError::Transient(_)) => self.unopened.push(unopened.later(now, &error)),
                Err(error) => shared.fail(reader::failed(&unopened.log.name, &error)),
            }
        }
    }

    /// Whether the dataflow and whoever takes its results keep up.
    fn may_poll(&self) -> bool {
        let limits = &self.job.limits;
        let lag = self.in_flight.front().map_or(Wait::ZERO, |sent| sent.at.elapsed());
        self.arrivals_in_flight < limits.readings_in_flight
            && lag.as_millis() <= u128::from(limits.frontier_lag.millis().unsigned_abs())
            && !self.job.shared.must_wait()
            && !self.job.shared.refusals.must_wait()
            && !self.outgoing.as_ref().is_some_and(Outgoing::is_full)
    }

    /// Sends what is there, or moves on.
    fn advance(&mut self, now: Instant, at_once: bool) {
        for reader in &mut self.readers {
            self.progress.extend(reader.moved());
        }
        let heard = self.graph.heard();
        let clock = clock().max(self.open).max(self.job.gate.floor());
        let gate_open = at_once || now >= self.gate || self.is_full();
        if heard >= self.open {
            self.close(heard, now);
        } else if self.has_sent_all() {
            // Epochs that are ahead of the clock go on slowly: an update says that results are complete up to now.
            let next = clock.max(self.open + 1);
            if now >= self.idle && self.reserved(next) {
                self.idle = now + IDLE;
                self.open = next;
                self.graph.advance_to(next);
                self.job.shared.used.fetch_max(next, Ordering::Relaxed);
            }
        } else if gate_open && self.reserved(clock) {
            self.close(clock, now);
        }
    }

    /// Whether it has stopped for long, and what is left cannot be sent, as no epoch may be used: the logs still have it.
    fn has_waited(&mut self, now: Instant) -> bool {
        now.duration_since(*self.stopping_since.get_or_insert(now)) > LAST_WAIT
    }

    fn is_full(&self) -> bool {
        self.arrivals.len() >= FULL || self.rows >= FULL_ROWS
    }

    fn has_sent_all(&self) -> bool {
        self.arrivals.is_empty()
            && self.queries.is_empty()
            && self.progress.is_empty()
            && self.marks.is_empty()
    }

    fn reserved(&self, epoch: u64) -> bool {
        self.job.shared.reserved(epoch)
    }

    /// Sends what is there at an epoch, and says that nothing more comes for it.
    fn close(&mut self, epoch: u64, now: Instant) {
        if !self.has_sent_all() {
            for read in &mut self.progress {
                read.epoch = epoch;
            }
            self.in_flight.push_back(SentEpoch { epoch, arrivals: self.arrivals.len(), at: now });
            self.arrivals_in_flight += self.arrivals.len();
            self.rows = 0;
            let mut letters: Vec<Parcel> = self.letters.take_all();
            letters.iter_mut().for_each(|parcel| parcel.epoch = epoch);
            for mark in self.marks.drain(..) {
                self.graph.mark(epoch, mark);
                self.teller.iter_mut().for_each(|teller| teller.note(mark, epoch));
            }
            self.graph.send_aside(epoch, &mut self.queries, &mut self.progress, &mut letters);
            self.graph.send(epoch, &mut self.cities, &mut self.arrivals);
            let catching_up = self.readers.iter().any(|reader| !reader.caught_up());
            self.gate = now + if catching_up { CATCHING_UP } else { BETWEEN_EPOCHS };
        }
        self.open = epoch + 1;
        self.graph.advance_to(self.open);
        self.job.shared.used.fetch_max(epoch, Ordering::Relaxed);
        self.idle = now + IDLE;
    }

    /// How long there is nothing to do, unless something happens.
    fn wait(&self, now: Instant) -> Wait {
        if !self.has_sent_all() {
            // Until the gate opens; or, where no epoch may be used, until more are.
            let closed = self.gate.saturating_duration_since(now);
            return if closed.is_zero() { HELD_BACK } else { closed.min(HELD_BACK) };
        }
        if self.teller.as_ref().is_some_and(Teller::is_held_back) {
            return HELD_BACK;
        }
        let may_poll = self.may_poll();
        let due = self.readers.iter().filter_map(|reader| reader.due(now));
        match due.min() {
            // The frontier's move ends a wait, too.
            Some(_) if !may_poll => HELD_BACK,
            Some(due) => due.saturating_duration_since(now).min(LONGEST_PARK),
            None => LONGEST_PARK,
        }
    }

    /// Takes what the dataflow has closed.
    fn settle(&mut self) {
        while let Some(SentEpoch { epoch, arrivals, .. }) = self.in_flight.front()
            && !self.graph.probe.less_equal(epoch)
        {
            self.arrivals_in_flight -= arrivals;
            self.in_flight.pop_front();
        }
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.hand_on(self.open);
        }
        match (&mut self.teller, &self.graph.told) {
            (Some(teller), Some(told)) => {
                let (shared, gate) = (&self.job.shared, &self.job.gate);
                let held_back = teller.tell(told, shared, gate.is_released(), self.open);
                // The same sinks, whichever worker looks.
                shared.set_congested(held_back || self.outgoing.as_ref().is_some_and(Outgoing::is_full));
            }
            // All is told elsewhere.
            (None, Some(told)) => while told.take().is_some() {},
            (_, None) => {}
        }
    }

    /// Gives who publishes a last chance to take what is left.
    fn finish(mut self) {
        let deadline = Instant::now() + Wait::from_secs(5);
        while self.teller.as_ref().is_some_and(Teller::is_held_back) && Instant::now() < deadline {
            thread::sleep(HELD_BACK);
            self.settle();
        }
    }
}
