//! What the live service costs and how late it is. Each scenario starts the release binary,
//! `swelter run`, as a process of its own; this process is its clients.
//!
//! `cargo bench -p swelter-benches --bench service -- [SCENARIO...] [--seconds N] [--rounds N]`; all scenarios without
//! an argument (but `pairs`):
//!
//! - `latency`: from the scheduled time of a reading of the generator to its arrival at a subscriber of all cities
//! - `pairs`: with `--against BINARY`, `latency` at 15,000 readings/s of that build and of this, in turn
//! - `corrections`: the same with 1 % corrections, and these at a `window` subscriber
//! - `http-latency`: from the scheduled time of a reading, through HTTP ingest with fsync, to a subscriber
//! - `fan-out`: 10,000 subscribers of one city and 100 of all
//! - `rows`: 10,000 subscribers of 30 cities, at rising rates
//! - `hostile`: a subscriber of all cities, alone and beside 200 readers that take as much as they can
//! - `rest`: `GET /v1/cities/{city}` on 1,500 connections
//! - `ingest`: `POST /v1/readings` with fsync
//! - `start`: start, size, idle, memory
//!
//! Latencies are open-loop: they count from the time at which something was due, whatever held it
//! up, the client included.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod fan_out;
mod fleet;
mod hostile;
mod http;
mod ingest;
mod latency;
mod measure;
#[path = "../../tests/integration/real/paced_readers.rs"]
mod paced_readers;
#[path = "../common/pairs.rs"]
mod pairs;
mod rest;
mod row_reader;
mod server;
mod start;

use std::path::PathBuf;
use std::time::Duration;

/// How long and how often is measured.
pub struct BenchOptions {
    pub time: Duration,
    pub rounds: usize,
    /// Another build of the program, to be compared with.
    pub against: Option<PathBuf>,
}

type Scenario = (&'static str, fn(&BenchOptions));

const SCENARIOS: [Scenario; 10] = [
    ("latency", latency::bench_generator),
    ("pairs", latency::bench_pairs),
    ("corrections", latency::bench_corrections),
    ("http-latency", latency::bench_http),
    ("fan-out", fan_out::bench_listed_and_all),
    ("rows", fan_out::bench_most_rows),
    ("hostile", hostile::bench_hostile_readers),
    ("rest", rest::bench_cities),
    ("ingest", ingest::bench_posts),
    ("start", start::bench_start),
];

fn main() {
    let mut wanted = Vec::new();
    let mut effort = BenchOptions { time: Duration::from_secs(60), rounds: 1, against: None };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|text| text.parse().ok()).expect("a number");
        match arg.as_str() {
            "--against" => effort.against = args.next().map(PathBuf::from),
            "--seconds" => effort.time = Duration::from_secs(number()),
            "--rounds" => effort.rounds = number() as usize,
            // Cargo's own.
            "--bench" => {}
            name if SCENARIOS.iter().any(|(known, _)| *known == name) => wanted.push(arg),
            other => panic!("there is no scenario {other}"),
        }
    }
    for (name, run) in SCENARIOS {
        if (wanted.is_empty() && name != "pairs") || wanted.iter().any(|wanted| wanted == name) {
            run(&effort);
        }
    }
}
