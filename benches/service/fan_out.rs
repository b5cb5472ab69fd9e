//! Many subscribers.

use std::time::{Duration, Instant};

use crate::BenchOptions;
use crate::fleet::{SubscriberFleet, check_open_files, subscribe_request};
use crate::latency::{AllCitiesSubscriber, generator_config};
use crate::measure::{CoreUsage, Latencies, now_micros};
use crate::row_reader::RowReader;
use crate::server::Server;

const SUBSCRIBERS: usize = 10_000;
const WIDE_SUBSCRIBERS: usize = 100;
const WARM_UP: Duration = Duration::from_secs(5);

/// Rows that clients have received since the last check.
struct FanOutStats {
    reader: RowReader,
    /// Of clients from this one on.
    wide_from: usize,
    listed: Latencies,
    wide: Latencies,
    rows: u64,
    bytes: u64,
    snapshots: usize,
}

impl FanOutStats {
    fn new(wide_from: usize) -> FanOutStats {
        let (listed, wide) = (Latencies::new(), Latencies::new());
        FanOutStats { reader: RowReader::new(), wide_from, listed, wide, rows: 0, bytes: 0, snapshots: 0 }
    }

    fn record_message(&mut self, client: usize, message: &[u8]) {
        let FanOutStats { reader, wide_from, listed, wide, .. } = self;
        if !RowReader::is_changes(message) {
            self.snapshots += usize::from(RowReader::is_complete_snapshot(message));
            return;
        }
        let latencies = if client >= *wide_from { wide } else { listed };
        let now = now_micros();
        self.rows += reader.for_each_row(message, |row| latencies.record(now - row.reading_at * 1000));
        self.bytes += message.len() as u64;
    }

    fn clear(&mut self) {
        self.listed.clear();
        self.wide.clear();
        (self.rows, self.bytes) = (0, 0);
    }
}

fn run_fleet(fleet: &mut SubscriberFleet, seen: &mut FanOutStats, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        fleet.poll_messages(Duration::from_millis(10), &mut |client, message| {
            seen.record_message(client, message)
        });
    }
}

/// Subscribes a client and waits for its snapshot, so that not all are made at once.
fn subscribe_and_wait(
    fleet: &mut SubscriberFleet,
    seen: &mut FanOutStats,
    client: usize,
    request: &str,
    waiting: usize,
) {
    let before = seen.snapshots;
    fleet.send_text(client, request);
    let deadline = Instant::now() + Duration::from_secs(60);
    // Snapshots of up to so many clients may be under way.
    while client + 1 > seen.snapshots + waiting {
        fleet.poll_messages(Duration::from_millis(1), &mut |client, message| {
            seen.record_message(client, message)
        });
        assert!(Instant::now() < deadline, "snapshot {before} does not come");
    }
}

fn city_keys(server: &Server) -> Vec<String> {
    let (mut fleet, mut all) = (SubscriberFleet::connect(server.address, 1), AllCitiesSubscriber::new());
    fleet.send_text(0, &subscribe_request("a", None, "latest"));
    while all.city_keys().len() < 15_000 {
        fleet.poll_messages(Duration::from_millis(100), &mut |_, message| {
            all.handle_message(message);
        });
    }
    all.city_keys()
}

fn start_server(interval: &str) -> Server {
    let config = "[ingest]\nenabled = false\n[serve.limits]\nconnections = 12000\n";
    Server::start_ready(&format!("{config}{}", generator_config(interval, "1h", 0.0)))
}

