//! The service: sources in, what is served out, until it is asked to stop.

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration as Wait, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use super::data_dir::{DataDir, DataDirError};
use crate::admission::AdmissionRules;
use crate::config::{FileInput, GeneratorSource, Plan, SourceKind, SourcePlan};
use crate::dataflow::GraphPlan;
use crate::directory::Directory;
use crate::model::{Appender, EventTime, PartitionName, Slot};
use crate::serve::{self, Facts, Ports, ServeError, Serving};
use crate::sinks::dead_letters::{DeadLetters, DeadLettersError};
use crate::sources::Source;
use crate::sources::file::{FileSource, Input};
use crate::sources::generator::PlanError;
use crate::sources::generator::feed::{Feed, FeedError};
use crate::sources::generator::paced::{Paced, PacedPlan};
use crate::sources::journal::{Journal, JournalError, JournalPlan};
use crate::worker::{self, Job, LogPartition, Refusals, Shared};

/// Epochs are taken for this long ahead, in ms, and so often. After a crash the first epochs are that much ahead of the clock at
/// most, so it is short; a disk that takes longer to write a few bytes holds results up.
const RESERVED_MS: u64 = 3_000;
const RESERVE_EVERY_MS: u64 = 1_000;
const LOOK_AT_EPOCHS: Wait = Wait::from_millis(250);
/// Between two looks at what should be looked at now and then.
const HOUSEKEEPING: Wait = Wait::from_millis(500);
/// How long a stop waits for clients to take what was sent to them.
const GRACE: Wait = Wait::from_secs(3);
/// Threads that serve.
const SERVING_THREADS: usize = 2;

/// Why the service has ended, other than by request.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    DeadLetters(#[from] DeadLettersError),
    #[error("source {name}: {error}")]
    Feed { name: String, error: FeedError },
    #[error("source {name}: {error}")]
    Generator { name: String, error: PlanError },
    #[error("source {name}: {error}")]
    File { name: String, error: crate::sources::SourceError },
    #[error("threads cannot be started: {0}")]
    Threads(io::Error),
    #[error("the workers cannot be started: {0}")]
    Workers(String),
    /// A source or the log has failed for good.
    #[error("{0}")]
    Failed(String),
}

/// What ends the wait for the end.
enum Event {
    Signal,
    Ended(Result<(), RunError>),
}

/// Runs the service until it is asked to stop, by SIGTERM, Ctrl-C or a closed terminal. `announce` hears the address once it is listened on, and
/// from when on readings are accepted.
pub fn run(plan: Plan, announce: impl FnOnce(SocketAddr)) -> Result<(), RunError> {
    // First of all: it waits for a process that is still dying, which may hold the address as well.
    let data_dir = plan.ingest.as_ref().map(|_| DataDir::open(&plan.data_dir).map(Arc::new)).transpose()?;
    let bound = serve::bind(plan.serve.clone())?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(SERVING_THREADS)
        .enable_all()
        .build()
        .map_err(RunError::Threads)?;
    let (events, happened) = mpsc::sync_channel(4);
    listen_for_signals(&runtime, &events)?;

    let generation = data_dir.as_ref().map_or_else(unkept_generation, |dir| dir.generation());
    let logs = Logs::open(&plan, data_dir)?;
    let letters = logs.dead_letters(&plan)?;
    let first_epoch = logs.data_dir.as_ref().map_or(0, |dir| dir.epoch_floor()).max(worker::clock());
    let reserved = first_epoch + RESERVED_MS;
    logs.data_dir.as_ref().map_or(Ok(()), |dir| dir.reserve_epochs(reserved))?;
    let shared = Arc::new(Shared::new(Refusals::new(letters), reserved));

    let facts = facts(&plan, &logs, generation.clone());
    let ports = Ports { ask: shared.clone(), appender: logs.appender() };
    let address = bound.address();
    let serving = bound.start(runtime.handle(), facts, ports)?;
    announce(address);
    tracing::info!(%address, generation = &*generation, "listening");

    let feeds = logs.feed(&plan)?;
    start_workers(&plan, &logs, &serving, &shared, first_epoch, events)?;
    let ended = Arc::new(AtomicBool::new(false));
    match &logs.data_dir {
        Some(data_dir) => reserve_epochs(data_dir.clone(), shared.clone(), reserved, ended.clone())?,
        None => shared.reserve(u64::MAX),
    }
    let end = keep_house(&logs, &shared, &happened);
    tracing::info!("stopping");
    // From the sources on: what was taken in still goes all the way.
    for (name, feed) in feeds {
        if let Err(error) = feed.stop() {
            tracing::warn!(source = name, %error, "a generator has ended early");
        }
    }
    shared.stop();
    let end = end.and_then(|ended| if ended { Ok(()) } else { wait_for_workers(&happened) });
    ended.store(true, Ordering::Relaxed);
    runtime.block_on(serving.stop(GRACE));
    let synced = shared.refusals.sync().map_err(RunError::from);
    runtime.shutdown_timeout(GRACE);
    drop(logs);
    end?;
    synced?;
    tracing::info!("stopped");
    Ok(())
}

