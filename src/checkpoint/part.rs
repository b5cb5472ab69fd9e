//! What one worker writes of a checkpoint: its cities, by shard, while the flow goes on.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

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

/// Hears of each mark what became of it, from the writer's thread. A mark that is cut off by a stop is not heard of.
pub type Done = Box<dyn FnMut(Mark, u64, Result<Part, CheckpointError>) + Send>;

/// Takes what a worker snapshots, and writes it from a thread of its own.
pub struct PartWriter {
    commands: Option<Sender<Command>>,
    held: Arc<AtomicUsize>,
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
        done: Done,
    ) -> io::Result<PartWriter> {
        PartWriter::with_runs_of(RUN_BYTES, checkpoints, generation, slots, done)
    }

    pub(super) fn with_runs_of(
        run_bytes: usize,
        checkpoints: Checkpoints,
        generation: &str,
        slots: Slots,
        done: Done,
    ) -> io::Result<PartWriter> {
        let (number, nonce) = parse_generation(generation)
            .ok_or_else(|| io::Error::other(format!("{generation:?} is not a generation")))?;
        let held = Arc::new(AtomicUsize::new(0));
        let (commands, received) = mpsc::channel();
        let work = Work {
            checkpoints,
            generation: (number, nonce.into()),
            slots,
            held: held.clone(),
            run_bytes,
            done,
        };
        let thread = thread::Builder::new().name("checkpoint".into()).spawn(move || work.run(&received))?;
        Ok(PartWriter { commands: Some(commands), held, thread: Some(thread) })
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
}

impl Drop for PartWriter {
    fn drop(&mut self) {
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
    run_bytes: usize,
    done: Done,
}

impl Work {
    fn run(mut self, commands: &Receiver<Command>) {
        while let Ok(command) = commands.recv() {
            // What comes without a beginning is of one that the operator has given up.
            if let Command::Begin(mark, epoch) = command {
                let mut next = Some((mark, epoch));
                while let Some((mark, epoch)) = next.take() {
                    next = self.one(mark, epoch, commands);
                }
            }
        }
    }

    /// Writes a part, up to its end, the beginning of the next one, or a stop.
    fn one(&mut self, mark: Mark, epoch: u64, commands: &Receiver<Command>) -> Option<(Mark, u64)> {
        let (number, nonce) = &self.generation;
        let name = Name { generation: *number, epoch };
        let mut writing = Writing {
            folder: format!("data/{name}-{nonce}"),
            checkpoints: &self.checkpoints,
            slots: &self.slots,
            segments: Vec::new(),
            puts: VecDeque::new(),
            runs: 0,
        };
        let mut result = Ok(());
        let (mut run, mut run_bytes) = (Vec::new(), 0);
        let (finished, next) = loop {
            match commands.recv() {
                Ok(Command::City(city)) => {
                    run_bytes += size(&city);
                    run.push(city);
                }
                Ok(Command::End) => break (true, None),
                Ok(Command::Begin(mark, epoch)) => break (false, Some((mark, epoch))),
                Err(_) => return None,
            }
            if run_bytes >= self.run_bytes || result.is_err() {
                result = result.and_then(|()| writing.run(std::mem::take(&mut run)));
                run.clear();
                self.held.fetch_sub(run_bytes, Ordering::Relaxed);
                run_bytes = 0;
            }
        };
        let result = match finished {
            true => result.and_then(|()| writing.run(run)),
            false => Err(CheckpointError::Parts("the next one began before this one was complete".into())),
        };
        let part = result.and_then(|()| writing.finish()).map(|segments| Part { mark, epoch, segments });
        self.held.fetch_sub(run_bytes, Ordering::Relaxed);
        (self.done)(mark, epoch, part);
        next
    }
}

struct Writing<'a> {
    folder: String,
    checkpoints: &'a Checkpoints,
    slots: &'a Slots,
    segments: Vec<Segment>,
    puts: VecDeque<Putting>,
    /// How often all shards were written.
    runs: usize,
}

impl Writing<'_> {
    /// Writes cities that fit the memory, shard by shard.
    fn run(&mut self, cities: Vec<CityState>) -> Result<(), CheckpointError> {
        let mut shards: BTreeMap<u32, Vec<CityState>> = BTreeMap::new();
        for city in cities {
            shards.entry(state_shard(CityKey::hash(&city.name))).or_default().push(city);
        }
        for (shard, mut cities) in shards {
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
            let partition = self.slots.name(state.slot);
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
            self.puts.pop_front().map_or(Ok(()), Putting::wait)?;
        }
        self.puts.push_back(self.checkpoints.store.start_put(path, content.into()));
        Ok(entry)
    }

    /// Once all is written for good.
    fn finish(mut self) -> Result<Vec<Segment>, CheckpointError> {
        self.puts.drain(..).try_for_each(Putting::wait)?;
        Ok(self.segments)
    }
}
