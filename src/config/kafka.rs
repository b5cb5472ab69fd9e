//! The keys of Kafka sources and sinks.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use super::config_reader::ConfigReader;
use super::layers::ConfigValue;
use super::plan::{ServicePlan, SourceKind};
use crate::kafka::partitioner::Partitioner;
use crate::kafka::{KafkaCluster, dead_letter_topics, properties};
use crate::model::{EventTime, Millis};
use crate::sinks::kafka::{Delivery, KafkaOutputPlan, KafkaSinkPlan, RowFormat};
use crate::sources::kafka::{KafkaSourcePlan, OffsetReset, RecordFormat, RegistryPlan};

const MAX_TOPIC_BYTES: usize = 249;

/// Shorter than the limit of a topic's name, because the names of its dead letters and progress are
/// longer.
const MAX_SOURCE_TOPIC_BYTES: usize = 240;

const TOPIC_NAME_RULE: &str = "a name of a topic: a-z, A-Z, 0-9, . _ and -";

/// Whether a topic or source may have this name.
pub fn is_topic_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=MAX_TOPIC_BYTES).contains(&name.len()) && name.bytes().all(allowed) && ![".", ".."].contains(&name)
}

/// The topics in use, by brokers: a topic that is written must have no other use.
#[derive(Default)]
pub struct TopicUses(BTreeMap<(String, String), TopicUse>);

struct TopicUse {
    key: String,
    /// The cluster, if this is a progress topic. It may be shared by uses with the same client
    /// settings.
    progress_of: Option<KafkaCluster>,
}

impl TopicUses {
    fn use_topic(&mut self, keys: &mut ConfigReader, cluster: &KafkaCluster, topic: &str, key: &str) {
        self.insert_use(keys, cluster, topic, TopicUse { key: key.to_owned(), progress_of: None });
    }

    fn use_progress_topic(
        &mut self,
        keys: &mut ConfigReader,
        cluster: &KafkaCluster,
        topic: &str,
        key: &str,
    ) {
        self.insert_use(
            keys,
            cluster,
            topic,
            TopicUse { key: key.to_owned(), progress_of: Some(cluster.clone()) },
        );
    }

    fn insert_use(
        &mut self,
        keys: &mut ConfigReader,
        cluster: &KafkaCluster,
        topic: &str,
        topic_use: TopicUse,
    ) {
        let topic_key = (cluster.brokers.clone(), topic.to_owned());
        match self.0.get(&topic_key) {
            Some(used) if used.progress_of.is_none() || used.progress_of != topic_use.progress_of => {
                keys.add_error(&topic_use.key, format!("is {topic}, as is {}: name another topic", used.key));
            }
            _ => drop(self.0.insert(topic_key, topic_use)),
        }
    }
}

pub fn read_kafka_source(
    keys: &mut ConfigReader,
    at: &str,
    lateness: Millis,
    topics: &mut TopicUses,
) -> Option<KafkaSourcePlan> {
    let key = |name: &str| format!("{at}.{name}");
    let topic = read_topic(keys, &key("topic"), MAX_SOURCE_TOPIC_BYTES);
    let topic_name = topic.as_deref().unwrap_or("topic");
    for (name, value) in [
        ("format", "json"),
        ("start", "earliest"),
        ("schema_file", ""),
        ("partitioner", "murmur2_random"),
        ("progress_topic", &format!("{topic_name}.progress")),
        ("group", &format!("swelter-{topic_name}")),
        ("retry_after", ""),
    ] {
        keys.set_default(&key(name), ConfigValue::Text(value.into()));
    }
    let cluster = read_kafka_cluster(keys, at);
    let format = read_record_format(keys, at);
    let start = keys.read_parsed(&key("start"), parse_offset_reset);
    let create_topics = read_create_topics(keys, at);
    let progress_topic = self::read_topic(keys, &key("progress_topic"), MAX_TOPIC_BYTES);
    let group = keys.read_parsed(&key("group"), parse_group);
    let partitioner = keys.read_one_of(&key("partitioner"), &Partitioner::ALL.map(Partitioner::name));
    let retry_after = read_retry_after(keys, &key("retry_after"), lateness);
    let (cluster, topic, progress_topic) = (cluster?, topic?, progress_topic?);
    topics.use_topic(keys, &cluster, &topic, &key("topic"));
    for letters in dead_letter_topics(&topic) {
        topics.use_topic(keys, &cluster, &letters, &key("topic"));
    }
    topics.use_progress_topic(keys, &cluster, &progress_topic, &key("progress_topic"));
    Some(KafkaSourcePlan {
        cluster,
        topic,
        format: format?,
        offset_reset: start?,
        create_topics,
        progress_topic,
        group: group?,
        partitioner: partitioner.and_then(|name| Partitioner::from_name(&name))?,
        retry_after,
    })
}

