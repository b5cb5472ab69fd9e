//! Plays a made-up log into another one, so that a city that is made up has no second log beside those who post readings.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration as Wait, Instant};

use serde::{Deserialize, Serialize};

use super::PlanError;
use super::paced::{self, Due, Log, Paced, PacedPlan};
use super::{BadReading, Record};
use crate::fault::{Retries, cannot_start, read_small_file, remedy_suffix};
use crate::model::{AppendError, AppendReport, Appender, EventTime, NewRecord};
use crate::sources::weather::WeatherKind;

/// Records in an append, and appends that wait to be durable.
const RECORDS: usize = 1000;
const IN_FLIGHT: usize = 4;
/// How often the place is written down. After a crash what came since is appended again, in the same order: that changes only
/// what others have corrected meanwhile.
const WRITE_DOWN: Wait = Wait::from_secs(1);
const RETRY: Wait = Wait::from_millis(20);
/// While nothing is taken.
const HELD_RETRY: Wait = Wait::from_secs(1);
/// How long a stop waits for what is under way.
const LAST_WAIT: Wait = Wait::from_secs(10);
/// How soon a stop is seen.
const LONGEST_WAIT: Wait = Wait::from_millis(100);

/// Why a feed does not begin.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    #[error("{0}")]
    Plan(#[from] PlanError),
    #[error("{path} cannot be written: {error}{}", remedy_suffix(error, path))]
    File { path: PathBuf, error: io::Error },
    #[error("{}", cannot_start(.0))]
    Thread(io::Error),
    #[error(
        "{path} does not hold the place of a generator ({error}): remove it, and the generator begins anew"
    )]
    Damaged { path: PathBuf, error: serde_json::Error },
}

/// Where a feed is, as it is written down.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// Another plan begins anew.
    plan: String,
    start_ms: i64,
    records: u64,
}

/// A generator that feeds a log, on a thread of its own.
#[derive(Debug)]
pub struct Feed {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), AppendError>>,
}

impl Feed {
    /// Begins where the feed of that name has ended, by the file in `folder`, or now.
    pub fn spawn(
        name: &str,
        plan: PacedPlan,
        folder: &Path,
        appender: Arc<dyn Appender>,
    ) -> Result<Feed, FeedError> {
        let path = folder.join(format!("{name}.json"));
        let kept_in = path.clone();
        let file = |error| FeedError::File { path: kept_in.clone(), error };
        fs::create_dir_all(folder).map_err(file)?;
        let described = describe(&plan);
        let kept: Option<Kept> = match read_small_file(&path) {
            Ok(bytes) => Some(
                serde_json::from_slice(&bytes)
                    .map_err(|error| FeedError::Damaged { path: kept_in.clone(), error })?,
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(file(error)),
        };
        let kept = kept.filter(|kept| kept.plan == described);
        let kept = kept.unwrap_or_else(|| Kept { plan: described, start_ms: paced::now(), records: 0 });
        let start = EventTime::from_millis(kept.start_ms).ok_or(PlanError::EndOfTime)?;
        let paced = Paced::new(name, plan, start)?;
        write_down(&path, &kept).map_err(file)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (log, stopped) = (paced.log(), Arc::clone(&stop));
        let retries = Retries::new(
            "generator",
            "write down the generator's place",
            "after a restart it begins earlier",
        );
        let feeding = Feeding { log, paced, kept, path, appender, stop: stopped, retries };
        let thread = thread::Builder::new().name(format!("feed {name}")).spawn(move || feeding.run());
        let thread = thread.map_err(FeedError::Thread)?;
        Ok(Feed { stop, thread })
    }

    /// Ends it, once what is under way is durable.
    pub fn stop(self) -> Result<(), AppendError> {
        self.stop.store(true, Ordering::Relaxed);
        let panicked = || Err(AppendError::Failed("its feed has panicked".into()));
        self.thread.join().unwrap_or_else(|_| panicked())
    }
}

/// What the file says of a plan: the text of the first version, whatever types and fields are called. A feed whose plan reads otherwise
/// begins anew.
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

struct Feeding {
    paced: Paced,
    log: Log,
    kept: Kept,
    path: PathBuf,
    appender: Arc<dyn Appender>,
    stop: Arc<AtomicBool>,
    retries: Retries,
}

impl Feeding {
    fn run(mut self) -> Result<(), AppendError> {
        for _ in 0..self.kept.records {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.log.next(&self.paced);
        }
        let mut next = self.log.next(&self.paced);
        let (sender, durable) = mpsc::channel();
        let (mut in_flight, mut held) = (VecDeque::new(), VecDeque::new());
        let (mut written_down, mut retry_at) = (Instant::now(), Instant::now());
        let mut batch = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let mut wait = LONGEST_WAIT;
            if !held.is_empty() {
                // In their order, and before all else.
                if in_flight.is_empty() && Instant::now() >= retry_at {
                    for batch in held.drain(..) {
                        self.append(batch, &sender, &mut in_flight)?;
                    }
                }
            } else if in_flight.len() < IN_FLIGHT {
                wait = self.fill(&mut batch, &mut next);
                if !batch.is_empty() {
                    self.append(std::mem::take(&mut batch), &sender, &mut in_flight)?;
                }
            }
            while let Ok(appended) = durable.recv_timeout(wait) {
                held.extend(self.answered(appended, &mut in_flight)?);
                retry_at = Instant::now() + HELD_RETRY;
                wait = Wait::ZERO;
            }
            if written_down.elapsed() > WRITE_DOWN {
                self.write_down();
                written_down = Instant::now();
            }
        }
        while !in_flight.is_empty()
            && let Ok(appended) = durable.recv_timeout(LAST_WAIT)
        {
            self.answered(appended, &mut in_flight)?;
        }
        self.write_down();
        Ok(())
    }

