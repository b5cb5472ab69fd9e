//! How late a change is at a subscriber, from when its reading was due.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::BenchOptions;
use crate::fleet::{SubscriberFleet, subscribe_request};
use crate::http::{KeepAliveClient, post_request};
use crate::ingest::PostBatch;
use crate::measure::{CoreUsage, Latencies, now_micros};
use crate::pairs::{Builds, PAIRS, PairedRatio};
use crate::row_reader::RowReader;
use crate::server::{BINARY, Server};

const CITIES: u32 = 15_000;
/// A day, a reading a minute.
const HISTORY_READINGS: u64 = CITIES as u64 * 1440;
const WARM_UP: Duration = Duration::from_secs(5);

/// A load of the generator: windows are full, a reading a minute.
pub fn generator_config(interval: &str, history: &str, corrections: f64) -> String {
    format!(
        "[[sources]]\ntype = \"generator\"\nname = \"load\"\ncities = {CITIES}\ninterval = \"{interval}\"\nhistory = \"{history}\"\n\
         history_interval = \"1m\"\ncorrections = {corrections:?}\n"
    )
}

/// A subscriber of all cities that times new rows.
pub struct AllCitiesSubscriber {
    reader: RowReader,
    /// The newest reading of each city: a row that was only changed is not new.
    newest: HashMap<u64, i64, foldhash::fast::RandomState>,
    complete: bool,
    pub latencies: Latencies,
}

impl AllCitiesSubscriber {
    pub fn new() -> AllCitiesSubscriber {
        AllCitiesSubscriber {
            reader: RowReader::new(),
            newest: HashMap::default(),
            complete: false,
            latencies: Latencies::new(),
        }
    }

    /// The keys of all cities, once there is a snapshot.
    pub fn city_keys(&self) -> Vec<String> {
        let mut cities: Vec<u64> = self.newest.keys().copied().collect();
        cities.sort_unstable();
        cities.iter().map(u64::to_string).collect()
    }

    /// Takes a message; returns when the earliest of what is new in it was due, in ms.
    pub fn handle_message(&mut self, message: &[u8]) -> Option<i64> {
        let AllCitiesSubscriber { reader, newest, complete, latencies } = self;
        let is_changes = RowReader::is_changes(message);
        *complete |= RowReader::is_complete_snapshot(message);
        let mut new = Vec::new();
        reader.for_each_row(message, |row| {
            let city = row.city.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
            let known = newest.entry(city).or_insert(i64::MIN);
            if row.reading_at > *known {
                *known = row.reading_at;
                new.push(row.reading_at);
            }
        });
        let now = now_micros();
        if is_changes {
            new.iter().for_each(|due| latencies.record(now - due * 1000));
        }
        new.into_iter().min().filter(|_| is_changes)
    }
}

/// Subscribes to all cities and waits for the snapshot.
pub fn subscribe_to_all(fleet: &mut SubscriberFleet, all: &mut AllCitiesSubscriber) {
    fleet.send_text(0, &subscribe_request("a", None, "latest"));
    while !all.complete {
        fleet.poll_messages(Duration::from_millis(100), &mut |_, message| {
            all.handle_message(message);
        });
    }
}

pub fn bench_generator(effort: &BenchOptions) {
    println!(
        "from schedule to a subscriber of all cities, {CITIES} cities, full windows of a day, generator:"
    );
    for (interval, rate) in [("500ms", 30_000), ("1s", 15_000)] {
        for _ in 0..effort.rounds {
            let server = Server::start_ready(&format!(
                "[ingest]\nenabled = false\n{}",
                generator_config(interval, "1d", 0.0)
            ));
            server.wait_for_readings(HISTORY_READINGS);
            let (all, cores) = measure_latency(&server, effort.time);
            println!("  {rate:6} readings/s  {}  {cores}", all.latencies.to_text());
            print_caveats(&server, &all, rate, effort.time);
        }
    }
}

/// The history of the cities of `bench_pairs`, which starts 30 servers.
const PAIRS_HISTORY_HOURS: u64 = 6;

