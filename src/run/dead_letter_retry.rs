//! Retries dead letters: those of the journal on request, and all configured ones after a delay
//! while a service runs.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read as _, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::dlq_command_error::DlqCommandError;
use crate::codec::JsonRecordDecoder;
use crate::config::{ServicePlan, SourceKind};
use crate::fault::remedy_for;
use crate::kafka::KafkaCluster;
use crate::kafka::dead_letter_retry::{DeadLetterFilter, DeadLetterRetrier, RetryOutcome};
use crate::kafka::dead_letter_topic::DlqTopicError;
use crate::model::{
    AppendError, Appender, DeadLetter, EventTime, Millis, NewRecord, RawRecord, Reason, RecordAddress,
    Refusal, Upsert,
};
use crate::sinks::dead_letters::{DeadLetterReader, FILE_NAMES};
use crate::sources::journal::{self, Journal};
use crate::sources::kafka::KafkaSourcePlan;
use crate::sources::{NextPoll, RecordHandler, RecordPosition, Source};
use crate::worker;

/// Dead letters in one append.
const RETRY_BATCH: usize = 500;
/// How long an append to the journal may take.
const APPEND_TIMEOUT: Duration = Duration::from_secs(60);
const BUSY_BACKOFF: Duration = Duration::from_millis(100);
/// The shortest interval between two passes over dead letters; the interval is a quarter of the
/// delay, within these limits.
const MIN_PASS_INTERVAL: Duration = Duration::from_millis(250);
const MAX_PASS_INTERVAL: Duration = Duration::from_secs(10);
/// The pause after a transient error.
const FAULT_BACKOFF: Duration = Duration::from_secs(10);
/// How long a stop waits for the threads.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// Retries the dead letters of a journal that were refused for the first time, each once: a ledger
/// file beside it records the retried ones.
pub struct JournalRetry {
    lines: DeadLetterReader,
    sent: RetryLedger,
    decoder: JsonRecordDecoder,
}

impl JournalRetry {
    pub fn open(dir: &Path, journal: &Journal) -> Result<JournalRetry, DlqCommandError> {
        Ok(JournalRetry {
            lines: DeadLetterReader::new(&dir.join(FILE_NAMES[0])),
            sent: RetryLedger::open(&dir.join("dead-letters.sent"), journal)?,
            decoder: JsonRecordDecoder::new(journal.decode_settings()),
        })
    }

    /// Retries the matching dead letters that were not retried yet. A later call continues behind
    /// them, so it must use the same filter.
    pub fn send(
        &mut self,
        journal: &Journal,
        filter: &DeadLetterFilter,
    ) -> Result<RetryOutcome, DlqCommandError> {
        let mut outcome = RetryOutcome::default();
        loop {
            let (mut batch, mut more) = (Vec::new(), false);
            let (sent, decoder) = (&self.sent, &mut self.decoder);
            self.lines.read_while(|letter| {
                more = batch.len() == RETRY_BATCH;
                // A timestamp ahead of the clock is not reliable, and must not delay the dead
                // letters behind it.
                let now = worker::ingest_clock_ms() as i64;
                let is_old = |(before, at): (i64, EventTime)| at.millis() < before || at.millis() > now;
                let is_old = filter.written_before_ms.zip(letter.arrived_at).is_none_or(is_old);
                if more || !is_old {
                    return Some(letter);
                }
                if filter.matches_reason(&letter.reason) {
                    match decide(sent, &letter) {
                        RetryDecision::Send => batch.push(retry_record(decoder, letter, &mut outcome)),
                        RetryDecision::Already => outcome.already_sent += 1,
                        RetryDecision::Withdrawal => outcome.withdrawals += 1,
                        RetryDecision::Homeless => outcome.without_origin += 1,
                    }
                }
                None
            })?;
            if !batch.is_empty() {
                self.sent.announce(journal)?;
                append_all(&*journal.appender(), &batch)?;
                let origins = batch.iter().filter_map(|record| record.retry.as_ref());
                self.sent.confirm(origins.map(|retried| retried.origin.to_string()).collect())?;
            }
            if !more {
                return Ok(outcome);
            }
        }
    }
}

/// What to do with a dead letter.
enum RetryDecision {
    Send,
    Already,
    Withdrawal,
    /// It comes from a file, to which nothing can be appended.
    Homeless,
}

fn decide(sent: &RetryLedger, dead_letter: &DeadLetter) -> RetryDecision {
    match () {
        () if &*dead_letter.address.source != journal::SOURCE_NAME => RetryDecision::Homeless,
        () if sent.origins.contains(&dead_letter.address.to_string()) => RetryDecision::Already,
        () if dead_letter.is_withdrawal() => RetryDecision::Withdrawal,
        () => RetryDecision::Send,
    }
}

