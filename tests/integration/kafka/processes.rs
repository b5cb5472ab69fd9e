//! Several processes at one log: what comes while they run, and how they end together.

use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use super::broker::shared;
use super::case::{Case, PARTITIONS};
use super::reading::committed;
use super::swelter::Swelter;
use super::topics::{NewRecord, Producer, Topics};
use crate::process::wait_for;

#[test]
fn partitions_that_are_added_are_read_by_all_processes() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 61, 500);
    case.produce(200);
    let swelter = Swelter::start_with(&case.setup, case.data.path(), 1, None, &["--processes", "2"]).ready();
    // One for each process.
    Topics::of(&access).add_partitions(&case.setup.input, PARTITIONS as usize + 2);
    let producer = Producer::to(&access);
    for (partition, city) in [(PARTITIONS as i32, "new"), (PARTITIONS as i32 + 1, "newer")] {
        let now = jiff::Timestamp::now();
        let reading =
            format!("{{\"city\":\"{city}\",\"reading_at\":\"{now}\",\"temperature\":90,\"humidity\":50}}");
        producer.send(&case.setup.input, &NewRecord::new(partition, city, &reading));
    }
    producer.flush();
    let is_there = |city: &str| {
        committed(&access, &case.setup.current).iter().filter(|record| record.key() == city).count()
    };
    wait_for("the readings of the new partitions", || {
        (is_there("new") == 1 && is_there("newer") == 1).then_some(())
    });
    swelter.terminate();
    // Another start knows them, and writes nothing again.
    case.start(1).ready().terminate();
    assert_eq!((is_there("new"), is_there("newer")), (1, 1));
}

#[test]
fn a_takeover_ends_all_processes_alike() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 62, 500);
    case.produce(200);
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    let listeners = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let text = listeners.each_ref().map(|listener| format!("{}\n", listener.local_addr().unwrap()));
    std::fs::write(&hosts, text.concat()).unwrap();
    drop(listeners);
    let both = ["0", "1"].map(|process| {
        let arguments = ["--processes", "2", "--process", process, "--hosts", hosts.to_str().unwrap()];
        Swelter::start_with(&case.setup, case.data.path(), 1, None, &arguments)
    });
    let both = both.map(Swelter::ready);
    let other = tempfile::tempdir().unwrap();
    let new = Swelter::start(&case.setup, other.path(), 1);
    both.into_iter().for_each(Swelter::ends_taken_over);
    new.ready().terminate();
}

/// Whatever it is at: still behind, taking over, or done with it.
#[test]
fn a_stop_is_one_at_any_point_of_a_takeover() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 63, 1_000);
    case.produce(200);
    let mut running = Some(case.start(1).ready());
    for pause in [0, 400, 1_000, 1_800] {
        let successor =
            Swelter::start_with(&case.setup, case.data.path(), 1, None, &["--takeover", "--processes", "2"]);
        wait_for("that it follows the other one", || {
            successor.log().contains("another generation is followed").then_some(())
        });
        thread::sleep(Duration::from_millis(pause));
        successor.terminate();
        case.produce(50);
        if running.as_mut().is_some_and(|running| running.has_ended().is_some()) {
            running.take().into_iter().for_each(Swelter::ends_taken_over);
            running = Some(case.start(1).ready());
        }
    }
    case.wait_for_results();
    running.take().into_iter().for_each(Swelter::terminate);
    case.check_exactly_once();
}
