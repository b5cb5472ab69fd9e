//! Refused starts, each with one line that names the cause.

use super::broker::{PrivateBroker, shared_broker};
use super::case::{KafkaCase, PARTITIONS};
use super::config::KafkaConfig;
use super::topics::{COMPACT, NewRecord, TestProducer, TopicAdmin};
use crate::other_rules::{RULES_1_MAKER, RULES_HELP_PAGE, fixture_path};
use crate::support::is_ready;

/// Starts the program, which must end, with a line that has all these words.
fn check_start_refused(case: &KafkaCase, words: &[&str]) {
    let said = case.start_swelter(1).wait_for_failure();
    for word in words {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn missing_topic_is_named() {
    let access = shared_broker();
    let names = KafkaCase::without_topics(&access, 10, 1).setup;
    let second = format!("{}.failed.2", names.input);
    for missing in
        [&names.input, &names.dead_letter_topic(), &second, &names.results, &names.current, &names.progress]
    {
        let mut case = KafkaCase::without_topics(&access, 10, 1);
        // The same name in the names of this case.
        let missing = missing.replace(&names.input, &case.setup.input);
        case.setup.create_topics_except(&missing, 1);
        case.setup.sink += "create_topics = false\n";
        check_start_refused(&case, &[&missing, "create_topics"]);
    }
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn topics_are_created_with_required_settings() {
    let access = shared_broker();
    let mut case = KafkaCase::without_topics(&access, 11, 500);
    case.setup.source = format!("create_topics = true\npartitions = {PARTITIONS}\n");
    case.setup.sink += "create_topics = true\npartitions = 5\n";
    let swelter = case.start_swelter(1).wait_until_ready();
    let topics = TopicAdmin::of(&access);
    let setup = case.setup.clone();
    let config = |topic: &str, key: &str| topics.config(topic)[key].clone();
    for topic in [&setup.results, &setup.current, &setup.progress] {
        assert_eq!(config(topic, "cleanup.policy"), "compact", "{topic}");
    }
    assert_eq!((topics.partitions(&setup.results), topics.partitions(&setup.current)), (5, 5));
    assert_eq!(topics.partitions(&setup.input), PARTITIONS as usize);
    assert_eq!(config(&setup.input, "message.timestamp.type"), "LogAppendTime");
    for letters in [setup.dead_letter_topic(), format!("{}.failed.2", setup.input)] {
        assert_eq!(
            (&*config(&letters, "cleanup.policy"), &*config(&letters, "retention.ms")),
            ("delete", "-1"),
            "{letters}"
        );
    }
    case.produce_records(200);
    case.wait_for_results();
    swelter.terminate();
    case.check_exactly_once();
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn missing_permission_is_reported() {
    let broker = PrivateBroker::start_secured();
    let mut case = KafkaCase::new(&broker.access, 12, 1);
    case.setup.access.user = Some("poor");
    check_start_refused(&case, &["authori"]);
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn results_topics_with_other_partitions_are_refused() {
    let access = shared_broker();
    let case = KafkaCase::after_run(&access, 13);
    TopicAdmin::of(&access).add_partitions(&case.setup.results, 6);
    check_start_refused(&case, &[&case.setup.results, "partitions"]);
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn formula_differing_from_progress_is_refused() {
    let access = shared_broker();
    let mut case = KafkaCase::after_run(&access, 14);
    case.setup.rules = "formula = \"lu-romps\"\n".into();
    check_start_refused(
        &case,
        &["results.formula nws, now it is lu-romps", "new progress and result topics", "docs/rebuild.md"],
    );
}

/// As swelter 0.1.0 of rules version 1 has left it.
#[test]
#[ignore = "needs Kafka: scripts/test"]
fn progress_topic_of_rules_version_1_is_refused() {
    let access = shared_broker();
    let case = KafkaCase::new(&access, 31, 1);
    let producer = TestProducer::to(&access);
    let records = std::fs::read_to_string(fixture_path("progress.tsv")).unwrap();
    for record in records.lines() {
        let (key, value) = record.split_once('\t').unwrap();
        producer.send_record(&case.setup.progress, &NewRecord::new(0, key, value));
    }
    producer.flush();
    let said = case.start_swelter(1).wait_for_failure();
    let line = said.lines().last().unwrap_or_default();
    for says in [
        &*case.setup.progress,
        RULES_1_MAKER,
        "rules version 2",
        "new result and progress topics",
        RULES_HELP_PAGE,
    ] {
        assert!(line.contains(says), "{says}: {said}");
    }
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn changed_shard_count_is_refused() {
    let access = shared_broker();
    let mut case = KafkaCase::after_run(&access, 15);
    case.setup.sink = case.setup.sink.replace("shards = 2", "shards = 3");
    check_start_refused(&case, &["shards"]);
}

/// A wrong configuration is refused before anything is claimed: the running process continues.
#[test]
#[ignore = "needs Kafka: scripts/test"]
fn invalid_configuration_does_not_fence_running_process() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 19, 500);
    case.produce_records(200);
    let mut running = case.start_swelter(1).wait_until_ready();
    let address = running.wait_for_address();
    case.wait_for_results();
    let setup = case.setup.clone();
    let other = tempfile::tempdir().unwrap();
    let refused = |change: &dyn Fn(&mut KafkaConfig), words: &[&str]| {
        let mut wrong = setup.clone();
        change(&mut wrong);
        for arguments in [&[][..], &["--takeover"]] {
            let said = wrong.service(other.path(), 1).args(arguments).spawn().wait_for_failure();
            assert!(words.iter().all(|word| said.contains(word)), "no {words:?} in: {said}");
        }
    };
    refused(&|wrong| wrong.source = "name = \"renamed\"\n".into(), &["which no longer exists"]);
    // Its second sink is in another cluster, judged by names.
    let second = format!("{}.progress", setup.input);
    TopicAdmin::of(&access).create(&second, 1, &[COMPACT]);
    refused(
        &|wrong| wrong.source = "properties.\"socket.timeout.ms\" = 9999\n".into(),
        &[&second, "set it back"],
    );
    assert!(is_ready(&address) && running.has_ended().is_none(), "{}", running.log());
    case.produce_records(100);
    case.check_exactly_once();
    running.terminate();
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn compacted_input_is_refused() {
    let access = shared_broker();
    let case = KafkaCase::without_topics(&access, 16, 1);
    case.setup.create_topics_except(&case.setup.input, 1);
    TopicAdmin::of(&access).create(&case.setup.input, 1, &[COMPACT]);
    check_start_refused(&case, &[&case.setup.input, "compact"]);
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn input_deleted_past_resume_point_is_refused() {
    let access = shared_broker();
    let case = KafkaCase::after_run(&access, 17);
    TopicAdmin::of(&access).delete_records_before(&case.setup.input, 1, 5);
    check_start_refused(&case, &[&case.setup.input, "its records before 5 are gone"]);
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn unsuitable_topic_settings_warn() {
    let access = shared_broker();
    let mut case = KafkaCase::without_topics(&access, 18, 500);
    let setup = case.setup.clone();
    setup.create_topics_except(&setup.results, PARTITIONS as i32);
    let topics = TopicAdmin::of(&access);
    topics.create(&setup.results, 4, &[]);
    topics.set_config(&setup.input, ("message.timestamp.type", "CreateTime"));
    case.produce_records(100);
    let swelter = case.start_swelter(1).wait_until_ready();
    case.wait_for_results();
    let log = swelter.log();
    swelter.terminate();
    let warned = |words: [&str; 2]| {
        log.lines().any(|line| line.contains("WARN") && words.iter().all(|word| line.contains(word)))
    };
    assert!(warned([&setup.results, "compact"]), "{log}");
    assert!(warned([&setup.input, "LogAppendTime"]), "{log}");
}