    /// What the log says of the oldest append that is under way; gives it back where it is to be appended again, later.
    fn answered(
        &mut self,
        appended: Result<u64, AppendError>,
        in_flight: &mut VecDeque<Vec<Due>>,
    ) -> Result<Option<Vec<Due>>, AppendError> {
        let batch = in_flight.pop_front();
        match appended {
            Ok(records) => self.kept.records += records,
            Err(AppendError::Held(_)) => return Ok(batch),
            Err(error) => return Err(error),
        }
        Ok(None)
    }

    /// Takes what is due now, and says how long nothing more will be.
    fn fill(&mut self, batch: &mut Vec<Due>, next: &mut Option<Due>) -> Wait {
        let now = paced::now();
        while batch.len() < RECORDS
            && let Some(due) = *next
        {
            let arrives_at = self.paced.deliver(due).arrives_at;
            if arrives_at.millis() > now {
                return paced::until(arrives_at).min(LONGEST_WAIT);
            }
            batch.push(due);
            *next = self.log.next(&self.paced);
        }
        if batch.is_empty() { LONGEST_WAIT } else { Wait::ZERO }
    }

    /// Queues a batch; while the log is busy, again and again, so that nothing overtakes it.
    fn append(
        &self,
        batch: Vec<Due>,
        sender: &mpsc::Sender<Result<u64, AppendError>>,
        in_flight: &mut VecDeque<Vec<Due>>,
    ) -> Result<(), AppendError> {
        loop {
            let records = batch.iter().map(|due| self.record(*due)).collect();
            let (sender, count) = (sender.clone(), batch.len() as u64);
            let busy = Arc::new(AtomicBool::new(false));
            let said = Arc::clone(&busy);
            let done = move |result: Result<AppendReport, AppendError>| match result {
                Err(AppendError::Busy) => said.store(true, Ordering::Release),
                result => drop(sender.send(result.map(|_| count))),
            };
            self.appender.append(records, Box::new(done));
            if !busy.load(Ordering::Acquire) {
                in_flight.push_back(batch);
                return Ok(());
            }
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            thread::sleep(RETRY);
        }
    }

    fn record(&self, due: Due) -> NewRecord {
        let record = self.paced.deliver(due).record;
        let mut bytes = Vec::with_capacity(160);
        record.push_json(&mut bytes);
        let city = match record {
            Record::Upsert { city, .. } => Some(city),
            Record::Invalid(BadReading { city, .. }) => city,
        };
        NewRecord::new(city, bytes)
    }

    fn write_down(&mut self) {
        match write_down(&self.path, &self.kept) {
            Ok(()) => self.retries.succeeded(),
            Err(error) => {
                let remedy = remedy_suffix(&error, &self.path);
                self.retries.failed(&format_args!("{}: {error}{remedy}", self.path.display()));
            }
        }
    }
}

/// Writes the file as a whole.
fn write_down(path: &Path, kept: &Kept) -> io::Result<()> {
    let temporary = path.with_extension("json.new");
    let mut file = fs::File::create(&temporary)?;
    serde_json::to_writer(&mut file, kept)?;
    file.flush()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As files of commit 868f70f have them.
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
