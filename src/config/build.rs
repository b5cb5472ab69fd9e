//! From keys to a plan.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use tracing_subscriber::EnvFilter;

use super::keys::{Keys, quoted};
use super::plan::{
    CheckpointPlan, DataDirMode, IngestPlan, LogFormat, LogPlan, PipelineLimits, Plan, SourceKind,
    SourcePlan, StartKind,
};
use super::{cluster, kafka, read_options, sources, tokens};
use crate::checkpoint::{self, Place};
use crate::dataflow::rolling::Retention;
use crate::directory::{Directory, Places};
use crate::model::{Duration, OutputUnits, STATE_SHARDS};
use crate::serve::{Limits, ServePlan, TlsPlan, Token};
use crate::sinks::dead_letters::{DeadLetterLimits, WhenFull};
use crate::sinks::kafka::Delivery;

/// Where something is wrong, `keys` knows of it, and the values are any.
pub fn build(keys: &mut Keys) -> (Option<Plan>, LogPlan) {
    let log = log(keys);
    let data_dir = PathBuf::from(keys.text("data_dir"));
    if data_dir.as_os_str().is_empty() && keys.is_right("data_dir") {
        keys.refuse("data_dir", "is empty: name a folder");
    }
    let data_dir_mode = match keys.one_of("data_dir_mode", &["private", "group"]).as_deref() {
        Some("group") => DataDirMode::Group,
        _ => DataDirMode::Private,
    };
    let directory = directory(keys);
    let workers: usize = keys.whole("workers", 1..=i64::from(STATE_SHARDS));
    let formula = keys.choice("results.formula");
    let retention = retention(keys);
    let max_ahead = keys.duration("results.max_ahead", "0s", "366d");
    let max_cities = keys.whole("results.max_cities", 1..=100_000_000);
    let stale_after = keys.duration("results.stale_after", "1s", "36525d");
    let output_units = OutputUnits {
        temperature: keys.choice("results.units").unwrap_or_default(),
        wind: keys.choice("results.wind_units").unwrap_or_default(),
    };
    let decode = read_options::decode(keys);
    let common = decode.unwrap_or_default();
    let mut sources = sources::sources(keys, common, retention.lateness);
    let sink = sources::sink(keys, &mut sources);
    let ingest = ingest(keys, &sources.plans, retention.lateness);
    let checkpoints = checkpoints(keys, &data_dir);
    let dead_letters = dead_letters(keys);
    let serve = serve(keys);
    let cluster = cluster::cluster(keys);
    let forwards = cluster.processes > 1 && ingest.as_ref().is_some_and(|ingest| ingest.into.is_none());
    if forwards && serve.limits.body_bytes > MAX_FORWARDED {
        let problem = format!(
            "is more than {} MiB, the most that a process of a cluster forwards to process 0 at once: lower it",
            MAX_FORWARDED >> 20
        );
        keys.refuse("serve.limits.body_bytes", problem);
    }
    let is_fenced = sink.as_ref().is_none_or(|sink| sink.outlet.delivery == Delivery::ExactlyOnce);
    if cluster.start != StartKind::Claim && !is_fenced {
        let problem = "needs a sink with delivery = \"exactly_once\": nothing would keep the generation that is taken over from writing on";
        keys.refuse("cluster.start", problem);
    }
    if workers * cluster.processes > STATE_SHARDS as usize && keys.is_right("workers") {
        let problem = format!(
            "{workers} in each of {} processes are more than {STATE_SHARDS} in all, over which cities are spread: take fewer",
            cluster.processes
        );
        keys.refuse("workers", problem);
    }
    let limits = PipelineLimits {
        readings_in_flight: keys.whole("limits.readings_in_flight", 1..=1_000_000_000),
        frontier_lag: keys.duration("limits.frontier_lag", "10ms", "10m"),
        poll_records: keys.whole("limits.poll_records", 1..=1_000_000),
    };
    let plan = formula.zip(decode).map(|(formula, decode)| Plan {
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
        sink,
        dead_letters,
        serve,
        cluster,
        limits,
        adopt_logs: false,
        agreement: BTreeMap::new(),
    });
    if let Some(plan) = &plan {
        sources::check_made_up(keys, plan);
    }
    (plan, log)
}

/// The shipped directory, with the places of a file where one is named.
fn directory(keys: &mut Keys) -> &'static Directory<'static> {
    let key = "places";
    let Some(path) = keys.optional(key) else { return Directory::shipped() };
    let text = std::fs::read(&path).map_err(|error| format!("{path} cannot be read: {error}"));
    let text = text.and_then(|bytes| {
        String::from_utf8(bytes).map_err(|_| format!("{path} is not UTF-8: save it as UTF-8"))
    });
    let places = text.and_then(|text| Places::from_csv(&text).map_err(|error| format!("{path}, {error}")));
    match places {
        Ok(places) => Directory::shipped_with(places),
        Err(problem) => {
            keys.refuse(key, problem);
            Directory::shipped()
        }
    }
}