/// Without a directory nothing is taken up again, and so that nobody thinks so, no two runs have the same.
fn unkept_generation() -> Arc<str> {
    use std::hash::{BuildHasher, RandomState};
    format!("0-{:016x}", RandomState::new().hash_one(worker::clock())).into()
}

/// The first signal asks for an end, the second one is the end.
fn listen_for_signals(runtime: &Runtime, events: &SyncSender<Event>) -> Result<(), RunError> {
    let _inside = runtime.enter();
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Threads)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Threads)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(RunError::Threads)?;
    let events = events.clone();
    runtime.spawn(async move {
        for asked in [false, true] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {}
            }
            if asked {
                tracing::warn!("asked to stop again: ending at once");
                std::process::exit(130);
            }
            // There is room for it: others send at most one event more.
            let _ = events.try_send(Event::Signal);
        }
    });
    Ok(())
}

/// The logs of a run, and what is kept beside them.
struct Logs {
    // In this order: the lock is given back last.
    journal: Option<Arc<Journal>>,
    sources: Vec<Arc<dyn Source>>,
    data_dir: Option<Arc<DataDir>>,
}

impl Logs {
    fn open(plan: &Plan, data_dir: Option<Arc<DataDir>>) -> Result<Logs, RunError> {
        let Some((ingest, data_dir)) = plan.ingest.as_ref().zip(data_dir) else {
            let sources = plan.sources.iter().map(|source| direct(source, plan));
            return Ok(Logs { journal: None, data_dir: None, sources: sources.collect::<Result<_, _>>()? });
        };
        let journal = Arc::new(Journal::open(
            &data_dir.path().join("journal"),
            JournalPlan {
                partitions: ingest.partitions,
                queue_records: ingest.queue_records,
                queue_bytes: ingest.queue_bytes,
                warn_bytes: ingest.warn_bytes,
                decode: plan.decode,
                ..JournalPlan::default()
            },
        )?);
        let mut sources: Vec<Arc<dyn Source>> = vec![journal.clone()];
        for source in plan.sources.iter().filter(|source| matches!(source.kind, SourceKind::File(_))) {
            sources.push(direct(source, plan)?);
        }
        Ok(Logs { journal: Some(journal), sources, data_dir: Some(data_dir) })
    }

    /// The dead letters of these logs.
    fn dead_letters(&self, plan: &Plan) -> Result<Option<DeadLetters>, RunError> {
        let Some((dir, journal)) = self.data_dir.as_ref().zip(self.journal.as_ref()) else { return Ok(None) };
        let letters = DeadLetters::open(&dir.path().join("dead-letters.jsonl"), &refusal_rules(plan))?;
        for (partition, LogPartition { name, .. }) in (0..journal.partitions()).zip(self.partitions()) {
            // Its letters would keep those of the journal from being written.
            if letters.last(&name).is_some_and(|last| last >= journal.end(partition)) {
                let path = letters.path().display();
                return Err(RunError::Failed(format!(
                    "{path} has dead letters of records that the journal does not have: move it away, it is of another journal"
                )));
            }
        }
        Ok(Some(letters))
    }

