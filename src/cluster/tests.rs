use std::collections::BTreeMap;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::handshake::{HandshakeFailure, Purpose};
use super::session::{CONNECT_RETRY, connect_once, connect_with_retry};
use super::*;
use crate::model::Topology;

const PATIENCE: Duration = Duration::from_secs(20);

/// Messages and ends that a process receives.
struct Received {
    messages: Receiver<(usize, u64)>,
    ends: Receiver<(usize, PeerEnd)>,
}

fn receive() -> (LinkHandler, Received) {
    let ((message, messages), (end, ends)) = (mpsc::channel(), mpsc::channel());
    let handler = LinkHandler {
        on_message: Arc::new(move |process, bytes| {
            let number = postcard::from_bytes(bytes).map_err(|error| error.to_string())?;
            message.send((process, number)).map_err(|error| error.to_string())
        }),
        on_end: Arc::new(move |process, ended| drop(end.send((process, ended)))),
    };
    (handler, Received { messages, ends })
}

/// The processes of a run, as threads.
struct Run {
    listeners: Vec<Option<TcpListener>>,
    plan: ClusterPlan,
}

struct Meeting {
    met: JoinHandle<Result<Cluster, ClusterError>>,
    received: Received,
    stop: StopFlag,
}

impl Meeting {
    fn cluster(self) -> (Cluster, Received) {
        (self.met.join().unwrap().unwrap(), self.received)
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
        let (handler, received) = receive();
        let (plan, listener, stop) =
            (self.plan(process), self.listeners[process].take(), StopFlag::default());
        let flag = stop.clone();
        let met = thread::spawn(move || Cluster::connect(&plan, listener, handler, flag));
        Meeting { met, received, stop }
    }

    fn meet_all(&mut self) -> Vec<(Cluster, Received)> {
        let all: Vec<Meeting> = (0..self.plan.topology.processes).map(|process| self.meet(process)).collect();
        all.into_iter().map(Meeting::cluster).collect()
    }

    /// Connects to process 0 as `process`.
    fn call(&self, process: usize, purpose: &Purpose) -> Result<PeerStream, HandshakeFailure> {
        connect_once(&self.plan.hosts[0], &self.plan(process), purpose, 0)
    }
}

/// Runs `act` for all processes at once, each on its own thread.
fn each<T: Send>(all: &[(Cluster, Received)], act: impl Fn(&Cluster) -> T + Sync) -> Vec<T> {
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
    // Waiting processes receive heartbeats meanwhile, so they are not lost.
    thread::sleep(run.plan.peer_timeout * 4);
    assert!(!first.met.is_finished());
    let third = run.meet(2);
    let all = [first, second, third].map(Meeting::cluster);
    all[0].0.links().send_all(&7u64).unwrap();
    for (process, (cluster, received)) in all.iter().enumerate().skip(1) {
        assert_eq!(received.messages.recv_timeout(PATIENCE).unwrap(), (0, 7));
        cluster.links().send(0, &(process as u64));
        assert_eq!(all[0].1.messages.recv_timeout(PATIENCE).unwrap(), (process, process as u64));
    }
    let sockets = each(&all, |cluster| {
        let sockets = cluster.connect_workers("1-a").unwrap();
        sockets.iter().map(Option::is_some).collect::<Vec<_>>()
    });
    assert_eq!(sockets[0], [false, true, true]);
    assert_eq!(sockets[1], [true, false, true]);
    assert_eq!(sockets[2], [true, true, false]);
    for (_, received) in &all {
        assert!(received.ends.try_recv().is_err());
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
        matches!(&twin, Err(HandshakeFailure::Taken(why)) if why.contains("another process 1 is connected already")),
        "{twin:?}"
    );
    let early = run.call(1, &data("1-a"));
    assert!(
        matches!(&early, Err(HandshakeFailure::Broken(why)) if why.contains("another phase of its start")),
        "{early:?}"
    );
    drop(socket);
    let (second, third) = (run.meet(1), run.meet(2));
    let all = [first, second, third].map(Meeting::cluster);
    for (_, received) in &all {
        assert!(received.ends.try_recv().is_err());
    }
    // From now on the loss of one process ends all.
    let [first, second, _third] = all;
    drop(second);
    assert_eq!(first.1.ends.recv_timeout(PATIENCE).unwrap().0, 1);
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
            matches!(&stranger, Err(HandshakeFailure::Refused(why)) if why.contains("generation 1-a, and this one of 2-b")),
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

/// A flood from the address of the processes themselves: nothing distinguishes them before the
/// proof.
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
    let said = each(&all, |cluster| cluster.connect_workers("1-a").unwrap().iter().flatten().count());
    ended.store(true, Ordering::Relaxed);
    flood.into_iter().for_each(|caller| caller.join().unwrap());
    assert_eq!(said, [2, 2, 2]);
    assert!(met < PATIENCE / 2, "they met after {met:?} and {calls:?} calls");
    // Includes the threads of other tests in this process.
    assert!(threads < 600, "{threads} threads");
    for (_, received) in &all {
        assert!(received.ends.try_recv().is_err());
    }
}

#[test]
fn missing_peer_is_named_to_all() {
    let mut run = Run::of(3);
    run.plan.connect_time = Duration::from_millis(300);
    let (first, second) = (run.meet(0), run.meet(1));
    let error = first.error();
    assert!(matches!(error, ClusterError::NotCome(2, 3, _)), "{error}");
    let (_second, received) = second.cluster();
    let ended = received.ends.recv_timeout(PATIENCE).unwrap();
    assert_eq!(ended, (0, PeerEnd::Failed(error.to_string())));
}

#[test]
fn stop_ends_every_wait_of_connect() {
    let mut run = Run::of(3);
    let (first, second) = (run.meet(0), run.meet(1));
    let second = second.cluster();
    first.stop.raise();
    assert!(matches!(first.error(), ClusterError::Stopped));
    assert_eq!(second.1.ends.recv_timeout(PATIENCE).unwrap(), (0, PeerEnd::StopRequested));

    // An address that nothing listens at.
    let mut run = Run::of(2);
    run.listeners[0] = None;
    let second = run.meet(1);
    second.stop.raise();
    assert!(matches!(second.error(), ClusterError::Stopped));
}

#[test]
fn peer_without_heartbeat_is_lost() {
    let mut run = Run::of(2);
    let first = run.meet(0);
    let _silent = run.call(1, &Purpose::Link).unwrap();
    let (_first, received) = first.cluster();
    let ended = received.ends.recv_timeout(PATIENCE).unwrap();
    assert_eq!(ended, (1, PeerEnd::Lost("it has sent no heartbeat for too long".into())));
}

/// A frame that cannot be decoded loses its sender.
#[test]
fn message_that_is_not_understood_loses_the_peer() {
    let mut run = Run::of(2);
    let all = run.meet_all();
    all[1].0.links().send(0, &());
    let (process, end) = all[0].1.ends.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(&end, PeerEnd::Lost(why) if why.contains("cannot be decoded")), "{process} {end:?}");
}