fn log(keys: &mut Keys) -> LogPlan {
    let format = match keys.one_of("log.format", &["auto", "human", "json"]).as_deref() {
        Some("human") => LogFormat::Human,
        Some("json") => LogFormat::Json,
        _ => LogFormat::Auto,
    };
    let filter = keys.text("log.level");
    if let Err(error) = EnvFilter::builder().parse(&filter) {
        let problem =
            format!("{filter:?} is not a filter ({error}): write info, or info,swelter::serve=debug");
        keys.refuse("log.level", problem);
    }
    LogPlan { format, filter }
}

fn retention(keys: &mut Keys) -> Retention {
    let window = keys.duration("results.window", "1s", "366d");
    let lateness = keys.duration("results.lateness", "0s", "366d");
    let key = "results.history";
    let history = if keys.optional(key).is_some() { keys.duration(key, "0s", "366d") } else { window };
    keys.show(key, quoted(&history.to_string()));
    Retention { window, lateness, history }
}

fn checkpoints(keys: &mut Keys, data_dir: &Path) -> Option<CheckpointPlan> {
    let place = match keys.optional("checkpoints.url").map(|url| url.parse()).transpose() {
        Ok(place) => place,
        Err(problem) => {
            keys.refuse("checkpoints.url", format!("is no place for checkpoints: {problem}"));
            None
        }
    };
    let is_given = place.is_some();
    let every = keys.duration("checkpoints.every", "0s", "1d");
    let plan = CheckpointPlan {
        place: place.unwrap_or_else(|| Place::Folder(data_dir.join(checkpoint::FOLDER))),
        is_given,
        every,
        keep: keys.whole("checkpoints.keep", 1..=1000),
        verify_every: keys.duration("checkpoints.verify_every", "1s", "30d"),
    };
    (every > Duration::default()).then_some(plan)
}

fn dead_letters(keys: &mut Keys) -> DeadLetterLimits {
    let (file, limit) = ("dead_letters.file_bytes", "dead_letters.limit_bytes");
    let limits = DeadLetterLimits {
        file_bytes: keys.bytes(file, "64 KiB", "1 GiB"),
        limit_bytes: keys.bytes(limit, "256 KiB", "1 PiB"),
        full: match keys.one_of("dead_letters.full", &["wait", "drop_oldest"]).as_deref() {
            Some("drop_oldest") => WhenFull::DropOldest,
            _ => WhenFull::Wait,
        },
        client_bytes: keys.bytes("dead_letters.client_bytes", "64 KiB", "1 PiB"),
    };
    if limits.limit_bytes < 4 * limits.file_bytes && keys.is_right(file) && keys.is_right(limit) {
        keys.refuse(limit, format!("is less than 4 times {file}: whole files are kept and removed"));
    }
    limits
}

fn ingest(keys: &mut Keys, sources: &[SourcePlan], lateness: Duration) -> Option<IngestPlan> {
    let enabled = keys.flag("ingest.enabled");
    let plan = IngestPlan {
        into: ingest_into(keys, sources),
        partitions: keys.whole("ingest.partitions", 1..=1024),
        queue_records: keys.whole("ingest.queue_records", 1..=10_000_000),
        queue_bytes: keys.bytes("ingest.queue_bytes", "1 MiB", "16 GiB"),
        warn_bytes: keys.bytes("ingest.warn_bytes", "1 MiB", "1 PiB"),
        retry_after: kafka::retry_after(keys, "ingest.retry_after", lateness),
    };
    enabled.then_some(plan)
}

fn ingest_into(keys: &mut Keys, sources: &[SourcePlan]) -> Option<String> {
    let key = "ingest.into";
    let given = keys.optional(key);
    let topics = sources.iter().filter(|source| matches!(source.kind, SourceKind::Kafka(_)));
    let mut names = topics.map(|source| source.name.clone());
    let Some(given) = given else { return names.next() };
    let all_are_known = keys.items("sources").len() == sources.len();
    if all_are_known && !names.any(|name| name == given) {
        let problem = format!("{given:?} is not the name of a Kafka source: empty means the first one");
        keys.refuse(key, problem);
    }
    Some(given)
}

fn serve(keys: &mut Keys) -> ServePlan {
    let listen = keys.address("serve.listen");
    let origins = keys.list("serve.origins");
    for origin in origins.iter().filter(|origin| !is_origin(origin)) {
        let problem =
            format!("{origin:?} is not an origin: write it as in https://example.org, without a path");
        keys.refuse("serve.origins", problem);
    }
    ServePlan {
        listen: listen.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
        tls: tls(keys),
        tokens: all_tokens(keys),
        origins,
        echo: keys.flag("serve.echo"),
        limits: limits(keys),
    }
}

