//! What goes on beside the workers: a thread that serves the consumer, looks for new partitions and ends of logs, and
//! tells monitors how far the workers are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration as Wait, Instant};

use metrics::gauge;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use super::Shared;
use crate::kafka::native::high_watermark;
use crate::kafka::{self, silence::Silence, trouble::Trouble};

/// How soon a stop is seen.
const SERVE: Wait = Wait::from_millis(100);
/// How long the cluster may take to answer here.
const ANSWER: Wait = Wait::from_secs(2);
/// How often logs are looked at for their ends, and topics for partitions; the latter is also how often positions are
/// committed.
const ENDS: Wait = Wait::from_secs(1);
const TOPIC: Wait = Wait::from_secs(5);
/// How long records may wait for the end of a transaction before that is said.
const OPEN_TRANSACTION: Wait = Wait::from_secs(10);

/// How far a partition is read, and how far it goes.
#[derive(Debug)]
pub(super) struct Marks {
    /// Where the client stands: of the next record, or behind the marks of transactions that follow on the last one.
    position: AtomicU64,
    /// Of what may be read: the first record of an open transaction, or the log's end.
    end: AtomicU64,
    /// The log's end.
    high: AtomicU64,
    at_end: AtomicBool,
    withheld: AtomicU64,
}

impl Marks {
    pub(super) fn new(position: u64, end: u64) -> Marks {
        Marks {
            position: position.into(),
            end: end.into(),
            high: end.into(),
            at_end: false.into(),
            withheld: 0.into(),
        }
    }

    /// Positions from the end of what may be read on that wait for the end of a transaction.
    pub(super) fn withheld(&self) -> u64 {
        self.withheld.load(Ordering::Relaxed)
    }

    pub(super) fn moved(&self, position: u64, at_end: bool) {
        self.position.store(position, Ordering::Relaxed);
        self.at_end.store(at_end, Ordering::Relaxed);
    }

    pub(super) fn end(&self) -> u64 {
        self.end.load(Ordering::Relaxed)
    }

    fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    fn lag(&self) -> u64 {
        let end = if self.at_end.load(Ordering::Relaxed) { self.position() } else { self.end() };
        end.max(self.high.load(Ordering::Relaxed)).saturating_sub(self.position())
    }
}

/// What was seen of a partition whose reader has come to the end of what may be read, though the log goes on.
struct StalledAt {
    position: u64,
    since: Instant,
    is_said: bool,
}

/// Looks for transactions of other producers that hold records up.
#[derive(Default)]
struct OpenTransactions(BTreeMap<u32, StalledAt>);

impl OpenTransactions {
    /// By then a partition has stood still for one look at least: what has just come is fetched within less.
    fn look(&mut self, shared: &Shared, open: &BTreeMap<u32, Arc<Marks>>) {
        self.0.retain(|partition, _| open.contains_key(partition));
        for (partition, marks) in open {
            let (client, topic) = (shared.consumer.client(), &*shared.plan.topic);
            if let Some(high) = high_watermark(client, topic, *partition as i32) {
                marks.high.fetch_max(high, Ordering::Relaxed);
            }
            let (position, high) = (marks.position(), marks.high.load(Ordering::Relaxed));
            // Where more may be read, whoever reads it is held up by something else.
            let is_all_read = marks.at_end.load(Ordering::Relaxed) && marks.end() <= position;
            let stands = is_all_read && high > position;
            let stalled = self.0.get_mut(partition).filter(|stalled| stands && stalled.position == position);
            let Some(stalled) = stalled else {
                marks.withheld.store(0, Ordering::Relaxed);
                let before = self.0.remove(partition);
                if before.is_some_and(|before| before.is_said) {
                    tracing::info!(
                        source = &*shared.name,
                        partition,
                        position,
                        "the open transaction has ended: records are read on"
                    );
                }
                if stands {
                    self.0.insert(*partition, StalledAt { position, since: Instant::now(), is_said: false });
                }
                continue;
            };
            let withheld = high - position;
            marks.withheld.store(withheld, Ordering::Relaxed);
            if !stalled.is_said && stalled.since.elapsed() >= OPEN_TRANSACTION {
                stalled.is_said = true;
                tracing::warn!(
                    source = &*shared.name,
                    partition,
                    position,
                    withheld,
                    "records wait behind a transaction that another producer of topic {topic} has left open: they are read once it is \
                     committed or aborted, or the broker gives it up (transaction.timeout.ms of that producer); \
                     `kafka-transactions.sh find-hanging` shows one that hangs"
                );
            }
        }
    }
}

