//! What one worker writes of a checkpoint: its cities, by shard, while the flow goes on.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parquet::errors::ParquetError;

use super::cities::{self, City};
use super::manifest::parse_generation;
use super::readings::Writer;
use super::store::Putting;
use super::{CheckpointError, Checkpoints, FileEntry, Name, Part, Segment, checksum};
use crate::model::{CityKey, CityState, Mark, Slots, Snapshots, state_shard};

/// So much is taken before files are made of it: one of each kind for each shard, again and again where a state is larger.
const RUN_BYTES: usize = 128 << 20;
/// What may be held altogether, of cities that wait and of those that are being written.
const HELD_BYTES: usize = 2 * RUN_BYTES;
/// What a city takes beside its readings, about.
const CITY_BYTES: usize = 256;
/// Files that are on their way to the store.
const PUTS_AT_ONCE: usize = 4;

/// How often a writer that waits looks whether it still should.
const LOOK: Duration = Duration::from_millis(100);

/// Hears of each mark what became of it, from the writer's thread. A mark that is cut off by a stop is not heard of.
pub type Done = Box<dyn FnMut(Mark, u64, Result<Part, CheckpointError>) + Send>;

/// What the writers of a process have in common.
#[derive(Debug, Default)]
pub struct Writers {
    /// The checkpoint of this number is not wanted any more, nor is any before.
    given_up: AtomicU64,
    /// Marks that have begun at a writer and not ended.
    busy: AtomicUsize,
    /// That were written, ever.
    files: AtomicU64,
}

impl Writers {
    pub fn give_up(&self, checkpoint: u64) {
        self.given_up.fetch_max(checkpoint, Ordering::Relaxed);
    }

    pub fn has_given_up(&self, checkpoint: u64) -> bool {
        checkpoint <= self.given_up.load(Ordering::Relaxed)
    }

    /// Whether none has anything left to do.
    pub fn are_idle(&self) -> bool {
        self.busy.load(Ordering::Relaxed) == 0
    }

    /// How many files they have written, ever: whether they get on.
    pub fn files(&self) -> u64 {
        self.files.load(Ordering::Relaxed)
    }
}

/// Takes what a worker snapshots, and writes it from a thread of its own.
pub struct PartWriter {
    commands: Option<Sender<Command>>,
    held: Arc<AtomicUsize>,
    writers: Arc<Writers>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

enum Command {
    Begin(Mark, u64),
    City(CityState),
    End,
}

impl PartWriter {
    /// `generation` is a number and a nonce, as in `17-9f2c41d06b3e8a55`, that no other run has.
    pub fn spawn(
        checkpoints: Checkpoints,
        generation: &str,
        slots: Slots,
        writers: Arc<Writers>,
        done: Done,
    ) -> io::Result<PartWriter> {
        PartWriter::with_runs_of(RUN_BYTES, checkpoints, generation, slots, writers, done)
    }

    pub(super) fn with_runs_of(
        run_bytes: usize,
        checkpoints: Checkpoints,
        generation: &str,
        slots: Slots,
        writers: Arc<Writers>,
        done: Done,
    ) -> io::Result<PartWriter> {
        let (number, nonce) = parse_generation(generation)
            .ok_or_else(|| io::Error::other(format!("{generation:?} is not a generation")))?;
        let (held, stopped) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (commands, received) = mpsc::channel();
        let work = Work {
            checkpoints,
            generation: (number, nonce.into()),
            slots,
            held: held.clone(),
            writers: writers.clone(),
            stopped: stopped.clone(),
            run_bytes,
            done,
        };
        let thread = thread::Builder::new().name("checkpoint".into()).spawn(move || work.run(&received))?;
        Ok(PartWriter { commands: Some(commands), held, writers, stopped, thread: Some(thread) })
    }

    fn send(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // The thread ends before this only by a panic, which ends the process.
            let _ = commands.send(command);
        }
    }
}

