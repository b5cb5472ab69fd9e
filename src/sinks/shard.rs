//! Writes the shards of a sink: one thread each, one transaction after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::error::{SinkError, WriteFailure};
use super::progress::{Fingerprints, Positions, ShardProgress};
use super::stop::StopDeadline;
use crate::model::{EncodedBatch, Shard};

/// The approximate memory of a shard batch besides its records, and of a position.
const BATCH_OVERHEAD_BYTES: usize = 128;
const POSITION_BYTES: usize = 32;
/// A transaction that exceeds this size is committed at once.
const MAX_TRANSACTION_BYTES: usize = 16 * 1024 * 1024;
const MAX_TRANSACTION_BATCHES: usize = 100_000;
/// How often progress without records is committed.
const IDLE_COMMIT_INTERVAL: Duration = Duration::from_secs(1);
/// The delay between two attempts: the first, and the longest.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const MAX_RETRY: Duration = Duration::from_secs(5);

/// All records of a shard in the epochs since the last batch.
#[derive(Clone, Debug)]
pub struct ShardBatch {
    /// In the order of epochs.
    pub batches: Vec<EncodedBatch>,
    /// The last epoch; it is included completely.
    pub epoch: u64,
    /// The input positions that the batch is complete up to.
    pub positions: Arc<Positions>,
    /// The last record of each partition before those positions.
    pub before: Arc<Fingerprints>,
}

impl ShardBatch {
    /// The approximate memory of the batch, in bytes.
    pub fn bytes(&self) -> usize {
        let positions: usize = self.positions.values().map(|partitions| partitions.len()).sum();
        let encoded: usize = self.batches.iter().map(EncodedBatch::encoded_bytes).sum();
        encoded + BATCH_OVERHEAD_BYTES + positions * POSITION_BYTES
    }

    fn progress(&self) -> ShardProgress {
        ShardProgress {
            epoch: self.epoch,
            positions: Positions::clone(&self.positions),
            before: Fingerprints::clone(&self.before),
        }
    }
}

/// Writes one shard, a transaction at a time: [`begin`](ShardWriter::begin),
/// [`add`](ShardWriter::add) for each batch until the commit is due,
/// [`commit`](ShardWriter::commit). After a failure, all batches of the transaction are written
/// again.
pub trait ShardWriter: Send {
    fn begin(&mut self) -> Result<(), WriteFailure>;

    /// Adds the records of a batch to the transaction. They may be sent before the commit, but must
    /// not be readable as results.
    fn add(&mut self, batch: &ShardBatch) -> Result<(), WriteFailure>;

    /// Makes the transaction durable together with the progress of its last batch: both or neither,
    /// whatever ends the process. Sinks that write at least once make the records durable first.
    fn commit(&mut self, progress: &ShardProgress) -> Result<(), WriteFailure>;

    /// Rolls back a failed transaction. Returns false if the writer must be
    /// [reopened](ShardWriter::reopen).
    fn roll_back(&mut self) -> bool;

    /// Makes the writer usable again. Returns true if the transaction with this last epoch turns
    /// out to be durable.
    ///
    /// # Errors
    ///
    /// [`SinkError::Fenced`] if another start has claimed the sink. All other errors are retried
    /// until the run ends.
    fn reopen(&mut self, last_epoch: u64) -> Result<bool, SinkError>;

    /// Closes the writer at the end of the run, after everything was made durable.
    fn finish(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    /// The error to report if the run must end before everything is durable.
    fn unfinished(&self) -> SinkError;
}

/// The shards of a sink that this process writes: all their earlier writers are fenced.
pub struct FencedShards {
    /// By number within the sink.
    pub writers: Vec<(u16, Box<dyn ShardWriter>)>,
    /// Ends the waits of the writers when the run ends.
    pub stop: Arc<StopDeadline>,
}

/// The input positions that a shard's durable output includes.
type SharedPositions = Arc<Mutex<Positions>>;

/// The settings of a sink that its shards need.
#[derive(Clone)]
pub(super) struct ShardSettings {
    pub commit_interval: Duration,
    /// The label and value that name the sink in metrics.
    pub metric_label: (&'static str, String),
}

/// The thread of a shard.
struct ShardThread {
    number: u16,
    writer: Box<dyn ShardWriter>,
    settings: ShardSettings,
    stop: Arc<StopDeadline>,
    durable: SharedPositions,
    /// When the last commit was due. The next one is an interval later, however long that commit
    /// takes.
    due: Instant,
    /// `None` until the first commit.
    metrics: Option<ShardMetrics>,
}

impl ShardThread {
    /// Writes batches until all senders are dropped.
    fn run(&mut self, batches: &Receiver<ShardBatch>, pending: &AtomicUsize) -> Result<(), SinkError> {
        while let Ok(first) = batches.recv() {
            let mut transaction = vec![first];
            self.write_durably(&mut transaction, batches)?;
            pending.fetch_sub(transaction.iter().map(ShardBatch::bytes).sum(), Ordering::Relaxed);
        }
        self.writer.finish()
    }