/// Until the source is dropped.
pub(super) fn watch(shared: &Shared) {
    let mut ends = Instant::now();
    let mut topic = Instant::now();
    let mut committed = BTreeMap::new();
    let mut silence = Silence::of(&shared.plan.cluster);
    let mut transactions = OpenTransactions::default();
    while !shared.stopped.load(Ordering::Relaxed) {
        if let Some(Err(error)) = shared.consumer.poll(SERVE) {
            tracing::debug!(source = &*shared.name, %error, "the consumer's own queue");
        }
        // The client's log is not to pile up. Whoever reads says what is wrong.
        let _ = shared.fetched.check();
        if ends.elapsed() >= ENDS {
            let open = shared.open_partitions();
            look_at_ends(shared, &open, &mut silence);
            transactions.look(shared, &open);
            show_lag(shared, &open);
            ends = Instant::now();
        }
        if topic.elapsed() >= TOPIC {
            look_for_partitions(shared);
            commit(shared, &mut committed);
            topic = Instant::now();
        }
    }
    commit(shared, &mut committed);
}

/// One request a broker, whatever the number of partitions.
fn look_at_ends(shared: &Shared, open: &BTreeMap<u32, Arc<Marks>>, silence: &mut Silence) {
    let mut asked = TopicPartitionList::with_capacity(open.len());
    for partition in open.keys() {
        let number = *partition as i32;
        if asked.add_partition_offset(&shared.plan.topic, number, Offset::End).is_err() {
            return;
        }
    }
    if open.is_empty() {
        silence.may_last(shared.consumer.client(), &shared.plan.topic);
        return;
    }
    // Brokers that do not answer are heard of from the consumer's context.
    let Ok(found) = shared.consumer.offsets_for_times(asked, ANSWER) else {
        return silence.lasts(shared.consumer.client());
    };
    silence.ends();
    for element in found.elements() {
        let marks = u32::try_from(element.partition()).ok().and_then(|partition| open.get(&partition));
        if let (Some(marks), Ok(()), Offset::Offset(end)) = (marks, element.error(), element.offset()) {
            marks.end.fetch_max(end.unsigned_abs(), Ordering::Relaxed);
        }
    }
}

fn show_lag(shared: &Shared, open: &BTreeMap<u32, Arc<Marks>>) {
    for (partition, marks) in open {
        let labels = [("source", shared.name.to_string()), ("partition", partition.to_string())];
        gauge!("swelter_kafka_lag", &labels).set(marks.lag() as f64);
    }
}

fn look_for_partitions(shared: &Shared) {
    let topic = &*shared.plan.topic;
    let Ok(metadata) = shared.consumer.fetch_metadata(Some(topic), ANSWER) else { return };
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else { return };
    let partitions = found.partitions().len() as u32;
    let before = shared.partitions.fetch_max(partitions, Ordering::Relaxed);
    if partitions > before {
        tracing::info!(source = &*shared.name, topic, before, partitions, "the topic has more partitions");
    }
}

/// Shows monitors the positions that have moved.
fn commit(shared: &Shared, committed: &mut BTreeMap<u32, u64>) {
    let mut moved = TopicPartitionList::new();
    for (partition, marks) in shared.open_partitions() {
        let position = marks.position();
        let offset = Offset::Offset(i64::try_from(position).unwrap_or(i64::MAX));
        if committed.insert(partition, position) != Some(position)
            && moved.add_partition_offset(&shared.plan.topic, partition as i32, offset).is_err()
        {
            return;
        }
    }
    if moved.count() > 0
        && let Err(error) = shared.consumer.commit(&moved, CommitMode::Async)
    {
        shared.consumer.context().not_committed(&error);
    }
}

/// Hears what the consumer says of itself.
pub(super) struct Context {
    trouble: Trouble,
    commit_failed: AtomicBool,
}

impl Context {
    pub(super) fn new(source: Arc<str>) -> Context {
        Context { trouble: Trouble::new(source), commit_failed: AtomicBool::new(false) }
    }

    /// Once: nothing depends on it.
    fn not_committed(&self, error: &KafkaError) {
        if !self.commit_failed.swap(true, Ordering::Relaxed) {
            let source = &**self.trouble.source();
            tracing::warn!(source, %error, "positions cannot be shown under the consumer group: monitors of lag do not see them");
        }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        kafka::log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.trouble.tell(&error, reason);
    }
}

impl ConsumerContext for Context {
    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        match result {
            Ok(()) => self.commit_failed.store(false, Ordering::Relaxed),
            Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => {}
            Err(error) => self.not_committed(&error),
        }
    }
}
