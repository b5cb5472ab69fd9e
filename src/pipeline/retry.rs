//! Dead letters that are sent once more: those of the journal, and by themselves after a delay while a service runs.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read as _, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration as Wait, Instant};

use serde::{Deserialize, Serialize};

use super::letters::{DeadLetterError, retriers};
use crate::codec::RecordDecoder;
use crate::config::{Plan, SourceKind};
use crate::fault::remedy;
use crate::kafka::letters::LettersError;
use crate::kafka::retry::{Outcome, Retrier, Wanted};
use crate::model::{
    AppendError, Appender, Duration, EventTime, Letter, NewRecord, Raw, Reason, RecordPlace, Refusal, Upsert,
};
use crate::sinks::dead_letters::{FILES, Lines};
use crate::sources::journal::{self, Journal};
use crate::sources::{Next, Place, Source, Take};
use crate::worker;

/// Letters of one append.
const BATCH: usize = 500;
/// How long the journal may take.
const PATIENCE: Wait = Wait::from_secs(60);
const BUSY: Wait = Wait::from_millis(100);
/// Between two looks at dead letters: a quarter of the delay, within these.
const OFTENEST: Wait = Wait::from_millis(250);
const RAREST: Wait = Wait::from_secs(10);
/// After a fault.
const AFTER_FAULT: Wait = Wait::from_secs(10);
/// How long a stop waits.
const GRACE: Wait = Wait::from_secs(3);

/// Sends the letters of a journal's first file, each once: what was sent is kept in a file beside it.
pub struct JournalRetry {
    lines: Lines,
    sent: Sent,
    decoder: RecordDecoder,
}

impl JournalRetry {
    pub fn open(dir: &Path, journal: &Journal) -> Result<JournalRetry, DeadLetterError> {
        Ok(JournalRetry {
            lines: Lines::new(&dir.join(FILES[0])),
            sent: Sent::open(&dir.join("dead-letters.sent"), journal)?,
            decoder: RecordDecoder::new(journal.decode()),
        })
    }

    /// Sends those that are wanted and were not sent yet. A later call goes on behind them, so it is to want the same.
    pub fn send(&mut self, journal: &Journal, wanted: &Wanted) -> Result<Outcome, DeadLetterError> {
        let mut outcome = Outcome::default();
        loop {
            let (mut batch, mut more) = (Vec::new(), false);
            let (sent, decoder) = (&self.sent, &mut self.decoder);
            self.lines.take_while(|letter| {
                more = batch.len() == BATCH;
                // A stamp of a clock that was ahead says nothing, and must not keep those behind it waiting until then.
                let now = worker::clock() as i64;
                let is_old = |(before, at): (i64, EventTime)| at.millis() < before || at.millis() > now;
                let is_old = wanted.before.zip(letter.at).is_none_or(is_old);
                if more || !is_old {
                    return Some(letter);
                }
                if wanted.reason(&letter.reason) {
                    match fate(sent, &letter) {
                        Fate::Send => batch.push(record(decoder, letter, &mut outcome)),
                        Fate::Already => outcome.already += 1,
                        Fate::Withdrawal => outcome.withdrawals += 1,
                        Fate::Homeless => outcome.homeless += 1,
                    }
                }
                None
            })?;
            if !batch.is_empty() {
                self.sent.begin(journal)?;
                append_all(&*journal.appender(), &batch)?;
                let origins = batch.iter().filter_map(|record| record.retried.as_ref());
                self.sent.end(origins.map(|retried| retried.origin.to_string()).collect())?;
            }
            if !more {
                return Ok(outcome);
            }
        }
    }
}

/// What is to become of a letter.
enum Fate {
    Send,
    Already,
    Withdrawal,
    /// Of a file: nothing can be appended to that.
    Homeless,
}

fn fate(sent: &Sent, letter: &Letter) -> Fate {
    match () {
        () if &*letter.place.source != journal::NAME => Fate::Homeless,
        () if sent.origins.contains(&letter.place.to_string()) => Fate::Already,
        () if letter.is_withdrawal() => Fate::Withdrawal,
        () => Fate::Send,
    }
}

