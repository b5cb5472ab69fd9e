//! Checkpoints, and topics that are not those that they were made beside.

use std::collections::BTreeSet;

use super::broker::shared;
use super::case::Case;
use super::topics::{COMPACT, Topics};
use crate::checkpoints::published_manifests;
use crate::process::wait_for;

/// What a checkpoint includes is in the topics that there were; new ones get it all the same.
#[test]
fn new_topics_are_written_from_the_start_of_the_log() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 61, 600);
    let kept = tempfile::tempdir().unwrap();
    case.setup.rules = format!("[checkpoints]\nevery = \"1s\"\nurl = \"{}\"\n", kept.path().display());
    case.produce(300);
    let swelter = case.start(1).ready();
    case.wait_for_results();
    let manifests = || BTreeSet::from_iter(published_manifests(kept.path()));
    wait_for("a checkpoint", || (!manifests().is_empty()).then_some(()));
    swelter.terminate();

    let setup = &mut case.setup;
    for (name, partitions) in [(&mut setup.results, 4), (&mut setup.current, 4), (&mut setup.progress, 1)] {
        *name += "-anew";
        Topics::of(&access).create(name, partitions, &[COMPACT]);
    }
    case.produce(100);
    let swelter = case.start(2).ready();
    case.wait_for_results();
    let log = swelter.log();
    swelter.terminate();
    assert!(log.contains("a checkpoint is not used: the sinks are complete up to"), "{log}");
    case.check_rows();
    case.check_current();

    // From then on they are taken up again.
    let before = manifests();
    let swelter = case.start(1).ready();
    case.produce(100);
    case.wait_for_results();
    wait_for("a checkpoint of it", || (!manifests().is_subset(&before)).then_some(()));
    swelter.kill();
    let swelter = case.start(1).ready();
    let log = swelter.log();
    assert!(log.contains("a checkpoint is taken up"), "{log}");
    swelter.terminate();
    case.check_rows();
    case.check_current();
}
