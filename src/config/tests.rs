mod cluster;
mod kafka;
mod postgres;
mod read_options;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::layers::ConfigLayers;
use super::service_config::SHIPPED_DEFAULTS;
use super::*;
use crate::codec::{Compression, Format, InputTemperatureUnit, Moisture};
use crate::dataflow::heat_index::Formula;
use crate::model::{LocalTimePolicy, Millis, OutputUnits};
use crate::serve::ServeLimits;

/// A folder with a file `swelter.toml`.
struct Written(tempfile::TempDir);

impl Written {
    fn new(text: &str) -> Written {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("swelter.toml"), text).unwrap();
        Written(folder)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("swelter.toml")
    }

    fn layers(&self) -> ConfigLayers {
        ConfigLayers { file: Some(self.path()), ..ConfigLayers::default() }
    }

    fn load(&self) -> Result<Config, ConfigErrors> {
        Config::load(&self.layers())
    }
}

fn variables(variables: &[(&str, &str)]) -> ConfigLayers {
    let environment = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    ConfigLayers { environment: environment.collect(), ..ConfigLayers::default() }
}

/// The errors as lines, without the folder.
fn lines(errors: &ConfigErrors, written: &Written) -> Vec<String> {
    let folder = format!("{}/", written.0.path().display());
    errors.0.iter().map(|error| error.to_string().replace(&folder, "")).collect()
}

fn duration(text: &str) -> Millis {
    text.parse().unwrap()
}

#[test]
fn shipped_defaults_match_documentation() {
    let config = Config::load(&ConfigLayers::default()).unwrap();
    let plan = &config.plan;
    assert_eq!((plan.data_dir.as_path(), plan.workers), (Path::new("swelter-data"), 1));
    assert_eq!((plan.formula, plan.max_ahead, plan.max_cities), (Formula::Nws, duration("10m"), 65_536));
    let retention = plan.retention;
    assert_eq!(
        [retention.window, retention.lateness, retention.history],
        [Millis::DAY, Millis::DAY, Millis::DAY]
    );
    let decode = plan.decode;
    assert_eq!(
        (decode.temperature_unit, decode.moisture),
        (InputTemperatureUnit::Fahrenheit, Moisture::Humidity)
    );
    assert!(decode.local_time == LocalTimePolicy::Refuse && plan.sources.is_empty());
    assert_eq!(plan.stale_after, duration("3h"));
    assert_eq!(plan.output_units, OutputUnits::STORED);
    assert_eq!(plan.ingest.as_ref().unwrap().partitions, 16);
    let serve = &plan.serve;
    assert_eq!(serve.listen.to_string(), "127.0.0.1:8080");
    assert!(serve.tls.is_none() && serve.tokens.is_empty() && serve.origins.is_empty() && !serve.echo);
    let limits = ServeLimits {
        connections: 20_000,
        header_time: Duration::from_secs(10),
        body_time: Duration::from_secs(60),
        idle_time: Duration::from_secs(60),
        body_bytes: 8 << 20,
        bodies_bytes: 256 << 20,
        new_cities_percent: 50,
        history_rows: 10_000,
        message_bytes: 256 << 10,
        messages_per_second: 50,
        subscriptions: 16,
        cities: 10_000,
        window_cities: 100,
        heartbeat: Duration::from_secs(15),
        send_time: Duration::from_secs(20),
        backlog_bytes: 1 << 20,
        ring_time: Duration::from_secs(600),
        ring_bytes: 256 << 20,
    };
    assert_eq!(serve.limits, limits);
    assert_eq!(config.logging, LoggingPlan { format: LoggingFormat::Auto, filter: "info".into() });
    assert!(config.warnings().is_empty());
}

