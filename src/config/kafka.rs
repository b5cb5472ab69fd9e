//! Sources and sinks that are topics of Kafka.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use super::keys::Keys;
use super::layers::Value;
use super::plan::{Plan, SourceKind};
use crate::kafka::partitioner::Partitioner;
use crate::kafka::{Cluster, letter_topics, properties};
use crate::model::{Duration, EventTime};
use crate::sinks::kafka::{Delivery, KafkaSinkPlan, OutletPlan, RowFormat};
use crate::sources::kafka::{KafkaPlan, RecordFormat, RegistryPlan, Start};

const MAX_TOPIC_BYTES: usize = 249;

/// A topic's name, which its dead letters and its progress make longer.
const MAX_SOURCE_TOPIC_BYTES: usize = 240;

const NO_TOPIC: &str = "a name of a topic: a-z, A-Z, 0-9, . _ and -";

/// Whether a topic, or a source, may be called so.
pub fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=MAX_TOPIC_BYTES).contains(&name.len()) && name.bytes().all(allowed) && ![".", ".."].contains(&name)
}

/// The topics in use, by brokers: what one writes no other may read or write.
#[derive(Default)]
pub struct Topics(BTreeMap<(String, String), Used>);

struct Used {
    key: String,
    /// Where progress is kept may be shared, by those who write as the same client.
    progress_of: Option<Cluster>,
}

impl Topics {
    fn take(&mut self, keys: &mut Keys, cluster: &Cluster, topic: &str, key: &str) {
        self.insert(keys, cluster, topic, Used { key: key.to_owned(), progress_of: None });
    }

    fn take_progress(&mut self, keys: &mut Keys, cluster: &Cluster, topic: &str, key: &str) {
        self.insert(keys, cluster, topic, Used { key: key.to_owned(), progress_of: Some(cluster.clone()) });
    }

    fn insert(&mut self, keys: &mut Keys, cluster: &Cluster, topic: &str, using: Used) {
        let place = (cluster.brokers.clone(), topic.to_owned());
        match self.0.get(&place) {
            Some(used) if used.progress_of.is_none() || used.progress_of != using.progress_of => {
                keys.refuse(&using.key, format!("is {topic}, as is {}: name another topic", used.key));
            }
            _ => drop(self.0.insert(place, using)),
        }
    }
}

pub fn source(keys: &mut Keys, at: &str, lateness: Duration, topics: &mut Topics) -> Option<KafkaPlan> {
    let key = |name: &str| format!("{at}.{name}");
    let topic = topic(keys, &key("topic"), MAX_SOURCE_TOPIC_BYTES);
    let shown = topic.as_deref().unwrap_or("topic");
    for (name, value) in [
        ("format", "json"),
        ("start", "earliest"),
        ("schema_file", ""),
        ("partitioner", "murmur2_random"),
        ("progress_topic", &format!("{shown}.progress")),
        ("group", &format!("swelter-{shown}")),
        ("retry_after", ""),
    ] {
        keys.default(&key(name), Value::Text(value.into()));
    }
    let cluster = cluster(keys, at);
    let format = record_format(keys, at);
    let start = keys.parsed(&key("start"), start);
    let create_topics = create_topics(keys, at);
    let progress_topic = self::topic(keys, &key("progress_topic"), MAX_TOPIC_BYTES);
    let group = keys.parsed(&key("group"), group);
    let partitioner = keys.one_of(&key("partitioner"), &Partitioner::ALL.map(Partitioner::name));
    let retry_after = retry_after(keys, &key("retry_after"), lateness);
    let (cluster, topic, progress_topic) = (cluster?, topic?, progress_topic?);
    topics.take(keys, &cluster, &topic, &key("topic"));
    for letters in letter_topics(&topic) {
        topics.take(keys, &cluster, &letters, &key("topic"));
    }
    topics.take_progress(keys, &cluster, &progress_topic, &key("progress_topic"));
    Some(KafkaPlan {
        cluster,
        topic,
        format: format?,
        start: start?,
        create_topics,
        progress_topic,
        group: group?,
        partitioner: partitioner.and_then(|name| Partitioner::by_name(&name))?,
        retry_after,
    })
}

