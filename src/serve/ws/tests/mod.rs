//! Sessions over real sockets: against an oracle, and at their limits.

mod client;
mod limits;
mod world;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio_tungstenite::WebSocketStream;

use self::client::ModelClient;
use self::world::{ModelDataflow, Rng};
use super::metered::MeteredStream;
use super::*;
use crate::codec::ReadOptions;
use crate::directory::Directory;
use crate::serve::publisher::{self, Publisher};
use crate::serve::view::View;
use crate::serve::{ServeLimits, ServiceInfo};

fn limits() -> ServeLimits {
    ServeLimits {
        connections: 100,
        header_time: Duration::from_secs(5),
        body_time: Duration::from_secs(5),
        idle_time: Duration::from_secs(5),
        body_bytes: 1 << 20,
        bodies_bytes: 1 << 20,
        new_cities_percent: 50,
        history_rows: 100,
        message_bytes: 4096,
        messages_per_second: 100_000,
        subscriptions: 8,
        cities: 20,
        window_cities: 10,
        heartbeat: Duration::from_secs(1),
        send_time: Duration::from_secs(5),
        backlog_bytes: 1 << 20,
        ring_time: Duration::from_secs(600),
        ring_bytes: 1 << 20,
    }
}

fn service_info() -> ServiceInfo {
    ServiceInfo {
        generation: "1-abc".into(),
        formula: "rothfusz",
        window: "1d".parse().unwrap(),
        lateness: "1d".parse().unwrap(),
        history: "1d".parse().unwrap(),
        stale_after: "36500d".parse().unwrap(),
        units: Default::default(),
        workers: 1,
        partitions: Default::default(),
        directory: Directory::shipped(),
        read_options: ReadOptions::default(),
        ingest_log: None,
    }
}

/// A server of sessions, its publisher, and a model of the dataflow.
struct SessionTestServer {
    world: Arc<ModelDataflow>,
    view: Arc<View>,
    sessions: SubscriberSessions,
    publisher: Publisher,
    address: SocketAddr,
}

impl SessionTestServer {
    async fn start(seed: u64, limits: ServeLimits) -> SessionTestServer {
        let places = Directory::shipped().cities().iter().step_by(3_000).map(|city| city.id.to_string());
        let others = ["x", "京都", "a \"quoted\" city"].map(String::from);
        let world = ModelDataflow::new(seed, places.chain(others).map(Arc::from).collect());
        let view = View::new(service_info(), &limits, world.clone());
        let sessions = SubscriberSessions::new(view.clone(), &limits);
        let (publisher, _) = publisher::spawn_publisher(view.clone(), sessions.clone()).unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(4096).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(100).unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(accept(listener, sessions.clone(), limits));
        SessionTestServer { world, view, sessions, publisher, address }
    }

    /// Publishes an update, and waits until there is room for it.
    async fn step(&self) {
        let mut update = self.world.step();
        while let Err(back) = self.publisher.publish_update(update) {
            update = back;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn accept(listener: TcpListener, sessions: SubscriberSessions, limits: ServeLimits) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let sessions = sessions.clone();
        let config = websocket_config(&limits);
        tokio::spawn(async move {
            let stream = MeteredStream::new(stream, 0, sessions.unfinished_quota());
            if let Ok(stream) = tokio_tungstenite::accept_async_with_config(stream, Some(config)).await {
                sessions.serve_session(stream).await;
            }
        });
    }
}

async fn connect(address: SocketAddr) -> client::Stream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = socket.connect(address).await.unwrap();
    tokio_tungstenite::client_async("ws://localhost/", stream).await.unwrap().0
}

/// Waits for a condition, at most 20 s.
async fn wait_until(mut is_true: impl FnMut() -> bool) {
    let wait = async {
        while !is_true() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("within 20 s");
}

const STEPS: u64 = 250;

async fn run_client(
    seed: u64,
    world: Arc<ModelDataflow>,
    address: SocketAddr,
    last: watch::Receiver<u64>,
) -> ModelClient {
    let mut client = ModelClient::new(seed, world.clone(), address).await;
    while *last.borrow() == 0 {
        match client.rng.below(40) {
            0..3 if client.subs.len() < 6 => client.subscribe().await,
            3 => client.unsubscribe().await,
            4 => client.reconnect().await,
            5 => {
                // Reads nothing for a while.
                let until_epoch = world.now() + client.rng.below(150);
                wait_until(|| world.now() >= until_epoch || *last.borrow() > 0).await;
            }
            _ if client.subs.is_empty() => client.subscribe().await,
            _ => {
                client.read().await;
            }
        }
    }
    let last = *last.borrow();
    client.catch_up_and_compare(last).await;
    client
}

/// Runs clients against random updates; returns how often they resumed, and the reasons of resets.
async fn run_random_clients(seed: u64, limits: ServeLimits) -> (usize, Vec<String>) {
    let service = SessionTestServer::start(seed, limits).await;
    service.step().await;
    let (done, last) = watch::channel(0);
    let clients: Vec<_> = (0..5)
        .map(|n| {
            let seed = Rng(seed ^ n).below(u64::MAX);
            tokio::spawn(run_client(seed, service.world.clone(), service.address, last.clone()))
        })
        .collect();
    let mut rng = Rng(seed);
    for _ in 0..STEPS {
        service.world.full.store(rng.one_in(20), Ordering::Relaxed);
        service.step().await;
        if rng.one_in(3) {
            tokio::time::sleep(Duration::from_millis(rng.below(4))).await;
        }
    }
    service.world.full.store(false, Ordering::Relaxed);
    done.send_replace(service.world.now());
    // Answer watches that have just begun with a further update that changes no rows.
    let last = service.world.now();
    let answering = async {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            service.publisher.publish_update(service.world.answer(last)).ok();
        }
    };
    let mut resumed_and_resets = (0, Vec::new());
    tokio::select! {
        () = answering => {}
        () = async {
            for client in clients {
                let client = client.await.unwrap();
                resumed_and_resets.0 += client.resumed;
                resumed_and_resets.1.extend(client.resets);
            }
        } => {}
    }
    wait_until(|| service.sessions.session_count() == 0 && service.sessions.subscription_count() == 0).await;
    resumed_and_resets
}

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// Few cases, since they use real sockets.
#[test]
fn client_state_equals_recomputation_at_every_message() {
    let backlogs = prop_oneof![Just(2_000usize), Just(1 << 20)];
    let rings = prop_oneof![Just(60u64), Just(600_000)];
    let config = ProptestConfig {
        cases: 10,
        max_shrink_iters: 0,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let ran = TestRunner::new(config).run(&(any::<u64>(), backlogs, rings), |(seed, backlog, ring)| {
        let limits =
            ServeLimits { backlog_bytes: backlog, ring_time: Duration::from_millis(ring), ..limits() };
        let (resumed, resets) = run(run_random_clients(seed, limits));
        prop_assert!(resumed > 0);
        prop_assert!(resets.iter().all(|reason| matches!(&**reason, "expired" | "behind")), "{:?}", resets);
        Ok(())
    });
    ran.unwrap();
}