    /// Makes a transaction durable, with retries. More batches join it until it is due.
    fn write_durably(
        &mut self,
        transaction: &mut Vec<ShardBatch>,
        batches: &Receiver<ShardBatch>,
    ) -> Result<(), SinkError> {
        let begun = Instant::now();
        let mut retry = FIRST_RETRY;
        loop {
            let (error, may_roll_back) = match self.try_write(transaction, batches, begun) {
                Ok(()) => break,
                Err(WriteFailure::RollBack(error)) => (error, true),
                Err(WriteFailure::Reopen(error)) => (error, false),
                Err(WriteFailure::Final(error)) => return Err(error),
            };
            tracing::warn!(shard = self.number, %error, "a transaction of results failed; it is retried");
            self.pause_before_retry(retry)?;
            retry = (retry * 2).min(MAX_RETRY);
            let is_rolled_back = may_roll_back && self.writer.roll_back();
            let last = transaction.last().map_or(0, |batch| batch.epoch);
            if !is_rolled_back && self.reopen(last)? {
                break;
            }
        }
        if retry > FIRST_RETRY {
            tracing::info!(shard = self.number, took = ?begun.elapsed(), "results can be written again");
        }
        let settings = &self.settings;
        let metrics = self.metrics.get_or_insert_with(|| ShardMetrics::new(settings, self.number));
        metrics.count_written(transaction);
        if let Some(last) = transaction.last() {
            let mut durable = self.durable.lock();
            durable.clone_from(&last.positions);
        }
        Ok(())
    }

    fn try_write(
        &mut self,
        transaction: &mut Vec<ShardBatch>,
        batches: &Receiver<ShardBatch>,
        begun: Instant,
    ) -> Result<(), WriteFailure> {
        self.writer.begin()?;
        let mut empty = true;
        let mut bytes = 0;
        for batch in &*transaction {
            self.writer.add(batch)?;
            empty &= batch.batches.is_empty();
            bytes += batch.bytes();
        }
        let interval = self.settings.commit_interval;
        let last = self.due;
        let soon = |from: Instant| (last + interval).clamp(from + interval / 4, from + interval);
        let mut due = if empty { begun + IDLE_COMMIT_INTERVAL } else { soon(begun) };
        while bytes < MAX_TRANSACTION_BYTES && transaction.len() < MAX_TRANSACTION_BATCHES {
            let batch = match batches.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(batch) => batch,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            };
            if empty && !batch.batches.is_empty() {
                empty = false;
                due = due.min(soon(Instant::now()));
            }
            bytes += batch.bytes();
            // Push the batch before adding it: if adding fails, it belongs to the transaction that
            // is written again.
            transaction.push(batch);
            let Some(batch) = transaction.last() else { break };
            self.writer.add(batch)?;
        }
        self.due = Instant::now();
        let Some(last) = transaction.last() else { return Ok(()) };
        self.writer.commit(&last.progress())
    }

    /// Reopens the writer, with retries. Returns true if the transaction turns out to be durable.
    fn reopen(&mut self, last_epoch: u64) -> Result<bool, SinkError> {
        let mut retry = FIRST_RETRY;
        loop {
            match self.writer.reopen(last_epoch) {
                Err(error @ SinkError::Fenced(_)) => return Err(error),
                Err(error) => {
                    tracing::warn!(shard = self.number, %error, "the sink is retried");
                    self.pause_before_retry(retry)?;
                    retry = (retry * 2).min(MAX_RETRY);
                }
                Ok(is_durable) => return Ok(is_durable),
            }
        }
    }

    fn pause_before_retry(&self, retry: Duration) -> Result<(), SinkError> {
        thread::sleep(retry.min(self.stop.time_left()));
        match self.stop.is_over() {
            true => Err(self.writer.unfinished()),
            false => Ok(()),
        }
    }
}

/// The metrics of a shard.
struct ShardMetrics {
    records: metrics::Counter,
    transactions: metrics::Counter,
    epoch: metrics::Gauge,
}

impl ShardMetrics {
    fn new(settings: &ShardSettings, number: u16) -> ShardMetrics {
        let (key, value) = settings.metric_label.clone();
        let labels = [(key, value), ("shard", number.to_string())];
        ShardMetrics {
            records: metrics::counter!("swelter_sink_records_total", &labels),
            transactions: metrics::counter!("swelter_sink_commits_total", &labels),
            epoch: metrics::gauge!("swelter_sink_durable_epoch", &labels),
        }
    }

