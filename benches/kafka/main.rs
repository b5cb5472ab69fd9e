//! What the way from topic to topic costs, and how late it is: the release binary, `swelter run`,
//! with one broker beside it.
//!
//! `cargo bench -p swelter-benches --bench kafka -- [SCENARIO...] [--millions N] [--seconds N] [--rounds N]`; all
//! scenarios without an argument (but `pairs`):
//!
//! - `backlog`: N million readings of 15,000 cities, in JSON and Avro, of about 100 bytes and of
//!   1 kB, to a topic of results, exactly once; beside it a bare loop over librdkafka that reads the
//!   same and writes such records; and how long the next start takes to serve
//! - `pairs`: with `--against BINARY`, a backlog of JSON of 100 bytes through that build and this, in turn
//! - `latency`: from the scheduled time of a reading to a read_committed consumer of its result, by commit interval
//!
//! The broker is that of `SWELTER_KAFKA`, or one that is started, with the jars that `scripts/kafka
//! fetch` has got. Latencies are open-loop: they count from the time at which something was due,
//! whatever held it up, the client included. CPU time of the broker is among that of "others".

#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod backlog;
mod bare_client;
mod broker;
mod latency;
mod load;

// Shared with the bench of the service, which needs more of them.
#[allow(dead_code)]
#[path = "../service/http.rs"]
mod http;
#[allow(dead_code)]
#[path = "../service/measure.rs"]
mod measure;
#[path = "../common/pairs.rs"]
mod pairs;
#[allow(dead_code)]
#[path = "../service/server.rs"]
mod server;

use std::path::PathBuf;
use std::time::Duration;

use broker::Broker;

/// How much, how long and how often is measured.
pub struct BenchOptions {
    pub readings: u64,
    pub time: Duration,
    pub rounds: usize,
    /// Another build of the program, to be compared with.
    pub against: Option<PathBuf>,
}

type Scenario = (&'static str, fn(&Broker, &BenchOptions));

const SCENARIOS: [Scenario; 3] = [
    ("backlog", backlog::bench_backlog),
    ("pairs", backlog::bench_pairs),
    ("latency", latency::bench_latency),
];

fn main() {
    let mut wanted = Vec::new();
    let mut effort =
        BenchOptions { readings: 3_000_000, time: Duration::from_secs(60), rounds: 1, against: None };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|text| text.parse::<f64>().ok()).expect("a number");
        match arg.as_str() {
            "--against" => effort.against = args.next().map(PathBuf::from),
            "--millions" => effort.readings = (number() * 1e6) as u64,
            "--seconds" => effort.time = Duration::from_secs_f64(number()),
            "--rounds" => effort.rounds = number() as usize,
            // Cargo's own.
            "--bench" => {}
            name if SCENARIOS.iter().any(|(known, _)| *known == name) => wanted.push(arg),
            other => panic!("there is no scenario {other}"),
        }
    }
    let broker = Broker::start();
    for (name, run) in SCENARIOS {
        if (wanted.is_empty() && name != "pairs") || wanted.iter().any(|wanted| wanted == name) {
            run(&broker, &effort);
        }
    }
}