/// Two builds, at 15,000 readings/s.
pub fn bench_pairs(effort: &BenchOptions) {
    let against = effort.against.clone().expect("--against BINARY, the other build");
    let builds = Builds { old: against, new: BINARY.clone() };
    let seconds = effort.time.as_secs();
    println!(
        "from schedule to a subscriber of all cities, 15,000 readings/s, windows of {PAIRS_HISTORY_HOURS} h, {seconds} s, \
         {PAIRS} pairs of two builds:"
    );
    let history = format!("{PAIRS_HISTORY_HOURS}h");
    let config = format!("[ingest]\nenabled = false\n{}", generator_config("1s", &history, 0.0));
    let pairs = builds.measure_in_turn(|binary| {
        let server = Server::start_binary(binary, &config);
        server.wait_until_ready();
        server.wait_for_readings(u64::from(CITIES) * 60 * PAIRS_HISTORY_HOURS);
        let before = server.cpu_time();
        let (all, _) = measure_latency(&server, effort.time);
        let busy = (server.cpu_time() - before).as_secs_f64();
        print_caveats(&server, &all, 15_000, effort.time);
        (all.latencies.quantile_ms(0.5), all.latencies.quantile_ms(0.99), busy)
    });
    type Figures = (f64, f64, f64);
    let ratio = |of: fn(&Figures) -> f64| PairedRatio::new(pairs.iter().map(|(old, new)| (of(old), of(new))));
    println!("  p50          {}", ratio(|took| took.0).to_text("ms"));
    println!("  p99          {}", ratio(|took| took.1).to_text("ms"));
    println!("  CPU seconds  {}", ratio(|took| took.2).to_text("s"));
}

fn measure_latency(server: &Server, time: Duration) -> (AllCitiesSubscriber, String) {
    let (mut fleet, mut all) = (SubscriberFleet::connect(server.address, 1), AllCitiesSubscriber::new());
    subscribe_to_all(&mut fleet, &mut all);
    run_fleet(&mut fleet, &mut all, WARM_UP);
    all.latencies.clear();
    let cores = CoreUsage::start_measuring(server);
    run_fleet(&mut fleet, &mut all, time);
    let cores = cores.to_text(server);
    (all, cores)
}

pub fn run_fleet(fleet: &mut SubscriberFleet, all: &mut AllCitiesSubscriber, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        fleet.poll_messages(Duration::from_millis(100), &mut |_, message| {
            all.handle_message(message);
        });
    }
}

/// Says what would make the figures above mean less than they seem to.
fn print_caveats(server: &Server, all: &AllCitiesSubscriber, rate: u64, time: Duration) {
    let (seen, due) = (all.latencies.len(), rate * time.as_secs());
    let conflated = server.metric("swelter_conflated_rows_total");
    if seen < due * 98 / 100 || conflated > 0.0 {
        println!("    {seen} of {due} readings seen, {conflated} rows conflated");
    }
}

/// Windows of so many cities are watched, a hundred in each subscription.
const WATCHED_CITIES: usize = 500;
/// A row that is older was corrected.
const OLD_READING_MS: i64 = 30_000;

pub fn bench_corrections(effort: &BenchOptions) {
    println!(
        "the same with 1 % corrections of a random age, which are timed at subscribers of {WATCHED_CITIES} windows:"
    );
    for (interval, rate) in [("500ms", 30_000), ("1s", 15_000)] {
        for _ in 0..effort.rounds {
            let server = Server::start_ready(&format!(
                "[ingest]\nenabled = false\n{}",
                generator_config(interval, "1d", 0.01)
            ));
            server.wait_for_readings(HISTORY_READINGS);
            let (all, corrected, cores) = measure_window_latency(&server, effort.time);
            println!("  {rate:6} readings/s  {}  {cores}", all.latencies.to_text());
            println!("    {:6} corrections {}", corrected.len(), corrected.to_text());
            print_caveats(&server, &all, rate, effort.time);
        }
    }
}

/// A correction comes with the reading before it in the log, and becomes visible at its epoch: it
/// counts from when the earliest new reading of that epoch was due, which is never later.
#[derive(Default)]
struct EpochLatencies {
    due: HashMap<i64, i64>,
    corrected: Vec<(i64, i64)>,
}

