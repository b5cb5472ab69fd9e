use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// What a process hears of others.
struct Ears {
    said: Receiver<(usize, Message)>,
    lost: Receiver<(usize, String)>,
}

fn ears() -> (LinkHandler, Ears) {
    let ((say, said), (lose, lost)) = (mpsc::channel(), mpsc::channel());
    let heard = LinkHandler {
        on_message: Arc::new(move |process, message| drop(say.send((process, message)))),
        on_lost: Arc::new(move |process, why| drop(lose.send((process, why)))),
    };
    (heard, Ears { said, lost })
}

/// The processes of a run, as threads.
struct Run {
    listeners: Vec<Option<TcpListener>>,
    plan: ClusterPlan,
}

struct Meeting {
    met: JoinHandle<Result<Cluster, ClusterError>>,
    ears: Ears,
    stop: StopFlag,
}

impl Meeting {
    fn cluster(self) -> (Cluster, Ears) {
        (self.met.join().unwrap().unwrap(), self.ears)
    }

    fn error(self) -> ClusterError {
        self.met.join().unwrap().map(drop).unwrap_err()
    }
}

impl Run {
    fn of(processes: usize) -> Run {
        let listeners: Vec<TcpListener> =
            (0..processes).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let hosts = listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
        let plan = ClusterPlan {
            topology: Topology { processes, process: 0, workers_per_process: 1 },
            hosts,
            secret: b"s3cr3t".to_vec(),
            tls: None,
            connect_time: PATIENCE,
            peer_timeout: Duration::from_millis(400),
            agreement: BTreeMap::new(),
        };
        Run { listeners: listeners.into_iter().map(Some).collect(), plan }
    }

    fn plan(&self, process: usize) -> ClusterPlan {
        let topology = Topology { process, ..self.plan.topology };
        ClusterPlan { topology, ..self.plan.clone() }
    }

    fn meet(&mut self, process: usize) -> Meeting {
        let (heard, ears) = ears();
        let (plan, listener, stop) =
            (self.plan(process), self.listeners[process].take(), StopFlag::default());
        let flag = stop.clone();
        let met = thread::spawn(move || Cluster::connect(&plan, listener, heard, flag));
        Meeting { met, ears, stop }
    }

    fn meet_all(&mut self) -> Vec<(Cluster, Ears)> {
        let all: Vec<Meeting> = (0..self.plan.topology.processes).map(|process| self.meet(process)).collect();
        all.into_iter().map(Meeting::cluster).collect()
    }

    /// As `process` calls process 0.
    fn call(&self, process: usize, purpose: &Purpose) -> Result<PeerStream, HandshakeFailure> {
        connect_once(&self.plan.hosts[0], &self.plan(process), purpose, 0)
    }
}

