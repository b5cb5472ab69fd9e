//! What one worker writes of a checkpoint: its cities, by shard, while the flow goes on.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parquet::errors::ParquetError;

use super::checkpoints::Checkpoints;
use super::cities::{self, CityRecord};
use super::error::CheckpointError;
use super::manifest::{FileEntry, StateSegment, WorkerPart};
use super::name::{CheckpointName, parse_generation};
use super::objects::checksum;
use super::readings::ReadingsFileWriter;
use super::store::PendingPut;
use crate::model::{
    CheckpointBarrier, CityKey, CityPeriods, CitySnapshot, PartitionTable, SnapshotSink, state_shard,
};

/// So much is taken before files are made of it: one of each kind for each shard, again and again
/// where a state is larger.
const BYTES_PER_RUN: usize = 128 << 20;
/// What may be held altogether, of cities that wait and of those that are being written.
const MAX_BUFFERED_BYTES: usize = 2 * BYTES_PER_RUN;
/// What a city takes beside its readings, about.
const CITY_OVERHEAD_BYTES: usize = 256;
/// Files that are on their way to the store.
const MAX_CONCURRENT_PUTS: usize = 4;

/// How often a writer that waits looks whether it still should.
const CANCEL_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Hears of each mark what became of it, from the writer's thread. A mark that is cut off by a stop
/// is not heard of.
pub type PartCallback = Box<dyn FnMut(CheckpointBarrier, u64, Result<WorkerPart, CheckpointError>) + Send>;

/// What the writers of a process have in common.
#[derive(Debug, Default)]
pub struct PartWriterControl {
    /// The checkpoint of this number is not wanted any more, nor is any before.
    cancelled_up_to: AtomicU64,
    /// Marks that have begun at a writer and not ended.
    active_parts: AtomicUsize,
    /// That were written, ever.
    written_files: AtomicU64,
}

impl PartWriterControl {
    pub fn cancel_checkpoint(&self, checkpoint: u64) {
        self.cancelled_up_to.fetch_max(checkpoint, Ordering::Relaxed);
    }

    pub fn is_cancelled(&self, checkpoint: u64) -> bool {
        checkpoint <= self.cancelled_up_to.load(Ordering::Relaxed)
    }

    /// Whether none has anything left to do.
    pub fn all_idle(&self) -> bool {
        self.active_parts.load(Ordering::Relaxed) == 0
    }

    /// How many files they have written, ever: whether they get on.
    pub fn written_files(&self) -> u64 {
        self.written_files.load(Ordering::Relaxed)
    }
}

/// Takes what a worker snapshots, and writes it from a thread of its own.
pub struct PartWriter {
    commands: Option<Sender<PartCommand>>,
    buffered_bytes: Arc<AtomicUsize>,
    control: Arc<PartWriterControl>,
    is_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

enum PartCommand {
    Begin(CheckpointBarrier, u64),
    City(CitySnapshot),
    End,
}

impl PartWriter {
    /// `generation` is a number and a nonce, as in `17-9f2c41d06b3e8a55`, that no other run has.
    pub fn spawn(
        checkpoints: Checkpoints,
        generation: &str,
        partitions: PartitionTable,
        writers: Arc<PartWriterControl>,
        on_part: PartCallback,
    ) -> io::Result<PartWriter> {
        PartWriter::spawn_with_run_bytes(BYTES_PER_RUN, checkpoints, generation, partitions, writers, on_part)
    }

    pub(super) fn spawn_with_run_bytes(
        run_bytes: usize,
        checkpoints: Checkpoints,
        generation: &str,
        partitions: PartitionTable,
        writers: Arc<PartWriterControl>,
        on_part: PartCallback,
    ) -> io::Result<PartWriter> {
        let (number, nonce) = parse_generation(generation)
            .ok_or_else(|| io::Error::other(format!("{generation:?} is not a generation")))?;
        let (held, stopped) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (commands, received) = mpsc::channel();
        let work = PartWriterThread {
            checkpoints,
            generation: (number, nonce.into()),
            partitions,
            buffered_bytes: held.clone(),
            control: writers.clone(),
            is_stopped: stopped.clone(),
            run_bytes,
            on_part_done: on_part,
        };
        let thread =
            thread::Builder::new().name("checkpoint".into()).spawn(move || work.run_thread(&received))?;
        Ok(PartWriter {
            commands: Some(commands),
            buffered_bytes: held,
            control: writers,
            is_stopped: stopped,
            thread: Some(thread),
        })
    }

    fn send(&self, command: PartCommand) {
        if let Some(commands) = &self.commands {
            // The thread ends before this only by a panic, which ends the process.
            let _ = commands.send(command);
        }
    }
}

impl SnapshotSink for PartWriter {
    fn begin_snapshot(&mut self, barrier: CheckpointBarrier, epoch: u64) {
        self.control.active_parts.fetch_add(1, Ordering::Relaxed);
        self.send(PartCommand::Begin(barrier, epoch));
    }

