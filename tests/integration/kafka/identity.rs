//! Topics that are not the ones that were read or written: lost, made anew, copied. Nothing is skipped, and nothing comes twice.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};

use super::broker::{Access, shared};
use super::case::{Case, PARTITIONS};
use super::reading::{Record, committed, uncommitted};
use super::swelter::{Setup, Swelter};
use super::topics::{COMPACT, LOG_APPEND_TIME, NewRecord, Producer, Topics};
use crate::checkpoints::published_manifests;
use crate::process::{DEADLINE, wait_for};
use crate::recovery::MINUTE;

/// One that has run, and has ended after some results.
fn after_a_run(access: &Access, seed: u64) -> Case {
    let mut case = Case::new(access, seed, 500);
    case.produce(200);
    let swelter = case.start(1).ready();
    case.wait_for_results();
    swelter.terminate();
    case
}

/// Makes all topics that are missing, if it may.
fn may_create(setup: &mut Setup) {
    setup.source = format!("create_topics = true\npartitions = {PARTITIONS}\n");
    setup.sink += "create_topics = true\npartitions = 4\n";
}

/// Starts the program, which must end, with a last line that has all these words.
fn refused(case: &Case, arguments: &[&str], words: &[&str]) {
    let said = Swelter::start_with(&case.setup, case.data.path(), 1, None, arguments).fails();
    for word in words {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
}

fn make_anew(setup: &Setup, topic: &str) {
    let topics = Topics::of(&setup.access);
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
fn intruders(each: usize) -> Vec<NewRecord> {
    let now = jiff::Timestamp::now().as_millisecond();
    let record = |(partition, at): (u32, usize)| {
        let city = format!("intruder {partition}");
        let at = jiff::Timestamp::from_millisecond(now - at as i64 * MINUTE / 60).unwrap();
        let value = json!({"city": city, "reading_at": at.to_string(), "temperature": 90, "humidity": 40});
        NewRecord::new(partition as i32, &city, &value.to_string())
    };
    (0..PARTITIONS).flat_map(|partition| (0..each).map(move |at| (partition, at))).map(record).collect()
}

fn write(setup: &Setup, topic: &str, records: &[NewRecord]) {
    let producer = Producer::to(&setup.access);
    records.iter().for_each(|record| producer.send(topic, record));
    producer.flush();
}

fn new_record(record: &Record) -> NewRecord {
    let Record { partition, key, value, headers, .. } = record.clone();
    NewRecord { partition, key, value, headers: headers.into_iter().collect() }
}

/// Writes what a topic held into a new one of its name, at the same positions.
fn copy_anew(setup: &Setup, topic: &str) {
    let records: Vec<NewRecord> = committed(&setup.access, topic).iter().map(new_record).collect();
    make_anew(setup, topic);
    write(setup, topic, &records);
}

/// All that is in the outputs, given up or not.
fn outputs(setup: &Setup) -> Vec<Vec<Record>> {
    let topics = [&setup.results, &setup.current, &setup.letters()];
    topics.map(|topic| uncommitted(&setup.access, topic)).into()
}

/// The positions of a shard's last progress.
fn progress(setup: &Setup) -> Vec<String> {
    let records = committed(&setup.access, &setup.progress);
    let last = |key: &str| {
        let last = records.iter().rfind(|record| record.key.as_deref() == Some(key.as_bytes()));
        last.map(|record| record.json().unwrap()["positions"].to_string())
    };
    ["shard/0", "shard/1"].iter().filter_map(|key| last(key)).collect()
}

/// How many records the positions of a shard include.
fn recorded_records(positions: &str) -> i64 {
    let sources: Value = serde_json::from_str(positions).unwrap();
    let partitions =
        sources.as_object().unwrap().values().flat_map(|source| source.as_object().unwrap().values());
    partitions.map(|position| position.as_i64().unwrap()).sum()
}

/// How many records of the input the newest checkpoint includes.
fn covered(place: &Path) -> u64 {
    let newest = published_manifests(place).into_iter().max();
    let Some(text) = newest.and_then(|newest| std::fs::read_to_string(newest).ok()) else { return 0 };
    let manifest: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let sources = manifest["positions"].as_object().unwrap().values();
    sources.flat_map(|source| source.as_object().unwrap().values()).map(|at| at.as_u64().unwrap()).sum()
}

#[test]
fn input_made_anew_with_more_records_is_refused_at_a_start() {
    let Some(access) = shared() else { return };
    for has_checkpoints in [false, true] {
        let mut case = Case::new(&access, 201, 500);
        let kept = tempfile::tempdir().unwrap();
        if has_checkpoints {
            case.setup.rules =
                format!("[checkpoints]\nevery = \"1s\"\nurl = \"{}\"\n", kept.path().display());
        }
        case.produce(200);
        let swelter = case.start(1).ready();
        case.wait_for_results();
        let manifests = || published_manifests(kept.path()).len();
        wait_for("a checkpoint", || (manifests() > 0 || !has_checkpoints).then_some(()));
        swelter.terminate();
        let before = (outputs(&case.setup), progress(&case.setup));

        let input = case.setup.input.clone();
        make_anew(&case.setup, &input);
        write(&case.setup, &input, &intruders(400));
        for arguments in [&[][..], &["--adopt-logs"], &["--takeover"]] {
            refused(&case, arguments, &[&input, "is another one than was read", "disaster-recovery"]);
        }
        assert_eq!(before, (outputs(&case.setup), progress(&case.setup)));
    }
}

#[test]
fn input_made_anew_while_it_is_read_ends_the_process() {
    let Some(access) = shared() else { return };
    // Where it is paused meanwhile, it finds the new one with records at its positions at once.
    for (seed, is_paused) in [(202, false), (203, true)] {
        let mut case = Case::new(&access, seed, 500);
        case.produce(200);
        let swelter = case.start(2).ready();
        case.wait_for_results();
        // Nothing more is written of them then.
        let before = wait_for("that all positions are recorded", || {
            let recorded = progress(&case.setup);
            (recorded.len() == 2 && recorded.iter().all(|shard| recorded_records(shard) == case.log.len()))
                .then_some(recorded)
        });
        let input = case.setup.input.clone();
        thread::scope(|scope| {
            if is_paused {
                scope.spawn(|| swelter.pause(Duration::from_secs(6)));
                // Nothing says that it is paused; that it is does not matter to what is asserted, only to what is tried.
                thread::sleep(Duration::from_millis(300));
            }
            make_anew(&case.setup, &input);
            write(&case.setup, &input, &intruders(400));
        });
        let said = swelter.fails();
        // Whoever notices first: the one that reads, or the look every few seconds.
        for word in [&*input, "while it was read", "disaster-recovery"] {
            assert!(said.contains(word), "no {word:?} in: {said}");
        }
        check_nothing_of_intruders(&case.setup);
        assert_eq!(progress(&case.setup), before);
        refused(&case, &[], &[&input, "is another one than was read"]);
    }
}

/// Not even in what was given up.
fn check_nothing_of_intruders(setup: &Setup) {
    let is_intruder = |record: &&Record| {
        let mut texts = [&record.key, &record.value].into_iter().flatten();
        texts.any(|bytes| String::from_utf8_lossy(bytes).contains("intruder"))
    };
    for records in outputs(setup) {
        assert_eq!(records.iter().find(is_intruder), None);
    }
}

#[test]
fn outputs_that_are_lost_or_made_anew_are_refused() {
    let Some(access) = shared() else { return };
    let second = |setup: &Setup| format!("{}.failed.2", setup.input);
    let each: [&dyn Fn(&Setup) -> String; 4] =
        [&|setup| setup.results.clone(), &|setup| setup.current.clone(), &|setup| setup.letters(), &second];
    for (seed, topic) in (210..).zip(each) {
        let mut case = after_a_run(&access, seed);
        may_create(&mut case.setup);
        let topic = topic(&case.setup);
        let topics = Topics::of(&access);
        topics.delete(&topic);
        refused(&case, &[], &[&topic, "is gone", "begin anew: delete", &case.setup.progress]);
        assert_eq!(topics.partitions(&topic), 0, "{topic} was made");
        topics.create(&topic, if topic.contains("failed") { PARTITIONS as i32 } else { 4 }, &[COMPACT]);
        topics.set(&topic, ("cleanup.policy", if topic.contains("failed") { "delete" } else { "compact" }));
        refused(&case, &[], &[&topic, "is another one", "begin anew: delete", &case.setup.progress]);
    }
}

#[test]
fn input_that_is_lost_is_not_made() {
    let Some(access) = shared() else { return };
    let mut case = after_a_run(&access, 220);
    may_create(&mut case.setup);
    let input = case.setup.input.clone();
    Topics::of(&access).delete(&input);
    refused(&case, &[], &[&input, "is gone", "how far it was read"]);
    assert_eq!(Topics::of(&access).partitions(&input), 0);
}

#[test]
fn output_made_anew_while_it_is_written_ends_the_process() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 221, 500);
    case.produce(200);
    let swelter = case.start(1).ready();
    case.wait_for_results();
    let letters = case.setup.letters();
    make_anew(&case.setup, &letters);
    let said = swelter.fails();
    for word in [&*letters, "while the service runs", "is another one", "disaster-recovery"] {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
    refused(&case, &[], &[&letters, "is another one"]);
}

#[test]
fn progress_that_is_lost_is_refused_and_not_made() {
    let Some(access) = shared() else { return };
    let mut case = after_a_run(&access, 222);
    may_create(&mut case.setup);
    let before = outputs(&case.setup);
    let (topics, progress) = (Topics::of(&access), case.setup.progress.clone());
    topics.delete(&progress);
    refused(&case, &[], &["holds results, of which progress topic", &progress, "written twice"]);
    assert_eq!(topics.partitions(&progress), 0, "it was made");
    topics.create(&progress, 1, &[COMPACT]);
    refused(&case, &[], &["holds results, of which progress topic", &progress, "written twice"]);
    assert_eq!(before, outputs(&case.setup));
}

#[test]
fn progress_that_is_lost_is_refused_where_there_are_dead_letters_alone() {
    let Some(access) = shared() else { return };
    for has_sink in [true, false] {
        let mut case = Case::new(&access, 229, 1);
        case.setup.has_sink = has_sink;
        may_create(&mut case.setup);
        let setup = case.setup.clone();
        let progress = if has_sink { setup.progress.clone() } else { format!("{}.progress", setup.input) };
        write(&setup, &setup.input, &[NewRecord::new(1, "bad", "not JSON")]);
        let swelter = case.start(1).ready();
        wait_for("a dead letter", || (!committed(&access, &setup.letters()).is_empty()).then_some(()));
        swelter.terminate();
        Topics::of(&access).delete(&progress);
        refused(&case, &[], &[&setup.letters(), "dead letters", &progress, "would be written twice"]);
        assert_eq!(committed(&access, &setup.letters()).len(), 1);
    }
}

#[test]
fn outputs_with_nothing_but_aborted_records_are_new() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 223, 500);
    let setup = case.setup.clone();
    let producer = Producer::transactional(&access, &setup.results);
    producer.begin();
    for topic in [&setup.results, &setup.current, &setup.letters()] {
        producer.send(topic, &NewRecord::new(0, "k", "given up"));
    }
    producer.abort();
    case.produce(200);
    let swelter = case.start(1).ready();
    case.check_exactly_once();
    swelter.terminate();
}

