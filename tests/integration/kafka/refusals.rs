//! What the program refuses to start on, each with one clear line.

use super::broker::{Access, OwnBroker, shared};
use super::case::{Case, PARTITIONS};
use super::swelter::{Setup, Swelter, is_ready};
use super::topics::{COMPACT, NewRecord, Producer, Topics};
use crate::other_rules::{MAKER, PAGE, fixture};

/// Starts the program, which must end, with a line that has all these words.
fn refused(case: &Case, words: &[&str]) {
    let said = case.start(1).fails();
    for word in words {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
}

/// One that has run, and has ended after some results.
fn after_a_run(access: &Access, seed: u64) -> Case {
    let mut case = Case::new(access, seed, 500);
    case.produce(200);
    let swelter = case.start(1).ready();
    case.wait_for_results();
    swelter.terminate();
    case
}

#[test]
fn a_topic_that_is_missing_is_named() {
    let Some(access) = shared() else { return };
    let names = Case::without_topics(&access, 10, 1).setup;
    let second = format!("{}.failed.2", names.input);
    for missing in [&names.input, &names.letters(), &second, &names.results, &names.current, &names.progress]
    {
        let mut case = Case::without_topics(&access, 10, 1);
        // The same name in the names of this case.
        let missing = missing.replace(&names.input, &case.setup.input);
        case.setup.make_topics_but(&missing, 1);
        case.setup.sink += "create_topics = false\n";
        refused(&case, &[&missing, "create_topics"]);
    }
}

#[test]
fn topics_are_made_as_they_should_be() {
    let Some(access) = shared() else { return };
    let mut case = Case::without_topics(&access, 11, 500);
    case.setup.source = format!("create_topics = true\npartitions = {PARTITIONS}\n");
    case.setup.sink += "create_topics = true\npartitions = 5\n";
    let swelter = case.start(1).ready();
    let topics = Topics::of(&access);
    let setup = case.setup.clone();
    let config = |topic: &str, key: &str| topics.config(topic)[key].clone();
    for topic in [&setup.results, &setup.current, &setup.progress] {
        assert_eq!(config(topic, "cleanup.policy"), "compact", "{topic}");
    }
    assert_eq!((topics.partitions(&setup.results), topics.partitions(&setup.current)), (5, 5));
    assert_eq!(topics.partitions(&setup.input), PARTITIONS as usize);
    assert_eq!(config(&setup.input, "message.timestamp.type"), "LogAppendTime");
    for letters in [setup.letters(), format!("{}.failed.2", setup.input)] {
        assert_eq!(
            (&*config(&letters, "cleanup.policy"), &*config(&letters, "retention.ms")),
            ("delete", "-1"),
            "{letters}"
        );
    }
    case.produce(200);
    case.wait_for_results();
    swelter.terminate();
    case.check_exactly_once();
}

#[test]
fn who_may_not_is_told_so() {
    let Some(broker) = OwnBroker::secured() else { return };
    let mut case = Case::new(&broker.access, 12, 1);
    case.setup.access.user = Some("poor");
    refused(&case, &["authori"]);
}

#[test]
fn results_topics_with_other_partitions_are_refused() {
    let Some(access) = shared() else { return };
    let case = after_a_run(&access, 13);
    Topics::of(&access).add_partitions(&case.setup.results, 6);
    refused(&case, &[&case.setup.results, "partitions"]);
}

#[test]
fn another_formula_than_that_of_the_progress_is_refused() {
    let Some(access) = shared() else { return };
    let mut case = after_a_run(&access, 14);
    case.setup.rules = "formula = \"lu-romps\"\n".into();
    refused(
        &case,
        &["results.formula nws, now it is lu-romps", "new progress and result topics", "docs/rebuild.md"],
    );
}

/// As swelter 0.1.0 of rules version 1 has left it.
#[test]
fn progress_topic_of_rules_version_1_is_refused() {
    let Some(access) = shared() else { return };
    let case = Case::new(&access, 31, 1);
    let producer = Producer::to(&access);
    let records = std::fs::read_to_string(fixture("progress.tsv")).unwrap();
    for record in records.lines() {
        let (key, value) = record.split_once('\t').unwrap();
        producer.send(&case.setup.progress, &NewRecord::new(0, key, value));
    }
    producer.flush();
    let said = case.start(1).fails();
    let line = said.lines().last().unwrap_or_default();
    for says in [&*case.setup.progress, MAKER, "rules version 2", "new result and progress topics", PAGE] {
        assert!(line.contains(says), "{says}: {said}");
    }
}

#[test]
fn another_number_of_shards_is_refused() {
    let Some(access) = shared() else { return };
    let mut case = after_a_run(&access, 15);
    case.setup.sink = case.setup.sink.replace("shards = 2", "shards = 3");
    refused(&case, &["shards"]);
}

/// What is wrong with a start is said before it claims anything: the one that runs goes on.
#[test]
fn a_start_with_a_wrong_configuration_ends_nobody_else() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 19, 500);
    case.produce(200);
    let mut running = case.start(1).ready();
    let address = running.address();
    case.wait_for_results();
    let setup = case.setup.clone();
    let other = tempfile::tempdir().unwrap();
    let refused = |change: &dyn Fn(&mut Setup), words: &[&str]| {
        let mut wrong = setup.clone();
        change(&mut wrong);
        for arguments in [&[][..], &["--takeover"]] {
            let said = Swelter::start_with(&wrong, other.path(), 1, None, arguments).fails();
            assert!(words.iter().all(|word| said.contains(word)), "no {words:?} in: {said}");
        }
    };
    refused(&|wrong| wrong.source = "name = \"renamed\"\n".into(), &["not there any more"]);
    // Its second outlet is of another cluster, as far as names say.
    let second = format!("{}.progress", setup.input);
    Topics::of(&access).create(&second, 1, &[COMPACT]);
    refused(
        &|wrong| wrong.source = "properties.\"socket.timeout.ms\" = 9999\n".into(),
        &[&second, "set it back"],
    );
    assert!(is_ready(&address) && running.has_ended().is_none(), "{}", running.log());
    case.produce(100);
    case.check_exactly_once();
    running.terminate();
}