    fn write_city(&mut self, city: CitySnapshot) {
        self.buffered_bytes.fetch_add(buffered_size(&city), Ordering::Relaxed);
        self.send(PartCommand::City(city));
    }

    fn finish_snapshot(&mut self) {
        self.send(PartCommand::End);
    }

    fn is_full(&self) -> bool {
        self.buffered_bytes.load(Ordering::Relaxed) >= MAX_BUFFERED_BYTES
    }

    fn is_cancelled(&self, barrier: CheckpointBarrier) -> bool {
        self.control.is_cancelled(barrier.checkpoint)
    }
}

impl Drop for PartWriter {
    /// On the worker's thread, so nothing is waited for that takes long.
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        self.commands = None;
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the writer of checkpoints has panicked");
        }
    }
}

fn buffered_size(city: &CitySnapshot) -> usize {
    let readings: usize = city.blocks.iter().map(|block| block.memory_bytes()).sum();
    let periods = city.periods.as_ref().map_or(0, CityPeriods::memory_bytes);
    CITY_OVERHEAD_BYTES + readings + 16 * city.tombstones.len() + periods
}

struct PartWriterThread {
    checkpoints: Checkpoints,
    generation: (u64, Box<str>),
    partitions: PartitionTable,
    buffered_bytes: Arc<AtomicUsize>,
    control: Arc<PartWriterControl>,
    is_stopped: Arc<AtomicBool>,
    run_bytes: usize,
    on_part_done: PartCallback,
}

impl PartWriterThread {
    fn run_thread(mut self, commands: &Receiver<PartCommand>) {
        while let Ok(command) = commands.recv() {
            match command {
                _ if self.is_stopped() => return,
                // What comes without a beginning is of one that was given up.
                PartCommand::City(city) => {
                    self.buffered_bytes.fetch_sub(buffered_size(&city), Ordering::Relaxed);
                }
                PartCommand::End => {}
                PartCommand::Begin(barrier, epoch) => {
                    let mut next = Some((barrier, epoch));
                    while let Some((barrier, epoch)) = next.take() {
                        next = self.write_part(barrier, epoch, commands);
                    }
                }
            }
        }
    }

    fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }

    /// Writes a part, up to its end, the beginning of the next one, or a stop.
    fn write_part(
        &mut self,
        barrier: CheckpointBarrier,
        epoch: u64,
        commands: &Receiver<PartCommand>,
    ) -> Option<(CheckpointBarrier, u64)> {
        let (number, nonce) = &self.generation;
        let name = CheckpointName { generation: *number, epoch };
        let mut writing = PartInProgress {
            folder: format!("data/{name}-{nonce}"),
            thread: self,
            barrier,
            segments: Vec::new(),
            pending_puts: VecDeque::new(),
            started_paths: Vec::new(),
            runs: 0,
        };
        let (written, next) = writing.receive_and_write(commands);
        let written = written.and_then(|()| writing.wait_for_puts());
        if self.is_stopped() {
            return None;
        }
        let result = match written {
            Ok(()) => Ok(WorkerPart { barrier, epoch, segments: std::mem::take(&mut writing.segments) }),
            Err(error) => {
                writing.discard_files();
                Err(error)
            }
        };
        drop(writing);
        (self.on_part_done)(barrier, epoch, result);
        self.control.active_parts.fetch_sub(1, Ordering::Relaxed);
        next
    }
}

/// A part that is being written.
struct PartInProgress<'a> {
    folder: String,
    thread: &'a PartWriterThread,
    barrier: CheckpointBarrier,
    segments: Vec<StateSegment>,
    pending_puts: VecDeque<PendingPut>,
    /// The paths of all.
    started_paths: Vec<String>,
    /// How often all shards were written.
    runs: usize,
}

