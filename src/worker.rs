//! One worker's loop: poll, advance, step, tell.
//!
//! Readings are sent at an epoch of the ingest clock, at most one a millisecond, and the epoch is closed with them. A worker that
//! hears of an epoch that others use closes it too, whatever its own clock says: so none holds the others up, and an
//! epoch is complete as soon as all have heard of it.

mod outgoing;
mod reader;
mod serving_sink;
mod shared_state;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use timely::worker::Worker;

use self::outgoing::Outgoing;
pub use self::outgoing::{Gate, ResumePoints};
pub use self::reader::{DeadLetterTargets, LogPartition, Refusals};
use self::reader::{EpochInput, FIRST_RETRY, MAX_EPOCH_ARRIVALS, MAX_EPOCH_ROWS, MAX_RETRY, PartitionReader};
pub use self::serving_sink::AlignedBarrier;
use self::serving_sink::ServingSink;
use self::shared_state::MAX_QUEUED_QUERIES;
pub use self::shared_state::SharedState;
use crate::admission::{Admission, AdmissionRules};
use crate::config::PipelineLimits;
use crate::dataflow::rolling::Retention;
use crate::dataflow::rolling::serving::ProgressReport;
use crate::dataflow::rolling::snapshot::InitialState;
use crate::dataflow::{self, Graph, GraphPlan};
use crate::model::clock::wall_clock_ms;
use crate::model::{
    Arrival, BatchBuilder, CheckpointBarrier, CityIntroduction, CitySnapshot, EncodedBatch, EventTime,
    LogPosition, PartitionIndex, PartitionTable, Query, SnapshotSink, Topology,
};
use crate::serve::Publisher;
use crate::sources::SourceError;

/// Between two epochs of a worker; while it catches up it takes more into one.
const EPOCH_INTERVAL: Duration = Duration::from_millis(1);
const CATCH_UP_EPOCH_INTERVAL: Duration = Duration::from_millis(20);
/// How often a worker that has nothing to send moves on with the clock.
const IDLE_EPOCH_INTERVAL: Duration = Duration::from_millis(20);
/// A worker never parks without a limit, so that it does not sleep for ever should a wake-up get lost.
const MAX_PARK: Duration = Duration::from_millis(10);
/// How long it parks while it must not go on.
const HELD_BACK_PARK: Duration = Duration::from_millis(1);
/// How long a worker that stops tries to send what it has read.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What the workers of a run do.
#[derive(Clone)]
pub struct WorkerPlan {
    pub topology: Topology,
    pub graph: GraphPlan,
    pub rules: AdmissionRules,
    pub limits: PipelineLimits,
    /// Those that this process can read. Each is read by one worker.
    pub partitions: Vec<LogPartition>,
    /// All of them.
    pub slots: PartitionTable,
    pub publisher: Publisher,
    /// Durable sinks, and where a replay stops for them.
    pub gate: Arc<Gate>,
    /// Where each partition is read from, by slot.
    pub start_positions: Arc<[LogPosition]>,
    /// What the workers of this process begin with.
    pub states: Arc<RestoredWorkers>,
    pub shared: Arc<SharedState>,
}

/// What a worker begins with, and what becomes of its state.
#[derive(Default)]
pub struct WorkerState {
    pub cities: Vec<CitySnapshot>,
    pub snapshots: Option<Box<dyn SnapshotSink + Send>>,
}

/// The states of the workers of a process, each taken once; and what the readers of partitions know of cities.
#[derive(Default)]
pub struct RestoredWorkers {
    workers: Mutex<Vec<WorkerState>>,
    highs: HashMap<PartitionIndex, Vec<RestoredCity>>,
}

/// A city of a partition, as its admission takes it over.
#[derive(Clone, Debug)]
pub struct RestoredCity {
    pub city: Arc<str>,
    pub high: Option<EventTime>,
    /// About how many readings are held.
    pub readings: u32,
}

impl RestoredWorkers {
    pub fn new(
        workers: Vec<WorkerState>,
        highs: HashMap<PartitionIndex, Vec<RestoredCity>>,
    ) -> RestoredWorkers {
        RestoredWorkers { workers: Mutex::new(workers), highs }
    }

    fn take_worker_state(&self, worker: usize) -> WorkerState {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.get_mut(worker).map(std::mem::take).unwrap_or_default()
    }

    /// Has an admission know the cities that its partition had.
    fn restore_admission(&self, slot: PartitionIndex, retention: Retention, admission: &mut Admission) {
        for RestoredCity { city, high, readings } in self.highs.get(&slot).into_iter().flatten() {
            let held = high.and_then(|high| EventTime::from_millis(retention.oldest_held(high.millis())));
            admission.resume_city(city, *high, *readings, held.unwrap_or_default());
        }
    }
}