pub fn read_kafka_sink(keys: &mut ConfigReader, at: &str, topics: &mut TopicUses) -> Option<KafkaSinkPlan> {
    let key = |name: &str| format!("{at}.{name}");
    let topic = read_topic(keys, &key("topic"), MAX_TOPIC_BYTES);
    let progress = format!("{}-progress", topic.as_deref().unwrap_or("topic"));
    for (name, value) in [
        ("current_topic", ""),
        ("progress_topic", &progress),
        ("format", "json"),
        ("delivery", "exactly_once"),
        ("commit_interval", "100ms"),
        ("transaction_timeout", "60s"),
    ] {
        keys.set_default(&key(name), ConfigValue::Text(value.into()));
    }
    keys.set_default(&key("shards"), ConfigValue::Number(2));
    let cluster = read_kafka_cluster(keys, at);
    let current = key("current_topic");
    let current_topic =
        keys.read_optional_text(&current).and_then(|_| self::read_topic(keys, &current, MAX_TOPIC_BYTES));
    let progress_topic = self::read_topic(keys, &key("progress_topic"), MAX_TOPIC_BYTES);
    let format = read_row_format(keys, at);
    let create_topics = read_create_topics(keys, at);
    let delivery = read_delivery(keys, &key("delivery"));
    let shards = keys.read_integer(&key("shards"), 1..=64);
    let (interval, timeout) = (key("commit_interval"), key("transaction_timeout"));
    let commit_interval = keys.read_wall_duration(&interval, "1ms", "1m");
    let transaction_timeout = keys.read_wall_duration(&timeout, "1s", "15m");
    if transaction_timeout < 10 * commit_interval && keys.is_valid(&interval) && keys.is_valid(&timeout) {
        let problem =
            "is less than ten times commit_interval: raise it, or brokers would abort slow transactions";
        keys.add_error(&timeout, problem);
    }
    let (cluster, progress_topic, delivery) = (cluster?, progress_topic?, delivery?);
    let sink =
        KafkaOutputPlan { cluster, progress_topic, delivery, shards, commit_interval, transaction_timeout };
    let topic = topic?;
    topics.use_topic(keys, &sink.cluster, &topic, &key("topic"));
    if let Some(current_topic) = &current_topic {
        topics.use_topic(keys, &sink.cluster, current_topic, &current);
    }
    topics.use_progress_topic(keys, &sink.cluster, &sink.progress_topic, &key("progress_topic"));
    Some(KafkaSinkPlan { output: sink, topic, current_topic, format: format?, create_topics })
}

fn read_topic(keys: &mut ConfigReader, key: &str, most: usize) -> Option<String> {
    let problem = || format!("{TOPIC_NAME_RULE}, at most {most}");
    keys.read_parsed(key, |name| {
        Some(name.to_owned()).filter(|name| is_topic_name(name) && name.len() <= most).ok_or_else(problem)
    })
}

fn read_kafka_cluster(keys: &mut ConfigReader, at: &str) -> Option<KafkaCluster> {
    let brokers = keys.read_parsed(&format!("{at}.brokers"), parse_brokers);
    let table = format!("{at}.properties");
    if keys.is_given(&table) {
        keys.add_error(&table, "is a table: write properties = { \"security.protocol\" = \"SSL\" }");
    }
    let mut properties = BTreeMap::new();
    for written in keys.keys_under(&table) {
        let (key, name) = (format!("{table}.{written}"), written.trim_matches('"'));
        let is_secret = properties::is_secret_property(name);
        let value =
            if is_secret { keys.read_secret(&key).unwrap_or_default() } else { keys.read_scalar(&key) };
        if keys.is_valid(&key)
            && let Err(problem) = properties::check_property(name, &value)
        {
            keys.add_error(&key, problem);
        }
        properties.insert(name.to_owned(), value);
    }
    Some(KafkaCluster { brokers: brokers?, properties })
}

