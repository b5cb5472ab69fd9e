//! Appends a generated log to another log, so that a city has a single log for generated and posted
//! readings.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::PlanError;
use super::paced::{self, PacedCursor, PacedLog, PacedPlan, PacedRecord};
use super::{BadReading, GeneratedRecord};
use crate::fault::{RetryBackoff, read_small_file, remedy_suffix, start_failure_text};
use crate::model::{AppendError, AppendReport, Appender, EventTime, NewRecord};
use crate::sources::weather::WeatherKind;

/// Records per append, and the maximum number of appends in flight.
const APPEND_RECORDS: usize = 1000;
const MAX_APPENDS_IN_FLIGHT: usize = 4;
/// How often progress is saved. After a crash the records since then are appended again in the same
/// order. That only undoes corrections that others have made meanwhile.
const PROGRESS_SAVE_INTERVAL: Duration = Duration::from_secs(1);
const BUSY_RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// The interval while appends are on hold.
const HELD_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How long a stop waits for appends in flight.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How soon a stop is noticed.
const STOP_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Why a feed cannot start.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    #[error("{0}")]
    Plan(#[from] PlanError),
    #[error("{path} cannot be written: {error}{}", remedy_suffix(error, path))]
    File { path: PathBuf, error: io::Error },
    #[error("{}", start_failure_text(.0))]
    Thread(io::Error),
    #[error(
        "{path} does not hold the position of a generator ({error}): remove it, and the generator starts from its beginning"
    )]
    Damaged { path: PathBuf, error: serde_json::Error },
}

/// The progress of a feed, as it is saved.
#[derive(Debug, Serialize, Deserialize)]
struct FeedProgress {
    /// A feed with another plan starts a new log.
    plan: String,
    start_ms: i64,
    records: u64,
}

/// A generator that appends to a log, on its own thread.
#[derive(Debug)]
pub struct GeneratorFeed {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), AppendError>>,
}

impl GeneratorFeed {
    /// Starts at the progress saved under that name in `folder`, or with a new log that starts now.
    pub fn spawn(
        name: &str,
        plan: PacedPlan,
        folder: &Path,
        appender: Arc<dyn Appender>,
    ) -> Result<GeneratorFeed, FeedError> {
        let path = folder.join(format!("{name}.json"));
        let progress_path = path.clone();
        let file = |error| FeedError::File { path: progress_path.clone(), error };
        fs::create_dir_all(folder).map_err(file)?;
        let described = describe(&plan);
        let saved: Option<FeedProgress> = match read_small_file(&path) {
            Ok(bytes) => Some(
                serde_json::from_slice(&bytes)
                    .map_err(|error| FeedError::Damaged { path: progress_path.clone(), error })?,
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(file(error)),
        };
        let saved = saved.filter(|progress| progress.plan == described);
        let progress =
            saved.unwrap_or_else(|| FeedProgress { plan: described, start_ms: paced::now_ms(), records: 0 });
        let start = EventTime::from_millis(progress.start_ms).ok_or(PlanError::EndOfTime)?;
        let paced = PacedLog::new(name, plan, start)?;
        write_progress(&path, &progress).map_err(file)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (log, stopped) = (paced.cursor(), Arc::clone(&stop));
        let retries = RetryBackoff::new(
            "generator",
            "save the position of the generator",
            "after a restart it repeats some readings",
        );
        let feeding = FeedLoop { cursor: log, paced, progress, path, appender, stop: stopped, retries };
        let thread = thread::Builder::new().name(format!("feed {name}")).spawn(move || feeding.run());
        let thread = thread.map_err(FeedError::Thread)?;
        Ok(GeneratorFeed { stop, thread })
    }

    /// Stops the feed once the appends in flight are durable.
    pub fn stop(self) -> Result<(), AppendError> {
        self.stop.store(true, Ordering::Relaxed);
        let panicked = || Err(AppendError::Failed("the thread of the generator has panicked".into()));
        self.thread.join().unwrap_or_else(|_| panicked())
    }
}

/// The text of a plan in the file. It stays that of the first version, whatever the names of types
/// and fields are: a feed whose plan reads differently starts a new log.
fn describe(plan: &PacedPlan) -> String {
    let PacedPlan { cities, interval, history, history_interval, .. } = plan;
    let PacedPlan { late, corrections, withdrawals, duplicates, invalid, weather, seed, .. } = plan;
    let weather = match weather {
        WeatherKind::Uniform => "Uniform",
        WeatherKind::Plausible => "Plausible",
    };
    let [interval, history, history_interval] =
        [interval, history, history_interval].map(|time| time.millis());
    format!(
        "PacedPlan {{ cities: {cities}, interval: Duration({interval}), history: Duration({history}), \
         history_interval: Duration({history_interval}), late: {late:?}, corrections: {corrections:?}, \
         withdrawals: {withdrawals:?}, duplicates: {duplicates:?}, invalid: {invalid:?}, weather: {weather}, \
         seed: {seed} }}"
    )
}

struct FeedLoop {
    paced: PacedLog,
    cursor: PacedCursor,
    progress: FeedProgress,
    path: PathBuf,
    appender: Arc<dyn Appender>,
    stop: Arc<AtomicBool>,
    retries: RetryBackoff,
}

impl FeedLoop {
    fn run(mut self) -> Result<(), AppendError> {
        for _ in 0..self.progress.records {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.cursor.next_record(&self.paced);
        }
        let mut next = self.cursor.next_record(&self.paced);
        let (sender, durable) = mpsc::channel();
        let (mut in_flight, mut held) = (VecDeque::new(), VecDeque::new());
        let (mut written_down, mut retry_at) = (Instant::now(), Instant::now());
        let mut batch = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let mut wait = STOP_POLL_INTERVAL;
            if !held.is_empty() {
                // In order, and before all others.
                if in_flight.is_empty() && Instant::now() >= retry_at {
                    for batch in held.drain(..) {
                        self.append_batch(batch, &sender, &mut in_flight)?;
                    }
                }
            } else if in_flight.len() < MAX_APPENDS_IN_FLIGHT {
                wait = self.fill_batch(&mut batch, &mut next);
                if !batch.is_empty() {
                    self.append_batch(std::mem::take(&mut batch), &sender, &mut in_flight)?;
                }
            }
            while let Ok(appended) = durable.recv_timeout(wait) {
                held.extend(self.handle_append_result(appended, &mut in_flight)?);
                retry_at = Instant::now() + HELD_RETRY_INTERVAL;
                wait = Duration::ZERO;
            }
            if written_down.elapsed() > PROGRESS_SAVE_INTERVAL {
                self.save_progress();
                written_down = Instant::now();
            }
        }
        while !in_flight.is_empty()
            && let Ok(appended) = durable.recv_timeout(STOP_TIMEOUT)
        {
            self.handle_append_result(appended, &mut in_flight)?;
        }
        self.save_progress();
        Ok(())
    }