#[test]
fn copy_of_the_input_is_refused_and_then_adopted() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 224, 600);
    let kept = tempfile::tempdir().unwrap();
    case.setup.rules = format!("[checkpoints]\nevery = \"1s\"\nurl = \"{}\"\n", kept.path().display());
    case.produce(200);
    let swelter = case.start(1).ready();
    case.wait_for_results();
    let manifests = || published_manifests(kept.path()).len();
    wait_for("a checkpoint", || (manifests() > 0).then_some(()));
    swelter.terminate();
    let input = case.setup.input.clone();
    copy_anew(&case.setup, &input);
    let is_copy = [&*input, "is another one: it has the id", "--adopt-logs"];
    refused(&case, &[], &is_copy);
    refused(&case, &["--takeover"], &is_copy);

    let adopted = Swelter::start_with(&case.setup, case.data.path(), 1, None, &["--adopt-logs"]).ready();
    case.produce(100);
    case.wait_for_results();
    assert!(adopted.log().contains("a checkpoint is taken up"), "{}", adopted.log());
    adopted.kill();
    // What was adopted needs no further word.
    let swelter = case.start(2).ready();
    assert!(swelter.log().contains("a checkpoint is taken up"), "{}", swelter.log());
    case.produce(100);
    case.check_exactly_once();
    swelter.terminate();
}