/// Normalizes a list of brokers for comparison: without spaces.
fn parse_brokers(text: &str) -> Result<String, String> {
    let brokers: Vec<&str> = text.split(',').map(str::trim).collect();
    let is_broker = |broker: &&str| {
        let host_and_port = broker.rsplit_once(':');
        host_and_port.is_some_and(|(host, port)| {
            let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
            !host.is_empty() && is_port && !host.contains(char::is_whitespace)
        })
    };
    let problem = "a list of brokers: write host:port, with commas between several";
    brokers.iter().all(is_broker).then(|| brokers.join(",")).ok_or_else(|| problem.into())
}

fn parse_offset_reset(text: &str) -> Result<OffsetReset, String> {
    match text {
        "earliest" => Ok(OffsetReset::Earliest),
        "latest" => Ok(OffsetReset::Latest),
        _ => match text.parse::<EventTime>() {
            Ok(time) => Ok(OffsetReset::FromTime(time)),
            Err(error) => Err(format!("earliest, latest or a time: {}", error.problem)),
        },
    }
}

fn parse_group(text: &str) -> Result<String, String> {
    let is_group = (1..=MAX_TOPIC_BYTES).contains(&text.len()) && !text.contains(char::is_control);
    is_group.then(|| text.to_owned()).ok_or_else(|| format!("a name of 1 to {MAX_TOPIC_BYTES} bytes"))
}

fn read_create_topics(keys: &mut ConfigReader, at: &str) -> Option<u32> {
    let (create, partitions) = (format!("{at}.create_topics"), format!("{at}.partitions"));
    keys.set_default(&create, ConfigValue::Bool(false));
    keys.set_default(&partitions, ConfigValue::Number(12));
    let create = keys.read_bool(&create);
    let partitions = keys.read_integer(&partitions, 1..=10_000);
    create.then_some(partitions)
}

/// The delay must be less than the lateness: after that a retried reading is too late, and only
/// becomes another dead letter.
pub(super) fn read_retry_after(keys: &mut ConfigReader, key: &str, lateness: Millis) -> Option<Millis> {
    keys.read_optional_text(key)?;
    let after = keys.read_duration(key, "1s", "366d");
    if after >= lateness && keys.is_valid(key) && keys.is_valid("results.lateness") {
        let problem = format!(
            "is not less than results.lateness, {lateness}: lower it, or retried readings would be too late"
        );
        keys.add_error(key, problem);
    }
    Some(after)
}

fn read_delivery(keys: &mut ConfigReader, key: &str) -> Option<Delivery> {
    match keys.read_one_of(key, &["exactly_once", "at_least_once"])?.as_str() {
        "exactly_once" => Some(Delivery::ExactlyOnce),
        _ => Some(Delivery::AtLeastOnce),
    }
}

fn read_record_format(keys: &mut ConfigReader, at: &str) -> Option<RecordFormat> {
    let (format, file) = (format!("{at}.format"), format!("{at}.schema_file"));
    let is_avro = read_is_avro(keys, &format, at);
    let registry = read_registry(keys, at);
    let schema_file = keys.read_optional_text(&file).map(PathBuf::from);
    if let Some(path) = schema_file.as_deref().filter(|path| !path.is_file()) {
        keys.add_error(&file, format!("{} is not a file", path.display()));
    }
    match (is_avro?, registry, schema_file) {
        (false, _, None) => Some(RecordFormat::Json),
        (false, _, Some(_)) => {
            keys.add_error(&file, "is for Avro: write format = \"avro\" as well");
            None
        }
        (true, Some(registry), None) => Some(RecordFormat::AvroRegistry(registry)),
        (true, None, Some(path)) => Some(RecordFormat::AvroFile(path)),
        (true, None, None) => {
            if keys.is_valid(&format!("{at}.schema_registry")) {
                let problem =
                    "is avro, which needs a schema: write schema_registry with a URL, or schema_file";
                keys.add_error(&format, problem);
            }
            None
        }
        (true, Some(_), Some(_)) => {
            keys.add_error(&file, "is not needed with schema_registry: leave one of them out");
            None
        }
    }
}

