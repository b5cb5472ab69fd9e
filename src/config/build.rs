//! Builds the validated plan from the configuration keys.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use tracing_subscriber::EnvFilter;

use super::cluster;
use super::config_reader::{ConfigReader, quoted};
use super::kafka;
use super::plan::{
    CheckpointPlan, ClusterConfig, DataDirMode, IngestPlan, LoggingFormat, LoggingPlan, PipelineLimits,
    ServicePlan, SinkKind, SourceKind, SourcePlan, StartMode,
};
use super::read_options;
use super::sinks;
use super::sources;
use super::tokens;
use crate::checkpoint::{self, CheckpointLocation};
use crate::dataflow::rolling::Retention;
use crate::directory::{Directory, PlacesFile};
use crate::model::{Millis, OutputUnits, STATE_SHARDS};
use crate::serve::{ServeLimits, ServePlan, TlsPlan, Token};
use crate::sinks::dead_letters::{DeadLetterFullPolicy, DeadLetterLimits};
use crate::sinks::kafka::Delivery;

/// Reads all keys. If one is invalid, `keys` has the error, and the value in the plan is arbitrary.
pub fn build_plan(keys: &mut ConfigReader) -> (Option<ServicePlan>, LoggingPlan) {
    let log = read_log_plan(keys);
    let data_dir = PathBuf::from(keys.read_text("data_dir"));
    if data_dir.as_os_str().is_empty() && keys.is_valid("data_dir") {
        keys.add_error("data_dir", "is empty: name a folder");
    }
    let data_dir_mode = match keys.read_one_of("data_dir_mode", &["private", "group"]).as_deref() {
        Some("group") => DataDirMode::Group,
        _ => DataDirMode::Private,
    };
    let directory = read_directory(keys);
    let workers: usize = keys.read_integer("workers", 1..=i64::from(STATE_SHARDS));
    let formula = keys.read_choice("results.formula");
    let retention = read_retention(keys);
    let max_ahead = keys.read_duration("results.max_ahead", "0s", "366d");
    let max_cities = keys.read_integer("results.max_cities", 1..=100_000_000);
    let stale_after = keys.read_duration("results.stale_after", "1s", "36525d");
    let output_units = OutputUnits {
        temperature: keys.read_choice("results.units").unwrap_or_default(),
        wind: keys.read_choice("results.wind_units").unwrap_or_default(),
    };
    let decode = read_options::read_decode_settings(keys);
    let common = decode.unwrap_or_default();
    let mut sources = sources::read_sources(keys, common, retention.lateness);
    let sinks = sinks::read_sinks(keys, &mut sources.topic_uses, retention);
    let ingest = read_ingest(keys, &sources.plans, retention.lateness);
    let checkpoints = read_checkpoints(keys, &data_dir);
    let dead_letters = read_dead_letter_limits(keys);
    let serve = read_serve(keys);
    let cluster = cluster::read_cluster(keys);
    let is_fenced = sinks.iter().all(|sink| match &sink.kind {
        SinkKind::Kafka(kafka) => kafka.output.delivery == Delivery::ExactlyOnce,
        SinkKind::Folder(_) | SinkKind::Postgres(_) => true,
    });
    if cluster.processes > 1 && ingest.as_ref().is_some_and(|ingest| ingest.source.is_none()) {
        check_forwarded_bodies(keys, &serve.limits);
    }
    check_cluster(keys, &cluster, workers, is_fenced);
    let limits = PipelineLimits {
        readings_in_flight: keys.read_integer("limits.readings_in_flight", 1..=1_000_000_000),
        frontier_lag: keys.read_duration("limits.frontier_lag", "10ms", "10m"),
        poll_records: keys.read_integer("limits.poll_records", 1..=1_000_000),
    };
    let plan = formula.zip(decode).map(|(formula, decode)| ServicePlan {
        data_dir,
        data_dir_mode,
        directory,
        workers,
        formula,
        retention,
        max_ahead,
        max_cities,
        stale_after,
        output_units,
        decode,
        checkpoints,
        ingest,
        sources: sources.plans,
        sinks,
        dead_letters,
        serve,
        cluster,
        limits,
        adopt_logs: false,
        common_settings: BTreeMap::new(),
    });
    if let Some(plan) = &plan {
        sources::check_generated_readings(keys, plan);
    }
    (plan, log)
}