fn record(decoder: &mut RecordDecoder, letter: Letter, outcome: &mut Outcome) -> NewRecord {
    let retried = Some(Box::new(letter.next_attempt()));
    *outcome.sent.entry(letter.reason).or_default() += 1;
    let bytes = letter.value.unwrap_or_default();
    let city = decoder.decode(&bytes).ok().map(|upsert| Box::from(upsert.city));
    NewRecord { city, retried, ..NewRecord::new(None, bytes) }
}

/// Appends records, and returns when they are durable.
pub(super) fn append_all(appender: &dyn Appender, records: &[NewRecord]) -> Result<(), DeadLetterError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (sender, appended) = mpsc::sync_channel(1);
        appender.append(records.to_vec(), Box::new(move |done| drop(sender.send(done))));
        match appended.recv_timeout(PATIENCE) {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(AppendError::Busy)) if Instant::now() < deadline => thread::sleep(BUSY),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(DeadLetterError::Hangs),
        }
    }
}

/// Which letters were sent. An append is announced before it is made, with where the journal ended: after a crash between the two
/// the journal itself says what came of it.
struct Sent {
    path: PathBuf,
    file: File,
    origins: HashSet<String>,
}

#[derive(Serialize, Deserialize)]
enum Entry {
    /// The ends of the journal's partitions before an append.
    #[serde(rename = "sending")]
    Sending(Vec<u64>),
    /// The letters that were appended.
    #[serde(rename = "sent")]
    Sent(Vec<String>),
}

impl Sent {
    fn open(path: &Path, journal: &Journal) -> Result<Sent, DeadLetterError> {
        let failed = |error: io::Error| unwritable(path, &error);
        let options = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = options.map_err(failed)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        // A line that is not whole was never acted on.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        let (mut origins, mut open) = (HashSet::new(), None);
        for (number, line) in (1..).zip(text[..whole].lines()) {
            match serde_json::from_str(line) {
                Ok(Entry::Sending(ends)) => open = Some(ends),
                Ok(Entry::Sent(sent)) => {
                    open = None;
                    origins.extend(sent);
                }
                Err(error) => return Err(broken(path, format!("line {number}: {error}"))),
            }
        }
        let mut sent = Sent { path: path.into(), file, origins };
        sent.check(journal)?;
        if let Some(ends) = open {
            sent.end(origins_since(journal, &ends)?)?;
        }
        Ok(sent)
    }

    /// Positions of another journal would keep letters from being sent.
    fn check(&self, journal: &Journal) -> Result<(), DeadLetterError> {
        let places = self.origins.iter().filter_map(|origin| origin.parse::<RecordPlace>().ok());
        let mut beyond = places.filter(|place| place.position >= journal.end(place.partition));
        match beyond.next() {
            None => Ok(()),
            Some(place) => {
                Err(broken(&self.path, format!("the journal has no {place}: it is of another journal")))
            }
        }
    }

    fn begin(&mut self, journal: &Journal) -> Result<(), DeadLetterError> {
        let ends = (0..journal.partitions()).map(|partition| journal.end(partition));
        self.write(&Entry::Sending(ends.collect()))
    }

    fn end(&mut self, origins: Vec<String>) -> Result<(), DeadLetterError> {
        self.origins.extend(origins.iter().cloned());
        self.write(&Entry::Sent(origins))
    }

    fn write(&mut self, entry: &Entry) -> Result<(), DeadLetterError> {
        let mut line = serde_json::to_vec(entry).map_err(|error| broken(&self.path, error.to_string()))?;
        line.push(b'\n');
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        written.map_err(|error| unwritable(&self.path, &error))
    }
}

fn unwritable(path: &Path, error: &io::Error) -> DeadLetterError {
    DeadLetterError::Sent { path: path.into(), problem: format!("{error}: {}", remedy(error, path)) }
}

fn broken(path: &Path, problem: String) -> DeadLetterError {
    let problem = format!("{problem}: repair the file, or move it away, and all letters can be sent again");
    DeadLetterError::Sent { path: path.into(), problem }
}

