//! One worker's loop: execute commands, poll partitions, advance the epoch, step the dataflow, send
//! results on.
//!
//! Readings are sent at an epoch of the ingest clock, at most one a millisecond, and the epoch is
//! closed with them. A worker that learns of an epoch in use at another worker closes it too,
//! whatever its own clock shows. So no worker delays the others, and an epoch is complete as soon
//! as all workers know it.

use std::collections::VecDeque;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use timely::worker::Worker;

use super::commands::{Release, WorkerCommand, WorkerEvent};
use super::egress::Egress;
use super::plan::{WorkerPlan, WorkerState};
use super::reader::{
    EpochInput, FIRST_RETRY, LogPartition, MAX_EPOCH_ARRIVALS, MAX_EPOCH_ROWS, MAX_RETRY, PartitionReader,
    ReaderProgress, read_failure,
};
use super::replay::Replay;
use super::serving_sink::ServingSink;
use super::shard_sink::ShardSink;
use super::shared_state::ingest_clock_ms;
use crate::admission::Admission;
use crate::dataflow::rolling::snapshot::InitialState;
use crate::dataflow::{self, Graph};
use crate::model::{
    Arrival, BatchBuilder, CheckpointBarrier, CityIntroduction, EncodedBatch, Query, SnapshotSink,
};
use crate::panics::bug_text;
use crate::sources::SourceError;

/// Interval between two epochs of a worker. While it catches up, an epoch holds more records.
const EPOCH_INTERVAL: Duration = Duration::from_millis(1);
const CATCH_UP_EPOCH_INTERVAL: Duration = Duration::from_millis(20);
/// Interval at which an idle worker advances with the clock.
const IDLE_EPOCH_INTERVAL: Duration = Duration::from_millis(20);
/// The longest time that a worker parks, so that a lost wake-up does not stop it for ever.
const MAX_PARK: Duration = Duration::from_millis(10);
/// How long it parks while it is held back.
const HELD_BACK_PARK: Duration = Duration::from_millis(1);
/// How long a stopping worker tries to send what it has read.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs one worker until it is stopped.
pub fn run_worker(worker: &mut Worker, plan: &WorkerPlan) {
    let local_index = worker.index() % plan.topology.workers_per_process;
    let WorkerState { cities, snapshots } = plan.restored.take_worker_state(local_index);
    let initial = InitialState { epoch: plan.first_epoch, cities };
    let snapshots = snapshots.map(|sink| sink as Box<dyn SnapshotSink>);
    let graph = dataflow::build_graph(worker, &plan.graph, initial, snapshots);
    let Some(commands) = plan.commands.subscribe(local_index) else {
        return plan.shared.fail(bug_text("a worker was started twice"));
    };
    let mut worker_loop = WorkerLoop::new(worker.index(), graph, plan, commands);
    loop {
        let now = Instant::now();
        worker_loop.apply_commands();
        if !worker_loop.is_stopping {
            worker_loop.poll_partitions(now);
        }
        worker_loop.advance_epoch(now);
        if worker_loop.is_stopping && worker_loop.may_end(now) {
            break;
        }
        worker.step_or_park(Some(worker_loop.park_time(now)));
        worker_loop.hand_on_closed();
    }
    worker_loop.graph.close_inputs();
    while worker.has_dataflows() {
        worker.step_or_park(Some(MAX_PARK));
        worker_loop.hand_on_closed();
    }
    worker_loop.finish();
}

/// An added partition that could not be opened yet.
struct PendingPartition {
    log: LogPartition,
    at: Instant,
    backoff: Duration,
}

impl PendingPartition {
    fn retry_later(self, now: Instant, error: &SourceError) -> PendingPartition {
        let LogPartition { name, .. } = &self.log;
        tracing::warn!(source = %name.source, partition = name.partition, %error, "a new partition cannot be opened; it is retried");
        let backoff = (self.backoff * 2).min(MAX_RETRY);
        PendingPartition { at: now + self.backoff, backoff, ..self }
    }
}

/// An epoch that was sent.
struct SentEpoch {
    epoch: u64,
    arrivals: usize,
    /// When it was sent. The epoch does not show that, since it may be ahead of the clock.
    at: Instant,
}

