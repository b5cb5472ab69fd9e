use super::*;
use crate::kafka::partitioner::Partitioner;
use crate::model::EventTime;
use crate::sinks::folder::FolderFormat;
use crate::sinks::kafka::{Delivery, KafkaSinkPlan, RowFormat};
use crate::sources::kafka::{KafkaSourcePlan, OffsetReset, RecordFormat, RegistryPlan};

/// Written as other programs write it.
const PLAIN: &str = r#"
[[sources]]
type = "kafka"
brokers = "127.0.0.1:9092"
topic = "readings"
format = "json"

[[sinks]]
type = "kafka"
brokers = "127.0.0.1:9092"
topic = "heat-index"
current_topic = "heat-index-now"
progress_topic = "heat-index-progress"
delivery = "exactly_once"
commit_interval = "100ms"
"#;

fn source(config: &Config) -> &KafkaSourcePlan {
    match &config.plan.sources[0].kind {
        SourceKind::Kafka(plan) => plan,
        other => panic!("{other:?}"),
    }
}

fn sink(config: &Config) -> &KafkaSinkPlan {
    config.plan.kafka_sinks().next().unwrap()
}

#[test]
fn minimal_source_and_sink_keys_suffice() {
    let config = Written::new(PLAIN).load().unwrap();
    assert_eq!(config.plan.sources[0].name, "readings");
    assert_eq!(config.plan.ingest.as_ref().unwrap().source.as_deref(), Some("readings"));
    let plan = source(&config);
    assert_eq!((plan.cluster.brokers.as_str(), plan.topic.as_str()), ("127.0.0.1:9092", "readings"));
    assert_eq!(
        (&plan.format, plan.offset_reset, plan.create_topics),
        (&RecordFormat::Json, OffsetReset::Earliest, None)
    );
    assert_eq!(
        (plan.progress_topic.as_str(), plan.group.as_str()),
        ("readings.progress", "swelter-readings")
    );
    assert_eq!((plan.partitioner, plan.retry_after), (Partitioner::Murmur2, None));
    let plan = sink(&config);
    assert_eq!((plan.topic.as_str(), plan.current_topic.as_deref()), ("heat-index", Some("heat-index-now")));
    assert_eq!((&plan.format, plan.create_topics), (&RowFormat::Json, None));
    let outlet = &plan.output;
    assert_eq!(outlet.cluster, source(&config).cluster);
    assert_eq!((outlet.progress_topic.as_str(), outlet.shards), ("heat-index-progress", 2));
    assert_eq!(outlet.delivery, Delivery::ExactlyOnce);
    let waits = (outlet.commit_interval, outlet.transaction_timeout);
    assert_eq!(waits, (Duration::from_millis(100), Duration::from_secs(60)));
    assert!(config.warnings().is_empty());
}

#[test]
fn every_kafka_key_is_read() {
    let written = Written::new(
        r#"
        ingest.into = "second"
        [[sources]]
        type = "kafka"
        name = "first"
        brokers = "a:1, b:2"
        topic = "Read_ings.1"
        format = "avro"
        schema_registry = ["http://a.example:8081", "https://b.example/registry"]
        schema_registry_user = "swelter:hunter2:3"
        start = "2025-06-01T02:00:00+02:00"
        create_topics = true
        partitions = 5
        partitioner = "consistent_random"
        progress_topic = "p"
        group = "g"
        retry_after = "5m"
        properties = { "security.protocol" = "SASL_PLAINTEXT", "socket.timeout.ms" = 5000 }
        [[sources]]
        type = "kafka"
        name = "second"
        brokers = "c:1"
        topic = "readings"
        start = 2025-06-01T00:00:00Z
        [sources.properties]
        security.protocol = "plaintext"
        [[sinks]]
        type = "kafka"
        brokers = "c:1"
        topic = "out"
        format = "avro"
        delivery = "at_least_once"
        commit_interval = "20ms"
        transaction_timeout = "10s"
        shards = 8
        create_topics = true
        "#,
    );
    let config = written.load().unwrap();
    assert_eq!(config.plan.ingest.as_ref().unwrap().source.as_deref(), Some("second"));
    let plan = source(&config);
    assert_eq!(plan.cluster.brokers, "a:1,b:2");
    let properties: Vec<_> = plan.cluster.properties.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(properties, [("security.protocol", "SASL_PLAINTEXT"), ("socket.timeout.ms", "5000")]);
    let RecordFormat::AvroRegistry(RegistryPlan { urls, user }) = &plan.format else { panic!("{plan:?}") };
    assert_eq!(urls.as_slice(), ["http://a.example:8081", "https://b.example/registry"]);
    assert_eq!(user.as_ref().unwrap(), &("swelter".to_owned(), "hunter2:3".to_owned()));
    let time = "2025-06-01T00:00:00Z".parse::<EventTime>().unwrap();
    assert_eq!((plan.offset_reset, plan.create_topics), (OffsetReset::FromTime(time), Some(5)));
    assert_eq!((plan.partitioner, plan.retry_after), (Partitioner::Consistent, Some(duration("5m"))));
    let SourceKind::Kafka(second) = &config.plan.sources[1].kind else { panic!("{:?}", config.plan) };
    assert_eq!(
        (second.offset_reset, second.cluster.properties["security.protocol"].as_str()),
        (plan.offset_reset, "plaintext")
    );
    let plan = sink(&config);
    assert_eq!((&plan.format, plan.create_topics, plan.output.shards), (&RowFormat::BareAvro, Some(12), 8));
    assert_eq!((plan.output.delivery, plan.current_topic.as_ref()), (Delivery::AtLeastOnce, None));
    assert!(!format!("{:?}", config.plan).contains("hunter2"));
}