impl PartInProgress<'_> {
    /// Takes the cities of the part and writes them, in runs that fit the memory. Also gives what
    /// began meanwhile.
    fn receive_and_write(
        &mut self,
        commands: &Receiver<PartCommand>,
    ) -> (Result<(), CheckpointError>, Option<(CheckpointBarrier, u64)>) {
        let (mut run, mut run_bytes) = (Vec::new(), 0);
        let mut result = Ok(());
        let next = loop {
            if self.is_cancelled() {
                result = Err(CheckpointError::Cancelled);
                break None;
            }
            match commands.recv_timeout(CANCEL_POLL_INTERVAL) {
                Ok(PartCommand::City(city)) => {
                    run_bytes += buffered_size(&city);
                    run.push(city);
                }
                Ok(PartCommand::End) => break None,
                Ok(PartCommand::Begin(mark, epoch)) => {
                    let why = "the next one began before this one was complete";
                    result = result.and(Err(CheckpointError::IncompatibleParts(why.into())));
                    break Some((mark, epoch));
                }
                Err(RecvTimeoutError::Timeout) => continue,
                // A stop, which is seen above.
                Err(RecvTimeoutError::Disconnected) => {
                    result = Err(CheckpointError::Cancelled);
                    break None;
                }
            }
            if run_bytes >= self.thread.run_bytes || result.is_err() {
                result = result.and_then(|()| self.write_run(std::mem::take(&mut run)));
                run.clear();
                self.thread.buffered_bytes.fetch_sub(std::mem::take(&mut run_bytes), Ordering::Relaxed);
            }
        };
        let result = result.and_then(|()| self.write_run(run));
        self.thread.buffered_bytes.fetch_sub(run_bytes, Ordering::Relaxed);
        (result, next)
    }

    /// Whether nobody wants it any more.
    fn is_cancelled(&self) -> bool {
        self.thread.is_stopped() || self.thread.control.is_cancelled(self.barrier.checkpoint)
    }

    /// Writes cities that fit the memory, shard by shard.
    fn write_run(&mut self, cities: Vec<CitySnapshot>) -> Result<(), CheckpointError> {
        let mut shards: BTreeMap<u32, Vec<CitySnapshot>> = BTreeMap::new();
        for city in cities {
            shards.entry(state_shard(CityKey::hash(&city.name))).or_default().push(city);
        }
        for (shard, mut cities) in shards {
            if self.is_cancelled() {
                return Err(CheckpointError::Cancelled);
            }
            cities.sort_by(|a, b| a.name.cmp(&b.name));
            self.write_shard(shard, cities)?;
        }
        self.runs += 1;
        Ok(())
    }

    fn write_shard(&mut self, shard: u32, states: Vec<CitySnapshot>) -> Result<(), CheckpointError> {
        let invalid = |error: ParquetError| CheckpointError::IncompatibleParts(error.to_string());
        let mut cities = Vec::with_capacity(states.len());
        let mut readings = ReadingsFileWriter::new().map_err(invalid)?;
        for state in states {
            let partition = self.thread.partitions.name(state.partition);
            let partition = partition.ok_or_else(|| {
                CheckpointError::IncompatibleParts(format!("{} belongs to an unknown partition", state.name))
            })?;
            cities.push(CityRecord::from_state(&state, partition));
            for block in &state.blocks {
                readings.write_city(&state.name, block.iter()).map_err(invalid)?;
            }
        }
        let (content, rows) = readings.finish().map_err(invalid)?;
        let readings = if rows > 0 { Some(self.start_file("readings", shard, content, rows)?) } else { None };
        let (content, format) = cities::encode_cities(&cities).map_err(invalid)?;
        let cities = self.start_file("cities", shard, content, cities.len() as u64)?;
        self.segments.push(StateSegment { shard, cities, readings, format });
        Ok(())
    }

    fn start_file(
        &mut self,
        kind: &str,
        shard: u32,
        content: Vec<u8>,
        rows: u64,
    ) -> Result<FileEntry, CheckpointError> {
        let run = if self.runs > 0 { format!("-{}", self.runs) } else { String::new() };
        let path = format!("{}/{kind}-{shard:02}{run}.parquet", self.folder);
        let entry =
            FileEntry { path: path.clone(), bytes: content.len() as u64, rows, xxh3: checksum(&content) };
        if self.pending_puts.len() == MAX_CONCURRENT_PUTS {
            self.wait_for_first_put()?;
        }
        self.started_paths.push(path.clone());
        self.pending_puts.push_back(self.thread.checkpoints.store.start_put(path, content.into()));
        Ok(entry)
    }

    fn wait_for_first_put(&mut self) -> Result<(), CheckpointError> {
        let Some(first) = self.pending_puts.pop_front() else { return Ok(()) };
        first.wait_durable(&|| self.is_cancelled())?;
        self.thread.control.written_files.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Once all is written for good.
    fn wait_for_puts(&mut self) -> Result<(), CheckpointError> {
        while !self.pending_puts.is_empty() {
            self.wait_for_first_put()?;
        }
        Ok(())
    }

    /// Begins to remove what was written of a part that will not be.
    fn discard_files(&mut self) {
        while let Some(pending_put) = self.pending_puts.pop_front() {
            // What is removed while it is on its way comes after that.
            let _ = pending_put.wait_durable(&|| self.is_cancelled());
        }
        self.thread.checkpoints.store.start_delete_objects(std::mem::take(&mut self.started_paths));
    }
}