/// The origins of what was sent again to a journal behind these ends.
fn origins_since(journal: &Journal, ends: &[u64]) -> Result<Vec<String>, DeadLetterError> {
    let mut found = Origins(Vec::new());
    for (partition, from) in (0..journal.partitions()).zip(ends) {
        // What was trimmed since is not seen: letters that were in it are sent once more, which changes nothing.
        let from = journal.begin(partition).max(*from);
        let mut reader = Source::open(journal, partition, from, thread::current())?;
        while reader.poll(BATCH, u64::MAX, &mut found)?.next == Next::Now {}
    }
    Ok(found.0)
}

struct Origins(Vec<String>);

impl Take for Origins {
    fn upsert(&mut self, _: Place, _: &Upsert<'_>) -> Result<(), Refusal> {
        // What is refused is given as it stands, with its origin.
        Err(Refusal::new(Reason::NotDecodable, ""))
    }

    fn refused(&mut self, _: Place, _: &Refusal, raw: &Raw<'_>) {
        self.0.extend(raw.retried.map(|retried| retried.origin.to_string()));
    }
}

/// What retries by itself while a service runs.
pub struct Retrying {
    threads: Vec<(Sender<()>, JoinHandle<()>)>,
}

/// Starts what a plan has retried by itself: letters that are older than the delay, other than those that are too late.
/// `journal` is the open journal and its data directory.
pub fn spawn_retry(plan: &Plan, journal: Option<(Arc<Journal>, PathBuf)>) -> io::Result<Retrying> {
    let mut retrying = Retrying { threads: Vec::new() };
    let delayed = plan.sources.iter().filter_map(|source| match &source.kind {
        SourceKind::Kafka(kafka) if kafka.retry_after.is_some() => Some((&*source.name, kafka)),
        _ => None,
    });
    for (cluster, progress_topic, topics) in retriers(delayed) {
        let topics: BTreeMap<String, Duration> =
            topics.iter().filter_map(|kafka| Some((kafka.topic.clone(), kafka.retry_after?))).collect();
        let (cluster, progress_topic) = (cluster.clone(), progress_topic.to_owned());
        let shortest = topics.values().copied().min().unwrap_or(Duration::DAY);
        let mut retrier = None;
        retrying.spawn(shortest, move || {
            let mut working = match retrier.take() {
                Some(working) => working,
                None => Retrier::open(&cluster, &progress_topic)?,
            };
            let mut outcome = Outcome::default();
            for (topic, delay) in &topics {
                outcome.add(&working.send(topic, &older_than(*delay))?);
            }
            retrier = Some(working);
            Ok(outcome)
        })?;
    }
    let delay = plan.ingest.as_ref().and_then(|ingest| ingest.retry_after);
    if let Some(((journal, dir), delay)) = journal.zip(delay) {
        let mut retry = None;
        retrying.spawn(delay, move || {
            let mut working = match retry.take() {
                Some(working) => working,
                None => JournalRetry::open(&dir, &journal)?,
            };
            let outcome = working.send(&journal, &older_than(delay))?;
            retry = Some(working);
            Ok(outcome)
        })?;
    }
    Ok(retrying)
}

fn older_than(delay: Duration) -> Wanted {
    let before = (worker::clock() as i64).saturating_sub(delay.millis());
    Wanted { before: Some(before), ..Wanted::default() }
}

