//! The dead letters of all logs in a configuration: reading, retrying, and appending edited
//! records.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use super::data_dir::DataDir;
use super::dead_letter_retry::{JournalRetry, append_all, group_by_progress_topic};
pub use super::dlq_command_error::DlqCommandError;
use crate::codec::{JsonRecordDecoder, ReadOptions};
use crate::config::{IngestPlan, ServicePlan, SourceKind};
use crate::kafka::dead_letter_retry::{
    DeadLetterFilter, DeadLetterRetrier, KeyedRecord, RetryOutcome, produce_records,
};
use crate::kafka::dead_letter_topic;
use crate::kafka::dead_letter_topics;
use crate::model::dead_letter::ExportedDeadLetter;
use crate::model::{DeadLetter, NewRecord, RecordAddress};
use crate::sinks::dead_letters;
use crate::sources::journal::{self, Journal, JournalPlan};
use crate::sources::kafka::{KafkaSourcePlan, RecordFormat};

/// Records in one append.
const RESUBMIT_CHUNK: usize = 1_000;
/// The journal's folder in the data directory.
const JOURNAL_FOLDER: &str = "journal";

/// The stores of a plan's dead letters.
#[derive(Debug)]
pub struct DeadLetterStores<'a> {
    plan: &'a ServicePlan,
}

impl<'a> DeadLetterStores<'a> {
    pub fn of(plan: &'a ServicePlan) -> DeadLetterStores<'a> {
        DeadLetterStores { plan }
    }

    fn topics(&self) -> impl Iterator<Item = (&'a str, &'a KafkaSourcePlan)> {
        self.plan.sources.iter().filter_map(|source| match &source.kind {
            SourceKind::Kafka(kafka) => Some((&*source.name, kafka)),
            SourceKind::Generator(_) | SourceKind::File(_) => None,
        })
    }

    fn journal(&self) -> Option<&'a IngestPlan> {
        self.plan.ingest.as_ref().filter(|ingest| ingest.source.is_none())
    }

    /// Whether there is a journal, whose dead letters are in the data directory.
    pub fn has_journal(&self) -> bool {
        self.journal().is_some()
    }

    /// Checks that a source can have dead letters. Those of files are in the journal's data
    /// directory.
    pub fn check_source_has_dead_letters(&self, source: Option<&str>) -> Result<(), DlqCommandError> {
        let Some(requested) = source else { return Ok(()) };
        let of_files = self.plan.sources.iter().filter(|source| matches!(source.kind, SourceKind::File(_)));
        let mut names: Vec<&str> = self.topics().map(|(name, _)| name).collect();
        if self.has_journal() {
            names.push(journal::SOURCE_NAME);
            names.extend(of_files.map(|source| &*source.name));
        }
        match names.contains(&requested) {
            true => Ok(()),
            false => Err(DlqCommandError::UnknownSource { asked: requested.into(), known: names.join(", ") }),
        }
    }

    /// Returns an error if the directory does not exist: its name is probably misspelled.
    fn check_data_dir(&self) -> Result<(), DlqCommandError> {
        let dir = &self.plan.data_dir;
        match !self.has_journal() || dir.join(JOURNAL_FOLDER).is_dir() {
            true => Ok(()),
            false => Err(DlqCommandError::NoJournal(dir.clone())),
        }
    }

    /// Checks that there are files of dead letters. They may also have been moved to a folder
    /// without a journal.
    fn check_dead_letter_files(&self) -> Result<(), DlqCommandError> {
        let is_letters = |entry: io::Result<fs::DirEntry>| {
            entry.is_ok_and(|entry| entry.file_name().as_encoded_bytes().starts_with(b"dead-letters"))
        };
        let has_letters = fs::read_dir(&self.plan.data_dir).is_ok_and(|mut entries| entries.any(is_letters));
        if has_letters { Ok(()) } else { self.check_data_dir() }
    }

    /// Passes all dead letters to `each`, with the name of their source. Those of one store are in
    /// order.
    ///
    /// # Errors
    ///
    /// Also if the data directory is missing, or has neither a journal nor dead letters.
    pub fn read_all(&self, mut each: impl FnMut(&str, DeadLetter)) -> Result<(), DlqCommandError> {
        self.check_dead_letter_files()?;
        for (name, kafka) in self.topics() {
            for topic in dead_letter_topics(&kafka.topic) {
                dead_letter_topic::read_dead_letters(&kafka.cluster, &topic, |letter| each(name, letter))?;
            }
        }
        if self.journal().is_some() {
            for name in dead_letters::FILE_NAMES {
                dead_letters::DeadLetterReader::new(&self.plan.data_dir.join(name)).read_while(|letter| {
                    let source = letter.address.source.clone();
                    each(&source, letter);
                    None
                })?;
            }
        }
        Ok(())
    }