fn retry_record(
    decoder: &mut JsonRecordDecoder,
    letter: DeadLetter,
    outcome: &mut RetryOutcome,
) -> NewRecord {
    let retried = Some(Box::new(letter.next_retry()));
    *outcome.sent.entry(letter.reason).or_default() += 1;
    let bytes = letter.value.unwrap_or_default();
    let city = decoder.decode(&bytes).ok().map(|upsert| Box::from(upsert.city));
    NewRecord { city, retry: retried, ..NewRecord::new(None, bytes) }
}

/// Appends records, and returns when they are durable.
pub(super) fn append_all(appender: &dyn Appender, records: &[NewRecord]) -> Result<(), DlqCommandError> {
    let deadline = Instant::now() + APPEND_TIMEOUT;
    loop {
        let (sender, appended) = mpsc::sync_channel(1);
        appender.append(records.to_vec(), Box::new(move |result| drop(sender.send(result))));
        match appended.recv_timeout(APPEND_TIMEOUT) {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(AppendError::Busy)) if Instant::now() < deadline => thread::sleep(BUSY_BACKOFF),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(DlqCommandError::Hangs),
        }
    }
}

/// Records which dead letters were retried. An append is announced first, with the ends of the
/// journal, so after a crash the journal shows whether it was made.
struct RetryLedger {
    path: PathBuf,
    file: File,
    origins: HashSet<String>,
}

#[derive(Serialize, Deserialize)]
enum LedgerEntry {
    /// The ends of the journal's partitions before an append.
    #[serde(rename = "sending")]
    Sending(Vec<u64>),
    /// The dead letters that were appended.
    #[serde(rename = "sent")]
    Sent(Vec<String>),
}

impl RetryLedger {
    fn open(path: &Path, journal: &Journal) -> Result<RetryLedger, DlqCommandError> {
        let failed = |error: io::Error| cannot_write_ledger(path, &error);
        let options = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = options.map_err(failed)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        // An incomplete line was never acted on.
        let complete_bytes = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(complete_bytes as u64).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        let (mut origins, mut open) = (HashSet::new(), None);
        for (number, line) in (1..).zip(text[..complete_bytes].lines()) {
            match serde_json::from_str(line) {
                Ok(LedgerEntry::Sending(ends)) => open = Some(ends),
                Ok(LedgerEntry::Sent(sent)) => {
                    open = None;
                    origins.extend(sent);
                }
                Err(error) => return Err(damaged_ledger(path, format!("line {number}: {error}"))),
            }
        }
        let mut sent = RetryLedger { path: path.into(), file, origins };
        sent.check_journal(journal)?;
        if let Some(ends) = open {
            sent.confirm(origins_since(journal, &ends)?)?;
        }
        Ok(sent)
    }

    /// Checks that the positions belong to this journal. Those of another one would prevent
    /// retries.
    fn check_journal(&self, journal: &Journal) -> Result<(), DlqCommandError> {
        let addresses = self.origins.iter().filter_map(|origin| origin.parse::<RecordAddress>().ok());
        let mut beyond = addresses.filter(|address| address.position >= journal.log_end(address.partition));
        match beyond.next() {
            None => Ok(()),
            Some(address) => Err(damaged_ledger(
                &self.path,
                format!(
                    "it names {address}, which the journal does not have, so it belongs to another journal"
                ),
            )),
        }
    }

    fn announce(&mut self, journal: &Journal) -> Result<(), DlqCommandError> {
        let ends = (0..journal.partitions()).map(|partition| journal.log_end(partition));
        self.append_entry(&LedgerEntry::Sending(ends.collect()))
    }

    fn confirm(&mut self, origins: Vec<String>) -> Result<(), DlqCommandError> {
        self.origins.extend(origins.iter().cloned());
        self.append_entry(&LedgerEntry::Sent(origins))
    }

    fn append_entry(&mut self, entry: &LedgerEntry) -> Result<(), DlqCommandError> {
        let mut line =
            serde_json::to_vec(entry).map_err(|error| damaged_ledger(&self.path, error.to_string()))?;
        line.push(b'\n');
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        written.map_err(|error| cannot_write_ledger(&self.path, &error))
    }
}

fn cannot_write_ledger(path: &Path, error: &io::Error) -> DlqCommandError {
    DlqCommandError::Sent { path: path.into(), problem: format!("{error}: {}", remedy_for(error, path)) }
}

fn damaged_ledger(path: &Path, problem: String) -> DlqCommandError {
    let problem = format!(
        "{problem}: repair the file, or move it away; without it, all dead letters can be sent again"
    );
    DlqCommandError::Sent { path: path.into(), problem }
}

