//! From keys to a plan.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use tracing_subscriber::EnvFilter;

use super::keys::{Keys, offset, quoted};
use super::layers::Value;
use super::plan::{
    FileInput, GeneratorSource, IngestPlan, LogFormat, LogPlan, PipelineLimits, Plan, SourceKind, SourcePlan,
};
use super::tokens;
use crate::codec::{self, Compression, DecodeSettings, Format};
use crate::dataflow::rolling::Retention;
use crate::directory::Directory;
use crate::serve::{Limits, ServePlan, TlsPlan, Token};
use crate::sources::weather::WeatherKind;

/// Where something is wrong, `keys` knows of it, and the values are any.
pub fn build(keys: &mut Keys) -> (Option<Plan>, LogPlan) {
    let log = log(keys);
    let data_dir = PathBuf::from(keys.text("data_dir"));
    if data_dir.as_os_str().is_empty() && keys.is_right("data_dir") {
        keys.refuse("data_dir", "is empty: name a folder");
    }
    let workers = keys.whole("workers", 1..=256);
    let formula = keys.choice("results.formula");
    let retention = retention(keys);
    let max_ahead = keys.duration("results.max_ahead", "0s", "366d");
    let max_cities = keys.whole("results.max_cities", 1..=100_000_000);
    let decode = decode(keys);
    let ingest = ingest(keys);
    let sources = sources(keys);
    let serve = serve(keys);
    let limits = PipelineLimits {
        readings_in_flight: keys.whole("limits.readings_in_flight", 1..=1_000_000_000),
        frontier_lag: keys.duration("limits.frontier_lag", "10ms", "10m"),
        poll_records: keys.whole("limits.poll_records", 1..=1_000_000),
    };
    let plan = formula.zip(decode).map(|(formula, decode)| Plan {
        data_dir,
        workers,
        formula,
        retention,
        max_ahead,
        max_cities,
        decode,
        ingest,
        sources,
        sink: None,
        serve,
        limits,
    });
    (plan, log)
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

fn decode(keys: &mut Keys) -> Option<DecodeSettings> {
    let units = keys.choice("decode.units");
    let moisture = keys.choice("decode.moisture");
    let assume_offset = match keys.optional("decode.assume_offset").map(|text| offset(&text)).transpose() {
        Ok(offset) => offset,
        Err(problem) => {
            keys.refuse("decode.assume_offset", problem);
            None
        }
    };
    Some(DecodeSettings { assume_offset, units: units?, moisture: moisture? })
}

fn ingest(keys: &mut Keys) -> Option<IngestPlan> {
    let enabled = keys.flag("ingest.enabled");
    let plan = IngestPlan {
        into: None,
        partitions: keys.whole("ingest.partitions", 1..=1024),
        queue_records: keys.whole("ingest.queue_records", 1..=10_000_000),
        queue_bytes: keys.bytes("ingest.queue_bytes", "1 MiB", "16 GiB"),
        warn_bytes: keys.bytes("ingest.warn_bytes", "1 MiB", "1 PiB"),
        retry_after: keys
            .optional("ingest.retry_after")
            .map(|_| keys.duration("ingest.retry_after", "1s", "366d")),
    };
    enabled.then_some(plan)
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

fn limits(keys: &mut Keys) -> Limits {
    let limits = Limits {
        connections: keys.whole("serve.limits.connections", 1..=1_000_000),
        header_time: keys.wait("serve.limits.header_time", "100ms", "10m"),
        body_time: keys.wait("serve.limits.body_time", "100ms", "1h"),
        idle_time: keys.wait("serve.limits.idle_time", "100ms", "1h"),
        body_bytes: keys.bytes("serve.limits.body_bytes", "1 KiB", "1 GiB"),
        bodies_bytes: keys.bytes("serve.limits.bodies_bytes", "1 KiB", "64 GiB"),
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

/// Positions and dead letters of posted readings have this name.
const JOURNAL: &str = "journal";

const MAX_SOURCES: usize = 1_000;

fn sources(keys: &mut Keys) -> Vec<SourcePlan> {
    let names = keys.tables("sources");
    if names.len() > MAX_SOURCES {
        keys.refuse("sources", format!("has {} sources: {MAX_SOURCES} are the most", names.len()));
        return Vec::new();
    }
    let mut plans = Vec::new();
    for name in names {
        let at = format!("sources.{name}");
        let bare = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b);
        if !(1..=32).contains(&name.len()) || !name.bytes().all(bare) {
            keys.refuse(&at, "is not a name for a source: 1 to 32 of a-z, 0-9, _ and -");
            continue;
        }
        if name == JOURNAL {
            keys.refuse(&at, "has the name of the journal of posted readings: give it another");
            continue;
        }
        let kind = match keys.one_of(&format!("{at}.kind"), &["generator", "file"]).as_deref() {
            Some("generator") => Some(SourceKind::Generator(generator(keys, &at))),
            Some(_) => file(keys, &at).map(SourceKind::File),
            None => None,
        };
        plans.extend(kind.map(|kind| SourcePlan { name, kind }));
    }
    plans
}

fn generator(keys: &mut Keys, at: &str) -> GeneratorSource {
    let key = |name: &str| format!("{at}.{name}");
    for name in ["late", "corrections", "withdrawals", "duplicates", "invalid"] {
        keys.default(&key(name), Value::Decimal(0.0));
    }
    for (name, value) in
        [("interval", "1m"), ("history", "1d"), ("history_interval", ""), ("weather", "plausible")]
    {
        keys.default(&key(name), Value::Text(value.into()));
    }
    keys.default(&key("seed"), Value::Number(1));
    let names = WeatherKind::ALL.map(WeatherKind::name);
    let weather = keys.one_of(&key("weather"), &names).and_then(|name| name.parse().ok());
    let interval = keys.duration(&key("interval"), "1ms", "1d");
    let past = key("history_interval");
    let history_interval =
        if keys.optional(&past).is_some() { keys.duration(&past, "1ms", "1d") } else { interval };
    keys.show(&past, quoted(&history_interval.to_string()));
    let source = GeneratorSource {
        cities: keys.whole(&key("cities"), 1..=100_000),
        interval,
        history: keys.duration(&key("history"), "0s", "366d"),
        history_interval,
        late: keys.share(&key("late")),
        corrections: keys.share(&key("corrections")),
        withdrawals: keys.share(&key("withdrawals")),
        duplicates: keys.share(&key("duplicates")),
        invalid: keys.share(&key("invalid")),
        weather: weather.unwrap_or(WeatherKind::Plausible),
        seed: keys.whole(&key("seed"), 0..=i64::MAX),
    };
    let most = Directory::shipped().cities().len();
    if source.weather == WeatherKind::Plausible && source.cities as usize > most {
        keys.refuse(
            &key("cities"),
            format!("plausible weather has {most} cities: ask for fewer, or for uniform weather"),
        );
    }
    source
}

fn file(keys: &mut Keys, at: &str) -> Option<FileInput> {
    let key = |name: &str| format!("{at}.{name}");
    keys.default(&key("format"), Value::Text("auto".into()));
    keys.default(&key("compression"), Value::Text("auto".into()));
    keys.default(&key("follow"), Value::Bool(false));
    let path = PathBuf::from(keys.text(&key("path")));
    let format = keys.one_of(&key("format"), &["auto", "csv", "json"]);
    let compression = keys.one_of(&key("compression"), &["auto", "none", "gzip", "zstd"]);
    let follow = keys.flag(&key("follow"));
    if !keys.is_right(&key("path")) {
        return None;
    }
    let format = match format?.as_str() {
        "csv" => Format::Csv,
        "json" => Format::Json,
        _ => match codec::detect(&path) {
            Ok((Format::Parquet, _)) => {
                keys.refuse(
                    &key("path"),
                    "is Parquet, which only `swelter batch` reads: convert it to CSV or JSON lines",
                );
                return None;
            }
            Ok((format, _)) => format,
            Err(error) => {
                keys.refuse(&key("path"), error.to_string());
                return None;
            }
        },
    };
    let compression = match compression?.as_str() {
        "none" => Compression::None,
        "gzip" => Compression::Gzip,
        "zstd" => Compression::Zstd,
        _ => codec::detect_compression(&path),
    };
    if follow && compression != Compression::None {
        keys.refuse(&key("follow"), "cannot be with a compressed file: its end is not known while it grows");
    }
    Some(FileInput { path, format, compression, follow })
}
