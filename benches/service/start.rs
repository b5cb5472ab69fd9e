//! The cost of the service before it has clients.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::BenchOptions;
use crate::http::get;
use crate::latency::generator_config;
use crate::measure::median;
use crate::server::{BINARY, Server};

pub fn bench_start(_: &BenchOptions) {
    let starts = (0..11).map(|_| {
        let start = Instant::now();
        let server = Server::start_listening("");
        while get(server.address, "/healthz").is_none_or(|(status, _)| status != 200) {}
        start.elapsed().as_secs_f64()
    });
    println!(
        "start to the first answer of /healthz, empty journal: {:.3} s, the median of 11",
        median(starts.collect())
    );

    println!("stripped release binary: {:.1} MB", stripped_binary_bytes() as f64 / 1e6);

    let server = Server::start_ready("");
    thread::sleep(Duration::from_secs(2));
    let (cpu, start) = (server.cpu_time(), Instant::now());
    thread::sleep(Duration::from_secs(20));
    let share = (server.cpu_time() - cpu).as_secs_f64() / start.elapsed().as_secs_f64();
    println!(
        "idle: {:.2} % of a core, {:.1} MB resident",
        share * 100.0,
        server.resident_bytes() as f64 / 1e6
    );
    drop(server);

    let start = Instant::now();
    let server =
        Server::start_ready(&format!("[ingest]\nenabled = false\n{}", generator_config("1m", "1d", 0.0)));
    let readings = 15_000.0 * 1440.0;
    let resident = server.resident_bytes() as f64;
    println!(
        "{:.1} M readings of a generator: {:.0} MB resident, {:.1} bytes a reading; ready after {:.1} s",
        readings / 1e6,
        resident / 1e6,
        resident / readings,
        start.elapsed().as_secs_f64()
    );
}

fn stripped_binary_bytes() -> u64 {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let copy = dir.path().join("swelter");
    let status =
        Command::new("strip").arg("-o").arg(&copy).arg(&*BINARY).status().expect("strip, of binutils");
    assert!(status.success());
    fs::metadata(copy).unwrap().len()
}
