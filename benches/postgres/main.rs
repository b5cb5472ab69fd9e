//! What rows in PostgreSQL cost: rendering, merging and writing them, and the server's part.
//!
//! `cargo bench -p swelter-benches --bench postgres -- [SCENARIO...] [--millions N] [--seconds N] [--rounds N]`; all
//! scenarios without an argument:
//!
//! - `paced`: 15,000 cities with a reading a second each, 1 % of them corrections of earlier readings, to `now`,
//!   `reading` and `arrival`; commits every 250 ms. The time from the last reading of a transaction to the end of its
//!   commit, and CPU time of the client and of the server. Beside it a bare loop that copies the same bytes with the
//!   same indexes, but for `now`, whose rows it appends to a table without any.
//! - `most`: the same, as fast as it goes
//! - `fill`: N million readings of 15,000 cities, a minute apart, into empty tables; beside it the bare loop
//!
//! The server is started by `scripts/postgres` with fsync. Its CPU time is that of all its processes.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod bare;
mod database;
mod load;
mod scenarios;

// Shared with the bench of the service, which needs more of them.
#[allow(dead_code)]
#[path = "../service/http.rs"]
mod http;
#[allow(dead_code)]
#[path = "../service/measure.rs"]
mod measure;
#[allow(dead_code)]
#[path = "../service/server.rs"]
mod server;

use std::time::Duration;

use database::Database;

/// How much, how long and how often is measured.
pub struct BenchOptions {
    pub readings: u64,
    pub time: Duration,
    pub rounds: usize,
}

type Scenario = (&'static str, fn(&Database, &BenchOptions));

const SCENARIOS: [Scenario; 3] =
    [("paced", scenarios::bench_paced), ("most", scenarios::bench_most), ("fill", scenarios::bench_fill)];

fn main() {
    let mut wanted = Vec::new();
    let mut effort = BenchOptions { readings: 3_000_000, time: Duration::from_secs(30), rounds: 1 };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|text| text.parse::<f64>().ok()).expect("a number");
        match arg.as_str() {
            "--millions" => effort.readings = (number() * 1e6) as u64,
            "--seconds" => effort.time = Duration::from_secs_f64(number()),
            "--rounds" => effort.rounds = number() as usize,
            // Cargo's own.
            "--bench" => {}
            name if SCENARIOS.iter().any(|(known, _)| *known == name) => wanted.push(arg),
            other => panic!("there is no scenario {other}"),
        }
    }
    for (name, run) in SCENARIOS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            for _ in 0..effort.rounds {
                run(&Database::start(), &effort);
            }
        }
    }
}
