//! A steady flow of records: posted to the journal, or produced to a topic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::kafka::case::KafkaCase as Topics;
use crate::support::{
    LogEntry, MINUTE_MS, Oracle, RUN_SETTINGS, Random, RowHistory, ServiceStatus, ValueHistory, city_name,
    keep_accepted_entries, post, random_entry, record_json,
};

/// Between two sendings, and how many records each has at most.
const SEND_INTERVAL: Duration = Duration::from_millis(150);
const MAX_RECORDS_PER_SEND: u64 = 8;
/// Until a post has to be in the log.
const POST_TIMEOUT: Duration = Duration::from_secs(150);
/// A post that got no answer may still come into the log of the same generation for this long.
const UNANSWERED_POST_TIMEOUT: Duration = Duration::from_secs(8);

/// The addresses of the service for its clients, and whether they should continue.
#[derive(Default)]
pub struct TrialControl {
    addresses: Mutex<Vec<String>>,
    hurry: AtomicBool,
    stop: AtomicBool,
    /// Batches that are in the journal.
    posted: AtomicUsize,
}

impl TrialControl {
    pub fn set_addresses(&self, addresses: &[String]) {
        *self.addresses.lock() = addresses.to_vec();
    }

    /// Of the first process, or of the one that `lot` means.
    pub fn address(&self, lot: u64) -> Option<String> {
        let addresses = self.addresses.lock();
        addresses.get(lot as usize % addresses.len().max(1)).cloned()
    }

    /// Batches that are known to be in the journal.
    pub fn posted_batches(&self) -> usize {
        self.posted.load(Ordering::SeqCst)
    }

    pub fn request_stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// A log that grows, with its expected results.
pub enum Feed {
    Journal(Box<PostedLog>),
    Kafka(Box<Topics>),
}

impl Feed {
    pub fn oracle(&self) -> &Oracle {
        match self {
            Feed::Journal(posted) => &posted.oracle,
            Feed::Kafka(case) => case.log.oracle(),
        }
    }

    /// The values that each row has had.
    pub fn rows(&self) -> &ValueHistory {
        match self {
            Feed::Journal(posted) => &posted.rows.values,
            Feed::Kafka(case) => &case.log.rows.values,
        }
    }

    /// Records of the log.
    pub fn records(&self) -> u64 {
        match self {
            Feed::Journal(posted) => posted.records,
            Feed::Kafka(case) => case.log.record_count(),
        }
    }

    /// Sends up to so many records; returns how many, or `None` if it should stop.
    fn send_records(&mut self, most: u64, shared: &TrialControl) -> Option<u64> {
        match self {
            Feed::Journal(posted) => posted.post_batch(most, shared),
            Feed::Kafka(case) => {
                let records = most.div_ceil(2);
                case.send_records(records as usize);
                Some(records)
            }
        }
    }
}

/// Sends a number of records from a thread of its own.
pub struct Feeder {
    thread: Option<JoinHandle<Feed>>,
    shared: Arc<TrialControl>,
}

impl Feeder {
    pub fn start(mut feed: Feed, records: usize, shared: &Arc<TrialControl>) -> Feeder {
        let of_thread = Arc::clone(shared);
        let send = move || {
            let mut left = records as u64;
            while left > 0 {
                let Some(sent) = feed.send_records(left.min(MAX_RECORDS_PER_SEND), &of_thread) else { break };
                left = left.saturating_sub(sent);
                let next = Instant::now() + SEND_INTERVAL;
                while Instant::now() < next && !of_thread.hurry.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(10));
                }
            }
            feed
        };
        Feeder { thread: Some(thread::spawn(send)), shared: Arc::clone(shared) }
    }

    /// Sends the rest at once.
    pub fn finish(mut self) -> Feed {
        self.shared.hurry.store(true, Ordering::SeqCst);
        let feed = self.thread.take().unwrap().join();
        feed.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.shared.request_stop();
            self.shared.hurry.store(true, Ordering::SeqCst);
            let _ = thread.join();
        }
    }
}

/// A log of posts.
pub struct PostedLog {
    random: Random,
    /// Chooses the process that gets a request.
    lots: Random,
    /// The time of the newest reading.
    now: i64,
    pub oracle: Oracle,
    pub rows: RowHistory,
    pub records: u64,
    /// The records that are refused for it.
    pub too_late: Vec<String>,
    /// All that is in the log, post by post.
    pub batches: Vec<Vec<LogEntry>>,
}