#[test]
fn input_whose_record_before_has_gone_is_known_by_its_id() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 225, 600);
    let kept = tempfile::tempdir().unwrap();
    case.setup.rules = format!("[checkpoints]\nevery = \"1s\"\nurl = \"{}\"\n", kept.path().display());
    case.produce(200);
    let swelter = case.start(1).ready();
    case.wait_for_results();
    wait_for("a checkpoint with all of it", || (covered(kept.path()) == case.log.records()).then_some(()));
    swelter.terminate();
    let ends: Vec<i64> = (0..PARTITIONS as i32)
        .map(|partition| {
            let records = committed(&access, &case.setup.input);
            records.iter().filter(|record| record.partition == partition).count() as i64
        })
        .collect();
    for (partition, end) in (0..).zip(&ends) {
        Topics::of(&access).delete_before(&case.setup.input, partition, *end);
    }
    let swelter = case.start(1).ready();
    case.produce(100);
    case.check_exactly_once();
    swelter.terminate();
}

#[test]
fn topics_that_were_not_recorded_are_recorded_at_the_next_start() {
    let Some(access) = shared() else { return };
    let mut case = after_a_run(&access, 226);
    let setup = case.setup.clone();
    // As a version that knew nothing of ids has left it.
    write(&setup, &setup.progress, &[NewRecord::new(0, "topics", "{}")]);
    let swelter = case.start(1).ready();
    case.produce(100);
    case.check_exactly_once();
    swelter.terminate();
    let records = committed(&access, &setup.progress);
    let last =
        records.iter().rfind(|record| record.key.as_deref() == Some(b"topics")).unwrap().json().unwrap();
    for topic in [&setup.input, &setup.results, &setup.current, &setup.letters(), &setup.progress] {
        assert_eq!(last[topic]["id"].as_str().map(str::len), Some(22), "{topic} in {last}");
    }
}