pub fn bench_listed_and_all(effort: &BenchOptions) {
    check_open_files(SUBSCRIBERS as u64 + WIDE_SUBSCRIBERS as u64 + 100).unwrap();
    let time = effort.time.min(Duration::from_secs(20));
    println!(
        "{SUBSCRIBERS} subscribers of one city each and {WIDE_SUBSCRIBERS} of all 15,000, {} s each:",
        time.as_secs()
    );
    for (interval, wide) in [("1s", 0), ("1s", 20), ("4s", WIDE_SUBSCRIBERS), ("1s", WIDE_SUBSCRIBERS)] {
        for _ in 0..effort.rounds {
            let server = start_server(interval);
            let cities = city_keys(&server);
            let empty = server.resident_bytes();
            let mut fleet = SubscriberFleet::connect(server.address, SUBSCRIBERS + wide);
            let connected = server.resident_bytes();
            let mut seen = FanOutStats::new(SUBSCRIBERS);
            for client in 0..SUBSCRIBERS {
                let request = subscribe_request("a", Some(&cities[client..=client]), "latest");
                subscribe_and_wait(&mut fleet, &mut seen, client, &request, 100);
            }
            for client in SUBSCRIBERS..SUBSCRIBERS + wide {
                subscribe_and_wait(&mut fleet, &mut seen, client, &subscribe_request("a", None, "latest"), 1);
            }
            run_fleet(&mut fleet, &mut seen, WARM_UP);
            seen.clear();
            let conflated = server.metric("swelter_conflated_rows_total");
            let cores = CoreUsage::start_measuring(&server);
            run_fleet(&mut fleet, &mut seen, time);
            let seconds = time.as_secs_f64();
            println!(
                "  a reading of each city every {interval}, {wide} of all: {:.0} rows/s, {:.0} MB/s; {} rows conflated; {}",
                seen.rows as f64 / seconds,
                seen.bytes as f64 / seconds / 1e6,
                server.metric("swelter_conflated_rows_total") - conflated,
                cores.to_text(&server),
            );
            println!("    of one city   {}", seen.listed.to_text());
            if wide > 0 {
                println!("    of all cities {}", seen.wide.to_text());
            }
            let each = |bytes: u64| bytes.saturating_sub(empty) as f64 / 1e3 / (SUBSCRIBERS + wide) as f64;
            println!(
                "    resident: {:.1} kB a connection once open, {:.1} kB at the end",
                each(connected),
                each(server.resident_bytes())
            );
        }
    }
}

/// Cities of a subscriber.
const LISTED_CITIES: usize = 30;
/// Where the goal ends.
const MAX_LATENCY_MS: f64 = 100.0;

pub fn bench_most_rows(effort: &BenchOptions) {
    check_open_files(SUBSCRIBERS as u64 + 100).unwrap();
    let time = effort.time.min(Duration::from_secs(20));
    println!(
        "{SUBSCRIBERS} subscribers of {LISTED_CITIES} of 15,000 cities, none of them alike, {} s each:",
        time.as_secs()
    );
    for interval in ["10s", "5s", "3s", "2s", "1500ms", "1s", "750ms", "500ms"] {
        let server = start_server(interval);
        let cities = city_keys(&server);
        let mut fleet = SubscriberFleet::connect(server.address, SUBSCRIBERS);
        let mut seen = FanOutStats::new(SUBSCRIBERS);
        for client in 0..SUBSCRIBERS {
            let own = (0..LISTED_CITIES).map(|city| cities[(client + city * 497) % cities.len()].clone());
            let request = subscribe_request("a", Some(&own.collect::<Vec<_>>()), "latest");
            subscribe_and_wait(&mut fleet, &mut seen, client, &request, 100);
        }
        run_fleet(&mut fleet, &mut seen, WARM_UP);
        seen.clear();
        let conflated = server.metric("swelter_conflated_rows_total");
        let cores = CoreUsage::start_measuring(&server);
        run_fleet(&mut fleet, &mut seen, time);
        println!(
            "  {:7.0} rows/s  {}  {} conflated; {}",
            seen.rows as f64 / time.as_secs_f64(),
            seen.listed.to_text(),
            server.metric("swelter_conflated_rows_total") - conflated,
            cores.to_text(&server),
        );
        if seen.listed.quantile_ms(0.99) > MAX_LATENCY_MS {
            return;
        }
    }
}
