//! What a subscriber of all cities waits for while readers take as much as they can, and what they
//! make the service hold.

use std::time::Duration;

use swelter::internals::config::Config;
use swelter::internals::config::layers::ConfigLayers;
use swelter::internals::serve::memory::max_client_memory;

use crate::BenchOptions;
use crate::fleet::SubscriberFleet;
use crate::latency::{AllCitiesSubscriber, run_fleet, subscribe_to_all};
use crate::measure::CoreUsage;
use crate::paced_readers::{PacedReader, PacedReaders, get_request, subscribe_request};
use crate::server::Server;

const CITIES: usize = 2_000;
/// A day, a reading a minute.
const HISTORY_READINGS: u64 = CITIES as u64 * 1440;
const WARM_UP: Duration = Duration::from_secs(5);
/// Hostile readers: windows of 100 cities, pages of 10,000 rows, all cities slowly, and names that
/// no city has.
const WINDOW_READERS: usize = 120;
const HISTORY_READERS: usize = 40;
const LIST_READERS: usize = 30;
const UNKNOWN_NAME_READERS: usize = 10;
/// What they read, bytes a second, and how long each stays before it comes again.
const FAST_BYTES_PER_S: usize = 2_000_000;
const SLOW_BYTES_PER_S: usize = 60_000;
const SESSION_LENGTH: Duration = Duration::from_secs(10);

pub fn bench_hostile_readers(effort: &BenchOptions) {
    let all = WINDOW_READERS + HISTORY_READERS + LIST_READERS + UNKNOWN_NAME_READERS;
    println!("a subscriber of {CITIES} cities, 2,000 readings/s, alone and beside {all} hostile readers:");
    let load = format!(
        "[ingest]\nenabled = false\n[[sources]]\ntype = \"generator\"\nname = \"load\"\ncities = {CITIES}\ninterval = \"1s\"\n\
         history = \"1d\"\nhistory_interval = \"1m\"\n"
    );
    let limits = Config::load(&ConfigLayers::default()).unwrap().plan.serve.limits;
    for _ in 0..effort.rounds {
        let server = Server::start_ready(&load);
        server.wait_for_readings(HISTORY_READINGS);
        let (mut fleet, mut all) = (SubscriberFleet::connect(server.address, 1), AllCitiesSubscriber::new());
        subscribe_to_all(&mut fleet, &mut all);
        let mut measure = |name: &str| {
            run_fleet(&mut fleet, &mut all, WARM_UP);
            all.latencies.clear();
            let cores = CoreUsage::start_measuring(&server);
            run_fleet(&mut fleet, &mut all, effort.time);
            println!("  {name:8}  {}  {}", all.latencies.to_text(), cores.to_text(&server));
            all.latencies.quantile_ms(0.99)
        };
        let before = server.resident_bytes();
        let alone = measure("alone");
        let cities = fleet_cities(&server);
        let crowd = PacedReaders::start(server.address, hostile_readers(&cities), SESSION_LENGTH);
        let beside = measure("beside");
        let (most, read) = (server.peak_resident_bytes(), crowd.bytes_read());
        crowd.stop();
        println!(
            "    p99 {:.1} times; {} MB resident before, {} MB at most (budgets: {} MB more); {} MB/s read by the others",
            beside / alone,
            before >> 20,
            most >> 20,
            max_client_memory(
                &limits,
                1,
                WINDOW_READERS + HISTORY_READERS + LIST_READERS + UNKNOWN_NAME_READERS
            ) >> 20,
            (read >> 20) as u64 / effort.time.as_secs().max(1)
        );
    }
}

/// The keys of cities.
fn fleet_cities(server: &Server) -> Vec<String> {
    let (_, text) = crate::http::get(server.address, "/v1/cities?limit=1000").unwrap();
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    let cities = answer["cities"].as_array().unwrap().iter();
    cities.filter_map(|city| city["city"].as_str().map(str::to_string)).collect()
}

fn hostile_readers(cities: &[String]) -> Vec<PacedReader> {
    let subscribe = |id: String, cities: &[String], rows: &str| {
        serde_json::json!({"type": "subscribe", "id": id, "cities": cities, "rows": rows}).to_string()
    };
    let windows = (0..WINDOW_READERS).map(|number| {
        let window = cities.chunks(100).cycle().nth(number).unwrap_or_default();
        let rate = if number % 4 == 0 { FAST_BYTES_PER_S } else { SLOW_BYTES_PER_S };
        (subscribe_request(&[subscribe("w".into(), window, "window")]), rate)
    });
    let histories = (0..HISTORY_READERS).map(|number| {
        let path = format!("/v1/cities/{}/history?limit=10000", cities[number % cities.len()]);
        (get_request(&path), FAST_BYTES_PER_S)
    });
    let lists = (0..LIST_READERS).map(|_| (get_request("/v1/cities"), 80_000));
    let names = (0..UNKNOWN_NAME_READERS).map(|client| {
        let names = |id: usize| {
            let names: Vec<String> = (0..10_000).map(|n| format!("{client} {id} {n}")).collect();
            subscribe(id.to_string(), &names, "latest")
        };
        (subscribe_request(&(0..16).map(names).collect::<Vec<_>>()), SLOW_BYTES_PER_S)
    });
    let all = windows.chain(histories).chain(lists).chain(names);
    all.map(|(request, bytes_per_second)| PacedReader { request, bytes_per_second }).collect()
}
