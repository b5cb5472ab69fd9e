//! Histograms, clocks, and how they are shown.

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;

use crate::server::{Server, own_cpu};

/// Latencies in µs.
pub struct Latencies(Histogram<u64>);

impl Latencies {
    pub fn new() -> Latencies {
        Latencies(Histogram::new_with_bounds(1, 600_000_000, 3).unwrap())
    }

    pub fn record(&mut self, micros: i64) {
        self.0.saturating_record(micros.max(1) as u64);
    }

    pub fn len(&self) -> u64 {
        self.0.len()
    }

    pub fn clear(&mut self) {
        self.0.reset();
    }

    pub fn add(&mut self, other: &Latencies) {
        self.0.add(&other.0).unwrap();
    }

    /// In ms.
    pub fn at(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }

    pub fn shown(&self) -> String {
        let Latencies(histogram) = self;
        format!(
            "p50 {:7.2}  p90 {:7.2}  p99 {:7.2}  p99.9 {:7.2}  max {:7.2} ms",
            self.at(0.5),
            self.at(0.9),
            self.at(0.99),
            self.at(0.999),
            histogram.max() as f64 / 1e3
        )
    }
}

/// µs since 1970-01-01T00:00:00Z.
pub fn now_micros() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64
}

/// Cores that the server and its clients took, and what all processes of the machine wanted.
pub struct Cores {
    at: Instant,
    server: Duration,
    own: Duration,
}

impl Cores {
    pub fn since_now(server: &Server) -> Cores {
        Cores { at: Instant::now(), server: server.cpu(), own: own_cpu() }
    }

    pub fn shown(&self, server: &Server) -> String {
        let wall = self.at.elapsed().as_secs_f64();
        let cores = |now: Duration, then: Duration| (now - then).as_secs_f64() / wall;
        format!(
            "cores: server {:.2}, client {:.2}; load {}",
            cores(server.cpu(), self.server),
            cores(own_cpu(), self.own),
            load()
        )
    }
}

/// The machine's load of the last minute.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap();
    text.split(' ').next().unwrap().into()
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