impl Retrying {
    fn spawn(
        &mut self,
        delay: Duration,
        mut pass: impl FnMut() -> Result<Outcome, DeadLetterError> + Send + 'static,
    ) -> io::Result<()> {
        let often = (Wait::from_millis(delay.millis().unsigned_abs()) / 4).clamp(OFTENEST, RAREST);
        let (stop, stopped) = mpsc::channel();
        let work = move || {
            let mut wait = often;
            while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                wait = often;
                match pass() {
                    Ok(outcome) if outcome.total() > 0 => {
                        tracing::info!(letters = outcome.total(), "dead letters were sent again");
                    }
                    Ok(_) => {}
                    Err(error @ DeadLetterError::Topics(LettersError::Fenced(_))) => {
                        tracing::info!("{error}");
                        wait = AFTER_FAULT;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "dead letters cannot be sent again yet");
                        wait = AFTER_FAULT;
                    }
                }
            }
        };
        self.threads.push((stop, thread::Builder::new().name("retry".into()).spawn(work)?));
        Ok(())
    }

    /// Ends it. What is under way may stay undone, and is done the next time.
    pub fn stop(self) {
        let threads: Vec<JoinHandle<()>> = self.threads.into_iter().map(|(_, thread)| thread).collect();
        let deadline = Instant::now() + GRACE;
        while threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < deadline {
            thread::sleep(Wait::from_millis(10));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PartitionName, Retried};
    use crate::sinks::dead_letters::{DeadLetterLimits, DeadLetters};
    use crate::sources::journal::JournalPlan;

    fn letters(dir: &Path, positions: std::ops::Range<u64>) {
        let mut letters = DeadLetters::open(dir, "rules", DeadLetterLimits::default()).unwrap();
        let name = PartitionName { source: journal::NAME.into(), partition: 1 };
        for position in positions {
            let raw = format!("{{\"number\":{position}}}");
            let reason = if position % 5 == 0 { Reason::TooLate } else { Reason::BadTime };
            let refusal = Refusal::new(reason, "no time");
            letters.write(&name, position, None, &refusal, &Raw::value(raw.as_bytes())).unwrap();
        }
        letters.flushed().unwrap();
    }

    fn journal(dir: &Path) -> Journal {
        let plan = JournalPlan { partitions: 2, ..JournalPlan::default() };
        Journal::open(&dir.join("journal"), plan).unwrap()
    }

    fn origins(journal: &Journal) -> Vec<u64> {
        let origins = origins_since(journal, &[0, 0]).unwrap();
        let places = origins.iter().map(|origin| origin.parse::<RecordPlace>().unwrap());
        places.map(|place| place.position).collect()
    }

    /// Ended behind each step of a batch, and begun anew: each letter is in the journal once.
    #[test]
    fn each_letter_is_sent_once_whatever_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        {
            let journal = journal(dir.path());
            // Letters are of records that the journal has.
            let home = Retried { origin: "journal/1/0".into(), attempt: 1, first_seen: None };
            let there = NewRecord { retried: Some(Box::new(home)), ..NewRecord::new(None, &b"{}"[..]) };
            append_all(&*journal.appender(), &vec![there; 2_000]).unwrap();
        }
        letters(dir.path(), 0..1_200);
        let file = dir.path().join("dead-letters.sent");
        let expected: Vec<u64> = (0..1_200).filter(|position| position % 5 != 0).collect();
        let mut whole = Vec::new();
        for _ in 0..2 {
            let journal = journal(dir.path());
            let mut retry = JournalRetry::open(dir.path(), &journal).unwrap();
            let outcome = retry.send(&journal, &Wanted::default()).unwrap();
            assert_eq!(outcome.total() + outcome.already, expected.len() as u64);
            assert_eq!(origins(&journal)[2_000..], expected, "{outcome:?}");
            whole = std::fs::read(&file).unwrap();
        }
        // The last batch was appended, but not, or not wholly, noted.
        let lines: Vec<usize> =
            whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
        let before_last = lines[lines.len() - 2];
        for cut in [before_last, before_last + 1, whole.len() - 1] {
            std::fs::write(&file, &whole[..cut]).unwrap();
            let journal = journal(dir.path());
            let mut retry = JournalRetry::open(dir.path(), &journal).unwrap();
            let outcome = retry.send(&journal, &Wanted::default()).unwrap();
            assert_eq!((outcome.total(), outcome.already), (0, expected.len() as u64), "cut at {cut}");
            assert_eq!(origins(&journal)[2_000..], expected);
        }
        std::fs::write(&file, "what\n").unwrap();
        let refused = JournalRetry::open(dir.path(), &journal(dir.path())).err().unwrap().to_string();
        assert!(refused.contains("line 1") && refused.contains("move it away"), "{refused}");
    }
}