/// The ingest clock, ms since 1970-01-01T00:00:00Z.
pub fn ingest_clock_ms() -> u64 {
    wall_clock_ms()
}

/// Runs one worker until it is asked to stop.
pub fn run_worker(worker: &mut Worker, job: &WorkerPlan, first_epoch: u64) {
    let own = worker.index() % job.topology.workers_per_process;
    let WorkerState { cities, snapshots, .. } = job.states.take_worker_state(own);
    let resumed = InitialState { epoch: first_epoch, cities };
    let graph =
        dataflow::build_graph(worker, &job.graph, resumed, snapshots.map(|own| own as Box<dyn SnapshotSink>));
    let mut own = WorkerLoop::new(worker.index(), graph, job, first_epoch);
    loop {
        let now = Instant::now();
        let stopping = job.shared.stop.load(Ordering::Relaxed);
        if !stopping {
            own.poll_partitions(now);
        }
        own.advance_epoch(now, stopping);
        if stopping && (own.has_sent_all() || own.stop_has_timed_out(now)) {
            break;
        }
        worker.step_or_park(Some(own.park_time(now)));
        own.hand_on_closed();
    }
    own.graph.close_inputs();
    while worker.has_dataflows() {
        worker.step_or_park(Some(MAX_PARK));
        own.hand_on_closed();
    }
    own.finish();
}

/// A partition that came later, and could not be opened yet.
struct PendingPartition {
    log: LogPartition,
    at: Instant,
    backoff: Duration,
}