/// The state of a worker.
struct WorkerLoop<'a> {
    plan: &'a WorkerPlan,
    index: usize,
    commands: Receiver<WorkerCommand>,
    is_stopping: bool,
    stopping_since: Option<Instant>,
    /// Epochs below this one may be used, from the floor on.
    reserved_until: u64,
    epoch_floor: u64,
    /// A partition cannot be read any more, so none is, until the process stops the worker.
    has_failed: bool,
    pending_partitions: Vec<PendingPartition>,
    graph: Graph,
    egress: Egress,
    readers: Vec<PartitionReader>,
    /// The reader that is polled first next time.
    first: usize,
    /// Whether this worker serves for its process.
    serves: bool,
    /// The first epoch that is not closed here.
    next_epoch: u64,
    /// The earliest time at which another epoch is sent.
    next_send_at: Instant,
    next_idle_advance_at: Instant,
    /// Epochs that were sent and are not complete, oldest first.
    in_flight: VecDeque<SentEpoch>,
    arrivals_in_flight: usize,
    /// The input of the next epoch.
    cities: Vec<CityIntroduction>,
    arrivals: Vec<Arrival>,
    pending_queries: Vec<Query>,
    barriers: Vec<CheckpointBarrier>,
    progress: Vec<ReaderProgress>,
    dead_letters: BatchBuilder,
    /// Approximate number of rows that the arrivals may change.
    rows: usize,
}