/// The origins of the retried records behind these ends of a journal.
fn origins_since(journal: &Journal, ends: &[u64]) -> Result<Vec<String>, DlqCommandError> {
    let mut collector = OriginCollector(Vec::new());
    for (partition, from) in (0..journal.partitions()).zip(ends) {
        // Records trimmed since are missing. Their dead letters are retried once more, which
        // changes no result.
        let from = journal.log_start(partition).max(*from);
        let mut reader = Source::open_partition(journal, partition, from, thread::current())?;
        while reader.poll(RETRY_BATCH, u64::MAX, &mut collector)?.next == NextPoll::Now {}
    }
    Ok(collector.0)
}

struct OriginCollector(Vec<String>);

impl RecordHandler for OriginCollector {
    fn handle_upsert(&mut self, _: RecordPosition, _: &Upsert<'_>) -> Result<(), Refusal> {
        // Refuse every record: a refusal is passed on with the record's origin.
        Err(Refusal::new(Reason::NotDecodable, ""))
    }

    fn handle_refusal(&mut self, _: RecordPosition, _: &Refusal, raw: &RawRecord<'_>) {
        self.0.extend(raw.retry.map(|retried| retried.origin.to_string()));
    }
}

/// The threads that retry automatically while a service runs.
pub struct RetryThreads {
    threads: Vec<(Sender<()>, JoinHandle<()>)>,
}