#[test]
fn a_compacted_input_is_refused() {
    let Some(access) = shared() else { return };
    let case = Case::without_topics(&access, 16, 1);
    case.setup.make_topics_but(&case.setup.input, 1);
    Topics::of(&access).create(&case.setup.input, 1, &[COMPACT]);
    refused(&case, &[&case.setup.input, "compact"]);
}

#[test]
fn an_input_that_no_longer_reaches_back_is_refused() {
    let Some(access) = shared() else { return };
    let case = after_a_run(&access, 17);
    Topics::of(&access).delete_before(&case.setup.input, 1, 5);
    refused(&case, &[&case.setup.input, "its records before 5 are gone"]);
}

#[test]
fn topics_that_are_not_as_they_should_be_are_warned_of() {
    let Some(access) = shared() else { return };
    let mut case = Case::without_topics(&access, 18, 500);
    let setup = case.setup.clone();
    setup.make_topics_but(&setup.results, PARTITIONS as i32);
    let topics = Topics::of(&access);
    topics.create(&setup.results, 4, &[]);
    topics.set(&setup.input, ("message.timestamp.type", "CreateTime"));
    case.produce(100);
    let swelter = case.start(1).ready();
    case.wait_for_results();
    let log = swelter.log();
    swelter.terminate();
    let warned = |words: [&str; 2]| {
        log.lines().any(|line| line.contains("WARN") && words.iter().all(|word| line.contains(word)))
    };
    assert!(warned([&setup.results, "compact"]), "{log}");
    assert!(warned([&setup.input, "LogAppendTime"]), "{log}");
}