/// Scheme, host, and a port where it is not the scheme's: as browsers send it.
fn is_origin(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.:[]".contains(&b);
    host.is_some_and(|host| !host.is_empty() && host.bytes().all(allowed))
}

fn tls(keys: &mut Keys) -> Option<TlsPlan> {
    let [certificate, key] = ["serve.tls.certificate", "serve.tls.key"].map(|name| {
        let path = keys.optional(name).map(PathBuf::from);
        if let Some(path) = path.as_deref().filter(|path| !path.is_file()) {
            keys.refuse(name, format!("{} is not a file", path.display()));
        }
        path
    });
    match (certificate, key) {
        (Some(certificate), Some(key)) => Some(TlsPlan { certificate, key }),
        (None, None) => None,
        (Some(_), None) => {
            keys.refuse("serve.tls.key", "is empty, but there is a certificate: name its key file too");
            None
        }
        (None, Some(_)) => {
            keys.refuse(
                "serve.tls.certificate",
                "is empty, but there is a key: name its certificate file too",
            );
            None
        }
    }
}

fn all_tokens(keys: &mut Keys) -> Vec<Token> {
    let file = keys.optional("serve.tokens_file").map(|path| tokens::from_file(Path::new(&path)));
    let variable = keys.tokens().map(|text| tokens::from_variable(&text));
    let given: Vec<&str> =
        [file.is_some().then_some("serve.tokens_file"), variable.is_some().then_some("SWELTER_TOKENS")]
            .into_iter()
            .flatten()
            .collect();
    let mut all: Vec<Token> = Vec::new();
    for (key, tokens) in [("serve.tokens_file", file), ("SWELTER_TOKENS", variable)] {
        match tokens.unwrap_or_else(|| Ok(Vec::new())) {
            Ok(tokens) if tokens.iter().any(|token| all.iter().any(|other| other.secret == token.secret)) => {
                keys.refuse(key, "holds a token that serve.tokens_file has as well: give its scopes once");
            }
            Ok(tokens) if tokens.is_empty() && given.contains(&key) => {
                keys.refuse(key, "holds no token, and without any everybody may do everything: add one, or remove the setting");
            }
            Ok(tokens) => all.extend(tokens),
            Err(problems) => problems.into_iter().for_each(|problem| keys.refuse(key, problem)),
        }
    }
    all
}

/// What a frame between processes holds, and as much again for what stands beside each record.
const MAX_FORWARDED: usize = 60 << 20;

fn limits(keys: &mut Keys) -> Limits {
    let limits = Limits {
        connections: keys.whole("serve.limits.connections", 1..=1_000_000),
        header_time: keys.wait("serve.limits.header_time", "100ms", "10m"),
        body_time: keys.wait("serve.limits.body_time", "100ms", "1h"),
        idle_time: keys.wait("serve.limits.idle_time", "100ms", "1h"),
        body_bytes: keys.bytes("serve.limits.body_bytes", "1 KiB", "1 GiB"),
        bodies_bytes: keys.bytes("serve.limits.bodies_bytes", "1 KiB", "64 GiB"),
        new_cities_percent: keys.whole("serve.limits.new_cities_percent", 0..=100),
        history_rows: keys.whole("serve.limits.history_rows", 1..=1_000_000),
        message_bytes: keys.bytes("serve.limits.message_bytes", "1 KiB", "16 MiB"),
        messages_per_second: keys.whole("serve.limits.messages_per_second", 1..=1_000_000),
        subscriptions: keys.whole("serve.limits.subscriptions", 1..=10_000),
        cities: keys.whole("serve.limits.cities", 1..=1_000_000),
        window_cities: keys.whole("serve.limits.window_cities", 1..=10_000),
        heartbeat: keys.wait("serve.limits.heartbeat", "100ms", "5m"),
        send_time: keys.wait("serve.limits.send_time", "100ms", "10m"),
        backlog_bytes: keys.bytes("serve.limits.backlog_bytes", "4 KiB", "1 GiB"),
        ring_time: keys.wait("serve.limits.ring_time", "0s", "1d"),
        ring_bytes: keys.bytes("serve.limits.ring_bytes", "64 KiB", "64 GiB"),
    };
    let (body, bodies) = ("serve.limits.body_bytes", "serve.limits.bodies_bytes");
    if limits.bodies_bytes < limits.body_bytes && keys.is_right(body) && keys.is_right(bodies) {
        keys.refuse(bodies, format!("is less than {body}: no body of that size would ever be taken"));
    }
    let (cities, window) = ("serve.limits.cities", "serve.limits.window_cities");
    if limits.window_cities > limits.cities && keys.is_right(cities) && keys.is_right(window) {
        keys.refuse(window, format!("is more than {cities}, which limits all subscriptions"));
    }
    limits
}
