//! Topics that were lost, recreated or copied. Nothing is skipped, and nothing is written twice.

use std::path::Path;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::broker::shared_broker;
use super::case::{KafkaCase, PARTITIONS};
use super::config::KafkaConfig;
use super::topic_reader::{ConsumedRecord, read_committed, read_uncommitted};
use super::topics::{COMPACT, LOG_APPEND_TIME, NewRecord, TestProducer, TopicAdmin};
use crate::support::checkpoint_files::published_manifests;
use crate::support::{MINUTE_MS, WAIT_TIMEOUT, check_during, send_signal, wait_for};

/// Creates all missing topics, if it may.
fn enable_create_topics(setup: &mut KafkaConfig) {
    setup.source = format!("create_topics = true\npartitions = {PARTITIONS}\n");
    setup.sink += "create_topics = true\npartitions = 4\n";
}

/// Starts the program, which must end, with a last line that has all these words.
fn check_start_refused(case: &KafkaCase, arguments: &[&str], words: &[&str]) {
    let said = case.setup.service(case.data.path(), 1).args(arguments).spawn().wait_for_failure();
    for word in words {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
}

fn recreate_topic(setup: &KafkaConfig, topic: &str) {
    let topics = TopicAdmin::of(&setup.access);
    let partitions = topics.partitions(topic) as i32;
    topics.delete(topic);
    let config = if [&setup.results, &setup.current, &setup.progress].contains(&&topic.to_owned()) {
        COMPACT
    } else {
        LOG_APPEND_TIME
    };
    topics.create(topic, partitions, &[config]);
}

/// Readings of a city that no log of a case has, in all partitions, so many in each.
fn intruder_records(each: usize) -> Vec<NewRecord> {
    let now = jiff::Timestamp::now().as_millisecond();
    let record = |(partition, at): (u32, usize)| {
        let city = format!("intruder {partition}");
        let at = jiff::Timestamp::from_millisecond(now - at as i64 * MINUTE_MS / 60).unwrap();
        let value = json!({"city": city, "reading_at": at.to_string(), "temperature": 90, "humidity": 40});
        NewRecord::new(partition as i32, &city, &value.to_string())
    };
    (0..PARTITIONS).flat_map(|partition| (0..each).map(move |at| (partition, at))).map(record).collect()
}

fn produce_records(setup: &KafkaConfig, topic: &str, records: &[NewRecord]) {
    let producer = TestProducer::to(&setup.access);
    records.iter().for_each(|record| producer.send_record(topic, record));
    producer.flush();
}

fn new_record(record: &ConsumedRecord) -> NewRecord {
    let ConsumedRecord { partition, key, value, headers, .. } = record.clone();
    NewRecord { partition, key, value, headers: headers.into_iter().collect() }
}

/// Writes what a topic held into a new one of its name, at the same positions.
fn recreate_topic_with_copy(setup: &KafkaConfig, topic: &str) {
    let records: Vec<NewRecord> = read_committed(&setup.access, topic).iter().map(new_record).collect();
    recreate_topic(setup, topic);
    produce_records(setup, topic, &records);
}

/// All records of the outputs, committed or not.
fn uncommitted_outputs(setup: &KafkaConfig) -> Vec<Vec<ConsumedRecord>> {
    let topics = [&setup.results, &setup.current, &setup.dead_letter_topic()];
    topics.map(|topic| read_uncommitted(&setup.access, topic)).into()
}

/// The positions of a shard's last progress.
fn progress_positions(setup: &KafkaConfig) -> Vec<String> {
    let records = read_committed(&setup.access, &setup.progress);
    let last = |key: &str| {
        let last = records.iter().rfind(|record| record.key.as_deref() == Some(key.as_bytes()));
        last.map(|record| record.json().unwrap()["positions"].to_string())
    };
    ["shard/0", "shard/1"].iter().filter_map(|key| last(key)).collect()
}

/// How many records the positions of a shard include.
fn progress_record_count(positions: &str) -> i64 {
    let sources: Value = serde_json::from_str(positions).unwrap();
    let partitions =
        sources.as_object().unwrap().values().flat_map(|source| source.as_object().unwrap().values());
    partitions.map(|position| position.as_i64().unwrap()).sum()
}

/// How many records of the input the newest checkpoint includes.
fn checkpoint_record_count(place: &Path) -> u64 {
    let newest = published_manifests(place).into_iter().max();
    let Some(text) = newest.and_then(|newest| std::fs::read_to_string(newest).ok()) else { return 0 };
    let manifest: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let sources = manifest["positions"].as_object().unwrap().values();
    sources.flat_map(|source| source.as_object().unwrap().values()).map(|at| at.as_u64().unwrap()).sum()
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn recreated_input_with_more_records_is_refused_at_start() {
    let access = shared_broker();
    for has_checkpoints in [false, true] {
        let mut case = KafkaCase::new(&access, 201, 500);
        let kept = tempfile::tempdir().unwrap();
        if has_checkpoints {
            case.setup.set_checkpoints(kept.path());
        }
        case.produce_records(200);
        let swelter = case.start_swelter(1).wait_until_ready();
        case.wait_for_results();
        let manifests = || published_manifests(kept.path()).len();
        wait_for("a checkpoint", || (manifests() > 0 || !has_checkpoints).then_some(()));
        swelter.terminate();
        let before = (uncommitted_outputs(&case.setup), progress_positions(&case.setup));

        let input = case.setup.input.clone();
        recreate_topic(&case.setup, &input);
        produce_records(&case.setup, &input, &intruder_records(400));
        for arguments in [&[][..], &["--adopt-logs"], &["--takeover"]] {
            check_start_refused(
                &case,
                arguments,
                &[&input, "is not the one that was read", "disaster-recovery"],
            );
        }
        assert_eq!(before, (uncommitted_outputs(&case.setup), progress_positions(&case.setup)));
    }
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn input_recreated_while_read_ends_process() {
    let access = shared_broker();
    // If it is paused meanwhile, it finds the new topic with records at its positions at once.
    for (seed, is_paused) in [(202, false), (203, true)] {
        let mut case = KafkaCase::new(&access, seed, 500);
        case.produce_records(200);
        let swelter = case.start_swelter(2).wait_until_ready();
        case.wait_for_results();
        // Nothing more is written of them then.
        let before = wait_for("that all positions are recorded", || {
            let recorded = progress_positions(&case.setup);
            (recorded.len() == 2
                && recorded.iter().all(|shard| progress_record_count(shard) == case.log.len()))
            .then_some(recorded)
        });
        let input = case.setup.input.clone();
        if is_paused {
            send_signal(swelter.pid(), Signal::STOP);
        }
        recreate_topic(&case.setup, &input);
        produce_records(&case.setup, &input, &intruder_records(400));
        if is_paused {
            send_signal(swelter.pid(), Signal::CONT);
        }
        let said = swelter.wait_for_failure();
        // Either the reader or the periodic check notices it first.
        for word in [&*input, "while it was read", "disaster-recovery"] {
            assert!(said.contains(word), "no {word:?} in: {said}");
        }
        check_no_intruder_in_outputs(&case.setup);
        assert_eq!(progress_positions(&case.setup), before);
        check_start_refused(&case, &[], &[&input, "is not the one that was read"]);
    }
}

/// Checks that no output has a record of an intruder, not even an aborted one.
fn check_no_intruder_in_outputs(setup: &KafkaConfig) {
    let is_intruder = |record: &&ConsumedRecord| {
        let mut texts = [&record.key, &record.value].into_iter().flatten();
        texts.any(|bytes| String::from_utf8_lossy(bytes).contains("intruder"))
    };
    for records in uncommitted_outputs(setup) {
        assert_eq!(records.iter().find(is_intruder), None);
    }
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn lost_or_recreated_outputs_are_refused() {
    let access = shared_broker();
    let second = |setup: &KafkaConfig| format!("{}.failed.2", setup.input);
    let each: [&dyn Fn(&KafkaConfig) -> String; 4] = [
        &|setup| setup.results.clone(),
        &|setup| setup.current.clone(),
        &|setup| setup.dead_letter_topic(),
        &second,
    ];
    for (seed, topic) in (210..).zip(each) {
        let mut case = KafkaCase::after_run(&access, seed);
        enable_create_topics(&mut case.setup);
        let topic = topic(&case.setup);
        let topics = TopicAdmin::of(&access);
        topics.delete(&topic);
        check_start_refused(&case, &[], &[&topic, "is gone", "begin anew, delete", &case.setup.progress]);
        assert_eq!(topics.partitions(&topic), 0, "{topic} was made");
        topics.create(&topic, if topic.contains("failed") { PARTITIONS as i32 } else { 4 }, &[COMPACT]);
        topics.set_config(
            &topic,
            ("cleanup.policy", if topic.contains("failed") { "delete" } else { "compact" }),
        );
        check_start_refused(
            &case,
            &[],
            &[&topic, "is another one", "begin anew, delete", &case.setup.progress],
        );
    }
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn lost_input_is_not_created() {
    let access = shared_broker();
    let mut case = KafkaCase::after_run(&access, 220);
    enable_create_topics(&mut case.setup);
    let input = case.setup.input.clone();
    TopicAdmin::of(&access).delete(&input);
    check_start_refused(&case, &[], &[&input, "is gone", "has positions of the earlier topic"]);
    assert_eq!(TopicAdmin::of(&access).partitions(&input), 0);
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn output_recreated_while_written_ends_process() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 221, 500);
    case.produce_records(200);
    let swelter = case.start_swelter(1).wait_until_ready();
    case.wait_for_results();
    let letters = case.setup.dead_letter_topic();
    recreate_topic(&case.setup, &letters);
    let said = swelter.wait_for_failure();
    for word in [&*letters, "while the service runs", "is another one", "disaster-recovery"] {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
    check_start_refused(&case, &[], &[&letters, "is another one"]);
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn lost_progress_topic_is_refused_and_not_created() {
    let access = shared_broker();
    let mut case = KafkaCase::after_run(&access, 222);
    enable_create_topics(&mut case.setup);
    let before = uncommitted_outputs(&case.setup);
    let (topics, progress) = (TopicAdmin::of(&access), case.setup.progress.clone());
    topics.delete(&progress);
    check_start_refused(&case, &[], &["holds results that progress topic", &progress, "written twice"]);
    assert_eq!(topics.partitions(&progress), 0, "it was made");
    topics.create(&progress, 1, &[COMPACT]);
    check_start_refused(&case, &[], &["holds results that progress topic", &progress, "written twice"]);
    assert_eq!(before, uncommitted_outputs(&case.setup));
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn lost_progress_topic_is_refused_if_only_dead_letters_exist() {
    let access = shared_broker();
    for has_sink in [true, false] {
        let mut case = KafkaCase::new(&access, 229, 1);
        case.setup.has_sink = has_sink;
        enable_create_topics(&mut case.setup);
        let setup = case.setup.clone();
        let progress = if has_sink { setup.progress.clone() } else { format!("{}.progress", setup.input) };
        produce_records(&setup, &setup.input, &[NewRecord::new(1, "bad", "not JSON")]);
        let swelter = case.start_swelter(1).wait_until_ready();
        wait_for("a dead letter", || {
            (!read_committed(&access, &setup.dead_letter_topic()).is_empty()).then_some(())
        });
        swelter.terminate();
        TopicAdmin::of(&access).delete(&progress);
        check_start_refused(
            &case,
            &[],
            &[&setup.dead_letter_topic(), "dead letters", &progress, "would be written twice"],
        );
        assert_eq!(read_committed(&access, &setup.dead_letter_topic()).len(), 1);
    }
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn outputs_with_only_aborted_records_count_as_new() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 223, 500);
    let setup = case.setup.clone();
    let producer = TestProducer::transactional(&access, &setup.results);
    producer.begin();
    for topic in [&setup.results, &setup.current, &setup.dead_letter_topic()] {
        producer.send_record(topic, &NewRecord::new(0, "k", "given up"));
    }
    producer.abort();
    case.produce_records(200);
    let swelter = case.start_swelter(1).wait_until_ready();
    case.check_exactly_once();
    swelter.terminate();
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn copied_input_is_refused_until_adopted() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 224, 600);
    let kept = tempfile::tempdir().unwrap();
    case.setup.set_checkpoints(kept.path());
    case.produce_records(200);
    let swelter = case.start_swelter(1).wait_until_ready();
    case.wait_for_results();
    let manifests = || published_manifests(kept.path()).len();
    wait_for("a checkpoint", || (manifests() > 0).then_some(()));
    swelter.terminate();
    let input = case.setup.input.clone();
    recreate_topic_with_copy(&case.setup, &input);
    let is_copy = [&*input, "is another one: it has the id", "--adopt-logs"];
    check_start_refused(&case, &[], &is_copy);
    check_start_refused(&case, &["--takeover"], &is_copy);

    let adopted = case.setup.service(case.data.path(), 1).args(&["--adopt-logs"]).spawn().wait_until_ready();
    case.produce_records(100);
    case.wait_for_results();
    assert!(adopted.log().contains("a checkpoint was restored"), "{}", adopted.log());
    adopted.kill();
    // Adopted logs need no flag at the next start.
    let swelter = case.start_swelter(2).wait_until_ready();
    assert!(swelter.log().contains("a checkpoint was restored"), "{}", swelter.log());
    case.produce_records(100);
    case.check_exactly_once();
    swelter.terminate();
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn input_without_previous_record_is_recognized_by_id() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 225, 600);
    let kept = tempfile::tempdir().unwrap();
    case.setup.set_checkpoints(kept.path());
    case.produce_records(200);
    let swelter = case.start_swelter(1).wait_until_ready();
    case.wait_for_results();
    wait_for("a checkpoint with all of it", || {
        (checkpoint_record_count(kept.path()) == case.log.record_count()).then_some(())
    });
    swelter.terminate();
    let ends: Vec<i64> = (0..PARTITIONS as i32)
        .map(|partition| {
            let records = read_committed(&access, &case.setup.input);
            records.iter().filter(|record| record.partition == partition).count() as i64
        })
        .collect();
    for (partition, end) in (0..).zip(&ends) {
        TopicAdmin::of(&access).delete_records_before(&case.setup.input, partition, *end);
    }
    let swelter = case.start_swelter(1).wait_until_ready();
    case.produce_records(100);
    case.check_exactly_once();
    swelter.terminate();
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn unrecorded_topics_are_recorded_at_next_start() {
    let access = shared_broker();
    let mut case = KafkaCase::after_run(&access, 226);
    let setup = case.setup.clone();
    // As a version without topic ids has left it.
    produce_records(&setup, &setup.progress, &[NewRecord::new(0, "topics", "{}")]);
    let swelter = case.start_swelter(1).wait_until_ready();
    case.produce_records(100);
    case.check_exactly_once();
    swelter.terminate();
    let records = read_committed(&access, &setup.progress);
    let last =
        records.iter().rfind(|record| record.key.as_deref() == Some(b"topics")).unwrap().json().unwrap();
    for topic in [&setup.input, &setup.results, &setup.current, &setup.dead_letter_topic(), &setup.progress] {
        assert_eq!(last[topic]["id"].as_str().map(str::len), Some(22), "{topic} in {last}");
    }
}

fn retry_group(setup: &KafkaConfig) -> BaseConsumer {
    let mut config = setup.access.client_config();
    config.set("group.id", format!("{}.progress.retry.not_decodable", setup.input)).create().unwrap()
}

/// The committed offsets of the retry, with their metadata.
fn retry_offsets(setup: &KafkaConfig) -> TopicPartitionList {
    let mut asked = TopicPartitionList::new();
    asked.add_partition(&setup.dead_letter_topic(), 1);
    let kept = retry_group(setup).committed_offsets(asked, WAIT_TIMEOUT).unwrap();
    assert_eq!((kept.elements()[0].offset(), kept.elements()[0].metadata().len()), (Offset::Offset(2), 22));
    kept
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn retry_of_recreated_dead_letter_topic_skips_nothing() {
    let access = shared_broker();
    let case = KafkaCase::new(&access, 227, 1);
    let setup = case.setup.clone();
    produce_records(
        &setup,
        &setup.input,
        &[NewRecord::new(1, "bad", "not JSON"), NewRecord::new(1, "bad", "nor this")],
    );
    let swelter = case.start_swelter(1).wait_until_ready();
    wait_for("dead letters", || {
        (read_committed(&access, &setup.dead_letter_topic()).len() == 2).then_some(())
    });
    swelter.terminate();
    assert!(setup.retry_dead_letters().contains("sent 2 dead letters"));
    assert!(setup.retry_dead_letters().contains("sent 0 dead letters"));
    // A broker forgets the offsets of a deleted topic, but a tool that copies clusters restores
    // them.
    let kept = retry_offsets(&setup);
    recreate_topic_with_copy(&setup, &setup.dead_letter_topic());
    let group = retry_group(&setup);
    group.commit(&kept, CommitMode::Sync).unwrap();
    assert!(
        setup.retry_dead_letters().contains("sent 2 dead letters"),
        "those of another topic were not sent"
    );
    assert!(setup.retry_dead_letters().contains("sent 0 dead letters"));
}

/// The periodic check does not take an unreachable broker for a deleted topic.
#[test]
#[ignore = "needs Kafka: scripts/test"]
fn unreachable_broker_does_not_count_as_deleted_topics() {
    let mut broker = super::broker::PrivateBroker::start();
    let mut case = KafkaCase::new(&broker.access, 228, 600);
    case.produce_records(100);
    let mut swelter = case.start_swelter(1).wait_until_ready();
    case.wait_for_results();
    broker.kill();
    // The broker stays away for longer than from one check to the next.
    check_during(Duration::from_secs(7), || assert!(swelter.has_ended().is_none(), "{}", swelter.log()));
    broker.restart();
    case.produce_records(100);
    case.check_exactly_once();
    // The next check must not end it either.
    check_during(Duration::from_secs(6), || assert!(swelter.has_ended().is_none(), "{}", swelter.log()));
    swelter.terminate();
}