    fn count_written(&self, transaction: &[ShardBatch]) {
        let batches = transaction.iter().flat_map(|batch| &batch.batches);
        self.records.increment(batches.map(|batch| u64::from(batch.record_count)).sum());
        self.transactions.increment(1);
        if let Some(last) = transaction.last() {
            self.epoch.set(last.epoch as f64);
        }
    }
}

/// The running shards of a sink that this process writes.
pub struct RunningShards {
    senders: Vec<(Shard, Sender<ShardBatch>)>,
    /// Bytes that are not durable yet.
    pending: Arc<AtomicUsize>,
    durable: Vec<SharedPositions>,
    stop: Arc<StopDeadline>,
    threads: Vec<JoinHandle<bool>>,
}

/// The channels from the workers to the shards.
#[derive(Clone)]
pub struct ShardSenders {
    senders: Vec<(Shard, Sender<ShardBatch>)>,
    pending: Arc<AtomicUsize>,
    durable: Vec<SharedPositions>,
}

impl ShardSenders {
    pub fn shards(&self) -> impl Iterator<Item = Shard> {
        self.senders.iter().map(|(shard, _)| *shard)
    }

    /// Queues the next batch of a shard. The queue is unbounded, so check
    /// [`ShardSenders::pending_bytes`] first.
    pub fn send_batch(&self, shard: Shard, batch: ShardBatch) {
        if let Some((_, sender)) = self.senders.iter().find(|(own, _)| *own == shard) {
            self.pending.fetch_add(batch.bytes(), Ordering::Relaxed);
            // The thread of the shard has ended, and has reported why.
            let _ = sender.send(batch);
        }
    }

    /// Bytes that are not durable yet.
    pub fn pending_bytes(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    /// Whether the durable output of all shards of this process includes the input before these
    /// positions.
    pub fn have_written(&self, positions: &Positions) -> bool {
        self.durable.iter().all(|durable| {
            let durable = durable.lock();
            positions.iter().all(|(source, partitions)| {
                let written = durable.get(source);
                partitions.iter().all(|(partition, position)| {
                    *position == 0
                        || written.and_then(|of| of.get(partition)).is_some_and(|at| at >= position)
                })
            })
        })
    }
}

impl RunningShards {
    /// Starts the threads of the shards. `progress` returns the progress of a shard by its number
    /// within the sink. `failed` gets the error that ends the run, at most once from each thread.
    pub(super) fn start(
        fenced: FencedShards,
        first_shard: Shard,
        settings: &ShardSettings,
        progress: impl Fn(u16) -> Result<Option<ShardProgress>, SinkError>,
        failed: &Arc<dyn Fn(SinkError) + Send + Sync>,
    ) -> Result<RunningShards, SinkError> {
        let FencedShards { writers, stop } = fenced;
        let pending = Arc::<AtomicUsize>::default();
        let mut running =
            RunningShards { senders: Vec::new(), pending, durable: Vec::new(), stop, threads: Vec::new() };
        for (number, writer) in writers {
            let before = progress(number)?.map(|progress| progress.positions).unwrap_or_default();
            let durable = Arc::new(Mutex::new(before));
            let (sender, batches) = mpsc::channel();
            running.senders.push((Shard(first_shard.0 + number), sender));
            running.durable.push(Arc::clone(&durable));
            let mut thread = ShardThread {
                number,
                writer,
                settings: settings.clone(),
                stop: Arc::clone(&running.stop),
                durable,
                due: Instant::now(),
                metrics: None,
            };
            let (pending, failed) = (Arc::clone(&running.pending), Arc::clone(failed));
            let write = move || {
                let written = thread.run(&batches, &pending);
                written.map_err(|error| failed(error)).is_ok()
            };
            let name = format!("sink {number}");
            let spawned = thread::Builder::new().name(name).spawn(write);
            running
                .threads
                .push(spawned.map_err(|error| SinkError::Fatal(crate::fault::start_failure_text(&error)))?);
        }
        Ok(running)
    }

    pub fn senders(&self) -> ShardSenders {
        let RunningShards { senders, pending, durable, .. } = self;
        ShardSenders { senders: senders.clone(), pending: Arc::clone(pending), durable: durable.clone() }
    }

    pub(super) fn stop(&self) -> &Arc<StopDeadline> {
        &self.stop
    }

    /// Waits until everything that was sent is durable; the workers must have dropped their
    /// senders. Returns false if it is not durable.
    pub fn finish(self) -> bool {
        self.stop.begin();
        drop(self.senders);
        // Join all threads, even if one has failed.
        let written: Vec<bool> =
            self.threads.into_iter().map(|thread| thread.join().unwrap_or(false)).collect();
        written.into_iter().all(|written| written)
    }
}