fn measure_window_latency(server: &Server, time: Duration) -> (AllCitiesSubscriber, Latencies, String) {
    let (mut fleet, mut all) = (SubscriberFleet::connect(server.address, 2), AllCitiesSubscriber::new());
    subscribe_to_all(&mut fleet, &mut all);
    let watched = all.city_keys();
    for (number, cities) in watched[..WATCHED_CITIES].chunks(100).enumerate() {
        fleet.send_text(1, &subscribe_request(&format!("w{number}"), Some(cities), "window"));
    }
    let (mut epochs, mut windows, mut snapshots) = (EpochLatencies::default(), RowReader::new(), 0);
    let (mut cores, mut begun, mut end) = (CoreUsage::start_measuring(server), false, None);
    while end.is_none_or(|end| Instant::now() < end) {
        fleet.poll_messages(Duration::from_millis(100), &mut |client, message| {
            if client == 0 {
                if let Some(due) = all.handle_message(message) {
                    epochs.due.insert(all.reader.as_of(message), due);
                }
            } else if RowReader::is_changes(message) {
                let (mut oldest, as_of) = (i64::MAX, windows.as_of(message));
                windows.for_each_row(message, |row| oldest = oldest.min(row.reading_at));
                if oldest < as_of - OLD_READING_MS {
                    epochs.corrected.push((as_of, now_micros()));
                }
            } else {
                snapshots += usize::from(RowReader::is_complete_snapshot(message));
            }
        });
        if snapshots == WATCHED_CITIES / 100 && end.is_none() {
            end = Some(Instant::now() + WARM_UP);
        }
        if !begun && end.is_some_and(|end| Instant::now() >= end) {
            (begun, end, cores) = (true, Some(Instant::now() + time), CoreUsage::start_measuring(server));
            all.latencies.clear();
            epochs = EpochLatencies::default();
        }
    }
    let cores = cores.to_text(server);
    let mut latencies = Latencies::new();
    for (as_of, arrived) in &epochs.corrected {
        if let Some(due) = epochs.due.get(as_of) {
            latencies.record(arrived - due * 1000);
        }
    }
    (all, latencies, cores)
}

/// Between two posts.
const TICK_MS: i64 = 5;
/// Posts that can be under way.
const POSTER_THREADS: usize = 16;

pub fn bench_http(effort: &BenchOptions) {
    println!("through HTTP ingest with fsync, posts of all that is due in {TICK_MS} ms:");
    let history = generator_config("1h", "1d", 0.0);
    for _ in 0..effort.rounds {
        println!("  a bare fsync of 8 KiB here   {}", measure_bare_fsync().to_text());
        for rate in [30_000u64, 15_000, 1_000] {
            // The journal is filled with the past; what comes beside the posts later is 4
            // readings/s.
            let server = Server::start_ready(&history);
            server.wait_for_readings(HISTORY_READINGS);
            let (mut fleet, mut all) =
                (SubscriberFleet::connect(server.address, 1), AllCitiesSubscriber::new());
            subscribe_to_all(&mut fleet, &mut all);
            let posting = PostingLoad::start(&server, &all.city_keys(), rate);
            run_fleet(&mut fleet, &mut all, WARM_UP);
            all.latencies.clear();
            let cores = CoreUsage::start_measuring(&server);
            run_fleet(&mut fleet, &mut all, effort.time);
            let cores = cores.to_text(&server);
            println!("  {rate:6} readings/s  {}  {cores}", all.latencies.to_text());
            println!("    answered           {}", posting.stop().to_text());
            print_caveats(&server, &all, rate, effort.time);
        }
    }
}

struct PostingLoad {
    stop: Arc<AtomicBool>,
    posters: Vec<thread::JoinHandle<Latencies>>,
}

impl PostingLoad {
    fn start(server: &Server, cities: &[String], rate: u64) -> PostingLoad {
        let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let first = now_micros() / 1000 + 100;
        let readings = (rate as usize * TICK_MS as usize) / 1000;
        let poster = |_| {
            let (stop, next, address) = (stop.clone(), next.clone(), server.address);
            let cities = cities.to_vec();
            thread::spawn(move || {
                let (mut kept, mut latencies) = (KeepAliveClient::connect(address), Latencies::new());
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let due = first + number as i64 * TICK_MS;
                    let wait = due * 1000 - now_micros();
                    thread::sleep(Duration::from_micros(wait.max(0) as u64));
                    let from = number as usize * readings;
                    let mut batch =
                        PostBatch::new(cities.iter().cycle().skip(from % cities.len()).take(readings), 0);
                    batch.set_time(due);
                    let status =
                        kept.request_status(&post_request(address, "application/x-ndjson", batch.body()));
                    assert_eq!(status, 200);
                    latencies.record(now_micros() - due * 1000);
                }
                latencies
            })
        };
        PostingLoad { posters: (0..POSTER_THREADS).map(poster).collect(), stop }
    }

    fn stop(self) -> Latencies {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Latencies::new();
        self.posters.into_iter().for_each(|poster| all.add(&poster.join().unwrap()));
        all
    }
}

fn measure_bare_fsync() -> Latencies {
    let mut file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut latencies = Latencies::new();
    for _ in 0..500 {
        let start = Instant::now();
        append_and_sync(&mut file);
        latencies.record(start.elapsed().as_micros() as i64);
    }
    latencies
}

fn append_and_sync(file: &mut File) {
    file.write_all(&[7; 8192]).unwrap();
    file.sync_data().unwrap();
}