/// Only transactions can fence the generation that is taken over.
#[test]
fn standby_and_takeover_need_exactly_once() {
    let start = |start: &str, delivery: &str| {
        let written = PLAIN.replace("exactly_once", delivery);
        Written::new(&format!("cluster.start = '{start}'\n{written}")).load()
    };
    assert!(start("claim", "at_least_once").is_ok());
    for kind in ["takeover", "standby"] {
        assert!(start(kind, "exactly_once").is_ok());
        let refused = start(kind, "at_least_once").err().unwrap().to_string();
        assert!(refused.contains("cluster.start") && refused.contains("exactly_once"), "{refused}");
    }
    let short = Written::new(&format!("cluster.standby_after = '2s'\n{PLAIN}")).load().err().unwrap();
    assert!(short.to_string().contains("standby_after"), "{short}");
}

#[test]
fn errors_name_their_key() {
    let written = Written::new(
        "results.lateness = '1h'\n\
         ingest.into = 'nobody'\n\
         [[sources]]\ntype = 'kafka'\ntopic = 'no topic'\nbrokers = 'localhost'\nstart = 'now'\n\
         [[sources]]\ntype = 'kafka'\nbrokers = 'a:1'\n\
         [[sources]]\ntype = 'kafka'\nbrokers = 'a:1'\ntopic = 'journal'\n\
         [[sources]]\ntype = 'kafka'\nbrokers = 'a:1'\ntopic = 'one'\nretry_after = '1h'\npartitoner = 'x'\n\
         [[sources]]\ntype = 'kafka'\nname = 'again'\nbrokers = 'a:1'\ntopic = 'one'\n\
         [sources.properties]\nenable.auto.commit = true\n'sasl.passwort' = 'hunter2'\n'sasl.mechanism' = ['x']\n\
         [[sinks]]\ntype = 'kafka'\nbrokers = 'a:1'\ntopic = 'one.failed.1'\ncommit_interval = '10s'\nshards = 65\n\
         [[sinks]]\ntype = 'kafka'\ntopic = 'x'\n",
    );
    let errors = written.load().unwrap_err();
    let lines = lines(&errors, &written);
    let expected = [
        "sources.\"no topic\".topic (swelter.toml, line 5): \"no topic\" is not a name of a topic",
        "sources.\"no topic\".brokers (swelter.toml, line 6): \"localhost\" is not a list of brokers",
        "sources.\"no topic\".start (swelter.toml, line 7): \"now\" is not earliest, latest or a time: it does not",
        "sources.kafka.topic (swelter.toml, line 8): is missing",
        "sources.journal (swelter.toml, line 11): has the name of the journal",
        "sources.one.retry_after (swelter.toml, line 19): is not less than results.lateness, 1h",
        "sources.one.partitoner (swelter.toml, line 20): is not a key: did you mean sources.one.partitioner?",
        "sources.again.topic (swelter.toml, line 25): is one, as is sources.one.topic",
        "sources.again.topic (swelter.toml, line 25): is one.failed.1, as is sources.one.topic",
        "sources.again.topic (swelter.toml, line 25): is one.failed.2, as is sources.one.topic",
        "sources.again.progress_topic (default): is one.progress, as is sources.one.progress_topic",
        "sources.again.properties.\"enable.auto.commit\" (swelter.toml, line 27): is set by swelter itself",
        "sources.again.properties.\"sasl.passwort\" (swelter.toml, line 28): is refused by librdkafka: No such",
        "sources.again.properties.\"sasl.mechanism\" (swelter.toml, line 29): a list is not a text, a number",
        "sinks.kafka.shards (swelter.toml, line 35): 65 is not a whole number from 1 to 64",
        "sinks.kafka.transaction_timeout (default): is less than ten times commit_interval",
        "sinks.kafka.topic (swelter.toml, line 33): is one.failed.1, as is sources.one.topic",
        "sinks.kafka (swelter.toml, line 36): is used twice: give one another name",
    ];
    for expected in expected {
        assert!(lines.iter().any(|line| line.starts_with(expected)), "{expected}\nnot in {lines:#?}");
    }
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    assert!(!lines.concat().contains("hunter2"), "{lines:#?}");
}