    /// Sends dead letters that were not retried yet to the log they come from.
    pub fn retry(
        &self,
        source: Option<&str>,
        filter: &DeadLetterFilter,
    ) -> Result<RetryOutcome, DlqCommandError> {
        let is_asked = |name: &str| source.is_none_or(|source| source == name);
        self.check_source(source)?;
        self.check_data_dir()?;
        let mut outcome = RetryOutcome::default();
        for (cluster, progress_topic, topics) in
            group_by_progress_topic(self.topics().filter(|(name, _)| is_asked(name)))
        {
            let mut retrier = DeadLetterRetrier::open(cluster, progress_topic)?;
            for kafka in topics {
                outcome.add(&retrier.retry_topic(&kafka.topic, filter)?);
            }
        }
        if is_asked(journal::SOURCE_NAME)
            && let Some(ingest) = self.journal()
            && self.plan.data_dir.join(dead_letters::FILE_NAMES[0]).exists()
        {
            let (dir, journal) = self.open_journal(ingest)?;
            let mut retry = JournalRetry::open(dir.path(), &journal)?;
            outcome.add(&retry.send(&journal, filter)?);
        }
        Ok(outcome)
    }

    fn check_source(&self, source: Option<&str>) -> Result<(), DlqCommandError> {
        let Some(requested) = source else { return Ok(()) };
        let mut names: Vec<&str> = self.topics().map(|(name, _)| name).collect();
        names.extend(self.journal().map(|_| journal::SOURCE_NAME));
        match names.contains(&requested) {
            true => Ok(()),
            false => Err(DlqCommandError::UnknownSource { asked: requested.into(), known: names.join(", ") }),
        }
    }

    fn read_options(&self, source: &str) -> ReadOptions {
        let source_plan = self.plan.sources.iter().find(|plan| plan.name == source);
        source_plan.map_or(self.plan.decode.into(), |plan| plan.read_options.clone())
    }

    fn open_journal(&self, ingest: &IngestPlan) -> Result<(DataDir, Journal), DlqCommandError> {
        // Do not create a missing directory.
        self.check_data_dir()?;
        let dir = DataDir::open(&self.plan.data_dir)?;
        let plan = JournalPlan {
            partitions: ingest.partitions,
            queue_records: ingest.queue_records,
            queue_bytes: ingest.queue_bytes,
            warn_bytes: ingest.warn_bytes,
            max_ahead: self.plan.max_ahead,
            decode: self.plan.decode,
            ..JournalPlan::default()
        };
        let journal = Journal::open(&dir.path().join(JOURNAL_FOLDER), plan)?;
        Ok((dir, journal))
    }

    /// Appends edited records as ordinary arrivals, each to its city's partition. Appends all, or
    /// none if a line is invalid. Returns how many.
    pub fn resubmit(&self, lines: &[String]) -> Result<usize, DlqCommandError> {
        let mut topics: BTreeMap<&str, (&KafkaSourcePlan, Vec<KeyedRecord>)> = BTreeMap::new();
        let mut posted = Vec::new();
        for (line, text) in (1..).zip(lines).filter(|(_, text)| !text.trim().is_empty()) {
            let line_error = |problem: String| DlqCommandError::Line { line, problem };
            let edited: ExportedDeadLetter = serde_json::from_str(text)
                .map_err(|error| line_error(format!("is not a line that export writes ({error})")))?;
            let bytes = edited.record_bytes().ok_or_else(|| {
                line_error(
                    "has neither raw nor raw_base64: keep one of them, with the bytes of the record".into(),
                )
            })?;
            let source = edited.source.clone();
            let kafka = self.topics().find(|(name, _)| *name == source);
            let is_journal = source == journal::SOURCE_NAME && self.journal().is_some();
            if kafka.is_none() && !is_journal {
                let problem = format!("source {source:?} accepts no records: correct them in its files");
                return Err(line_error(problem));
            }
            if kafka.is_some_and(|(_, kafka)| kafka.format != RecordFormat::Json) {
                return Err(line_error(format!(
                    "{source} reads Avro: write it with `swelter produce` instead"
                )));
            }
            let mut decoder = JsonRecordDecoder::new(self.read_options(&source));
            let upsert = decoder.decode(&bytes).map_err(|refusal| line_error(refusal.to_string()))?;
            match kafka {
                Some((name, kafka)) => {
                    let city = upsert.city.to_owned();
                    topics.entry(name).or_insert((kafka, Vec::new())).1.push((city, bytes));
                }
                None => {
                    let city = upsert.city.to_owned();
                    posted.push(NewRecord::new(Some(&city), bytes));
                }
            }
        }
        let written = topics.values().map(|(_, records)| records.len()).sum::<usize>() + posted.len();
        for (kafka, records) in topics.values() {
            produce_records(&kafka.cluster, &kafka.topic, kafka.partitioner, records)?;
        }
        if let Some(ingest) = self.journal().filter(|_| !posted.is_empty()) {
            let (_dir, journal) = self.open_journal(ingest)?;
            for chunk in posted.chunks(RESUBMIT_CHUNK) {
                append_all(&*journal.appender(), chunk)?;
            }
        }
        Ok(written)
    }

    /// Finds the dead letters of the record at a position, by its source or its topic.
    pub fn find_by_position(
        &self,
        address: &RecordAddress,
    ) -> Result<Vec<(String, DeadLetter)>, DlqCommandError> {
        let mut dead_letters = Vec::new();
        self.read_all(|source, letter| {
            let named = letter.address.source == address.source || *source == *address.source;
            let same =
                (letter.address.partition, letter.address.position) == (address.partition, address.position);
            if named && same {
                dead_letters.push((source.to_owned(), letter));
            }
        })?;
        Ok(dead_letters)
    }
}