impl Snapshots for PartWriter {
    fn begin(&mut self, mark: Mark, epoch: u64) {
        self.writers.busy.fetch_add(1, Ordering::Relaxed);
        self.send(Command::Begin(mark, epoch));
    }

    fn city(&mut self, city: CityState) {
        self.held.fetch_add(size(&city), Ordering::Relaxed);
        self.send(Command::City(city));
    }

    fn end(&mut self) {
        self.send(Command::End);
    }

    fn is_full(&self) -> bool {
        self.held.load(Ordering::Relaxed) >= HELD_BYTES
    }

    fn has_given_up(&self, mark: Mark) -> bool {
        self.writers.has_given_up(mark.checkpoint)
    }
}

impl Drop for PartWriter {
    /// On the worker's thread, so nothing is waited for that takes long.
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.commands = None;
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the writer of checkpoints has panicked");
        }
    }
}

fn size(city: &CityState) -> usize {
    let readings: usize = city.blocks.iter().map(|block| block.bytes()).sum();
    CITY_BYTES + readings + 16 * city.withdrawn.len()
}

struct Work {
    checkpoints: Checkpoints,
    generation: (u64, Box<str>),
    slots: Slots,
    held: Arc<AtomicUsize>,
    writers: Arc<Writers>,
    stopped: Arc<AtomicBool>,
    run_bytes: usize,
    done: Done,
}

impl Work {
    fn run(mut self, commands: &Receiver<Command>) {
        while let Ok(command) = commands.recv() {
            match command {
                _ if self.is_stopped() => return,
                // What comes without a beginning is of one that was given up.
                Command::City(city) => drop(self.held.fetch_sub(size(&city), Ordering::Relaxed)),
                Command::End => {}
                Command::Begin(mark, epoch) => {
                    let mut next = Some((mark, epoch));
                    while let Some((mark, epoch)) = next.take() {
                        next = self.one(mark, epoch, commands);
                    }
                }
            }
        }
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Writes a part, up to its end, the beginning of the next one, or a stop.
    fn one(&mut self, mark: Mark, epoch: u64, commands: &Receiver<Command>) -> Option<(Mark, u64)> {
        let (number, nonce) = &self.generation;
        let name = Name { generation: *number, epoch };
        let mut writing = Writing {
            folder: format!("data/{name}-{nonce}"),
            work: self,
            mark,
            segments: Vec::new(),
            puts: VecDeque::new(),
            started: Vec::new(),
            runs: 0,
        };
        let (written, next) = writing.take(commands);
        let written = written.and_then(|()| writing.finish());
        if self.is_stopped() {
            return None;
        }
        let result = match written {
            Ok(()) => Ok(Part { mark, epoch, segments: std::mem::take(&mut writing.segments) }),
            Err(error) => {
                writing.discard();
                Err(error)
            }
        };
        drop(writing);
        (self.done)(mark, epoch, result);
        self.writers.busy.fetch_sub(1, Ordering::Relaxed);
        next
    }
}

/// A part that is being written.
struct Writing<'a> {
    folder: String,
    work: &'a Work,
    mark: Mark,
    segments: Vec<Segment>,
    puts: VecDeque<Putting>,
    /// The paths of all.
    started: Vec<String>,
    /// How often all shards were written.
    runs: usize,
}