impl PendingPartition {
    fn retry_later(self, now: Instant, error: &SourceError) -> PendingPartition {
        let LogPartition { name, .. } = &self.log;
        tracing::warn!(source = %name.source, partition = name.partition, %error, "a partition that has come cannot be opened; it is tried again");
        let backoff = (self.backoff * 2).min(MAX_RETRY);
        PendingPartition { at: now + self.backoff, backoff, ..self }
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
struct WorkerLoop<'a> {
    job: &'a WorkerPlan,
    index: usize,
    /// How many of those that came later were looked at, and which could not be opened yet.
    added: usize,
    unopened: Vec<PendingPartition>,
    graph: Graph,
    readers: Vec<PartitionReader>,
    /// The reader that is polled first next time.
    first: usize,
    /// At the first worker of the process.
    serving: Option<ServingSink>,
    /// Checkpoints that are asked for; of worker 0.
    barriers: Vec<CheckpointBarrier>,
    /// Where there are durable sinks.
    outgoing: Option<Outgoing>,
    /// The first epoch that is not closed here.
    next_epoch: u64,
    /// Not before this time is another epoch sent, or only the clock followed.
    next_send_at: Instant,
    next_idle_advance_at: Instant,
    stopping_since: Option<Instant>,
    /// Epochs that were sent and are not complete, oldest first.
    in_flight: VecDeque<SentEpoch>,
    arrivals_in_flight: usize,
    cities: Vec<CityIntroduction>,
    arrivals: Vec<Arrival>,
    pending_queries: Vec<Query>,
    progress: Vec<ProgressReport>,
    dead_letters: BatchBuilder,
    /// About how many rows the arrivals may change.
    rows: usize,
}

impl<'a> WorkerLoop<'a> {
    fn new(index: usize, mut graph: Graph, job: &'a WorkerPlan, first_epoch: u64) -> WorkerLoop<'a> {
        let topology = job.topology;
        let own =
            job.partitions.iter().filter(|log| topology.reader_worker_of(log.slot, log.shared) == index);
        let readers = own.filter_map(|partition| {
            let (states, retention) = (&job.states, job.graph.retention);
            let resume =
                |admission: &mut Admission| states.restore_admission(partition.slot, retention, admission);
            let failed = |error| job.shared.fail(reader::read_failure(&partition.name, &error));
            PartitionReader::open(partition, job.rules, resume).map_err(failed).ok()
        });
        let readers = readers.collect();
        let teller = (index == topology.serving_worker_of(topology.process)).then(|| {
            // Only one worker of the process gets here, and only once.
            let _ = job.shared.asked.set(thread::current());
            ServingSink::new(job.publisher.clone(), &job.start_positions)
        });
        let closed = graph.encoded_batches.take().zip(graph.progress_reports.take());
        let outgoing = closed.map(|(parcels, read)| {
            Outgoing::new(
                parcels,
                read,
                (index, topology),
                Arc::clone(&job.gate),
                job.slots.clone(),
                &job.start_positions,
            )
        });
        let now = Instant::now();
        let mut own = WorkerLoop {
            job,
            index,
            added: 0,
            unopened: Vec::new(),
            graph,
            readers,
            first: 0,
            serving: teller,
            barriers: Vec::new(),
            outgoing,
            // What was resumed is told at the first epoch.
            next_epoch: (first_epoch + 1).max(ingest_clock_ms()),
            next_send_at: now,
            next_idle_advance_at: now,
            stopping_since: None,
            in_flight: VecDeque::new(),
            arrivals_in_flight: 0,
            cities: Vec::new(),
            arrivals: Vec::new(),
            pending_queries: Vec::new(),
            progress: Vec::new(),
            dead_letters: BatchBuilder::default(),
            rows: 0,
        };
        own.graph.advance_to(own.next_epoch);
        own
    }

    /// Polls the partitions that may have something, and takes the questions.
    fn poll_partitions(&mut self, now: Instant) {
        if self.serving.is_some() {
            let questions = self.job.shared.questions.lock().unwrap_or_else(PoisonError::into_inner);
            let process = self.job.topology.process as u8;
            let asked = questions.try_iter().take(MAX_QUEUED_QUERIES).flatten();
            self.pending_queries.extend(asked.map(|query| Query { process, ..query }));
            if self.index == 0 {
                let marks = &mut self.job.shared.marks.lock().unwrap_or_else(PoisonError::into_inner).0;
                self.barriers.append(marks);
            }
            // What is said of progress tells the other workers to close the epoch.
            if !(self.pending_queries.is_empty() && self.barriers.is_empty()) && self.progress.is_empty() {
                self.progress.push(ProgressReport { epoch: 0, progress: None, caught_up: false });
            }
        }
        self.open_added(now);
        if self.readers.is_empty() || !self.may_poll() {
            return;
        }
        self.first = (self.first + 1) % self.readers.len();
        let (before, after) = self.readers.split_at_mut(self.first);
        for reader in after.iter_mut().chain(before) {
            if self.arrivals.len() >= MAX_EPOCH_ARRIVALS || self.rows >= MAX_EPOCH_ROWS {
                break;
            }
            let replay = self.outgoing.as_ref().map(Outgoing::replay);
            let upto = replay.map_or(u64::MAX, |replay| replay.limit(reader.slot(), reader.start()));
            let into = EpochInput {
                cities: &mut self.cities,
                arrivals: &mut self.arrivals,
                letters: &mut self.dead_letters,
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
            let own = own.filter(|log| topology.reader_worker_of(log.slot, log.shared) == self.index);
            self.unopened.extend(own.map(|log| PendingPartition {
                log: log.clone(),
                at: now,
                backoff: FIRST_RETRY,
            }));
            self.added = added.len();
        }
        for unopened in self.unopened.extract_if(.., |unopened| unopened.at <= now).collect::<Vec<_>>() {
            match PartitionReader::open(&unopened.log, self.job.rules, |_| ()) {
                Ok(reader) => self.readers.push(reader),
                Err(error @ SourceError::Transient(_)) => {
                    self.unopened.push(unopened.retry_later(now, &error))
                }
                Err(error) => shared.fail(reader::read_failure(&unopened.log.name, &error)),
            }
        }
    }

    /// Whether the dataflow and whoever takes its results keep up.
    fn may_poll(&self) -> bool {
        let limits = &self.job.limits;
        let lag = self.in_flight.front().map_or(Duration::ZERO, |sent| sent.at.elapsed());
        self.arrivals_in_flight < limits.readings_in_flight
            && lag.as_millis() <= u128::from(limits.frontier_lag.millis().unsigned_abs())
            && !self.job.shared.must_wait()
            && !self.job.shared.refusals.must_wait()
            && !self.outgoing.as_ref().is_some_and(Outgoing::is_full)
    }

    /// Sends what is there, or moves on.
    fn advance_epoch(&mut self, now: Instant, at_once: bool) {
        for reader in &mut self.readers {
            self.progress.extend(reader.take_progress());
        }
        let heard = self.graph.newest_reported_epoch();
        let clock = ingest_clock_ms().max(self.next_epoch).max(self.job.gate.floor());
        let gate_open = at_once || now >= self.next_send_at || self.epoch_is_full();
        if heard >= self.next_epoch {
            self.close_epoch(heard, now);
        } else if self.has_sent_all() {
            // Epochs that are ahead of the clock go on slowly: an update says that results are complete up to now.
            let next = clock.max(self.next_epoch + 1);
            if now >= self.next_idle_advance_at && self.reserved(next) {
                self.next_idle_advance_at = now + IDLE_EPOCH_INTERVAL;
                self.next_epoch = next;
                self.graph.advance_to(next);
                self.job.shared.used.fetch_max(next, Ordering::Relaxed);
            }
        } else if gate_open && self.reserved(clock) {
            self.close_epoch(clock, now);
        }
    }

    /// Whether it has stopped for long, and what is left cannot be sent, as no epoch may be used: the logs still have it.
    fn stop_has_timed_out(&mut self, now: Instant) -> bool {
        now.duration_since(*self.stopping_since.get_or_insert(now)) > STOP_TIMEOUT
    }

    fn epoch_is_full(&self) -> bool {
        self.arrivals.len() >= MAX_EPOCH_ARRIVALS || self.rows >= MAX_EPOCH_ROWS
    }

    fn has_sent_all(&self) -> bool {
        self.arrivals.is_empty()
            && self.pending_queries.is_empty()
            && self.progress.is_empty()
            && self.barriers.is_empty()
    }

    fn reserved(&self, epoch: u64) -> bool {
        self.job.shared.reserved(epoch)
    }

    /// Sends what is there at an epoch, and says that nothing more comes for it.
    fn close_epoch(&mut self, epoch: u64, now: Instant) {
        if !self.has_sent_all() {
            for read in &mut self.progress {
                read.epoch = epoch;
            }
            self.in_flight.push_back(SentEpoch { epoch, arrivals: self.arrivals.len(), at: now });
            self.arrivals_in_flight += self.arrivals.len();
            self.rows = 0;
            let mut letters: Vec<EncodedBatch> = self.dead_letters.take_batches();
            letters.iter_mut().for_each(|parcel| parcel.epoch = epoch);
            for mark in self.barriers.drain(..) {
                self.graph.send_barrier(epoch, mark);
                self.serving.iter_mut().for_each(|teller| teller.add_barrier(mark, epoch));
            }
            self.graph.send_side_inputs(epoch, &mut self.pending_queries, &mut self.progress, &mut letters);
            self.graph.send_epoch(epoch, &mut self.cities, &mut self.arrivals);
            let catching_up = self.readers.iter().any(|reader| !reader.caught_up());
            self.next_send_at = now + if catching_up { CATCH_UP_EPOCH_INTERVAL } else { EPOCH_INTERVAL };
        }
        self.next_epoch = epoch + 1;
        self.graph.advance_to(self.next_epoch);
        self.job.shared.used.fetch_max(epoch, Ordering::Relaxed);
        self.next_idle_advance_at = now + IDLE_EPOCH_INTERVAL;
    }

    /// How long there is nothing to do, unless something happens.
    fn park_time(&self, now: Instant) -> Duration {
        if !self.has_sent_all() {
            // Until the gate opens; or, where no epoch may be used, until more are.
            let closed = self.next_send_at.saturating_duration_since(now);
            return if closed.is_zero() { HELD_BACK_PARK } else { closed.min(HELD_BACK_PARK) };
        }
        if self.serving.as_ref().is_some_and(ServingSink::is_held_back) {
            return HELD_BACK_PARK;
        }
        let may_poll = self.may_poll();
        let due = self.readers.iter().filter_map(|reader| reader.due(now));
        match due.min() {
            // The frontier's move ends a wait, too.
            Some(_) if !may_poll => HELD_BACK_PARK,
            Some(due) => due.saturating_duration_since(now).min(MAX_PARK),
            None => MAX_PARK,
        }
    }

    /// Takes what the dataflow has closed.
    fn hand_on_closed(&mut self) {
        while let Some(SentEpoch { epoch, arrivals, .. }) = self.in_flight.front()
            && !self.graph.probe.less_equal(epoch)
        {
            self.arrivals_in_flight -= arrivals;
            self.in_flight.pop_front();
        }
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.hand_on(self.next_epoch);
        }
        match (&mut self.serving, &self.graph.serving_updates) {
            (Some(teller), Some(told)) => {
                let (shared, gate) = (&self.job.shared, &self.job.gate);
                let held_back = teller.publish_closed(told, shared, gate.is_released(), self.next_epoch);
                // The same sinks, whichever worker looks.
                shared.set_congested(held_back || self.outgoing.as_ref().is_some_and(Outgoing::is_full));
            }
            // All is told elsewhere.
            (None, Some(told)) => while told.next_batch().is_some() {},
            (_, None) => {}
        }
    }

    /// Gives who publishes a last chance to take what is left.
    fn finish(mut self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.serving.as_ref().is_some_and(ServingSink::is_held_back) && Instant::now() < deadline {
            thread::sleep(HELD_BACK_PARK);
            self.hand_on_closed();
        }
    }
}