#[test]
fn avro_needs_exactly_one_schema_source() {
    let load = |rest: &str| {
        let head = "[[sources]]\ntype = 'kafka'\nbrokers = 'a:1'\ntopic = 't'\n";
        Written::new(&format!("{head}{rest}")).load()
    };
    for (rest, key, problem) in [
        ("format = 'avro'\n".to_owned(), "format", "is avro, which needs a schema"),
        ("schema_registry = 'http://a'\n".to_owned(), "schema_registry", "is for Avro"),
        (
            "format = 'avro'\nschema_file = 'no-such.avsc'\n".to_owned(),
            "schema_file",
            "no-such.avsc is not a file",
        ),
        (
            "format = 'avro'\nschema_registry_user = 'hunter2'\n".to_owned(),
            "schema_registry_user",
            "is not a user",
        ),
        (
            "format = 'avro'\nschema_registry = 'http://u:hunter2@a'\n".to_owned(),
            "schema_registry",
            "holds a user",
        ),
        ("format = 'avro'\nschema_registry = 'a:8081'\n".to_owned(), "schema_registry", "is not a URL"),
    ] {
        let errors = load(&rest).unwrap_err();
        let is_it = |error: &ConfigError| {
            error.key.as_deref() == Some(&format!("sources.t.{key}")) && error.problem.starts_with(problem)
        };
        assert!(errors.0.iter().any(is_it), "{rest}: {errors}");
        assert!(!errors.to_string().contains("hunter2"), "{errors}");
    }
    let schema = Written::new("{}");
    let file = format!("schema_file = '{}'\n", schema.path().display());
    let config = load(&format!("format = 'avro'\n{file}")).unwrap();
    assert_eq!(source(&config).format, RecordFormat::AvroFile(schema.path()));
    assert!(load(&format!("format = 'avro'\nschema_registry = 'http://a'\n{file}")).is_err());
    assert!(load(&file).is_err());
}

#[test]
fn ingest_uses_first_topic_or_named_one() {
    let into = |text: &str| {
        let config = Written::new(text).load();
        config.map(|config| config.plan.ingest.unwrap().source).map_err(|errors| errors.to_string())
    };
    assert_eq!(into(""), Ok(None));
    assert_eq!(into(PLAIN), Ok(Some("readings".into())));
    assert_eq!(into(&format!("ingest.into = 'readings'\n{PLAIN}")), Ok(Some("readings".into())));
    let error = into(&format!("ingest.into = 'journal'\n{PLAIN}")).unwrap_err();
    assert!(error.contains("\"journal\" is not the name of a Kafka source"), "{error}");
}

#[test]
fn secrets_come_from_variables_and_are_never_printed() {
    let text = PLAIN.replace(
        "topic = \"readings\"\nformat = \"json\"",
        "topic = \"a.b-c\"\nformat = \"avro\"\nschema_registry = 'https://r'",
    );
    let written = Written::new(&text);
    let mut layers = written.layers();
    layers.environment = variables(&[
        ("SWELTER_SOURCES__A_B_C__PROPERTIES__SASL_PASSWORD", "hunter2"),
        ("SWELTER_SOURCES__A_B_C__PROPERTIES__SASL_USERNAME", "somebody"),
        ("SWELTER_SOURCES__A_B_C__SCHEMA_REGISTRY_USER", "swelter:hunter2"),
        ("SWELTER_SINKS__KAFKA__COMMIT_INTERVAL", "20ms"),
    ])
    .environment;
    let config = Config::load(&layers).unwrap();
    let cluster = &source(&config).cluster;
    assert_eq!((cluster.properties["sasl.password"].as_str(), cluster.properties.len()), ("hunter2", 2));
    let printed = config.to_toml();
    assert!(!printed.contains("hunter2") && !format!("{config:?}").contains("hunter2"), "{printed}");
    let line = "\nproperties.\"sasl.username\" = \"somebody\"  # SWELTER_SOURCES__A_B_C__PROPERTIES__SASL_USERNAME\n";
    assert!(printed.contains(line), "{printed}");
    assert!(printed.contains("\n# schema_registry_user is secret and not shown"), "{printed}");
    let again = Written::new(&printed).load().unwrap();
    assert_eq!(again.to_toml().lines().count(), printed.lines().count() - 2, "{printed}");
    assert_eq!(sink(&again).output.commit_interval, Duration::from_millis(20));
    assert_eq!(
        source(&again).format,
        RecordFormat::AvroRegistry(RegistryPlan { urls: vec!["https://r".into()], user: None })
    );
}