impl Writing<'_> {
    /// Takes the cities of the part and writes them, in runs that fit the memory. Also gives what began meanwhile.
    fn take(&mut self, commands: &Receiver<Command>) -> (Result<(), CheckpointError>, Option<(Mark, u64)>) {
        let (mut run, mut run_bytes) = (Vec::new(), 0);
        let mut result = Ok(());
        let next = loop {
            if self.is_given_up() {
                result = Err(CheckpointError::GivenUp);
                break None;
            }
            match commands.recv_timeout(LOOK) {
                Ok(Command::City(city)) => {
                    run_bytes += size(&city);
                    run.push(city);
                }
                Ok(Command::End) => break None,
                Ok(Command::Begin(mark, epoch)) => {
                    let why = "the next one began before this one was complete";
                    result = result.and(Err(CheckpointError::Parts(why.into())));
                    break Some((mark, epoch));
                }
                Err(RecvTimeoutError::Timeout) => continue,
                // A stop, which is seen above.
                Err(RecvTimeoutError::Disconnected) => {
                    result = Err(CheckpointError::GivenUp);
                    break None;
                }
            }
            if run_bytes >= self.work.run_bytes || result.is_err() {
                result = result.and_then(|()| self.run(std::mem::take(&mut run)));
                run.clear();
                self.work.held.fetch_sub(std::mem::take(&mut run_bytes), Ordering::Relaxed);
            }
        };
        let result = result.and_then(|()| self.run(run));
        self.work.held.fetch_sub(run_bytes, Ordering::Relaxed);
        (result, next)
    }

    /// Whether nobody wants it any more.
    fn is_given_up(&self) -> bool {
        self.work.is_stopped() || self.work.writers.has_given_up(self.mark.checkpoint)
    }

    /// Writes cities that fit the memory, shard by shard.
    fn run(&mut self, cities: Vec<CityState>) -> Result<(), CheckpointError> {
        let mut shards: BTreeMap<u32, Vec<CityState>> = BTreeMap::new();
        for city in cities {
            shards.entry(state_shard(CityKey::hash(&city.name))).or_default().push(city);
        }
        for (shard, mut cities) in shards {
            if self.is_given_up() {
                return Err(CheckpointError::GivenUp);
            }
            cities.sort_by(|a, b| a.name.cmp(&b.name));
            self.shard(shard, cities)?;
        }
        self.runs += 1;
        Ok(())
    }

    fn shard(&mut self, shard: u32, states: Vec<CityState>) -> Result<(), CheckpointError> {
        let invalid = |error: ParquetError| CheckpointError::Parts(error.to_string());
        let mut cities = Vec::with_capacity(states.len());
        let mut readings = Writer::new().map_err(invalid)?;
        for state in states {
            let partition = self.work.slots.name(state.slot);
            let partition = partition.ok_or_else(|| {
                CheckpointError::Parts(format!("{} is of a partition that is not known", state.name))
            })?;
            cities.push(City::of(&state, partition));
            for block in &state.blocks {
                readings.write(&state.name, block.iter()).map_err(invalid)?;
            }
        }
        let (content, rows) = readings.finish().map_err(invalid)?;
        let readings = if rows > 0 { Some(self.put("readings", shard, content, rows)?) } else { None };
        let content = cities::encode(&cities).map_err(invalid)?;
        let cities = self.put("cities", shard, content, cities.len() as u64)?;
        self.segments.push(Segment { shard, cities, readings });
        Ok(())
    }

    fn put(
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
        if self.puts.len() == PUTS_AT_ONCE {
            self.wait_for_first()?;
        }
        self.started.push(path.clone());
        self.puts.push_back(self.work.checkpoints.store.start_put(path, content.into()));
        Ok(entry)
    }

    fn wait_for_first(&mut self) -> Result<(), CheckpointError> {
        let Some(first) = self.puts.pop_front() else { return Ok(()) };
        first.wait(&|| self.is_given_up())?;
        self.work.writers.files.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Once all is written for good.
    fn finish(&mut self) -> Result<(), CheckpointError> {
        while !self.puts.is_empty() {
            self.wait_for_first()?;
        }
        Ok(())
    }

    /// Begins to remove what was written of a part that will not be.
    fn discard(&mut self) {
        while let Some(put) = self.puts.pop_front() {
            // What is removed while it is on its way comes after that.
            let _ = put.wait(&|| self.is_given_up());
        }
        self.work.checkpoints.store.start_delete(std::mem::take(&mut self.started));
    }
}