    fn appender(&self) -> Option<Arc<dyn Appender>> {
        self.journal.as_ref().map(|journal| journal.appender())
    }

    fn partitions(&self) -> Vec<LogPartition> {
        let of_source = |source: &Arc<dyn Source>| {
            let (source, name): (_, Arc<str>) = (Arc::clone(source), source.name().into());
            (0..source.partitions())
                .map(move |partition| (source.clone(), PartitionName { source: name.clone(), partition }))
        };
        let numbered = self.sources.iter().flat_map(of_source).enumerate();
        numbered
            .map(|(slot, (source, name))| LogPartition { slot: Slot(slot as u16), name, source })
            .collect()
    }

    /// Starts the generators that append to the journal.
    fn feed(&self, plan: &Plan) -> Result<Vec<(String, Feed)>, RunError> {
        let mut feeds = Vec::new();
        let Some((appender, dir)) = self.appender().zip(self.data_dir.as_ref()) else { return Ok(feeds) };
        for source in &plan.sources {
            if let SourceKind::Generator(generator) = &source.kind {
                let name = source.name.clone();
                let feed = Feed::spawn(&name, paced(generator), &dir.path().join("feeds"), appender.clone());
                feeds.push((name.clone(), feed.map_err(|error| RunError::Feed { name, error })?));
            }
        }
        Ok(feeds)
    }
}

/// A source that is a log of its own.
fn direct(source: &SourcePlan, plan: &Plan) -> Result<Arc<dyn Source>, RunError> {
    let name = source.name.clone();
    match &source.kind {
        SourceKind::Generator(generator) => {
            let now = EventTime::from_millis(worker::clock() as i64).unwrap_or_default();
            let paced = Paced::new(&name, paced(generator), now);
            let paced = paced.map_err(|error| RunError::Generator { name, error })?;
            Ok(Arc::new(Arc::new(paced)))
        }
        SourceKind::File(FileInput { path, format, compression, follow }) => {
            let input = Input { path: Some(path.clone()), format: *format, compression: *compression };
            let file = FileSource::new(&name, vec![input], *follow, plan.decode);
            Ok(Arc::new(file.map_err(|error| RunError::File { name, error })?))
        }
        SourceKind::Kafka(_) => Err(RunError::Failed(format!("source {name}: topics cannot be read yet"))),
    }
}

fn rules(plan: &Plan) -> AdmissionRules {
    let (max_ahead, max_cities) = (Some(plan.max_ahead), plan.max_cities);
    AdmissionRules { max_ahead, max_cities, ..AdmissionRules::new(plan.retention.lateness) }
}