/// All at once, as in processes of their own.
fn each<T: Send>(all: &[(Cluster, Ears)], act: impl Fn(&Cluster) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let threads: Vec<_> = all.iter().map(|(cluster, _)| scope.spawn(|| act(cluster))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn data(generation: &str) -> Purpose {
    Purpose::Data { generation: generation.into() }
}

#[test]
fn connect_waits_for_late_peer() {
    let mut run = Run::of(3);
    let (first, second) = (run.meet(0), run.meet(1));
    // Those that wait hear signs of life meanwhile, and are not given up.
    thread::sleep(run.plan.peer_timeout * 4);
    assert!(!first.met.is_finished());
    let third = run.meet(2);
    let all = [first, second, third].map(Meeting::cluster);
    let said = each(&all, |cluster| {
        let shared: u64 = cluster.share(ValueName("u64"), || Ok::<_, ClusterError>(7)).unwrap();
        let gathered = cluster.gather(ValueName("usize"), cluster.topology().process).unwrap();
        cluster.go_on_together().unwrap();
        let sockets = cluster.connect_workers("1-a").unwrap();
        (shared, gathered, sockets.iter().map(Option::is_some).collect::<Vec<_>>())
    });
    assert_eq!(said[0], (7, vec![0, 1, 2], vec![false, true, true]));
    assert_eq!(said[1], (7, vec![], vec![true, false, true]));
    assert_eq!(said[2], (7, vec![], vec![true, true, false]));
    for (_, ears) in &all {
        assert!(ears.lost.try_recv().is_err());
    }
    let late = run.call(1, &Purpose::Link);
    assert!(
        matches!(&late, Err(HandshakeFailure::Taken(why)) if why == "the cluster already runs as generation 1-a"),
        "{late:?}"
    );
}

#[test]
fn peer_lost_during_connect_may_reconnect() {
    let mut run = Run::of(3);
    let first = run.meet(0);
    let socket = run.call(1, &Purpose::Link).unwrap();
    let twin = run.call(1, &Purpose::Link);
    assert!(
        matches!(&twin, Err(HandshakeFailure::Taken(why)) if why.contains("another process 1 has come")),
        "{twin:?}"
    );
    let early = run.call(1, &data("1-a"));
    assert!(
        matches!(&early, Err(HandshakeFailure::Broken(why)) if why.contains("another point of its start")),
        "{early:?}"
    );
    drop(socket);
    let (second, third) = (run.meet(1), run.meet(2));
    let all = [first, second, third].map(Meeting::cluster);
    for (_, ears) in &all {
        assert!(ears.lost.try_recv().is_err());
    }
    // From now on all end with one.
    let [first, second, _third] = all;
    drop(second);
    assert_eq!(first.1.lost.recv_timeout(PATIENCE).unwrap().0, 1);
}

#[test]
fn second_peer_of_same_index_is_refused_if_first_lives() {
    let mut run = Run::of(3);
    let first = run.meet(0);
    let _second = run.meet(1).cluster();
    let began = Instant::now();
    let twin = connect_with_retry(&run.plan(1), 0, &Purpose::Link, &StopFlag::default());
    assert!(matches!(&twin, Err(ClusterError::Refused(why)) if why.contains("--process")), "{twin:?}");
    assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
    first.stop.raise();
    first.error();
}

#[test]
fn other_generation_is_refused_by_dataflow_port() {
    let mut run = Run::of(2);
    let all = run.meet_all();
    let (first, _) = &all[0];
    thread::scope(|scope| {
        let connecting = scope.spawn(|| first.connect_workers("2-b"));
        let stranger = loop {
            match run.call(1, &data("1-a")) {
                Err(HandshakeFailure::Broken(_)) => thread::sleep(CONNECT_RETRY),
                called => break called,
            }
        };
        assert!(
            matches!(&stranger, Err(HandshakeFailure::Refused(why)) if why.contains("generation 1-a, this is 2-b")),
            "{stranger:?}"
        );
        all[1].0.connect_workers("2-b").unwrap();
        connecting.join().unwrap().unwrap();
    });
}

#[test]
fn silent_connections_do_not_delay_peers() {
    let mut run = Run::of(2);
    let began = Instant::now();
    let first = run.meet(0);
    let silent: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(&run.plan.hosts[0]).unwrap()).collect();
    let second = run.meet(1);
    let _met = [first, second].map(Meeting::cluster);
    assert!(began.elapsed() < handshake::HANDSHAKE_TIMEOUT, "{:?}", began.elapsed());
    drop(silent);
}

/// A flood from the address that the processes themselves have: nothing tells them apart before they have proved who they are.
#[test]
fn connection_flood_does_not_prevent_connect() {
    let mut run = Run::of(3);
    let address = run.plan.hosts[0].clone();
    let (ended, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let first = run.meet(0);
    let flood = (0..3).map(|caller| {
        let (ended, calls, address) = (Arc::clone(&ended), Arc::clone(&calls), address.clone());
        thread::spawn(move || {
            let mut held = std::collections::VecDeque::new();
            while !ended.load(Ordering::Relaxed) {
                let Ok(mut socket) = TcpStream::connect(&address) else { continue };
                calls.fetch_add(1, Ordering::Relaxed);
                let _ = match caller {
                    0 => Ok(()),
                    1 => io::Write::write_all(&mut socket, b"GET / HTTP/1.1\r\n\r\n"),
                    _ => io::Write::write_all(&mut socket, b"{\"magic\":"),
                };
                held.push_back(socket);
                if held.len() > 100 {
                    held.pop_front();
                }
            }
        })
    });
    let flood: Vec<_> = flood.collect();
    let deadline = Instant::now() + PATIENCE;
    while calls.load(Ordering::Relaxed) < 1_000 {
        assert!(Instant::now() < deadline, "a flood of {calls:?} in {PATIENCE:?}");
        thread::sleep(CONNECT_RETRY);
    }
    let began = Instant::now();
    let (second, third) = (run.meet(1), run.meet(2));
    let all = [first, second, third].map(Meeting::cluster);
    let met = began.elapsed();
    let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
    let said = each(&all, |cluster| {
        cluster.go_on_together().unwrap();
        cluster.connect_workers("1-a").unwrap().iter().flatten().count()
    });
    ended.store(true, Ordering::Relaxed);
    flood.into_iter().for_each(|caller| caller.join().unwrap());
    assert_eq!(said, [2, 2, 2]);
    assert!(met < PATIENCE / 2, "they met after {met:?} and {calls:?} calls");
    // Those of the other tests of this process as well.
    assert!(threads < 600, "{threads} threads");
    for (_, ears) in &all {
        assert!(ears.lost.try_recv().is_err());
    }
}

#[test]
fn missing_peer_is_named_to_all() {
    let mut run = Run::of(3);
    run.plan.connect_time = Duration::from_millis(300);
    let (first, second) = (run.meet(0), run.meet(1));
    let error = first.error();
    assert!(matches!(error, ClusterError::NotCome(2, 3, _)), "{error}");
    let (_second, ears) = second.cluster();
    let said = ears.said.recv_timeout(PATIENCE).unwrap();
    assert_eq!(said, (0, Message::Failed { why: error.to_string(), taken_over: false }));
}

#[test]
fn stop_ends_every_wait_of_connect() {
    let mut run = Run::of(3);
    let (first, second) = (run.meet(0), run.meet(1));
    let second = second.cluster();
    first.stop.raise();
    assert!(matches!(first.error(), ClusterError::Stopped));
    let said = second.1.said.recv_timeout(PATIENCE).unwrap();
    assert_eq!(said, (0, Message::Stop));
    second.0.stop.raise();
    let waited: Result<u64, ClusterError> = second.0.share(ValueName("u64"), || Ok(1));
    assert!(matches!(waited, Err(ClusterError::Stopped)));

    // One that nobody listens to.
    let mut run = Run::of(2);
    run.listeners[0] = None;
    let second = run.meet(1);
    second.stop.raise();
    assert!(matches!(second.error(), ClusterError::Stopped));
}

#[test]
fn peers_at_different_steps_report_mismatch() {
    let mut run = Run::of(2);
    let all = run.meet_all();
    let said = each(&all, |cluster| match cluster.topology().is_first_process() {
        true => cluster.share(ValueName("u64"), || Ok::<u64, ClusterError>(1)).map(drop),
        false => cluster.share(ValueName::TEXT, || Ok::<String, ClusterError>(String::new())).map(drop),
    });
    assert!(said[0].is_ok());
    assert!(
        matches!(&said[1], Err(ClusterError::OutOfStep { process: 0, theirs: (0, of), .. }) if of == "u64"),
        "{said:?}"
    );
    let said = each(&all, |cluster| {
        if cluster.topology().is_first_process() {
            cluster.step();
        }
        cluster.gather(ValueName("u64"), 1u64).map(drop)
    });
    assert!(matches!(&said[0], Err(ClusterError::OutOfStep { process: 1, .. })), "{said:?}");
}

#[test]
fn peer_without_heartbeat_is_lost() {
    let mut run = Run::of(2);
    let first = run.meet(0);
    let _silent = run.call(1, &Purpose::Link).unwrap();
    let (_first, ears) = first.cluster();
    let (process, why) = ears.lost.recv_timeout(PATIENCE).unwrap();
    assert_eq!((process, &*why), (1, "it gives no sign of life"));
}

/// Those that wait for its word do not heed a stop themselves.
#[test]
fn stop_of_process_0_stops_waiting_processes() {
    let mut run = Run::of(2);
    let (first, second) = (run.meet(0), run.meet(1));
    let stop = first.stop.clone();
    let ((first, _ears), (second, _others)) = (first.cluster(), second.cluster());
    let waits = thread::spawn(move || second.go_on_together());
    stop.raise();
    assert!(matches!(first.go_on_together(), Err(ClusterError::Stopped)));
    assert!(matches!(waits.join().unwrap(), Err(ClusterError::Stopped)));
}
