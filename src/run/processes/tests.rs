use std::collections::BTreeMap;
use std::thread;

use super::*;
use crate::worker::Refusals;

const PATIENCE: Duration = Duration::from_secs(20);

/// A process of a run as others see it.
struct One {
    processes: Processes,
    shared: Arc<SharedState>,
    slots: PartitionTable,
    stops: Shutdown,
}

fn name(partition: u32) -> PartitionName {
    PartitionName { source: "readings".into(), partition }
}

fn run(processes: usize) -> Vec<One> {
    let listeners: Vec<TcpListener> =
        (0..processes).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let hosts: Vec<String> =
        listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
    let meet = |(process, listener)| {
        let plan = ClusterPlan {
            topology: Topology { processes, process, workers_per_process: 1 },
            hosts: hosts.clone(),
            secret: Vec::new(),
            tls: None,
            connect_time: PATIENCE,
            peer_timeout: PATIENCE,
            agreement: BTreeMap::new(),
        };
        thread::spawn(move || {
            let stops = Shutdown::default();
            stops.start_is_done();
            let processes = Processes::meet(&plan, Some(listener), &stops).unwrap();
            // A test that fails should not end them all.
            processes.desk.ending.store(true, Ordering::Relaxed);
            let (shared, slots) =
                (Arc::new(SharedState::new(Refusals::new(None), 0)), PartitionTable::new(vec![name(0)]));
            processes.serve(Arc::clone(&shared), slots.clone(), None);
            One { processes, shared, slots, stops }
        })
    };
    let met: Vec<_> = listeners.into_iter().enumerate().map(meet).collect();
    met.into_iter().map(|met| met.join().unwrap()).collect()
}

fn wait_for(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} does not happen");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn congested_process_pauses_sources_of_all() {
    let all = run(3);
    let all_wait = |waits: bool| move |one: &One| one.shared.must_wait() == waits;
    for slow in 0..3 {
        all[slow].shared.set_congested(true);
        wait_for("that all wait", || all.iter().all(all_wait(true)));
        all[slow].shared.set_congested(false);
        wait_for("that none waits", || all.iter().all(all_wait(false)));
    }
    all[1].shared.set_congested(true);
    all[2].shared.set_congested(true);
    wait_for("that process 0 knows of both", || *locked(&all[0].processes.desk.congested) == 0b110);
    all[1].shared.set_congested(false);
    // What is heard of one process is heard in order: the other one still counts.
    all[1].processes.tell(&Message::Newest { epoch: 1 });
    wait_for("that process 0 has heard", || all[0].processes.newest_epoch() == 1);
    assert!(all[0].shared.must_wait());
    all[2].shared.set_congested(false);
    wait_for("that none waits", || all.iter().all(all_wait(false)));
}

#[test]
fn partition_is_read_after_all_peers_know_it() {
    let all = run(3);
    let first = &all[0];
    let slot = first.slots.push(name(1));
    first.processes.introduce(slot, name(1), 17);
    let mut to_read = vec![Vec::new(); 3];
    let deadline = Instant::now() + PATIENCE;
    while to_read.iter().any(Vec::is_empty) {
        assert!(Instant::now() < deadline, "{to_read:?}");
        for (one, read) in all.iter().zip(&mut to_read) {
            read.extend(one.processes.partitions_to_read());
            if !read.is_empty() {
                assert!(all.iter().all(|one| one.slots.name(slot) == Some(name(1))));
            }
        }
    }
    assert!(to_read.iter().all(|read| *read == [(slot, name(1), 17)]), "{to_read:?}");
}

#[test]
fn reserved_epochs_never_shrink() {
    let all = run(2);
    let [first, second] = &all[..] else { panic!("two") };
    second.shared.begin_reserving(100);
    first.processes.tell(&Message::Reserved { upto: u64::MAX });
    first.processes.tell(&Message::Reserved { upto: 200 });
    first.processes.tell(&Message::Stop);
    wait_for("what was said last", || second.stops.flag().is_raised());
    assert!(second.shared.reserved(u64::MAX - 1));
}

#[test]
fn failing_process_stops_its_peers() {
    let all = run(3);
    all[1].processes.give_up();
    wait_for("the stop of all", || [0, 2].iter().all(|other| all[*other].stops.flag().is_raised()));
}