fn retry_group(setup: &Setup) -> BaseConsumer {
    let mut config = setup.access.client();
    config.set("group.id", format!("{}.progress.retry.not_decodable", setup.input)).create().unwrap()
}

/// How far the letters were sent, with what the offsets say of their topic.
fn kept_offsets(setup: &Setup) -> TopicPartitionList {
    let mut asked = TopicPartitionList::new();
    asked.add_partition(&setup.letters(), 1);
    let kept = retry_group(setup).committed_offsets(asked, DEADLINE).unwrap();
    assert_eq!((kept.elements()[0].offset(), kept.elements()[0].metadata().len()), (Offset::Offset(2), 22));
    kept
}

/// `swelter dead-letters retry`, and what it says.
fn retry(setup: &Setup) -> String {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("swelter.toml");
    std::fs::write(&config, setup.to_toml()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_swelter"));
    let output = command.args(["dead-letters", "retry", "--config"]).arg(&config).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn retry_of_a_dead_letter_topic_made_anew_skips_nothing() {
    let Some(access) = shared() else { return };
    let case = Case::new(&access, 227, 1);
    let setup = case.setup.clone();
    write(
        &setup,
        &setup.input,
        &[NewRecord::new(1, "bad", "not JSON"), NewRecord::new(1, "bad", "nor this")],
    );
    let swelter = case.start(1).ready();
    wait_for("dead letters", || (committed(&access, &setup.letters()).len() == 2).then_some(()));
    swelter.terminate();
    assert!(retry(&setup).contains("sent 2 dead letters"));
    assert!(retry(&setup).contains("sent 0 dead letters"));
    // A broker forgets the offsets of a topic that is deleted, but what copies clusters brings them back.
    let kept = kept_offsets(&setup);
    copy_anew(&setup, &setup.letters());
    let group = retry_group(&setup);
    group.commit(&kept, CommitMode::Sync).unwrap();
    assert!(retry(&setup).contains("sent 2 dead letters"), "those of another topic were not sent");
    assert!(retry(&setup).contains("sent 0 dead letters"));
}

/// The watch does not take a broker that is away for a topic that is gone.
#[test]
fn topics_of_a_broker_that_is_away_are_not_gone() {
    let Some(mut broker) = super::broker::OwnBroker::start() else { return };
    let mut case = Case::new(&broker.access, 228, 600);
    case.produce(100);
    let swelter = case.start(1).ready();
    case.wait_for_results();
    broker.kill();
    // It stays away for longer than the watch takes from one look to the next.
    thread::sleep(Duration::from_secs(7));
    broker.start_again();
    case.produce(100);
    case.check_exactly_once();
    // Nothing may come of the next look either: as long as the watch needs for it.
    thread::sleep(Duration::from_secs(6));
    swelter.terminate();
}