/// Bodies that a process forwards to process 0 must fit into one message.
fn check_forwarded_bodies(keys: &mut ConfigReader, limits: &ServeLimits) {
    if limits.body_bytes > MAX_FORWARDED_BYTES {
        let problem = format!(
            "is more than {} MiB, the greatest body that a process of a cluster can forward to process 0: lower it",
            MAX_FORWARDED_BYTES >> 20
        );
        keys.add_error("serve.limits.body_bytes", problem);
    }
}

/// `is_fenced` means that a takeover can stop the previous generation from writing.
fn check_cluster(keys: &mut ConfigReader, cluster: &ClusterConfig, workers: usize, is_fenced: bool) {
    if cluster.start_mode != StartMode::Claim && !is_fenced {
        let problem = "needs a sink with delivery = \"exactly_once\": otherwise the earlier generation could not be stopped from writing";
        keys.add_error("cluster.start", problem);
    }
    if workers * cluster.processes > STATE_SHARDS as usize && keys.is_valid("workers") {
        let problem = format!(
            "{workers} in each of {} processes are more than {STATE_SHARDS} in all, the greatest number: set fewer",
            cluster.processes
        );
        keys.add_error("workers", problem);
    }
}

/// Reads the shipped directory, with the entries of the places file if there is one.
fn read_directory(keys: &mut ConfigReader) -> &'static Directory<'static> {
    let key = "places";
    let Some(path) = keys.read_optional_text(key) else { return Directory::shipped() };
    let text = std::fs::read(&path).map_err(|error| format!("{path} cannot be read: {error}"));
    let text = text.and_then(|bytes| {
        String::from_utf8(bytes).map_err(|_| format!("{path} is not UTF-8: save it as UTF-8"))
    });
    let places =
        text.and_then(|text| PlacesFile::from_csv(&text).map_err(|error| format!("{path}, {error}")));
    match places {
        Ok(places) => Directory::shipped_with(places),
        Err(problem) => {
            keys.add_error(key, problem);
            Directory::shipped()
        }
    }
}

fn read_log_plan(keys: &mut ConfigReader) -> LoggingPlan {
    let format = match keys.read_one_of("log.format", &["auto", "human", "json"]).as_deref() {
        Some("human") => LoggingFormat::Human,
        Some("json") => LoggingFormat::Json,
        _ => LoggingFormat::Auto,
    };
    let filter = keys.read_text("log.level");
    if let Err(error) = EnvFilter::builder().parse(&filter) {
        let problem =
            format!("{filter:?} is not a log filter ({error}): write info, or info,swelter::serve=debug");
        keys.add_error("log.level", problem);
    }
    LoggingPlan { format, filter }
}

fn read_retention(keys: &mut ConfigReader) -> Retention {
    let window = keys.read_duration("results.window", "1s", "366d");
    let lateness = keys.read_duration("results.lateness", "0s", "366d");
    let key = "results.history";
    let history =
        if keys.read_optional_text(key).is_some() { keys.read_duration(key, "0s", "366d") } else { window };
    keys.set_shown(key, quoted(&history.to_string()));
    Retention { window, lateness, history }
}

fn read_checkpoints(keys: &mut ConfigReader, data_dir: &Path) -> Option<CheckpointPlan> {
    let location = match keys.read_optional_text("checkpoints.url").map(|url| url.parse()).transpose() {
        Ok(parsed) => parsed,
        Err(problem) => {
            keys.add_error("checkpoints.url", format!("is not a location for checkpoints: {problem}"));
            None
        }
    };
    let is_given = location.is_some();
    let every = keys.read_duration("checkpoints.every", "0s", "1d");
    let plan = CheckpointPlan {
        location: location
            .unwrap_or_else(|| CheckpointLocation::Folder(data_dir.join(checkpoint::DEFAULT_FOLDER))),
        is_configured: is_given,
        interval: every,
        keep_full: keys.read_integer("checkpoints.keep", 1..=1000),
        verify_interval: keys.read_duration("checkpoints.verify_every", "1s", "30d"),
    };
    (every > Millis::default()).then_some(plan)
}

