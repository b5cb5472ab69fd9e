//! What a cluster says of topics, and how they are made.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration as Wait, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::Cluster;
use super::identity::written_topics;
use super::native::{self, TopicState};

/// How long a cluster may take to be up.
const PATIENCE: Wait = Wait::from_secs(30);
/// How long one request may take, and the time between two.
const REQUEST: Wait = Wait::from_secs(5);
const RETRY: Wait = Wait::from_millis(250);
/// Before this nothing is said.
const SOON: Wait = Wait::from_secs(2);

/// A topic as it is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TopicFacts {
    pub partitions: u32,
    /// Older records of a key go away.
    pub compacted: bool,
    /// Old records go away: after so long, and beyond so many bytes of a partition.
    pub retention_ms: Option<u64>,
    pub retention_bytes: Option<u64>,
    /// Timestamps are the broker's; otherwise they are what producers say.
    pub append_time: bool,
    /// How far ahead of the broker's clock a producer's timestamp may be, in ms, where there is a limit.
    pub max_ahead_ms: Option<u64>,
}

impl TopicFacts {
    /// By what settings old records go away; nothing where they are kept.
    pub fn retention(&self) -> Option<String> {
        let by_time = self.retention_ms.map(|ms| format!("retention.ms={ms}, {}", span(ms)));
        let by_size = self.retention_bytes.map(|bytes| format!("retention.bytes={bytes} of a partition"));
        let both: Vec<String> = by_time.into_iter().chain(by_size).collect();
        (!both.is_empty()).then(|| both.join(" and "))
    }
}

/// In the largest unit that shows what it is.
fn span(ms: u64) -> String {
    let units = [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000)];
    let unit = units.iter().find(|(_, unit)| ms >= 2 * unit);
    unit.map_or_else(|| format!("{ms} ms"), |(name, unit)| format!("{} {name}", ms / unit))
}

/// A topic to be made, with the cluster's own replication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTopicPlan {
    pub name: String,
    pub partitions: u32,
    pub config: Vec<(&'static str, &'static str)>,
}

/// Why a cluster does not say, or do, what it is asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicsError {
    #[error("{brokers} cannot be reached: {reason}; check `brokers`, and that the cluster is up")]
    Unreachable { brokers: String, reason: String },
    #[error("{brokers} does not allow it: {reason}")]
    NotAuthorised { brokers: String, reason: String },
    #[error("{brokers}: {reason}")]
    Other { brokers: String, reason: String },
}

/// Asks for topics; those that are missing have no facts. It waits for a cluster that is not up yet, but not for ever.
pub fn describe(
    cluster: &Cluster,
    topics: &[&str],
) -> Result<BTreeMap<String, Option<TopicFacts>>, TopicsError> {
    let asking = Asking::new(cluster)?;
    topics.iter().map(|topic| Ok((topic.to_string(), asking.retry(|| asking.describe(topic))?))).collect()
}