#[test]
fn progress_topic_is_shared_only_within_one_kafka_cluster() {
    let load = |properties: &str| {
        let source = "[[sources]]\ntype = 'kafka'\nbrokers = 'a:1'\nprogress_topic = 'p'\n";
        let text = format!("{source}topic = 'one'\n{source}topic = 'two'\nproperties = {{ {properties} }}\n");
        Written::new(&text).load().map(|config| config.plan.sources.len()).map_err(|error| error.to_string())
    };
    assert_eq!(load(""), Ok(2));
    let error = load("'client.rack' = 'x'").unwrap_err();
    assert!(error.contains("is p, as is sources.one.progress_topic: name another topic"), "{error}");
}

#[test]
fn passwords_without_tls_warn() {
    let warnings = |brokers: &str, protocol: &str, registry: &str| {
        let text = format!(
            "[[sources]]\ntype = 'kafka'\nbrokers = '{brokers}'\ntopic = 't'\nformat = 'avro'\n\
             schema_registry = '{registry}'\nschema_registry_user = 'a:b'\n\
             properties = {{ 'security.protocol' = '{protocol}' }}\n"
        );
        Written::new(&text).load().unwrap().warnings()
    };
    assert!(
        warnings("localhost:1,127.0.0.1:2,[::1]:3", "SASL_PLAINTEXT", "http://127.0.0.1:8081").is_empty()
    );
    assert!(warnings("a.example:1", "sasl_ssl", "https://a.example/r").is_empty());
    assert_eq!(warnings("127.0.0.1:1,a.example:1", "sasl_plaintext", "http://a.example:8081").len(), 2);
}

#[test]
fn sinks_of_both_types_are_read_in_their_order() {
    let config = Written::new(&format!(
        "{PLAIN}[[sinks]]\ntype = 'folder'\npath = '/archive'\nformat = 'csv'\nsegment_bytes = '1 MiB'\n\
         [[sinks]]\ntype = 'folder'\nname = 'second'\npath = 'other'\nshards = 4\n"
    ));
    let plan = config.load().unwrap().plan;
    let names: Vec<&str> = plan.sinks.iter().map(|sink| sink.name.as_str()).collect();
    assert_eq!(names, ["kafka", "folder", "second"]);
    let folders: Vec<_> = plan.folder_sinks().collect();
    assert_eq!(
        (folders[0].format, folders[0].shards, folders[0].segments.bytes),
        (FolderFormat::Csv, 1, 1 << 20)
    );
    assert_eq!((folders[1].format, folders[1].shards), (FolderFormat::Json, 4));
    assert_eq!(folders[1].commit_interval, Duration::from_secs(1));
}

#[test]
fn folder_sinks_that_cannot_be_written_are_refused() {
    let written = Written::new(
        "[[sinks]]\ntype = 'folder'\npath = 'a'\n[[sinks]]\ntype = 'folder'\nname = 'b'\npath = 'a'\n\
         [[sinks]]\ntype = 'folder'\nname = 'c'\npath = ''\n[[sinks]]\ntype = 'disk'\nname = 'd'\n",
    );
    let lines = lines(&written.load().unwrap_err(), &written);
    for expected in [
        "sinks.b.path (swelter.toml, line 7): is the folder of sink folder as well: name another one",
        "sinks.c.path (swelter.toml, line 11): \"\" is not a path: write path = \"/var/lib/swelter/archive\"",
        "sinks.d.type (swelter.toml, line 13): \"disk\" is not",
    ] {
        assert!(lines.iter().any(|line| line.starts_with(expected)), "{expected}\nnot in {lines:#?}");
    }
}
