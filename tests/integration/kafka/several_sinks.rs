//! Several sinks in one run, Kafka beside a folder or beside Kafka: each exactly once, whatever is
//! killed, stopped or full.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use super::broker::shared_broker;
use super::case::KafkaCase;
use super::config::KafkaConfig;
use super::kills::{env_number, run_case};
use super::topics::{COMPACT, TopicAdmin};
use crate::folder_reader::{check_folder, check_positions, finished_files, is_rows_file, open_files};
use crate::support::{ServiceProcess, send_signal, wait_for};

fn folder_table(path: &Path, more: &str) -> String {
    format!(
        "\n[[sinks]]\ntype = \"folder\"\npath = \"{}\"\ncommit_interval = \"30ms\"\n{more}\n",
        path.display()
    )
}

/// A case with a folder sink beside that of Kafka.
fn case_with_folder(seed: u64, records: usize) -> (KafkaCase, TempDir, PathBuf) {
    let access = shared_broker();
    let root = tempfile::tempdir().unwrap();
    let archive = root.path().join("archive");
    let mut case = KafkaCase::new(&access, seed, records);
    case.setup.sink += &folder_table(&archive, "shards = 2\n");
    (case, root, archive)
}

/// Both sinks hold all, and each change once; the service has ended, so all files are finished.
fn check_both(case: &KafkaCase, archive: &Path) {
    case.check_exactly_once();
    check_positions(archive, case.log.record_count());
    let changes = check_folder(archive, &case.log.rows.values);
    eprintln!("{changes} changes in {} files", finished_files(archive).len());
}

/// `SWELTER_KILLS` kills more often, `SWELTER_KILLS_SEED` is another log.
#[test]
#[ignore = "needs Kafka: scripts/test"]
fn both_sinks_are_exactly_once_over_kills() {
    let root = tempfile::tempdir().unwrap();
    let archive = root.path().join("archive");
    let table = folder_table(&archive, "shards = 2\nsegment_bytes = \"64 KiB\"\n");
    let kills = env_number("SWELTER_KILLS", 12);
    let case = run_case(env_number("SWELTER_KILLS_SEED", 71), kills, &table);
    check_both(&case, &archive);
    assert!(case.aborted_records() > 0, "no process died within a transaction");
}

/// Kills the program while it writes to a second sink of the same broker, which is listed by this
/// address.
fn check_two_kafka_sinks(seed: u64, address: impl FnOnce(&str) -> String) {
    let access = shared_broker();
    let second = KafkaConfig::new(&access);
    let KafkaConfig { results, current, progress, .. } = &second;
    let topics = TopicAdmin::of(&access);
    for (topic, partitions) in [(results, 4), (current, 4), (progress, 1)] {
        topics.create(topic, partitions, &[COMPACT]);
    }
    let table = format!(
        "\n[[sinks]]\nname = \"second\"\ntype = \"kafka\"\nbrokers = \"{}\"\ntopic = \"{results}\"\ncurrent_topic = \"{current}\"\n\
         progress_topic = \"{progress}\"\nshards = 3\ncommit_interval = \"30ms\"\n",
        address(&access.address)
    );
    let mut case = run_case(seed, env_number("SWELTER_KILLS", 10), &table);
    case.check_exactly_once();
    let aborted = case.aborted_records();
    (case.setup.results, case.setup.current) = (results.clone(), current.clone());
    case.check_exactly_once();
    let aborted_in_second = case.aborted_records();
    eprintln!("{aborted} and {aborted_in_second} records of transactions that were not committed");
    assert!(aborted + aborted_in_second > 0, "no process died within a transaction");
}

/// Both are of one cluster, with topics of their own.
#[test]
#[ignore = "needs Kafka: scripts/test"]
fn two_kafka_sinks_of_one_cluster_are_exactly_once_over_kills() {
    check_two_kafka_sinks(76, str::to_owned);
}

/// The same broker by another name is another cluster to the program.
#[test]
#[ignore = "needs Kafka: scripts/test"]
fn kafka_sinks_of_two_clusters_are_exactly_once_over_kills() {
    check_two_kafka_sinks(77, |address| address.replace("127.0.0.1", "localhost"));
}