pub fn sink(keys: &mut Keys, at: &str, topics: &mut Topics) -> Option<KafkaSinkPlan> {
    let key = |name: &str| format!("{at}.{name}");
    let topic = topic(keys, &key("topic"), MAX_TOPIC_BYTES);
    let progress = format!("{}-progress", topic.as_deref().unwrap_or("topic"));
    for (name, value) in [
        ("current_topic", ""),
        ("progress_topic", &progress),
        ("format", "json"),
        ("delivery", "exactly_once"),
        ("commit_interval", "100ms"),
        ("transaction_timeout", "60s"),
    ] {
        keys.default(&key(name), Value::Text(value.into()));
    }
    keys.default(&key("shards"), Value::Number(2));
    let cluster = cluster(keys, at);
    let current = key("current_topic");
    let current_topic = keys.optional(&current).and_then(|_| self::topic(keys, &current, MAX_TOPIC_BYTES));
    let progress_topic = self::topic(keys, &key("progress_topic"), MAX_TOPIC_BYTES);
    let format = row_format(keys, at);
    let create_topics = create_topics(keys, at);
    let delivery = delivery(keys, &key("delivery"));
    let shards = keys.whole(&key("shards"), 1..=64);
    let (interval, timeout) = (key("commit_interval"), key("transaction_timeout"));
    let commit_interval = keys.wait(&interval, "1ms", "1m");
    let transaction_timeout = keys.wait(&timeout, "1s", "15m");
    if transaction_timeout < 10 * commit_interval && keys.is_right(&interval) && keys.is_right(&timeout) {
        let problem =
            "is less than ten times commit_interval: transactions that are only slow would be given up";
        keys.refuse(&timeout, problem);
    }
    let (cluster, progress_topic, delivery) = (cluster?, progress_topic?, delivery?);
    let outlet =
        OutletPlan { cluster, progress_topic, delivery, shards, commit_interval, transaction_timeout };
    let topic = topic?;
    topics.take(keys, &outlet.cluster, &topic, &key("topic"));
    if let Some(current_topic) = &current_topic {
        topics.take(keys, &outlet.cluster, current_topic, &current);
    }
    topics.take_progress(keys, &outlet.cluster, &outlet.progress_topic, &key("progress_topic"));
    Some(KafkaSinkPlan { outlet, topic, current_topic, format: format?, create_topics })
}

fn topic(keys: &mut Keys, key: &str, most: usize) -> Option<String> {
    let problem = || format!("{NO_TOPIC}, at most {most}");
    keys.parsed(key, |name| {
        Some(name.to_owned()).filter(|name| is_name(name) && name.len() <= most).ok_or_else(problem)
    })
}

fn cluster(keys: &mut Keys, at: &str) -> Option<Cluster> {
    let brokers = keys.parsed(&format!("{at}.brokers"), brokers);
    let table = format!("{at}.properties");
    if keys.is_given(&table) {
        keys.refuse(&table, "is a table: write properties = { \"security.protocol\" = \"SSL\" }");
    }
    let mut properties = BTreeMap::new();
    for written in keys.under(&table) {
        let (key, name) = (format!("{table}.{written}"), written.trim_matches('"'));
        let is_secret = properties::is_secret(name);
        let value = if is_secret { keys.secret(&key).unwrap_or_default() } else { keys.scalar(&key) };
        if keys.is_right(&key)
            && let Err(problem) = properties::check(name, &value)
        {
            keys.refuse(&key, problem);
        }
        properties.insert(name.to_owned(), value);
    }
    Some(Cluster { brokers: brokers?, properties })
}