fn read_row_format(keys: &mut ConfigReader, at: &str) -> Option<RowFormat> {
    let is_avro = read_is_avro(keys, &format!("{at}.format"), at);
    let registry = read_registry(keys, at);
    match (is_avro?, registry) {
        (false, _) => Some(RowFormat::Json),
        (true, Some(RegistryPlan { urls, user })) => Some(RowFormat::Avro { urls, user }),
        (true, None) => Some(RowFormat::BareAvro),
    }
}

/// Without Avro, keys of a registry are refused: they would have no effect.
fn read_is_avro(keys: &mut ConfigReader, format: &str, at: &str) -> Option<bool> {
    keys.set_default(&format!("{at}.schema_registry"), ConfigValue::List(Vec::new()));
    let is_avro = keys.read_one_of(format, &["json", "avro"])? == "avro";
    let registry = format!("{at}.schema_registry");
    if !is_avro && !keys.read_list(&registry).is_empty() {
        keys.add_error(&registry, "is for Avro: write format = \"avro\" as well");
    }
    Some(is_avro)
}

/// Messages never contain a URL or a user: they may contain a password.
fn read_registry(keys: &mut ConfigReader, at: &str) -> Option<RegistryPlan> {
    let (registry, user) = (format!("{at}.schema_registry"), format!("{at}.schema_registry_user"));
    let urls = keys.read_list(&registry);
    for problem in urls.iter().filter_map(|url| registry_url_problem(url)) {
        keys.add_error(&registry, problem);
    }
    let name_and_password = keys.read_secret(&user).filter(|text| !text.is_empty());
    let split = name_and_password.as_deref().map(|text| text.split_once(':'));
    if split == Some(None) {
        keys.add_error(&user, "is not a user and a password with a colon between them");
    }
    if split.is_some() && urls.is_empty() {
        keys.add_error(&user, "is set without a registry: write schema_registry as well");
    }
    let user = split.flatten().map(|(name, password)| (name.to_owned(), password.to_owned()));
    (!urls.is_empty() && keys.is_valid(&registry)).then_some(RegistryPlan { urls, user })
}

fn registry_url_problem(url: &str) -> Option<&'static str> {
    let Some(rest) = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")) else {
        return Some("is not a URL: write it as in http://registry.example:8081");
    };
    let host = rest.split('/').next().unwrap_or_default();
    if host.contains('@') {
        return Some("holds a user: write schema_registry_user instead, which is never shown");
    }
    let is_plain = !host.is_empty() && !rest.contains(|c: char| c.is_whitespace() || "?#".contains(c));
    (!is_plain).then_some("is not a URL of a registry: write it as in http://registry.example:8081")
}

/// Warnings about passwords that are sent without encryption.
pub fn kafka_warnings(plan: &ServicePlan) -> Vec<String> {
    let (mut clusters, mut registries) = (Vec::new(), Vec::new());
    for source in &plan.sources {
        let SourceKind::Kafka(kafka) = &source.kind else { continue };
        clusters.push(&kafka.cluster);
        if let RecordFormat::AvroRegistry(RegistryPlan { urls, user: Some(_) }) = &kafka.format {
            registries.extend(urls);
        }
    }
    for sink in plan.kafka_sinks() {
        clusters.push(&sink.output.cluster);
        if let RowFormat::Avro { urls, user: Some(_) } = &sink.format {
            registries.extend(urls);
        }
    }
    let is_open = |cluster: &&&KafkaCluster| {
        let protocol = cluster.properties.get("security.protocol");
        protocol.is_some_and(|name| name.eq_ignore_ascii_case("SASL_PLAINTEXT"))
            && !cluster.brokers.split(',').all(is_loopback)
    };
    let cluster = clusters.iter().find(is_open).map(|cluster| {
        format!(
            "the password is sent to {} without encryption: write \"security.protocol\" = \"SASL_SSL\"",
            cluster.brokers
        )
    });
    let is_open = |url: &&&String| url.strip_prefix("http://").is_some_and(|host| !is_loopback(host));
    let registry = registries.iter().find(is_open);
    let registry =
        registry.map(|url| format!("the password for {url} is sent without encryption: use https"));
    cluster.into_iter().chain(registry).collect()
}

/// Whether a host, with an optional port and path, is a loopback address.
fn is_loopback(host: &str) -> bool {
    let host = host.split('/').next().unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}
