//! Many subscribers.

use std::time::{Duration, Instant};

use crate::Effort;
use crate::fleet::{Fleet, check_open_files, subscribe};
use crate::latency::{All, load};
use crate::measure::{Cores, Latencies, now_micros};
use crate::rows::Reader;
use crate::server::Server;

const SUBSCRIBERS: usize = 10_000;
const WIDE: usize = 100;
const WARM_UP: Duration = Duration::from_secs(5);

/// What the clients have seen since the last look.
struct Seen {
    reader: Reader,
    /// Of clients from this one on.
    wide_from: usize,
    listed: Latencies,
    wide: Latencies,
    rows: u64,
    bytes: u64,
    snapshots: usize,
}

impl Seen {
    fn new(wide_from: usize) -> Seen {
        let (listed, wide) = (Latencies::new(), Latencies::new());
        Seen { reader: Reader::new(), wide_from, listed, wide, rows: 0, bytes: 0, snapshots: 0 }
    }

    fn take(&mut self, client: usize, message: &[u8]) {
        let Seen { reader, wide_from, listed, wide, .. } = self;
        if !Reader::is_changes(message) {
            self.snapshots += usize::from(Reader::is_complete_snapshot(message));
            return;
        }
        let latencies = if client >= *wide_from { wide } else { listed };
        let now = now_micros();
        self.rows += reader.rows(message, |row| latencies.record(now - row.reading_at * 1000));
        self.bytes += message.len() as u64;
    }

    fn clear(&mut self) {
        self.listed.clear();
        self.wide.clear();
        (self.rows, self.bytes) = (0, 0);
    }
}

fn run(fleet: &mut Fleet, seen: &mut Seen, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        fleet.turn(Duration::from_millis(10), &mut |client, message| seen.take(client, message));
    }
}

/// Subscribes a client and waits for its snapshot, so that not all are made at once.
fn subscribed(fleet: &mut Fleet, seen: &mut Seen, client: usize, request: &str, waiting: usize) {
    let before = seen.snapshots;
    fleet.say(client, request);
    let deadline = Instant::now() + Duration::from_secs(60);
    // Snapshots of up to so many clients may be under way.
    while client + 1 > seen.snapshots + waiting {
        fleet.turn(Duration::from_millis(1), &mut |client, message| seen.take(client, message));
        assert!(Instant::now() < deadline, "snapshot {before} does not come");
    }
}

fn cities(server: &Server) -> Vec<String> {
    let (mut fleet, mut all) = (Fleet::connect(server.address, 1), All::new());
    fleet.say(0, &subscribe("a", None, "latest"));
    while all.cities().len() < 15_000 {
        fleet.turn(Duration::from_millis(100), &mut |_, message| {
            all.take(message);
        });
    }
    all.cities()
}

fn server(interval: &str) -> Server {
    let config = "[ingest]\nenabled = false\n[serve.limits]\nconnections = 12000\n";
    Server::ready(&format!("{config}{}", load(interval, "1h", 0.0)))
}

pub fn one_and_all(effort: &Effort) {
    check_open_files(SUBSCRIBERS as u64 + WIDE as u64 + 100).unwrap();
    let time = effort.time.min(Duration::from_secs(20));
    println!(
        "{SUBSCRIBERS} subscribers of one city each and {WIDE} of all 15,000, {} s each:",
        time.as_secs()
    );
    for (interval, wide) in [("1s", 0), ("1s", 20), ("4s", WIDE), ("1s", WIDE)] {
        for _ in 0..effort.rounds {
            let server = server(interval);
            let cities = cities(&server);
            let empty = server.resident();
            let mut fleet = Fleet::connect(server.address, SUBSCRIBERS + wide);
            let connected = server.resident();
            let mut seen = Seen::new(SUBSCRIBERS);
            for client in 0..SUBSCRIBERS {
                let request = subscribe("a", Some(&cities[client..=client]), "latest");
                subscribed(&mut fleet, &mut seen, client, &request, 100);
            }
            for client in SUBSCRIBERS..SUBSCRIBERS + wide {
                subscribed(&mut fleet, &mut seen, client, &subscribe("a", None, "latest"), 1);
            }
            run(&mut fleet, &mut seen, WARM_UP);
            seen.clear();
            let conflated = server.metric("swelter_conflated_rows_total");
            let cores = Cores::since_now(&server);
            run(&mut fleet, &mut seen, time);
            let seconds = time.as_secs_f64();
            println!(
                "  a reading of each city every {interval}, {wide} of all: {:.0} rows/s, {:.0} MB/s; {} rows conflated; {}",
                seen.rows as f64 / seconds,
                seen.bytes as f64 / seconds / 1e6,
                server.metric("swelter_conflated_rows_total") - conflated,
                cores.shown(&server),
            );
            println!("    of one city   {}", seen.listed.shown());
            if wide > 0 {
                println!("    of all cities {}", seen.wide.shown());
            }
            let each = |bytes: u64| bytes.saturating_sub(empty) as f64 / 1e3 / (SUBSCRIBERS + wide) as f64;
            println!(
                "    resident: {:.1} kB a connection once open, {:.1} kB at the end",
                each(connected),
                each(server.resident())
            );
        }
    }
}

/// Cities of a subscriber.
const LISTED: usize = 30;
/// Where the goal ends.
const LATEST_MS: f64 = 100.0;

pub fn most_rows(effort: &Effort) {
    check_open_files(SUBSCRIBERS as u64 + 100).unwrap();
    let time = effort.time.min(Duration::from_secs(20));
    println!(
        "{SUBSCRIBERS} subscribers of {LISTED} of 15,000 cities, none of them alike, {} s each:",
        time.as_secs()
    );
    for interval in ["10s", "5s", "3s", "2s", "1500ms", "1s", "750ms", "500ms"] {
        let server = server(interval);
        let cities = cities(&server);
        let mut fleet = Fleet::connect(server.address, SUBSCRIBERS);
        let mut seen = Seen::new(SUBSCRIBERS);
        for client in 0..SUBSCRIBERS {
            let own = (0..LISTED).map(|city| cities[(client + city * 497) % cities.len()].clone());
            let request = subscribe("a", Some(&own.collect::<Vec<_>>()), "latest");
            subscribed(&mut fleet, &mut seen, client, &request, 100);
        }
        run(&mut fleet, &mut seen, WARM_UP);
        seen.clear();
        let conflated = server.metric("swelter_conflated_rows_total");
        let cores = Cores::since_now(&server);
        run(&mut fleet, &mut seen, time);
        println!(
            "  {:7.0} rows/s  {}  {} conflated; {}",
            seen.rows as f64 / time.as_secs_f64(),
            seen.listed.shown(),
            server.metric("swelter_conflated_rows_total") - conflated,
            cores.shown(&server),
        );
        if seen.listed.at(0.99) > LATEST_MS {
            return;
        }
    }
}