/// Brokers as they are compared: without spaces.
fn brokers(text: &str) -> Result<String, String> {
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

fn start(text: &str) -> Result<Start, String> {
    match text {
        "earliest" => Ok(Start::Earliest),
        "latest" => Ok(Start::Latest),
        _ => match text.parse::<EventTime>() {
            Ok(time) => Ok(Start::At(time)),
            Err(error) => Err(format!("earliest, latest or a time: {}", error.problem)),
        },
    }
}

fn group(text: &str) -> Result<String, String> {
    let is_group = (1..=MAX_TOPIC_BYTES).contains(&text.len()) && !text.contains(char::is_control);
    is_group.then(|| text.to_owned()).ok_or_else(|| format!("a name of 1 to {MAX_TOPIC_BYTES} bytes"))
}

fn create_topics(keys: &mut Keys, at: &str) -> Option<u32> {
    let (create, partitions) = (format!("{at}.create_topics"), format!("{at}.partitions"));
    keys.default(&create, Value::Bool(false));
    keys.default(&partitions, Value::Number(12));
    let create = keys.flag(&create);
    let partitions = keys.whole(&partitions, 1..=10_000);
    create.then_some(partitions)
}

/// Once a reading is older than the lateness, sending it again gives another dead letter and nothing else.
pub(super) fn retry_after(keys: &mut Keys, key: &str, lateness: Duration) -> Option<Duration> {
    keys.optional(key)?;
    let after = keys.duration(key, "1s", "366d");
    if after >= lateness && keys.is_right(key) && keys.is_right("results.lateness") {
        let problem =
            format!("is not less than results.lateness, {lateness}: what is sent again would be too late");
        keys.refuse(key, problem);
    }
    Some(after)
}

fn delivery(keys: &mut Keys, key: &str) -> Option<Delivery> {
    match keys.one_of(key, &["exactly_once", "at_least_once"])?.as_str() {
        "exactly_once" => Some(Delivery::ExactlyOnce),
        _ => Some(Delivery::AtLeastOnce),
    }
}

fn record_format(keys: &mut Keys, at: &str) -> Option<RecordFormat> {
    let (format, file) = (format!("{at}.format"), format!("{at}.schema_file"));
    let is_avro = is_avro(keys, &format, at);
    let registry = registry(keys, at);
    let schema_file = keys.optional(&file).map(PathBuf::from);
    if let Some(path) = schema_file.as_deref().filter(|path| !path.is_file()) {
        keys.refuse(&file, format!("{} is not a file", path.display()));
    }
    match (is_avro?, registry, schema_file) {
        (false, _, None) => Some(RecordFormat::Json),
        (false, _, Some(_)) => {
            keys.refuse(&file, "is for Avro: write format = \"avro\" as well");
            None
        }
        (true, Some(registry), None) => Some(RecordFormat::AvroRegistry(registry)),
        (true, None, Some(path)) => Some(RecordFormat::AvroFile(path)),
        (true, None, None) => {
            if keys.is_right(&format!("{at}.schema_registry")) {
                let problem =
                    "is avro, which needs schemas: write schema_registry with a URL, or schema_file";
                keys.refuse(&format, problem);
            }
            None
        }
        (true, Some(_), Some(_)) => {
            keys.refuse(&file, "is not needed with schema_registry: leave one of them out");
            None
        }
    }
}

fn row_format(keys: &mut Keys, at: &str) -> Option<RowFormat> {
    let is_avro = is_avro(keys, &format!("{at}.format"), at);
    let registry = registry(keys, at);
    match (is_avro?, registry) {
        (false, _) => Some(RowFormat::Json),
        (true, Some(RegistryPlan { urls, user })) => Some(RowFormat::Avro { urls, user }),
        (true, None) => Some(RowFormat::BareAvro),
    }
}

/// Without Avro, what is said of a registry is refused: it would do nothing.
fn is_avro(keys: &mut Keys, format: &str, at: &str) -> Option<bool> {
    keys.default(&format!("{at}.schema_registry"), Value::List(Vec::new()));
    let is_avro = keys.one_of(format, &["json", "avro"])? == "avro";
    let registry = format!("{at}.schema_registry");
    if !is_avro && !keys.list(&registry).is_empty() {
        keys.refuse(&registry, "is for Avro: write format = \"avro\" as well");
    }
    Some(is_avro)
}

/// No message holds a URL or a user: there may be a password in it.
fn registry(keys: &mut Keys, at: &str) -> Option<RegistryPlan> {
    let (registry, user) = (format!("{at}.schema_registry"), format!("{at}.schema_registry_user"));
    let urls = keys.list(&registry);
    for problem in urls.iter().filter_map(|url| not_a_registry(url)) {
        keys.refuse(&registry, problem);
    }
    let name_and_password = keys.secret(&user).filter(|text| !text.is_empty());
    let split = name_and_password.as_deref().map(|text| text.split_once(':'));
    if split == Some(None) {
        keys.refuse(&user, "is not a user and a password with a colon between them");
    }
    if split.is_some() && urls.is_empty() {
        keys.refuse(&user, "is of no registry: write schema_registry as well");
    }
    let user = split.flatten().map(|(name, password)| (name.to_owned(), password.to_owned()));
    (!urls.is_empty() && keys.is_right(&registry)).then_some(RegistryPlan { urls, user })
}

fn not_a_registry(url: &str) -> Option<&'static str> {
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

/// Passwords that travel where others may listen.
pub fn warnings(plan: &Plan) -> Vec<String> {
    let (mut clusters, mut registries) = (Vec::new(), Vec::new());
    for source in &plan.sources {
        let SourceKind::Kafka(kafka) = &source.kind else { continue };
        clusters.push(&kafka.cluster);
        if let RecordFormat::AvroRegistry(RegistryPlan { urls, user: Some(_) }) = &kafka.format {
            registries.extend(urls);
        }
    }
    if let Some(sink) = &plan.sink {
        clusters.push(&sink.outlet.cluster);
        if let RowFormat::Avro { urls, user: Some(_) } = &sink.format {
            registries.extend(urls);
        }
    }
    let is_open = |cluster: &&&Cluster| {
        let protocol = cluster.properties.get("security.protocol");
        protocol.is_some_and(|name| name.eq_ignore_ascii_case("SASL_PLAINTEXT"))
            && !cluster.brokers.split(',').all(is_loopback)
    };
    let cluster = clusters.iter().find(is_open).map(|cluster| {
        format!("the way to {} is not encrypted: write \"security.protocol\" = \"SASL_SSL\"", cluster.brokers)
    });
    let is_open = |url: &&&String| url.strip_prefix("http://").is_some_and(|host| !is_loopback(host));
    let registry = registries.iter().find(is_open);
    let registry =
        registry.map(|url| format!("the password for {url} is sent without encryption: use https"));
    cluster.into_iter().chain(registry).collect()
}

/// Whether a host, with what follows it, is this one.
fn is_loopback(host: &str) -> bool {
    let host = host.split('/').next().unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}