/// Whether there is a topic, as far as this client may know.
pub fn exists(cluster: &Cluster, topic: &str) -> Result<bool, TopicsError> {
    let asking = Asking::new(cluster)?;
    match asking.retry(|| asking.partitions(topic)) {
        Ok(partitions) => Ok(partitions.is_some()),
        Err(TopicsError::NotAuthorised { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What topics are known by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    pub states: BTreeMap<String, TopicState>,
    /// Those that have ever been written to, as far as their ends say: all that was in them may be gone.
    pub written: BTreeSet<String>,
}

/// Asks which topics there are, for their ids and for their ends: one request, and one more of each broker, whatever their number.
pub fn survey(cluster: &Cluster, topics: &[&str]) -> Result<Survey, TopicsError> {
    let asking = Asking::new(cluster)?;
    let states = asking.retry(|| asking.identify(topics))?;
    let written = asking.retry(|| asking.written(&states))?;
    Ok(Survey { states, written })
}

/// The first of these topics that holds a record which is committed. Those of transactions that were given up do not count, nor do the
/// marks of transactions.
pub fn first_with_committed(cluster: &Cluster, topics: &[&str]) -> Result<Option<String>, TopicsError> {
    first_with(cluster, topics, |_| true)
}

/// The first of these topics that holds a record which is committed and has this header.
pub fn first_with_header(
    cluster: &Cluster,
    topics: &[&str],
    (name, value): (&str, &str),
) -> Result<Option<String>, TopicsError> {
    first_with(cluster, topics, |record| {
        let mut headers = record.headers().into_iter().flat_map(Headers::iter);
        headers.any(|header| header.key == name && header.value == Some(value.as_bytes()))
    })
}

fn first_with(
    cluster: &Cluster,
    topics: &[&str],
    is_wanted: impl Fn(&BorrowedMessage<'_>) -> bool,
) -> Result<Option<String>, TopicsError> {
    let asking = Asking::new(cluster)?;
    for topic in topics {
        let partitions = asking.retry(|| asking.partitions(topic))?.unwrap_or(0);
        if partitions > 0 && asking.has_committed(topic, partitions, &is_wanted)? {
            return Ok(Some((*topic).to_owned()));
        }
    }
    Ok(None)
}

/// Makes topics, and returns when all of them can be used. One that is there already is left as it is.
pub fn create(cluster: &Cluster, topics: &[NewTopicPlan]) -> Result<(), TopicsError> {
    let asking = Asking::new(cluster)?;
    for topic in topics {
        asking.retry(|| asking.create(topic))?;
        // The broker that is asked next may not know of it yet.
        asking.retry(|| match asking.partitions(&topic.name)? {
            Some(_) => Ok(()),
            None => Err(Failure::Passing(format!("topic {} was made but does not appear", topic.name))),
        })?;
    }
    Ok(())
}

/// Why one attempt has failed.
enum Failure {
    Passing(String),
    NotAuthorised(String),
    Lasting(String),
}

impl Failure {
    fn of(doing: &str, code: RDKafkaErrorCode) -> Failure {
        use RDKafkaErrorCode as Code;
        match code {
            Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::SaslAuthenticationFailed
            | Code::Authentication => Failure::NotAuthorised(format!("{doing}: {code}")),
            Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::OperationTimedOut
            | Code::TimedOutQueue
            | Code::RequestTimedOut
            | Code::Resolve
            | Code::SSL
            | Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::NotController
            | Code::BrokerNotAvailable
            | Code::CoordinatorLoadInProgress
            | Code::NetworkException
            | Code::OffsetNotAvailable
            | Code::UnknownLeaderEpoch
            | Code::FencedLeaderEpoch
            | Code::UnknownTopicOrPartition => Failure::Passing(format!("{doing}: {code}")),
            _ => Failure::Lasting(format!("{doing}: {code}")),
        }
    }

    fn of_error(doing: &str, error: &KafkaError) -> Failure {
        let code = match error {
            KafkaError::AdminOp(code) => Some(*code),
            other => other.rdkafka_error_code(),
        };
        code.map_or_else(|| Failure::Lasting(format!("{doing}: {error}")), |code| Failure::of(doing, code))
    }
}

/// Clients that ask, for as long as it takes.
struct Asking<'a> {
    cluster: &'a Cluster,
    admin: AdminClient<rdkafka::client::DefaultClientContext>,
    /// A producer's request for metadata, which an admin client's is, may make the topic.
    metadata: BaseConsumer<Heard>,
    runtime: tokio::runtime::Runtime,
    since: Instant,
}

impl<'a> Asking<'a> {
    fn new(cluster: &'a Cluster) -> Result<Asking<'a>, TopicsError> {
        let other = |reason: String| TopicsError::Other { brokers: cluster.brokers.clone(), reason };
        let mut config = cluster.client();
        let admin = config.create().map_err(|error| other(error.to_string()))?;
        config.set("allow.auto.create.topics", "false");
        let metadata =
            config.create_with_context(Heard::default()).map_err(|error| other(error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.map_err(|error| other(error.to_string()))?;
        Ok(Asking { cluster, admin, metadata, runtime, since: Instant::now() })
    }

    fn retry<T>(&self, mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, TopicsError> {
        let brokers = self.cluster.brokers.clone();
        let mut warned = false;
        loop {
            let failure = match attempt() {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            let reason = match failure {
                Failure::Passing(reason) => self.heard().unwrap_or(reason),
                Failure::NotAuthorised(reason) => {
                    return Err(TopicsError::NotAuthorised { brokers, reason });
                }
                Failure::Lasting(reason) => return Err(TopicsError::Other { brokers, reason }),
            };
            if self.metadata.context().refused() {
                return Err(TopicsError::NotAuthorised { brokers, reason });
            }
            if self.since.elapsed() >= PATIENCE {
                return Err(TopicsError::Unreachable { brokers, reason });
            }
            // What was just made mostly appears at once.
            if !warned && self.since.elapsed() >= SOON {
                tracing::warn!(
                    brokers,
                    reason,
                    "a Kafka cluster does not answer as it should yet; it is asked again"
                );
                warned = true;
            }
            thread::sleep(RETRY);
        }
    }

    /// What the client itself says is wrong: more than the request that has waited in vain.
    fn heard(&self) -> Option<String> {
        while self.metadata.poll(Wait::from_millis(10)).is_some() {}
        self.metadata.context().last()
    }

    /// How many partitions a topic has, where there is one.
    fn partitions(&self, topic: &str) -> Result<Option<u32>, Failure> {
        let doing = format!("describe topic {topic}");
        let metadata = self.metadata.fetch_metadata(Some(topic), REQUEST);
        let metadata = metadata.map_err(|error| Failure::of_error(&doing, &error))?;
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Ok(None);
        };
        match found.error().map(RDKafkaErrorCode::from) {
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => Ok(None),
            Some(code) => Err(Failure::of(&doing, code)),
            None => Ok(Some(found.partitions().len() as u32)),
        }
    }

    fn identify(&self, topics: &[&str]) -> Result<BTreeMap<String, TopicState>, Failure> {
        let doing = "describe topics (DescribeTopics)";
        let found = native::topic_ids(self.metadata.client(), topics, REQUEST);
        let mut found = found.map_err(|error| Failure::of_error(doing, &error))?;
        for topic in topics {
            match found.get(*topic) {
                Some(TopicState::Unknown(code)) => {
                    return Err(Failure::of(&format!("describe topic {topic}"), *code));
                }
                Some(_) => {}
                None => drop(found.insert((*topic).to_owned(), TopicState::Missing)),
            }
        }
        Ok(found)
    }

    fn written(&self, topics: &BTreeMap<String, TopicState>) -> Result<BTreeSet<String>, Failure> {
        let written = written_topics(&self.metadata, topics, REQUEST);
        written.map_err(|error| Failure::of_error("find the ends of topics", &error))
    }

    /// Reads until there is such a record or all has been read.
    fn has_committed(
        &self,
        topic: &str,
        partitions: u32,
        is_wanted: &dyn Fn(&BorrowedMessage<'_>) -> bool,
    ) -> Result<bool, TopicsError> {
        let mut config = self.cluster.client();
        config
            .set("group.id", format!("{topic}.reader"))
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("enable.partition.eof", "true")
            .set("allow.auto.create.topics", "false");
        let brokers = &self.cluster.brokers;
        let other =
            |error: KafkaError| TopicsError::Other { brokers: brokers.clone(), reason: error.to_string() };
        let consumer: BaseConsumer<Heard> = config.create_with_context(Heard::default()).map_err(other)?;
        let mut assigned = TopicPartitionList::new();
        for partition in 0..partitions {
            assigned.add_partition_offset(topic, partition as i32, Offset::Beginning).map_err(other)?;
        }
        consumer.assign(&assigned).map_err(other)?;
        let mut at_end = BTreeSet::new();
        let mut heard = Instant::now();
        while at_end.len() < partitions as usize {
            match consumer.poll(Wait::from_millis(100)) {
                Some(Ok(record)) if is_wanted(&record) => return Ok(true),
                Some(Ok(_)) => heard = Instant::now(),
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    at_end.insert(partition);
                    heard = Instant::now();
                }
                Some(Err(error)) => {
                    let failure = Failure::of_error(&format!("read topic {topic}"), &error);
                    self.retry_unless_lasting(failure, heard)?;
                }
                None if heard.elapsed() < PATIENCE => {}
                None => {
                    let reason = format!("topic {topic} does not come to its end");
                    return Err(TopicsError::Unreachable { brokers: brokers.clone(), reason });
                }
            }
        }
        Ok(false)
    }

    fn retry_unless_lasting(&self, failure: Failure, since: Instant) -> Result<(), TopicsError> {
        let brokers = self.cluster.brokers.clone();
        match failure {
            Failure::Passing(_) if since.elapsed() < PATIENCE => Ok(()),
            Failure::Passing(reason) => Err(TopicsError::Unreachable { brokers, reason }),
            Failure::NotAuthorised(reason) => Err(TopicsError::NotAuthorised { brokers, reason }),
            Failure::Lasting(reason) => Err(TopicsError::Other { brokers, reason }),
        }
    }

    fn describe(&self, topic: &str) -> Result<Option<TopicFacts>, Failure> {
        let Some(partitions) = self.partitions(topic)? else { return Ok(None) };
        let doing = format!("read the settings of topic {topic} (DescribeConfigs)");
        let options = AdminOptions::new().request_timeout(Some(REQUEST));
        let asked = [ResourceSpecifier::Topic(topic)];
        let configs = self.admin.describe_configs(&asked, &options);
        let configs = self.runtime.block_on(configs).map_err(|error| Failure::of_error(&doing, &error))?;
        let config = configs.into_iter().next();
        let config = config.ok_or_else(|| Failure::Lasting(format!("{doing}: no answer")))?;
        let config = config.map_err(|code| Failure::of(&doing, code))?;
        let setting = |name| config.get(name).and_then(|entry| entry.value.as_deref()).unwrap_or_default();
        let limit = |name| setting(name).parse::<i64>().ok().filter(|limit| (0..i64::MAX).contains(limit));
        let deleted = setting("cleanup.policy").contains("delete");
        Ok(Some(TopicFacts {
            partitions,
            compacted: setting("cleanup.policy").contains("compact"),
            retention_ms: limit("retention.ms").filter(|_| deleted).map(i64::unsigned_abs),
            retention_bytes: limit("retention.bytes").filter(|_| deleted).map(i64::unsigned_abs),
            append_time: setting("message.timestamp.type") == "LogAppendTime",
            max_ahead_ms: limit("message.timestamp.after.max.ms").map(i64::unsigned_abs),
        }))
    }

    fn create(&self, topic: &NewTopicPlan) -> Result<(), Failure> {
        let doing = format!("make topic {}", topic.name);
        // -1: as the cluster has it.
        let mut new = NewTopic::new(&topic.name, topic.partitions as i32, TopicReplication::Fixed(-1));
        for (name, value) in &topic.config {
            new = new.set(name, value);
        }
        let options = AdminOptions::new().request_timeout(Some(REQUEST)).operation_timeout(Some(REQUEST));
        let made = self.runtime.block_on(self.admin.create_topics(&[new], &options));
        match made.map_err(|error| Failure::of_error(&doing, &error))?.into_iter().next() {
            Some(Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
            Some(Err((_, code))) => Err(Failure::of(&doing, code)),
            None => Err(Failure::Lasting(format!("{doing}: no answer"))),
        }
    }
}

/// Keeps what a client says of its connections.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Option<(RDKafkaErrorCode, String)>>>);

impl Heard {
    fn last(&self) -> Option<String> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().map(|(_, reason)| reason.clone())
    }

    /// No client of these properties will ever be let in.
    fn refused(&self) -> bool {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().is_some_and(|(code, _)| *code == RDKafkaErrorCode::Authentication)
    }
}

impl ClientContext for Heard {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        super::log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        // That all brokers are down says less than why.
        if code != RDKafkaErrorCode::AllBrokersDown {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((code, reason.to_string()));
        }
    }
}

impl ConsumerContext for Heard {}