fn read_dead_letter_limits(keys: &mut ConfigReader) -> DeadLetterLimits {
    let (file, limit) = ("dead_letters.file_bytes", "dead_letters.limit_bytes");
    let limits = DeadLetterLimits {
        file_bytes: keys.read_bytes(file, "64 KiB", "1 GiB"),
        limit_bytes: keys.read_bytes(limit, "256 KiB", "1 PiB"),
        when_full: match keys.read_one_of("dead_letters.full", &["wait", "drop_oldest"]).as_deref() {
            Some("drop_oldest") => DeadLetterFullPolicy::DropOldest,
            _ => DeadLetterFullPolicy::Wait,
        },
        client_bytes: keys.read_bytes("dead_letters.client_bytes", "64 KiB", "1 PiB"),
    };
    if limits.limit_bytes < 4 * limits.file_bytes && keys.is_valid(file) && keys.is_valid(limit) {
        keys.add_error(
            limit,
            format!("is less than 4 times {file}: raise it, because only whole files are removed"),
        );
    }
    limits
}

fn read_ingest(keys: &mut ConfigReader, sources: &[SourcePlan], lateness: Millis) -> Option<IngestPlan> {
    let enabled = keys.read_bool("ingest.enabled");
    let plan = IngestPlan {
        source: read_ingest_into(keys, sources),
        partitions: keys.read_integer("ingest.partitions", 1..=1024),
        queue_records: keys.read_integer("ingest.queue_records", 1..=10_000_000),
        queue_bytes: keys.read_bytes("ingest.queue_bytes", "1 MiB", "16 GiB"),
        warn_bytes: keys.read_bytes("ingest.warn_bytes", "1 MiB", "1 PiB"),
        retry_after: kafka::read_retry_after(keys, "ingest.retry_after", lateness),
    };
    enabled.then_some(plan)
}

fn read_ingest_into(keys: &mut ConfigReader, sources: &[SourcePlan]) -> Option<String> {
    let key = "ingest.into";
    let source_name = keys.read_optional_text(key);
    let topics = sources.iter().filter(|source| matches!(source.kind, SourceKind::Kafka(_)));
    let mut names = topics.map(|source| source.name.clone());
    let Some(source_name) = source_name else { return names.next() };
    let all_are_known = keys.list_items("sources").len() == sources.len();
    if all_are_known && !names.any(|name| name == source_name) {
        let problem = format!(
            "{source_name:?} is not the name of a Kafka source: name one, or leave it empty for the first one"
        );
        keys.add_error(key, problem);
    }
    Some(source_name)
}

fn read_serve(keys: &mut ConfigReader) -> ServePlan {
    let listen = keys.read_address("serve.listen");
    let origins = keys.read_list("serve.origins");
    for origin in origins.iter().filter(|origin| !is_origin(origin)) {
        let problem =
            format!("{origin:?} is not an origin: write it as in https://example.org, without a path");
        keys.add_error("serve.origins", problem);
    }
    ServePlan {
        listen: listen.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
        tls: read_serve_tls(keys),
        tokens: read_tokens(keys),
        origins,
        echo: keys.read_bool("serve.echo"),
        limits: read_serve_limits(keys),
    }
}

/// Whether the text is an origin as browsers send it: scheme, host, and a port if it is not the
/// scheme's default.
fn is_origin(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.:[]".contains(&b);
    host.is_some_and(|host| !host.is_empty() && host.bytes().all(allowed))
}

fn read_serve_tls(keys: &mut ConfigReader) -> Option<TlsPlan> {
    let [certificate, key] = ["serve.tls.certificate", "serve.tls.key"].map(|name| {
        let path = keys.read_optional_text(name).map(PathBuf::from);
        if let Some(path) = path.as_deref().filter(|path| !path.is_file()) {
            keys.add_error(name, format!("{} is not a file", path.display()));
        }
        path
    });
    match (certificate, key) {
        (Some(certificate), Some(key)) => Some(TlsPlan { certificate, key }),
        (None, None) => None,
        (Some(_), None) => {
            keys.add_error("serve.tls.key", "is empty, but a certificate is set: name its key file too");
            None
        }
        (None, Some(_)) => {
            keys.add_error(
                "serve.tls.certificate",
                "is empty, but a key is set: name its certificate file too",
            );
            None
        }
    }
}

