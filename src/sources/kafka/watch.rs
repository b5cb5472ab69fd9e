//! The watch thread of a source: it polls the consumer, checks for new partitions and log ends, and
//! commits the workers' positions for monitors.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use metrics::gauge;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::partition_offsets::PartitionOffsets;
use super::shared::KafkaSourceShared;
use crate::kafka::broker_reminder::BrokerReminder;
use crate::kafka::native::high_watermark;

/// How soon the thread notices a stop.
const CONSUMER_POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// How long the cluster may take to respond to this thread.
const WATCH_REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// How often log ends and the topic's partitions are checked; positions are committed as often as
/// the latter.
const LOG_END_INTERVAL: Duration = Duration::from_secs(1);
const TOPIC_INTERVAL: Duration = Duration::from_secs(5);
/// How long records may wait for the end of a transaction before a warning is logged.
const OPEN_TRANSACTION_WARN_AFTER: Duration = Duration::from_secs(10);

/// A partition whose reader is at the end of the readable records, though the log continues.
struct StalledPartition {
    position: u64,
    since: Instant,
    is_warned: bool,
}

/// Detects open transactions of other producers that block records.
#[derive(Default)]
struct OpenTransactions(BTreeMap<u32, StalledPartition>);

impl OpenTransactions {
    /// By the time of a warning a partition has been stalled for at least one check: new records
    /// are fetched in less time.
    fn check_partitions(&mut self, shared: &KafkaSourceShared, open: &BTreeMap<u32, Arc<PartitionOffsets>>) {
        self.0.retain(|partition, _| open.contains_key(partition));
        for (partition, offsets) in open {
            let (client, topic) = (shared.consumer.client(), &*shared.plan.topic);
            if let Some(high) = high_watermark(client, topic, *partition as i32) {
                offsets.high_watermark.fetch_max(high, Ordering::Relaxed);
            }
            let (position, high) = (offsets.position(), offsets.high_watermark.load(Ordering::Relaxed));
            // If more is readable, the reader is delayed by something else.
            let is_all_read = offsets.is_at_end.load(Ordering::Relaxed) && offsets.end() <= position;
            let stands = is_all_read && high > position;
            let stalled = self.0.get_mut(partition).filter(|stalled| stands && stalled.position == position);
            let Some(stalled) = stalled else {
                offsets.withheld.store(0, Ordering::Relaxed);
                let before = self.0.remove(partition);
                if before.is_some_and(|before| before.is_warned) {
                    tracing::info!(
                        source = &*shared.name,
                        partition,
                        position,
                        "the open transaction has ended: records behind it are read"
                    );
                }
                if stands {
                    self.0.insert(
                        *partition,
                        StalledPartition { position, since: Instant::now(), is_warned: false },
                    );
                }
                continue;
            };
            let withheld = high - position;
            offsets.withheld.store(withheld, Ordering::Relaxed);
            if !stalled.is_warned && stalled.since.elapsed() >= OPEN_TRANSACTION_WARN_AFTER {
                stalled.is_warned = true;
                tracing::warn!(
                    source = &*shared.name,
                    partition,
                    position,
                    withheld,
                    "records wait behind an open transaction of another producer of topic {topic}: they are read once it is committed or aborted, or times out (transaction.timeout.ms of that producer); `kafka-transactions.sh find-hanging` shows hanging ones"
                );
            }
        }
    }
}

/// Runs until the source is dropped.
pub(super) fn run_watch(shared: &KafkaSourceShared) {
    let mut ends = Instant::now();
    let mut topic = Instant::now();
    let mut committed = BTreeMap::new();
    let mut silence = BrokerReminder::for_cluster(&shared.plan.cluster);
    let mut transactions = OpenTransactions::default();
    while !shared.is_stopped.load(Ordering::Relaxed) {
        if let Some(Err(error)) = shared.consumer.poll(CONSUMER_POLL_TIMEOUT) {
            tracing::debug!(source = &*shared.name, %error, "the consumer's own queue");
        }
        // Drain the client's log, so that it does not grow. The readers report a changed topic.
        let _ = shared.fetched_topic.check_topic_id();
        if ends.elapsed() >= LOG_END_INTERVAL {
            let open = shared.open_partitions();
            poll_log_ends(shared, &open, &mut silence);
            transactions.check_partitions(shared, &open);
            report_lag(shared, &open);
            ends = Instant::now();
        }
        if topic.elapsed() >= TOPIC_INTERVAL {
            poll_partition_count(shared);
            commit_positions(shared, &mut committed);
            topic = Instant::now();
        }
    }
    commit_positions(shared, &mut committed);
}

/// Sends one request per broker, whatever the number of partitions.
fn poll_log_ends(
    shared: &KafkaSourceShared,
    open: &BTreeMap<u32, Arc<PartitionOffsets>>,
    silence: &mut BrokerReminder,
) {
    let mut request = TopicPartitionList::with_capacity(open.len());
    for partition in open.keys() {
        let number = *partition as i32;
        if request.add_partition_offset(&shared.plan.topic, number, Offset::End).is_err() {
            return;
        }
    }
    if open.is_empty() {
        silence.probe_if_silent(shared.consumer.client(), &shared.plan.topic);
        return;
    }
    // Brokers that do not respond are reported by the consumer's context.
    let Ok(end_offsets) = shared.consumer.offsets_for_times(request, WATCH_REQUEST_TIMEOUT) else {
        return silence.remind_if_silent(shared.consumer.client());
    };
    silence.record_response();
    for element in end_offsets.elements() {
        let offsets = u32::try_from(element.partition()).ok().and_then(|partition| open.get(&partition));
        if let (Some(offsets), Ok(()), Offset::Offset(end)) = (offsets, element.error(), element.offset()) {
            offsets.end.fetch_max(end.unsigned_abs(), Ordering::Relaxed);
        }
    }
}

fn report_lag(shared: &KafkaSourceShared, open: &BTreeMap<u32, Arc<PartitionOffsets>>) {
    for (partition, offsets) in open {
        let labels = [("source", shared.name.to_string()), ("partition", partition.to_string())];
        gauge!("swelter_kafka_lag", &labels).set(offsets.lag() as f64);
    }
}

fn poll_partition_count(shared: &KafkaSourceShared) {
    let topic = &*shared.plan.topic;
    let Ok(metadata) = shared.consumer.fetch_metadata(Some(topic), WATCH_REQUEST_TIMEOUT) else { return };
    let Some(topic_metadata) = metadata.topics().iter().find(|topic_metadata| topic_metadata.name() == topic)
    else {
        return;
    };
    let partitions = topic_metadata.partitions().len() as u32;
    let before = shared.partitions.fetch_max(partitions, Ordering::Relaxed);
    if partitions > before {
        tracing::info!(
            source = &*shared.name,
            topic,
            before,
            partitions,
            "the topic has new partitions, which are read from now on"
        );
    }
}

/// Commits the positions that have changed.
fn commit_positions(shared: &KafkaSourceShared, committed: &mut BTreeMap<u32, u64>) {
    let mut moved = TopicPartitionList::new();
    for (partition, offsets) in shared.open_partitions() {
        let position = offsets.position();
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
        shared.consumer.context().warn_commit_failed(&error);
    }
}