/// That code and defaults have the same keys follows from loading them: a key that no code reads is
/// refused as unknown, and one without a default is missing. This checks that each has an
/// explanation.
#[test]
fn every_shipped_key_has_explanation() {
    let explained = |lines: &[&str], i: usize| {
        let above = lines[..i].iter().rev().take_while(|line| !line.is_empty() && !line.starts_with('['));
        above.clone().any(|line| line.starts_with("# "))
    };
    let lines: Vec<&str> = SHIPPED_DEFAULTS.lines().collect();
    for (i, line) in
        lines.iter().enumerate().filter(|(_, line)| line.contains(" = ") && !line.starts_with('#'))
    {
        let table = lines[..i].iter().rposition(|line| line.starts_with('['));
        let of_table = table.is_some_and(|table| lines[table - 1].starts_with("# "));
        let is_switch = *line == "enabled = true";
        assert!(explained(&lines, i) || of_table || is_switch, "{line}");
    }
}

/// The commented-out sources and sinks of the shipped file, with their prose still commented out.
fn shown_items() -> String {
    let from = SHIPPED_DEFAULTS.find("# [[sources]]").unwrap();
    let lines =
        SHIPPED_DEFAULTS[from..].lines().map(|line| line.strip_prefix('#').unwrap().trim_start_matches(' '));
    let prose = |line: &&str| line.starts_with('#') || line.starts_with('[') || line.contains(" = ");
    lines.filter(prose).collect::<Vec<_>>().join("\n")
}

#[test]
fn example_sources_and_sinks_list_all_keys_with_defaults() {
    let shown = Written::new(&shown_items()).load().unwrap();
    let short = "[[sources]]\ntype = 'kafka'\nbrokers = '127.0.0.1:9092'\ntopic = 'readings'\n\
                 [[sources]]\ntype = 'generator'\nname = 'made-up'\ncities = 1000\n\
                 [[sources]]\ntype = 'file'\nname = 'archive'\npath = 'readings.csv'\n\
                 [[sinks]]\ntype = 'kafka'\nbrokers = '127.0.0.1:9092'\ntopic = 'heat-index'\n\
                 [[sinks]]\ntype = 'folder'\npath = 'archive'\n\
                 [[sinks]]\ntype = 'postgres'\nurl = 'postgres://swelter@127.0.0.1:5432/weather'\n";
    let written = Written::new(short).load().unwrap();
    assert_eq!(shown.plan.sources, written.plan.sources);
    assert_eq!(shown.plan.sinks, written.plan.sinks);
    let keys = |config: &Config| config.settings.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&shown), keys(&written));
    let sources = &shown.plan.sources;
    let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
    assert_eq!(names, ["readings", "made-up", "archive"]);
    let file = FileSourcePlan {
        path: "readings.csv".into(),
        format: Format::Csv,
        compression: Compression::None,
        follow: false,
    };
    assert_eq!(sources[2].kind, SourceKind::File(file));
    let SourceKind::Generator(generator) = &sources[1].kind else { panic!("{sources:?}") };
    assert_eq!((generator.cities, generator.interval, generator.seed), (1000, duration("1m"), 1));
}