/// Starts the automatic retries of a plan: of dead letters older than the delay, except those
/// refused as `too_late`. `journal` is the open journal and its data directory.
pub fn spawn_retry(plan: &ServicePlan, journal: Option<(Arc<Journal>, PathBuf)>) -> io::Result<RetryThreads> {
    let mut retrying = RetryThreads { threads: Vec::new() };
    let delayed = plan.sources.iter().filter_map(|source| match &source.kind {
        SourceKind::Kafka(kafka) if kafka.retry_after.is_some() => Some((&*source.name, kafka)),
        _ => None,
    });
    for (cluster, progress_topic, topics) in group_by_progress_topic(delayed) {
        let topics: BTreeMap<String, Millis> =
            topics.iter().filter_map(|kafka| Some((kafka.topic.clone(), kafka.retry_after?))).collect();
        let (cluster, progress_topic) = (cluster.clone(), progress_topic.to_owned());
        let shortest = topics.values().copied().min().unwrap_or(Millis::DAY);
        let mut retrier = None;
        retrying.spawn_passes(shortest, move || {
            let mut working = match retrier.take() {
                Some(working) => working,
                None => DeadLetterRetrier::open(&cluster, &progress_topic)?,
            };
            let mut outcome = RetryOutcome::default();
            for (topic, delay) in &topics {
                outcome.add(&working.retry_topic(topic, &older_than(*delay))?);
            }
            retrier = Some(working);
            Ok(outcome)
        })?;
    }
    let delay = plan.ingest.as_ref().and_then(|ingest| ingest.retry_after);
    if let Some(((journal, dir), delay)) = journal.zip(delay) {
        let mut retry = None;
        retrying.spawn_passes(delay, move || {
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

fn older_than(delay: Millis) -> DeadLetterFilter {
    let before = (worker::ingest_clock_ms() as i64).saturating_sub(delay.millis());
    DeadLetterFilter { written_before_ms: Some(before), ..DeadLetterFilter::default() }
}

impl RetryThreads {
    fn spawn_passes(
        &mut self,
        delay: Millis,
        mut pass: impl FnMut() -> Result<RetryOutcome, DlqCommandError> + Send + 'static,
    ) -> io::Result<()> {
        let interval = (Duration::from_millis(delay.millis().unsigned_abs()) / 4)
            .clamp(MIN_PASS_INTERVAL, MAX_PASS_INTERVAL);
        let (stop, stopped) = mpsc::channel();
        let work = move || {
            let mut wait = interval;
            while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                wait = interval;
                match pass() {
                    Ok(outcome) if outcome.total_sent() > 0 => {
                        tracing::info!(letters = outcome.total_sent(), "dead letters were retried");
                    }
                    Ok(_) => {}
                    Err(error @ DlqCommandError::Topics(DlqTopicError::Fenced(_))) => {
                        tracing::info!("{error}");
                        wait = FAULT_BACKOFF;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "dead letters cannot be retried now; the next attempt follows");
                        wait = FAULT_BACKOFF;
                    }
                }
            }
        };
        self.threads.push((stop, thread::Builder::new().name("retry".into()).spawn(work)?));
        Ok(())
    }

    /// Stops the threads. An interrupted pass is repeated the next time.
    pub fn stop(self) {
        let threads: Vec<JoinHandle<()>> = self.threads.into_iter().map(|(_, thread)| thread).collect();
        let deadline = Instant::now() + STOP_TIMEOUT;
        while threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Groups the topics by progress topic, one retrier for each: two retriers of one progress topic
/// would fence each other repeatedly.
pub(super) fn group_by_progress_topic<'a>(
    topics: impl Iterator<Item = (&'a str, &'a KafkaSourcePlan)>,
) -> Vec<(&'a KafkaCluster, &'a str, Vec<&'a KafkaSourcePlan>)> {
    let mut groups: BTreeMap<(&KafkaCluster, &str), Vec<&KafkaSourcePlan>> = BTreeMap::new();
    for (_, kafka) in topics {
        groups.entry((&kafka.cluster, &kafka.progress_topic)).or_default().push(kafka);
    }
    groups.into_iter().map(|((cluster, progress), topics)| (cluster, progress, topics)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PartitionName, RetryInfo};
    use crate::sinks::dead_letters::{DeadLetterFiles, DeadLetterLimits};
    use crate::sources::journal::JournalPlan;

    fn letters(dir: &Path, positions: std::ops::Range<u64>) {
        let mut letters = DeadLetterFiles::open(dir, "rules", DeadLetterLimits::default()).unwrap();
        let name = PartitionName { source: journal::SOURCE_NAME.into(), partition: 1 };
        for position in positions {
            let raw = format!("{{\"number\":{position}}}");
            let reason = if position % 5 == 0 { Reason::TooLate } else { Reason::BadTime };
            let refusal = Refusal::new(reason, "no time");
            letters
                .write_dead_letter(&name, position, None, &refusal, &RawRecord::from_value(raw.as_bytes()))
                .unwrap();
        }
        letters.flush_and_rotate().unwrap();
    }

    fn journal(dir: &Path) -> Journal {
        let plan = JournalPlan { partitions: 2, ..JournalPlan::default() };
        Journal::open(&dir.join("journal"), plan).unwrap()
    }

    fn origins(journal: &Journal) -> Vec<u64> {
        let origins = origins_since(journal, &[0, 0]).unwrap();
        let places = origins.iter().map(|origin| origin.parse::<RecordAddress>().unwrap());
        places.map(|place| place.position).collect()
    }

    /// Interrupted after each step of a batch and restarted: each dead letter is in the journal
    /// once.
    #[test]
    fn interrupted_retry_sends_each_dead_letter_once() {
        let dir = tempfile::tempdir().unwrap();
        {
            let journal = journal(dir.path());
            // Dead letters refer to records that the journal has.
            let home = RetryInfo { origin: "journal/1/0".into(), attempt: 1, first_seen: None };
            let there = NewRecord { retry: Some(Box::new(home)), ..NewRecord::new(None, &b"{}"[..]) };
            append_all(&*journal.appender(), &vec![there; 2_000]).unwrap();
        }
        letters(dir.path(), 0..1_200);
        let file = dir.path().join("dead-letters.sent");
        let expected: Vec<u64> = (0..1_200).filter(|position| position % 5 != 0).collect();
        let mut whole = Vec::new();
        for _ in 0..2 {
            let journal = journal(dir.path());
            let mut retry = JournalRetry::open(dir.path(), &journal).unwrap();
            let outcome = retry.send(&journal, &DeadLetterFilter::default()).unwrap();
            assert_eq!(outcome.total_sent() + outcome.already_sent, expected.len() as u64);
            assert_eq!(origins(&journal)[2_000..], expected, "{outcome:?}");
            whole = std::fs::read(&file).unwrap();
        }
        // The last batch was appended, but not, or not completely, recorded.
        let lines: Vec<usize> =
            whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
        let before_last = lines[lines.len() - 2];
        for cut in [before_last, before_last + 1, whole.len() - 1] {
            std::fs::write(&file, &whole[..cut]).unwrap();
            let journal = journal(dir.path());
            let mut retry = JournalRetry::open(dir.path(), &journal).unwrap();
            let outcome = retry.send(&journal, &DeadLetterFilter::default()).unwrap();
            assert_eq!(
                (outcome.total_sent(), outcome.already_sent),
                (0, expected.len() as u64),
                "cut at {cut}"
            );
            assert_eq!(origins(&journal)[2_000..], expected);
        }
        std::fs::write(&file, "what\n").unwrap();
        let refused = JournalRetry::open(dir.path(), &journal(dir.path())).err().unwrap().to_string();
        assert!(refused.contains("line 1") && refused.contains("move it away"), "{refused}");
    }
}