fn read_tokens(keys: &mut ConfigReader) -> Vec<Token> {
    let file =
        keys.read_optional_text("serve.tokens_file").map(|path| tokens::tokens_from_file(Path::new(&path)));
    let variable = keys.take_tokens().map(|text| tokens::tokens_from_variable(&text));
    let origins: Vec<&str> =
        [file.is_some().then_some("serve.tokens_file"), variable.is_some().then_some("SWELTER_TOKENS")]
            .into_iter()
            .flatten()
            .collect();
    let mut all: Vec<Token> = Vec::new();
    for (key, tokens) in [("serve.tokens_file", file), ("SWELTER_TOKENS", variable)] {
        match tokens.unwrap_or_else(|| Ok(Vec::new())) {
            Ok(tokens) if tokens.iter().any(|token| all.iter().any(|other| other.secret == token.secret)) => {
                keys.add_error(key, "holds a token that serve.tokens_file has as well: list it once");
            }
            Ok(tokens) if tokens.is_empty() && origins.contains(&key) => {
                keys.add_error(key, "holds no token, and without tokens everybody may do everything: add one, or remove the setting");
            }
            Ok(tokens) => all.extend(tokens),
            Err(problems) => problems.into_iter().for_each(|problem| keys.add_error(key, problem)),
        }
    }
    all
}

/// Less than half of the maximum frame between processes: the rest is for the metadata of each
/// record.
const MAX_FORWARDED_BYTES: usize = 60 << 20;

fn read_serve_limits(keys: &mut ConfigReader) -> ServeLimits {
    let limits = ServeLimits {
        connections: keys.read_integer("serve.limits.connections", 1..=1_000_000),
        header_time: keys.read_wall_duration("serve.limits.header_time", "100ms", "10m"),
        body_time: keys.read_wall_duration("serve.limits.body_time", "100ms", "1h"),
        idle_time: keys.read_wall_duration("serve.limits.idle_time", "100ms", "1h"),
        body_bytes: keys.read_bytes("serve.limits.body_bytes", "1 KiB", "1 GiB"),
        bodies_bytes: keys.read_bytes("serve.limits.bodies_bytes", "1 KiB", "64 GiB"),
        new_cities_percent: keys.read_integer("serve.limits.new_cities_percent", 0..=100),
        history_rows: keys.read_integer("serve.limits.history_rows", 1..=1_000_000),
        message_bytes: keys.read_bytes("serve.limits.message_bytes", "1 KiB", "16 MiB"),
        messages_per_second: keys.read_integer("serve.limits.messages_per_second", 1..=1_000_000),
        subscriptions: keys.read_integer("serve.limits.subscriptions", 1..=10_000),
        cities: keys.read_integer("serve.limits.cities", 1..=1_000_000),
        window_cities: keys.read_integer("serve.limits.window_cities", 1..=10_000),
        heartbeat: keys.read_wall_duration("serve.limits.heartbeat", "100ms", "5m"),
        send_time: keys.read_wall_duration("serve.limits.send_time", "100ms", "10m"),
        backlog_bytes: keys.read_bytes("serve.limits.backlog_bytes", "4 KiB", "1 GiB"),
        ring_time: keys.read_wall_duration("serve.limits.ring_time", "0s", "1d"),
        ring_bytes: keys.read_bytes("serve.limits.ring_bytes", "64 KiB", "64 GiB"),
    };
    let (body, bodies) = ("serve.limits.body_bytes", "serve.limits.bodies_bytes");
    if limits.bodies_bytes < limits.body_bytes && keys.is_valid(body) && keys.is_valid(bodies) {
        keys.add_error(
            bodies,
            format!("is less than {body}: raise it, or no body of that size would ever be accepted"),
        );
    }
    let (cities, window) = ("serve.limits.cities", "serve.limits.window_cities");
    if limits.window_cities > limits.cities && keys.is_valid(cities) && keys.is_valid(window) {
        keys.add_error(window, format!("is more than {cities}, the limit of all subscriptions: lower it"));
    }
    limits
}