/// What decides which records are refused.
fn refusal_rules(plan: &Plan) -> String {
    use std::os::unix::fs::MetadataExt;
    let file = |source: &SourcePlan| match &source.kind {
        SourceKind::File(file) => {
            // Another file under the same name is another log.
            let is = std::fs::metadata(&file.path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
            Some(format!("{} {file:?} {is:?}\n", source.name))
        }
        SourceKind::Generator(_) | SourceKind::Kafka(_) => None,
    };
    let files: String = plan.sources.iter().filter_map(file).collect();
    format!("{:?}\n{:?}\n{files}", rules(plan), plan.decode)
}

fn paced(generator: &GeneratorSource) -> PacedPlan {
    PacedPlan {
        cities: generator.cities,
        interval: generator.interval,
        history: generator.history,
        history_interval: generator.history_interval,
        late: generator.late,
        corrections: generator.corrections,
        withdrawals: generator.withdrawals,
        duplicates: generator.duplicates,
        invalid: generator.invalid,
        weather: generator.weather,
        seed: generator.seed,
    }
}

fn facts(plan: &Plan, logs: &Logs, generation: Arc<str>) -> Facts {
    Facts {
        generation,
        formula: plan.formula.name(),
        window: plan.retention.window,
        lateness: plan.retention.lateness,
        history: plan.retention.history,
        workers: plan.workers,
        partitions: logs.partitions().into_iter().map(|partition| partition.name).collect(),
        directory: Directory::shipped(),
        decode: plan.decode,
    }
}

/// Starts the workers on threads of their own; `events` hears when they have ended.
fn start_workers(
    plan: &Plan,
    logs: &Logs,
    serving: &Serving,
    shared: &Arc<Shared>,
    first_epoch: u64,
    events: SyncSender<Event>,
) -> Result<(), RunError> {
    let job = Job {
        graph: GraphPlan::serving(plan.formula, plan.retention),
        rules: rules(plan),
        limits: plan.limits.clone(),
        partitions: logs.partitions(),
        publisher: serving.publisher(),
        shared: Arc::clone(shared),
    };
    let config = match plan.workers {
        1 => timely::Config::thread(),
        workers => timely::Config::process(workers),
    };
    let work = move || {
        let guards = timely::execute(config, move |worker| {
            // The other workers would wait for one that has panicked, for ever; the message is out by now.
            catch_unwind(AssertUnwindSafe(|| worker::run(worker, &job, first_epoch)))
                .unwrap_or_else(|_| std::process::exit(101));
        });
        let joined = guards.and_then(|guards| guards.join().into_iter().collect::<Result<Vec<()>, _>>());
        let _ = events.send(Event::Ended(joined.map(drop).map_err(RunError::Workers)));
    };
    thread::Builder::new().name("workers".into()).spawn(work).map(drop).map_err(RunError::Threads)
}

/// Takes epochs ahead of their use, until the run has ended: they are needed while it stops, too.
fn reserve_epochs(
    data_dir: Arc<DataDir>,
    shared: Arc<Shared>,
    mut reserved: u64,
    ended: Arc<AtomicBool>,
) -> Result<(), RunError> {
    let reserve = move || {
        while !ended.load(Ordering::Relaxed) {
            let wanted = shared.newest_epoch() + RESERVED_MS;
            if wanted >= reserved + RESERVE_EVERY_MS {
                match data_dir.reserve_epochs(wanted) {
                    Ok(()) => reserved = wanted,
                    Err(error) => return shared.fail(error.to_string()),
                }
                shared.reserve(reserved);
            }
            thread::sleep(LOOK_AT_EPOCHS);
        }
    };
    thread::Builder::new().name("epochs".into()).spawn(reserve).map(drop).map_err(RunError::Threads)
}

/// Looks after what must be looked after, until it is time to stop; true where the workers have ended by then.
fn keep_house(logs: &Logs, shared: &Shared, happened: &Receiver<Event>) -> Result<bool, RunError> {
    loop {
        match happened.recv_timeout(HOUSEKEEPING) {
            Ok(Event::Signal) => return Ok(false),
            Ok(Event::Ended(ended)) => {
                ended?;
                return shared.failed().map_or(Ok(true), |failed| Err(RunError::Failed(failed)));
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        shared.refusals.sync()?;
        if let Some(failed) = logs.journal.as_ref().and_then(|journal| journal.failed()) {
            return Err(RunError::Failed(failed.to_string()));
        }
    }
}

/// Waits until the workers have told all that they have read.
fn wait_for_workers(happened: &Receiver<Event>) -> Result<(), RunError> {
    let deadline = Instant::now() + Wait::from_secs(30);
    loop {
        match happened.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Event::Signal) => {}
            Ok(Event::Ended(ended)) => return ended,
            Err(_) => return Err(RunError::Failed("the workers do not come to an end".into())),
        }
    }
}
