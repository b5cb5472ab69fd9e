//! What a subscriber of all cities waits for while readers take as much as they can, and what they make the service hold.

use std::time::Duration;

use swelter::config::Config;
use swelter::config::layers::Layers;
use swelter::serve::memory::most_memory;

use crate::Effort;
use crate::fleet::Fleet;
use crate::latency::{All, follow_all, run};
use crate::measure::Cores;
use crate::paced_readers::{PacedReader, PacedReaders, get_request, subscribe_request};
use crate::server::Server;

const CITIES: usize = 2_000;
/// A day, a reading a minute.
const HISTORY: u64 = CITIES as u64 * 1440;
const WARM_UP: Duration = Duration::from_secs(5);
/// Hostile readers: windows of 100 cities, pages of 10,000 rows, all cities slowly, and names that no city has.
const WINDOWS: usize = 120;
const HISTORIES: usize = 40;
const LISTS: usize = 30;
const NAMES: usize = 10;
/// What they read, bytes a second, and how long each stays before it comes again.
const FAST: usize = 2_000_000;
const SLOW: usize = 60_000;
const SESSION: Duration = Duration::from_secs(10);

pub fn readers(effort: &Effort) {
    let all = WINDOWS + HISTORIES + LISTS + NAMES;
    println!("a subscriber of {CITIES} cities, 2,000 readings/s, alone and beside {all} hostile readers:");
    let load = format!(
        "[ingest]\nenabled = false\n[[sources]]\ntype = \"generator\"\nname = \"load\"\ncities = {CITIES}\ninterval = \"1s\"\n\
         history = \"1d\"\nhistory_interval = \"1m\"\n"
    );
    let limits = Config::load(&Layers::default()).unwrap().plan.serve.limits;
    for _ in 0..effort.rounds {
        let server = Server::ready(&load);
        server.wait_for_readings(HISTORY);
        let (mut fleet, mut all) = (Fleet::connect(server.address, 1), All::new());
        follow_all(&mut fleet, &mut all);
        let mut measure = |name: &str| {
            run(&mut fleet, &mut all, WARM_UP);
            all.latencies.clear();
            let cores = Cores::since_now(&server);
            run(&mut fleet, &mut all, effort.time);
            println!("  {name:8}  {}  {}", all.latencies.shown(), cores.shown(&server));
            all.latencies.at(0.99)
        };
        let before = server.resident();
        let alone = measure("alone");
        let cities = fleet_cities(&server);
        let crowd = PacedReaders::start(server.address, hostile_readers(&cities), SESSION);
        let beside = measure("beside");
        let (most, read) = (server.most_resident(), crowd.bytes());
        crowd.stop();
        println!(
            "    p99 {:.1} times; {} MB resident before, {} MB at most (budgets: {} MB more); {} MB/s read by the others",
            beside / alone,
            before >> 20,
            most >> 20,
            most_memory(&limits, 1, WINDOWS + HISTORIES + LISTS + NAMES) >> 20,
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
    let windows = (0..WINDOWS).map(|number| {
        let window = cities.chunks(100).cycle().nth(number).unwrap_or_default();
        let rate = if number % 4 == 0 { FAST } else { SLOW };
        (subscribe_request(&[subscribe("w".into(), window, "window")]), rate)
    });
    let histories = (0..HISTORIES).map(|number| {
        let path = format!("/v1/cities/{}/history?limit=10000", cities[number % cities.len()]);
        (get_request(&path), FAST)
    });
    let lists = (0..LISTS).map(|_| (get_request("/v1/cities"), 80_000));
    let names = (0..NAMES).map(|client| {
        let names = |id: usize| {
            let names: Vec<String> = (0..10_000).map(|n| format!("{client} {id} {n}")).collect();
            subscribe(id.to_string(), &names, "latest")
        };
        (subscribe_request(&(0..16).map(names).collect::<Vec<_>>()), SLOW)
    });
    let all = windows.chain(histories).chain(lists).chain(names);
    all.map(|(request, bytes_per_second)| PacedReader { request, bytes_per_second }).collect()
}
