//! Checkpoints, and output topics that are newer than they are.

use std::collections::BTreeSet;

use super::broker::shared_broker;
use super::case::KafkaCase;
use super::topics::{COMPACT, TopicAdmin};
use crate::support::checkpoint_files::published_manifests;
use crate::support::wait_for;

/// Rows that a checkpoint includes are in the old topics; new topics receive them too.
#[test]
#[ignore = "needs Kafka: scripts/test"]
fn new_output_topics_receive_whole_log_despite_checkpoint() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 61, 600);
    let kept = tempfile::tempdir().unwrap();
    case.setup.set_checkpoints(kept.path());
    case.produce_records(300);
    let swelter = case.start_swelter(1).wait_until_ready();
    case.wait_for_results();
    let manifests = || BTreeSet::from_iter(published_manifests(kept.path()));
    wait_for("a checkpoint", || (!manifests().is_empty()).then_some(()));
    swelter.terminate();

    let setup = &mut case.setup;
    for (name, partitions) in [(&mut setup.results, 4), (&mut setup.current, 4), (&mut setup.progress, 1)] {
        *name += "-anew";
        TopicAdmin::of(&access).create(name, partitions, &[COMPACT]);
    }
    case.produce_records(100);
    let swelter = case.start_swelter(2).wait_until_ready();
    case.wait_for_results();
    let log = swelter.log();
    swelter.terminate();
    assert!(log.contains("a checkpoint cannot be used, and an older one is tried: progress topic"), "{log}");
    case.check_rows();
    case.check_current();

    // From then on checkpoints are restored again.
    let before = manifests();
    let swelter = case.start_swelter(1).wait_until_ready();
    case.produce_records(100);
    case.wait_for_results();
    wait_for("a checkpoint of it", || (!manifests().is_subset(&before)).then_some(()));
    swelter.kill();
    let swelter = case.start_swelter(1).wait_until_ready();
    let log = swelter.log();
    assert!(log.contains("a checkpoint was restored"), "{log}");
    swelter.terminate();
    case.check_rows();
    case.check_current();
}