    /// Handles the result of the oldest append in flight. Returns the batch if it must be appended
    /// again later.
    fn handle_append_result(
        &mut self,
        appended: Result<u64, AppendError>,
        in_flight: &mut VecDeque<Vec<PacedRecord>>,
    ) -> Result<Option<Vec<PacedRecord>>, AppendError> {
        let batch = in_flight.pop_front();
        match appended {
            Ok(records) => self.progress.records += records,
            Err(AppendError::OnHold(_)) => return Ok(batch),
            Err(error) => return Err(error),
        }
        Ok(None)
    }

    /// Fills the batch with records that are due, and returns the time until the next one.
    fn fill_batch(&mut self, batch: &mut Vec<PacedRecord>, next: &mut Option<PacedRecord>) -> Duration {
        let now = paced::now_ms();
        while batch.len() < APPEND_RECORDS
            && let Some(due) = *next
        {
            let arrives_at = self.paced.generate_record(due).arrives_at;
            if arrives_at.millis() > now {
                return paced::time_until(arrives_at).min(STOP_POLL_INTERVAL);
            }
            batch.push(due);
            *next = self.cursor.next_record(&self.paced);
        }
        if batch.is_empty() { STOP_POLL_INTERVAL } else { Duration::ZERO }
    }

    /// Queues a batch. Retries while the log is busy, so that no later batch overtakes it.
    fn append_batch(
        &self,
        batch: Vec<PacedRecord>,
        sender: &mpsc::Sender<Result<u64, AppendError>>,
        in_flight: &mut VecDeque<Vec<PacedRecord>>,
    ) -> Result<(), AppendError> {
        loop {
            let records = batch.iter().map(|due| self.new_record(*due)).collect();
            let (sender, count) = (sender.clone(), batch.len() as u64);
            let busy = Arc::new(AtomicBool::new(false));
            let is_busy = Arc::clone(&busy);
            let acknowledge = move |result: Result<AppendReport, AppendError>| match result {
                Err(AppendError::Busy) => is_busy.store(true, Ordering::Release),
                result => drop(sender.send(result.map(|_| count))),
            };
            self.appender.append(records, Box::new(acknowledge));
            if !busy.load(Ordering::Acquire) {
                in_flight.push_back(batch);
                return Ok(());
            }
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            thread::sleep(BUSY_RETRY_INTERVAL);
        }
    }

    fn new_record(&self, due: PacedRecord) -> NewRecord {
        let record = self.paced.generate_record(due).record;
        let mut bytes = Vec::with_capacity(160);
        record.push_json(&mut bytes);
        let city = match record {
            GeneratedRecord::Upsert { city, .. } => Some(city),
            GeneratedRecord::Invalid(BadReading { city, .. }) => city,
        };
        NewRecord::new(city, bytes)
    }

    fn save_progress(&mut self) {
        match write_progress(&self.path, &self.progress) {
            Ok(()) => self.retries.record_success(),
            Err(error) => {
                let remedy = remedy_suffix(&error, &self.path);
                self.retries.record_failure(&format_args!("{}: {error}{remedy}", self.path.display()));
            }
        }
    }
}

/// Replaces the file atomically.
fn write_progress(path: &Path, progress: &FeedProgress) -> io::Result<()> {
    let temporary = path.with_extension("json.new");
    let mut file = fs::File::create(&temporary)?;
    serde_json::to_writer(&mut file, progress)?;
    file.flush()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files of commit 868f70f have these texts.
    #[test]
    fn feed_plans_are_described_as_they_always_were() {
        let millis = |text: &str| text.parse().unwrap();
        let plan = PacedPlan {
            cities: 3,
            interval: millis("1m"),
            history: millis("1h"),
            history_interval: millis("2m"),
            late: 0.01,
            corrections: 0.25,
            withdrawals: 0.0,
            duplicates: 0.0,
            invalid: 0.0,
            weather: WeatherKind::Uniform,
            seed: 7,
        };
        let expected = "PacedPlan { cities: 3, interval: Duration(60000), history: Duration(3600000), \
             history_interval: Duration(120000), late: 0.01, corrections: 0.25, withdrawals: 0.0, duplicates: 0.0, \
             invalid: 0.0, weather: Uniform, seed: 7 }";
        assert_eq!(describe(&plan), expected);
        let plan = PacedPlan { weather: WeatherKind::Plausible, late: 1e-7, corrections: 1.0, ..plan };
        let described = describe(&plan);
        assert!(described.contains("late: 1e-7, corrections: 1.0, "), "{described}");
        assert!(described.contains("weather: Plausible, "), "{described}");
    }
}