/// The authority has the next generation then, and the folder that of the one before. The second
/// time the folder is claimed, and not fenced.
#[test]
#[ignore = "needs Kafka: scripts/test"]
fn start_killed_between_two_claims_is_made_good() {
    let (mut case, _root, archive) = case_with_folder(72, 1_000);
    case.produce_records(200);
    case.start_swelter(1).wait_until_ready().kill();
    for point in ["between_claims", "between_fences"] {
        case.produce_records(50);
        let service = case.setup.service(case.data.path(), 1);
        let mut swelter = service.env("SWELTER_PANIC_POINT", format!("{point}:1")).spawn();
        wait_for("its death between two claims", || swelter.has_ended());
        assert!(swelter.log().contains(point), "{}", swelter.log());
    }
    let swelter = case.start_swelter(2).wait_until_ready();
    case.wait_for_results();
    swelter.terminate();
    check_both(&case, &archive);
}

/// Stopped, taken over from, and gone on with: it ends with 3, and nothing that it still writes is in the results.
#[test]
#[ignore = "needs Kafka: scripts/test"]
fn stopped_process_that_goes_on_writes_nothing() {
    let (mut case, _root, archive) = case_with_folder(73, 2_000);
    case.produce_records(300);
    let zombie = case.start_swelter(2).wait_until_ready();
    case.produce_records(100);
    send_signal(zombie.pid(), Signal::STOP);
    case.produce_records(100);
    let swelter = case.start_swelter(1).wait_until_ready();
    case.wait_for_results();
    let before = finished_files(&archive);
    send_signal(zombie.pid(), Signal::CONT);
    case.produce_records(100);
    zombie.wait_until_taken_over();
    assert_eq!(finished_files(&archive), before, "it has finished a file");
    case.wait_for_results();
    swelter.terminate();
    check_both(&case, &archive);
}

/// As a full disk does it: the folder waits, Kafka gets everything meanwhile, and nothing is lost.
#[test]
#[ignore = "needs Kafka: scripts/test"]
fn full_folder_is_retried_until_there_is_room() {
    let (mut case, _root, archive) = case_with_folder(74, 8_000);
    case.produce_records(300);
    let swelter = case.start_swelter(1).wait_until_ready();
    let rows = || open_files(&archive).into_iter().filter(|file| is_rows_file(file));
    let longest = || rows().map(|file| fs::metadata(file).map_or(0, |of| of.len())).max().unwrap_or(0);
    while longest() < 32 * 1024 {
        assert!(case.log.record_count() < 7_000, "the folder has {} bytes", longest());
        case.produce_records(100);
    }
    set_file_size_limit(&swelter, &format!("--fsize={}:", 32 * 1024));
    case.produce_records(300);
    wait_for("that the folder is full", || {
        swelter.log().contains("a transaction of results failed").then_some(())
    });
    assert!(swelter.log().contains("ulimit -f"), "{}", swelter.log());
    case.wait_for_results();
    assert!(!swelter.log().contains("results can be written again"), "{}", swelter.log());
    set_file_size_limit(&swelter, "--fsize=unlimited:");
    wait_for("that it goes on", || swelter.log().contains("results can be written again").then_some(()));
    case.wait_for_results();
    swelter.terminate();
    check_both(&case, &archive);
}

fn set_file_size_limit(swelter: &ServiceProcess, limit: &str) {
    let set = Command::new("prlimit")
        .args(["--pid", &swelter.pid().as_raw_nonzero().to_string(), limit])
        .status()
        .unwrap();
    assert!(set.success(), "{limit}");
}

/// A successor reads no further than both sinks have, and a standby neither.
#[test]
#[ignore = "needs Kafka: scripts/test"]
fn takeover_and_standby_go_on_with_both_sinks() {
    let (mut case, _root, archive) = case_with_folder(75, 3_000);
    case.setup.rules = "[cluster]\nstandby_after = \"3s\"\n".into();
    case.produce_records(300);
    let mut running = case.start_swelter(2).wait_until_ready();
    for arguments in [&["--takeover"][..], &["--takeover", "--processes", "2"]] {
        case.produce_records(100);
        let successor = case.setup.service(case.data.path(), 1).args(arguments).spawn().wait_until_ready();
        running.wait_until_taken_over();
        running = successor;
    }
    let standby = case.setup.service(case.data.path(), 1).args(&["--standby"]).spawn();
    wait_for("that it follows the other one", || {
        standby.log().contains("the run follows the generation").then_some(())
    });
    case.produce_records(100);
    running.kill();
    let standby = standby.wait_until_ready();
    case.produce_records(100);
    case.wait_for_results();
    standby.terminate();
    check_both(&case, &archive);
}