impl PostedLog {
    pub fn new(seed: u64) -> PostedLog {
        let now = jiff::Timestamp::now().as_millisecond() - 6 * 60 * MINUTE_MS;
        PostedLog {
            random: Random::new(seed),
            lots: Random::new(seed),
            now: now - now.rem_euclid(MINUTE_MS),
            oracle: Oracle::new(RUN_SETTINGS),
            rows: RowHistory::default(),
            records: 0,
            too_late: Vec::new(),
            batches: Vec::new(),
        }
    }

    /// Posts a batch until it is in the log, once.
    fn post_batch(&mut self, most: u64, shared: &TrialControl) -> Option<u64> {
        let (entries, body, refused) = self.next_batch(most);
        let deadline = Instant::now() + POST_TIMEOUT;
        while !self.confirm_post(&entries, &body, &refused, shared)? {
            assert!(Instant::now() < deadline, "nobody takes {body}");
        }
        let count = entries.len() as u64;
        self.records += count;
        for entry in &entries {
            match self.oracle.apply_arrival(entry) {
                Some(_) => self.rows.note_arrival(&self.oracle, entry),
                None => self.too_late.push(record_json(entry)),
            }
        }
        self.batches.push(entries);
        shared.posted.store(self.batches.len(), Ordering::SeqCst);
        Some(count)
    }

    /// Up to so many entries, the array that says them, and the places of bad records among them.
    fn next_batch(&mut self, most: u64) -> (Vec<LogEntry>, String, Vec<usize>) {
        self.now += u64::from(self.random.below(8) == 0) as i64 * MINUTE_MS;
        let entries =
            (0..1 + self.random.below(most)).map(|_| random_entry(&mut self.random, self.now)).collect();
        let entries = keep_accepted_entries(&self.oracle, entries, &mut self.random, self.now);
        let mut records: Vec<String> = entries.iter().map(record_json).collect();
        let mut refused = Vec::new();
        if self.random.below(6) == 0 {
            let place = self.random.below(records.len() as u64 + 1) as usize;
            let city = city_name(self.random.below(5) as u32);
            records.insert(place, json!({"city": city, "temperature": 80, "humidity": 50}).to_string());
            refused.push(place);
        }
        (entries, format!("[{}]", records.join(",")), refused)
    }

    /// Whether a post is in the log; `None` if it should stop.
    fn confirm_post(
        &mut self,
        entries: &[LogEntry],
        body: &str,
        refused: &[usize],
        shared: &TrialControl,
    ) -> Option<bool> {
        let (lot, before) = (self.lots.below(1 << 32), Instant::now());
        let answer = shared.address(lot).map(|address| post(&address, "application/json", body));
        let Some(Ok(answer)) = answer.filter(|a| a.as_ref().is_ok_and(|answer| answer.status == 200)) else {
            return self.is_in_log(entries.len() as u64, before, shared);
        };
        let answer: Value = serde_json::from_str(&answer.body).unwrap();
        let places: Vec<_> = answer["refused"].as_array().unwrap().iter().map(|one| &one["index"]).collect();
        assert_eq!(
            (&answer["accepted"], places),
            (&entries.len().into(), refused.iter().map(|p| json!(p)).collect::<Vec<_>>().iter().collect())
        );
        Some(true)
    }

    /// Whether a post without a response is in the log: as a whole or not at all.
    fn is_in_log(&self, entries: u64, before: Instant, shared: &TrialControl) -> Option<bool> {
        let (deadline, failed) = (Instant::now() + POST_TIMEOUT, Instant::now());
        let of_first = || {
            let status = ServiceStatus::fetch_status(&shared.address(0)?, Duration::from_secs(1))?;
            (status.ready && status.applied == status.end).then_some(status)
        };
        let generation = of_first().map(|status| status.generation);
        loop {
            assert!(
                Instant::now() < deadline,
                "nobody says what became of a post of {:?} ago",
                before.elapsed()
            );
            if shared.is_stopped() {
                return None;
            }
            thread::sleep(Duration::from_millis(150));
            let Some(status) = of_first() else { continue };
            let another = generation.as_ref().is_some_and(|generation| *generation != status.generation);
            if !another && failed.elapsed() < UNANSWERED_POST_TIMEOUT {
                continue;
            }
            thread::sleep(Duration::from_millis(150));
            if of_first().is_none_or(|later| (later.generation, later.end) != (status.generation, status.end))
            {
                continue;
            }
            let (end, records) = (status.end, self.records);
            assert!(
                end == records || end == records + entries,
                "{end} records in the log, not {records} or {entries} more"
            );
            return Some(end != records);
        }
    }
}