#[test]
fn later_layers_override_earlier_ones() {
    let written =
        Written::new("workers = 2\ndata_dir = 'file'\nserve.listen = '127.0.0.1:1'\nresults.window = '6h'");
    let mut layers = written.layers();
    layers.environment = variables(&[
        ("SWELTER_DATA_DIR", "variable"),
        ("SWELTER_SERVE__LISTEN", "127.0.0.1:2"),
        ("SWELTER_SERVE__ORIGINS", "https://a.example, http://b.example:81"),
        ("SWELTER_SERVE__LIMITS__BODY_BYTES", "1 MiB"),
        ("SWELTER_INGEST__ENABLED", "false"),
        ("SWELTER_LOG", "debug"),
        ("SWELTER_TOKENS", "read abc"),
        ("SWELTER_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("SWELTER_SERVICE_HOST", "10.0.0.1"),
        ("SWELTER_KAFKA", "127.0.0.1:9092"),
        ("PATH", "/bin"),
    ])
    .environment;
    layers.flags.push(("serve.listen".into(), "--listen", "[::1]:3".into()));
    let config = Config::load(&layers).unwrap();
    let (plan, serve) = (&config.plan, &config.plan.serve);
    assert_eq!((plan.workers, plan.data_dir.as_path()), (2, Path::new("variable")));
    assert_eq!(serve.listen.to_string(), "[::1]:3");
    assert_eq!(serve.origins, ["https://a.example", "http://b.example:81"]);
    assert_eq!((serve.limits.body_bytes, plan.ingest.is_none()), (1 << 20, true));
    assert_eq!((config.logging.filter.as_str(), serve.tokens.len()), ("debug", 1));
    // The default is the window's length, whichever layer sets it.
    assert_eq!(plan.retention.history, duration("6h"));
}

#[test]
fn all_errors_are_reported_at_once_with_key_and_location() {
    let written = Written::new(
        "wrokers = 2\n\
         workers = 'two'\n\
         [results]\n\
         formula = \"heat\"\n\
         window = '0s'\n\
         history = 5\n\
         [serve]\n\
         listen = 'localhost'\n\
         origins = ['https://a.example/']\n\
         conections = 5\n\
         [serve.tls]\n\
         certificate = 'no-such-file.pem'\n\
         [serve.limits]\n\
         body_bytes = '1 GiB'\n\
         heartbeat = 15\n\
         [log]\n\
         level = 'a=b=c'\n\
         [empty]\n",
    );
    let mut layers = written.layers();
    layers.environment = variables(&[
        ("SWELTER_LIMITS__POLL_RECORDS", "0"),
        ("SWELTER_SERVE", "yes"),
        ("SWELTER_SERVE_LISTEN", "127.0.0.1:1"),
        ("SWELTER_TOKENS", "admin hunter2"),
    ])
    .environment;
    layers.flags.push(("data_dir".into(), "--data-dir", String::new()));
    let errors = Config::load(&layers).unwrap_err();
    let lines = lines(&errors, &written);
    let expected = [
        "wrokers (swelter.toml, line 1): is not a key: did you mean workers?",
        "workers (swelter.toml, line 2): \"two\" is not a whole number from 1 to 64",
        "results.formula (swelter.toml, line 4): \"heat\" is not rothfusz, nws or lu-romps",
        "results.window (swelter.toml, line 5): \"0s\" is not a duration from 1s to 366d",
        "results.history (swelter.toml, line 6): 5 is not a text",
        "serve.listen (swelter.toml, line 8): \"localhost\" is not an address",
        "serve.origins (swelter.toml, line 9): \"https://a.example/\" is not an origin",
        "serve.conections (swelter.toml, line 10): is not a key: did you mean serve.limits.connections?",
        "serve.tls.certificate (swelter.toml, line 12): no-such-file.pem is not a file",
        "serve.tls.key (default): is empty, but a certificate is set",
        "serve.limits.bodies_bytes (default): is less than serve.limits.body_bytes",
        "serve.limits.heartbeat (swelter.toml, line 15): 15 is not a duration from 100ms to 5m",
        "log.level (swelter.toml, line 17): \"a=b=c\" is not a log filter",
        "empty (swelter.toml, line 18): is not a key",
        "limits.poll_records (SWELTER_LIMITS__POLL_RECORDS): \"0\" is not a whole number from 1",
        "serve (SWELTER_SERVE): is a table, not a value",
        "serve_listen (SWELTER_SERVE_LISTEN): is not a key",
        "SWELTER_TOKENS: entry 1: the scopes are read, ingest",
        "data_dir (--data-dir): is empty",
    ];
    for expected in expected {
        assert!(lines.iter().any(|line| line.starts_with(expected)), "{expected}\nnot in {lines:#?}");
    }
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    assert!(!lines.concat().contains("hunter2"));
}

#[test]
fn more_workers_than_shards_are_refused() {
    let lines = |text: &str| {
        let written = Written::new(text);
        written.load().err().map_or_else(Vec::new, |errors| lines(&errors, &written))
    };
    assert!(lines("workers = 8\ncluster.processes = 8\ncluster.secret = 's3cr3t'").is_empty());
    let refused = lines("workers = 9\ncluster.processes = 8\ncluster.secret = 's3cr3t'");
    assert!(refused.len() == 1 && refused[0].contains("more than 64 in all"), "{refused:?}");
}

#[test]
fn invalid_toml_is_reported_with_line_beside_other_errors() {
    let written = Written::new("workers = 1\ndata_dir = \nworkers = 2\n[results]\nwindow = 'x'\n");
    let errors = written.load().unwrap_err();
    let lines = lines(&errors, &written);
    assert!(lines.iter().any(|line| line.starts_with("swelter.toml, line 2: is not TOML")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("swelter.toml, line 3: is not TOML")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("results.window (swelter.toml, line 5)")), "{lines:#?}");
}

#[test]
fn unreadable_config_file_is_reported() {
    let layers = ConfigLayers { file: Some("no/such/file.toml".into()), ..ConfigLayers::default() };
    let text = Config::load(&layers).unwrap_err().to_string();
    assert!(text.starts_with("--config: no/such/file.toml cannot be read"), "{text}");
}

#[test]
fn sources_are_validated_by_type() {
    let written = Written::new(
        "[[sources]]\nname = 'journal'\ntype = 'file'\npath = 'x.csv'\n\
         [[sources]]\nname = 'the weather'\ntype = 'generator'\ncities = 1\n\
         [[sources]]\nname = 'none'\n\
         [[sources]]\nname = 'pulsar'\ntype = 'pulsar'\ntopic = 'x'\n\
         [[sources]]\nname = 'made-up'\ntype = 'generator'\ncities = 40000\nlate = 1.5\nfolow = true\n\
         [[sources]]\ntype = 'file'\npath = 'x.csv.gz'\nfollow = true\n\
         [[sources]]\ntype = 'file'\npath = 'x.csv'\n\
         [[sources]]\nname = 'parquet'\ntype = 'file'\npath = 'x.parquet'\n\
         [[sources]]\nname = 'nameless'\ntype = 'file'\npath = 'x'\n\
         [[sources]]\n",
    );
    let errors = written.load().unwrap_err();
    let lines = lines(&errors, &written);
    let expected = [
        "sources.journal (swelter.toml, line 1): has the name of the journal",
        "sources.\"the weather\".name (swelter.toml, line 6): is not a name for a source",
        "sources.none.type (swelter.toml, line 9): is missing",
        "sources.pulsar.type (swelter.toml, line 13): \"pulsar\" is not kafka, generator or file",
        "sources.made-up.cities (swelter.toml, line 18): plausible weather has at most 34006 cities",
        "sources.made-up.late (swelter.toml, line 19): 1.5 is not a share from 0 to 1",
        "sources.made-up.folow (swelter.toml, line 20): is not a key",
        "sources.file.follow (swelter.toml, line 24): cannot be set for a compressed file",
        "sources.file (swelter.toml, line 25): is used twice: give one another name",
        "sources.parquet.path (swelter.toml, line 31): is Parquet",
        "sources.nameless.path (swelter.toml, line 35): \"x\" does not say its format",
        "sources.10.type (swelter.toml, line 36): is missing",
    ];
    for expected in expected {
        assert!(lines.iter().any(|line| line.starts_with(expected)), "{expected}\nnot in {lines:#?}");
    }
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
}

#[test]
fn sources_must_be_a_list() {
    for (text, problem) in [
        (
            "[sources.x]\ntype = 'file'\n",
            "sources (swelter.toml, line 1): is a list of tables: write [[sources]]",
        ),
        ("sources = 'x'\n", "sources (swelter.toml, line 1): is a list of tables: write [[sources]]"),
        (
            "sinks = [{ type = 'kafka' }, 5]\n",
            "sinks (swelter.toml, line 1): holds a value that is not a table",
        ),
    ] {
        let written = Written::new(text);
        let errors = written.load().unwrap_err();
        assert!(lines(&errors, &written)[0].starts_with(problem), "{errors}");
    }
    assert!(Written::new("sources = []\n").load().unwrap().plan.sources.is_empty());
}

#[test]
fn environment_variables_select_source_by_name() {
    let written = Written::new("[[sources]]\nname = 'Made-up.1'\ntype = 'generator'\ncities = 5\n");
    let mut layers = written.layers();
    layers.environment = variables(&[
        ("SWELTER_SOURCES__MADE_UP_1__CITIES", "7"),
        ("SWELTER_SOURCES__OTHER__TYPE", "generator"),
        ("SWELTER_SOURCES__OTHER__CITIES", "9"),
    ])
    .environment;
    let sources = Config::load(&layers).unwrap().plan.sources;
    let cities = |source: &SourcePlan| match &source.kind {
        SourceKind::Generator(generator) => (source.name.clone(), generator.cities),
        _ => panic!("{source:?}"),
    };
    let named: Vec<_> = sources.iter().map(cities).collect();
    assert_eq!(named, [("Made-up.1".to_owned(), 7), ("other".to_owned(), 9)]);
}

#[test]
fn printed_config_is_effective_config() {
    let written = Written::new(
        "data_dir = \"it's \\\"here\\\"\"\nresults.window = '90m'\nserve.origins = ['https://a.example']\n\
         [[sources]]\nname = 'x'\ntype = 'generator'\ncities = 3\nlate = 0.25\n",
    );
    let mut layers = written.layers();
    layers.environment =
        variables(&[("SWELTER_TOKENS", "read hunter2"), ("SWELTER_WORKERS", "3")]).environment;
    let config = Config::load(&layers).unwrap();
    let printed = config.to_toml();
    assert!(printed.contains("\nworkers = 3  # SWELTER_WORKERS\n"), "{printed}");
    assert!(printed.contains("\nhistory = \"90m\"\n"), "{printed}");
    assert!(!printed.contains("hunter2"), "{printed}");
    let again = Written::new(&printed).load().unwrap();
    let debug = |config: &Config| {
        let mut plan = config.plan.clone();
        plan.serve.tokens.clear();
        format!("{plan:?} {:?}", config.logging)
    };
    assert_eq!(debug(&again), debug(&config));
    let values = |config: &Config| {
        config.settings.iter().map(|(key, setting)| (key.clone(), setting.toml.clone())).collect::<Vec<_>>()
    };
    assert_eq!(values(&again), values(&config));
}

#[test]
fn listening_on_public_address_warns() {
    let warnings = |address: &str, tokens: Option<&str>| {
        let listen = Some(("SWELTER_SERVE__LISTEN", address));
        let tokens = tokens.map(|tokens| ("SWELTER_TOKENS", tokens));
        let given: Vec<_> = listen.into_iter().chain(tokens).collect();
        Config::load(&variables(&given)).unwrap().warnings().len()
    };
    assert_eq!(warnings("127.0.0.2:80", None), 0);
    assert_eq!(warnings("[::ffff:127.0.0.1]:80", None), 0);
    assert_eq!(warnings("0.0.0.0:80", None), 2);
    assert_eq!(warnings("[::]:80", Some("read,ingest abc")), 1);
}

#[test]
fn duplicate_token_in_file_and_variable_is_refused() {
    let written = Written::new("read abc\n");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(written.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let load = |variable: &str| {
        let mut layers = variables(&[("SWELTER_TOKENS", variable)]);
        let path = written.path().display().to_string();
        layers.flags.push(("serve.tokens_file".into(), "--tokens-file", path));
        Config::load(&layers)
    };
    assert_eq!(load("ingest xyz").unwrap().plan.serve.tokens.len(), 2);
    assert!(load("ingest abc").unwrap_err().to_string().starts_with("SWELTER_TOKENS: holds a token"));
}

#[test]
fn cluster_refuses_body_limit_beyond_forwarding() {
    let load = |text: &str| {
        Written::new(&format!("{text}\n[serve.limits]\nbody_bytes = \"100 MiB\"\n[cluster]\nprocesses = 2\n"))
            .load()
    };
    let errors = load("").unwrap_err().to_string();
    assert!(errors.contains("serve.limits.body_bytes") && errors.contains("60 MiB"), "{errors}");
    assert!(load("[ingest]\nenabled = false\n").is_ok());
    assert!(Written::new("[serve.limits]\nbody_bytes = \"100 MiB\"\n").load().is_ok());
}

#[test]
fn cluster_processes_agree_on_shared_keys() {
    let agreement = |text: &str| Written::new(text).load().unwrap().plan.common_settings;
    let of = agreement("");
    assert_eq!(of, agreement("[serve]\nlisten = \"127.0.0.1:1\"\n[log]\nlevel = \"debug\"\n"));
    assert_eq!(of, agreement("data_dir = \"elsewhere\"\n[cluster]\npeer_timeout = \"2s\"\n"));
    assert_ne!(of, agreement("[results]\nformula = \"lu-romps\"\n"));
    assert_ne!(of, agreement("[cluster]\nstart = \"takeover\"\n"), "it decides what they tell each other");
}

/// The result of a variable: an error, warnings, or nothing.
fn told(name: &str, value: &str) -> Result<Vec<String>, String> {
    let config = Config::load(&variables(&[(name, value)])).map_err(|errors| errors.to_string())?;
    Ok(config.warnings())
}

#[test]
fn misspelled_variable_is_error_naming_right_key() {
    for (name, meant) in [
        ("SWELTER_FORMULA", "SWELTER_RESULTS__FORMULA"),
        ("SWELTER_FORMULLA", "SWELTER_RESULTS__FORMULA"),
        ("SWELTER_LISTEN", "SWELTER_SERVE__LISTEN"),
        ("SWELTER_PORT", "SWELTER_SERVE__LISTEN"),
        ("SWELTER_WINDOW", "SWELTER_RESULTS__WINDOW"),
        ("SWELTER_RESULTS_FORMULA", "SWELTER_RESULTS__FORMULA"),
        ("SWELTER_RESULTS__FORMULLA", "SWELTER_RESULTS__FORMULA"),
        ("SWELTER_WORKRES", "SWELTER_WORKERS"),
    ] {
        let error = told(name, "8080").unwrap_err();
        assert!(error.contains(name) && error.contains(meant), "{name}: {error}");
    }
    assert!(told("SWELTER_DEAD_LETTERS_FULL", "wait").unwrap_err().contains("SWELTER_DEAD_LETTERS__FULL"));
}

#[test]
fn unknown_variable_warns_unless_of_another_program() {
    for name in ["SWELTER_COLOUR", "SWELTER_KAFKA_BROKERS", "SWELTER_HOME"] {
        let warnings = told(name, "x").unwrap();
        assert!(warnings.len() == 1 && warnings[0].contains(name), "{name}: {warnings:?}");
    }
    for (name, value) in [
        ("SWELTER_PORT", "tcp://10.0.0.1:8080"),
        ("SWELTER_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("SWELTER_API_SERVICE_HOST", "10.0.0.1"),
        ("SWELTER_SERVICE_PORT", "8080"),
        ("SWELTER_KAFKA", "127.0.0.1:9092"),
        ("SWELTER_KAFKA_LIB", "/somewhere"),
        ("SWELTER_PANIC_POINT", "decode:1"),
        ("SWELTER_TEST_DIE_BEFORE_COMMIT", "3"),
        ("SWELTERING", "x"),
        ("PATH", "/bin"),
    ] {
        assert_eq!(told(name, value), Ok(Vec::new()), "{name}");
    }
}