impl<'a> WorkerLoop<'a> {
    fn new(
        index: usize,
        mut graph: Graph,
        plan: &'a WorkerPlan,
        commands: Receiver<WorkerCommand>,
    ) -> WorkerLoop<'a> {
        let topology = plan.topology;
        let serves = index == topology.serving_worker_of(topology.process);
        if serves {
            plan.shared.subscribe_to_queries();
        }
        let serving_sink = serves.then(|| ServingSink::new(plan.publisher.clone(), &plan.start_positions));
        let shard_sink = ShardSink::new(plan.partition_table.clone(), index, topology);
        let egress = Egress::new(&mut graph, Replay::new(&plan.start_positions), serving_sink, shard_sink);
        // The restored state belongs to the first epoch.
        let next_epoch = (plan.first_epoch + 1).max(ingest_clock_ms());
        graph.advance_to(next_epoch);
        let now = Instant::now();
        WorkerLoop {
            plan,
            index,
            commands,
            is_stopping: false,
            stopping_since: None,
            reserved_until: plan.reserved_until,
            epoch_floor: 0,
            has_failed: false,
            pending_partitions: Vec::new(),
            graph,
            egress,
            readers: open_readers(index, plan),
            first: 0,
            serves,
            next_epoch,
            next_send_at: now,
            next_idle_advance_at: now,
            in_flight: VecDeque::new(),
            arrivals_in_flight: 0,
            cities: Vec::new(),
            arrivals: Vec::new(),
            pending_queries: Vec::new(),
            barriers: Vec::new(),
            progress: Vec::new(),
            dead_letters: BatchBuilder::default(),
            rows: 0,
        }
    }

    /// Executes the commands received since the last turn, in order.
    fn apply_commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                WorkerCommand::ReadUntil(positions) => self.egress.replay_mut().read_until(&positions),
                WorkerCommand::InstallResumePoints(sinks) => {
                    let upper = self.egress.shards_upper();
                    self.egress.replay_mut().install(sinks, upper);
                    self.plan.shared.report(WorkerEvent::ResumePointsInstalled);
                }
                WorkerCommand::Release(Release { floor, reserved_until }) => {
                    (self.epoch_floor, self.reserved_until) = (floor, reserved_until);
                    self.egress.replay_mut().release();
                }
                WorkerCommand::ReserveEpochs { until } => {
                    self.reserved_until = self.reserved_until.max(until);
                }
                WorkerCommand::ReadPartition(log) => self.add_partition(log),
                WorkerCommand::Barrier(barrier) => {
                    if self.index == 0 {
                        self.barriers.push(barrier);
                    }
                }
                WorkerCommand::Stop => self.is_stopping = true,
            }
        }
    }

    fn add_partition(&mut self, log: LogPartition) {
        if self.plan.topology.reader_worker_of(log.index, log.shared) == self.index {
            let at = Instant::now();
            self.pending_partitions.push(PendingPartition { log, at, backoff: FIRST_RETRY });
        }
    }

    /// Polls the partitions that are due, and takes the queries.
    fn poll_partitions(&mut self, now: Instant) {
        if self.serves {
            self.plan.shared.take_queries(&mut self.pending_queries, self.plan.topology.process as u8);
        }
        // A report without progress makes the other workers close the epoch.
        if !(self.pending_queries.is_empty() && self.barriers.is_empty()) && self.progress.is_empty() {
            self.progress.push(ReaderProgress::none());
        }
        self.open_pending_partitions(now);
        if self.readers.is_empty() || !self.may_poll() {
            return;
        }
        self.first = (self.first + 1) % self.readers.len();
        let (before, after) = self.readers.split_at_mut(self.first);
        for reader in after.iter_mut().chain(before) {
            if self.arrivals.len() >= MAX_EPOCH_ARRIVALS || self.rows >= MAX_EPOCH_ROWS {
                break;
            }
            let until = self.egress.replay().limit(reader.index(), reader.start());
            let into = EpochInput {
                cities: &mut self.cities,
                arrivals: &mut self.arrivals,
                dead_letters: &mut self.dead_letters,
                with_arrival_times: self.graph.wants_arrival_times(),
                rows: &mut self.rows,
                refusals: &self.plan.shared.refusals,
            };
            if let Err(error) = reader.poll(now, self.plan.limits.poll_records, until, into) {
                self.has_failed = true;
                self.plan.shared.fail(error);
            }
        }
    }

    /// Opens added partitions, including those that could not be opened before.
    fn open_pending_partitions(&mut self, now: Instant) {
        for pending in self.pending_partitions.extract_if(.., |pending| pending.at <= now).collect::<Vec<_>>()
        {
            match PartitionReader::open(&pending.log, self.plan.rules, |_| ()) {
                Ok(reader) => self.readers.push(reader),
                Err(error @ SourceError::Transient(_)) => {
                    self.pending_partitions.push(pending.retry_later(now, &error));
                }
                Err(error) => self.plan.shared.fail(read_failure(&pending.log.name, &error)),
            }
        }
    }

    /// Whether the dataflow and the receivers of its results keep up.
    fn may_poll(&self) -> bool {
        let (limits, shared) = (&self.plan.limits, &self.plan.shared);
        let lag = self.in_flight.front().map_or(Duration::ZERO, |sent| sent.at.elapsed());
        !self.has_failed
            && self.arrivals_in_flight < limits.readings_in_flight
            && lag.as_millis() <= u128::from(limits.frontier_lag.millis().unsigned_abs())
            && !shared.must_wait()
            && !shared.refusals.must_wait()
            && !self.egress.is_full()
    }

    /// Sends the collected input as an epoch, or advances with the clock.
    fn advance_epoch(&mut self, now: Instant) {
        for reader in &mut self.readers {
            self.progress.extend(reader.take_progress());
        }
        let newest = self.graph.newest_reported_epoch();
        let clock = ingest_clock_ms().max(self.next_epoch).max(self.epoch_floor);
        let is_due = self.is_stopping || now >= self.next_send_at || self.epoch_is_full();
        if newest >= self.next_epoch {
            self.close_epoch(newest, now);
        } else if self.has_sent_all() {
            // Epochs that are ahead of the clock advance slowly: an update states that results are
            // complete up to now.
            let next = clock.max(self.next_epoch + 1);
            if now >= self.next_idle_advance_at && self.may_use(next) {
                self.next_idle_advance_at = now + IDLE_EPOCH_INTERVAL;
                self.next_epoch = next;
                self.graph.advance_to(next);
                self.plan.shared.use_epoch(next);
            }
        } else if is_due && self.may_use(clock) {
            self.close_epoch(clock, now);
        }
    }

    /// Whether a stopping worker has nothing left to do. The logs still have all records that it
    /// has read and cannot send: before the release no receiver accepts them, and if no epoch may
    /// be used for long, the sinks do not answer.
    fn may_end(&mut self, now: Instant) -> bool {
        let has_timed_out = now.duration_since(*self.stopping_since.get_or_insert(now)) > STOP_TIMEOUT;
        self.has_sent_all() || has_timed_out || !self.egress.replay().is_released()
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

    fn may_use(&self, epoch: u64) -> bool {
        epoch < self.reserved_until
    }

    /// Sends the collected input at an epoch, and closes the epoch.
    fn close_epoch(&mut self, epoch: u64, now: Instant) {
        if !self.has_sent_all() {
            self.in_flight.push_back(SentEpoch { epoch, arrivals: self.arrivals.len(), at: now });
            self.arrivals_in_flight += self.arrivals.len();
            self.rows = 0;
            let mut dead_letters: Vec<EncodedBatch> = self.dead_letters.take_batches_at(epoch);
            for barrier in self.barriers.drain(..) {
                self.graph.send_barrier(epoch, barrier);
                if let Some(sink) = self.egress.serving_sink_mut() {
                    sink.add_barrier(barrier, epoch);
                }
            }
            let mut reports = self.progress.drain(..).map(|progress| progress.at(epoch)).collect();
            self.graph.send_side_inputs(epoch, &mut self.pending_queries, &mut reports, &mut dead_letters);
            self.graph.send_epoch(epoch, &mut self.cities, &mut self.arrivals);
            let is_catching_up = self.readers.iter().any(|reader| !reader.caught_up());
            self.next_send_at = now + if is_catching_up { CATCH_UP_EPOCH_INTERVAL } else { EPOCH_INTERVAL };
        }
        self.next_epoch = epoch + 1;
        self.graph.advance_to(self.next_epoch);
        self.plan.shared.use_epoch(epoch);
        self.next_idle_advance_at = now + IDLE_EPOCH_INTERVAL;
    }

    /// How long there is nothing to do unless the worker is woken.
    fn park_time(&self, now: Instant) -> Duration {
        if !self.has_sent_all() {
            // Until the next epoch is due; or, if no epoch may be used, until more are reserved.
            let wait = self.next_send_at.saturating_duration_since(now);
            return if wait.is_zero() { HELD_BACK_PARK } else { wait.min(HELD_BACK_PARK) };
        }
        if self.egress.is_held_back() {
            return HELD_BACK_PARK;
        }
        let may_poll = self.may_poll();
        let due = self.readers.iter().filter_map(|reader| reader.due(now));
        match due.min() {
            // A move of the frontier ends a wait, too.
            Some(_) if !may_poll => HELD_BACK_PARK,
            Some(due) => due.saturating_duration_since(now).min(MAX_PARK),
            None => MAX_PARK,
        }
    }

    /// Sends on the epochs that the dataflow has closed.
    fn hand_on_closed(&mut self) {
        while let Some(SentEpoch { epoch, arrivals, .. }) = self.in_flight.front()
            && !self.graph.probe.less_equal(epoch)
        {
            self.arrivals_in_flight -= arrivals;
            self.in_flight.pop_front();
        }
        self.egress.hand_on(self.next_epoch, &self.plan.shared);
    }

    /// Lets the publisher accept the remaining updates once more.
    fn finish(mut self) {
        let deadline = Instant::now() + STOP_TIMEOUT;
        while self.egress.is_held_back() && Instant::now() < deadline {
            thread::sleep(HELD_BACK_PARK);
            self.hand_on_closed();
        }
    }
}

/// Opens the readers of the partitions that a worker reads.
fn open_readers(index: usize, plan: &WorkerPlan) -> Vec<PartitionReader> {
    let logs = plan.partitions.iter();
    let logs = logs.filter(|log| plan.topology.reader_worker_of(log.index, log.shared) == index);
    let open = |log: &LogPartition| {
        let restore = |admission: &mut Admission| {
            plan.restored.restore_admission(log.index, plan.graph.retention, admission);
        };
        let opened = PartitionReader::open(log, plan.rules, restore);
        opened.map_err(|error| plan.shared.fail(read_failure(&log.name, &error))).ok()
    };
    logs.filter_map(open).collect()
}
