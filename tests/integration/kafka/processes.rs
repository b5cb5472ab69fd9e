//! Several processes that read one topic: records that arrive while they run, and their joint end.

use super::broker::shared_broker;
use super::case::{KafkaCase, PARTITIONS};
use super::topic_reader::read_committed;
use super::topics::{NewRecord, TestProducer, TopicAdmin};
use crate::support::{HostsFile, ServiceProcess, free_ports, wait_for};

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn added_partitions_are_read_by_all_processes() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 61, 500);
    case.produce_records(200);
    let swelter =
        case.setup.service(case.data.path(), 1).args(&["--processes", "2"]).spawn().wait_until_ready();
    // One for each process.
    TopicAdmin::of(&access).add_partitions(&case.setup.input, PARTITIONS as usize + 2);
    let producer = TestProducer::to(&access);
    for (partition, city) in [(PARTITIONS as i32, "new"), (PARTITIONS as i32 + 1, "newer")] {
        let now = jiff::Timestamp::now();
        let reading =
            format!("{{\"city\":\"{city}\",\"reading_at\":\"{now}\",\"temperature\":90,\"humidity\":50}}");
        producer.send_record(&case.setup.input, &NewRecord::new(partition, city, &reading));
    }
    producer.flush();
    let is_there = |city: &str| {
        read_committed(&access, &case.setup.current).iter().filter(|record| record.key() == city).count()
    };
    wait_for("the readings of the new partitions", || {
        (is_there("new") == 1 && is_there("newer") == 1).then_some(())
    });
    swelter.terminate();
    // Another start knows the partitions and writes nothing twice.
    case.start_swelter(1).wait_until_ready().terminate();
    assert_eq!((is_there("new"), is_there("newer")), (1, 1));
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn takeover_ends_all_processes_of_predecessor() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 62, 500);
    case.produce_records(200);
    let hosts = HostsFile::on_ports(&free_ports(2));
    let both = [0, 1].map(|process| hosts.process(case.setup.service(case.data.path(), 1), process).spawn());
    let both = both.map(ServiceProcess::wait_until_ready);
    let other = tempfile::tempdir().unwrap();
    let new = case.setup.service(other.path(), 1).spawn();
    both.into_iter().for_each(ServiceProcess::wait_until_taken_over);
    new.wait_until_ready().terminate();
}

/// A successor may be stopped while it is behind, while it takes over, and after that.
#[test]
#[ignore = "needs Kafka: scripts/test"]
fn stop_succeeds_at_any_point_of_takeover() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 63, 1_000);
    case.produce_records(200);
    let mut running = Some(case.start_swelter(1).wait_until_ready());
    let points: [fn(&ServiceProcess, &mut ServiceProcess) -> bool; 4] = [
        |_, _| true,
        |successor, _| successor.is_listening(),
        |_, old| old.has_ended().is_some(),
        |successor, _| successor.log().contains("taken over"),
    ];
    for (number, point) in points.iter().enumerate() {
        let successor =
            case.setup.service(case.data.path(), 1).args(&["--takeover", "--processes", "2"]).spawn();
        wait_for("that it follows the other one", || {
            successor.log().contains("the run follows the generation").then_some(())
        });
        wait_for(&format!("point {number} of the takeover"), || {
            point(&successor, running.as_mut().unwrap()).then_some(())
        });
        successor.terminate();
        case.produce_records(50);
        if running.as_mut().is_some_and(|running| running.has_ended().is_some()) {
            running.take().into_iter().for_each(ServiceProcess::wait_until_taken_over);
            running = Some(case.start_swelter(1).wait_until_ready());
        }
    }
    case.wait_for_results();
    running.take().into_iter().for_each(ServiceProcess::terminate);
    case.check_exactly_once();
}
