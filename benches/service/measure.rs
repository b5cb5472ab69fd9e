//! Histograms, clocks, and how they are shown.

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;

use crate::server::{Server, own_cpu_time};

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
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }

    pub fn to_text(&self) -> String {
        let Latencies(histogram) = self;
        format!(
            "p50 {:7.2}  p90 {:7.2}  p99 {:7.2}  p99.9 {:7.2}  max {:7.2} ms",
            self.quantile_ms(0.5),
            self.quantile_ms(0.9),
            self.quantile_ms(0.99),
            self.quantile_ms(0.999),
            histogram.max() as f64 / 1e3
        )
    }
}

/// µs since 1970-01-01T00:00:00Z.
pub fn now_micros() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64
}

/// How many cores the server and its clients took, and everything else on the machine, which is the
/// noise.
pub struct CoreUsage {
    at: Instant,
    server: Duration,
    own: Duration,
    machine: Duration,
}

impl CoreUsage {
    pub fn start_measuring(server: &Server) -> CoreUsage {
        CoreUsage {
            at: Instant::now(),
            server: server.cpu_time(),
            own: own_cpu_time(),
            machine: machine_cpu_time(),
        }
    }

    pub fn to_text(&self, server: &Server) -> String {
        let wall = self.at.elapsed().as_secs_f64();
        let cores = |now: Duration, then: Duration| (now - then).as_secs_f64() / wall;
        let (of_server, own) = (cores(server.cpu_time(), self.server), cores(own_cpu_time(), self.own));
        let others = (cores(machine_cpu_time(), self.machine) - of_server - own).max(0.0);
        format!("cores: server {of_server:.2}, client {own:.2}, others {others:.2}")
    }
}

/// CPU time that all processes have taken, and the host's others from this machine.
fn machine_cpu_time() -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap();
    let fields = text.lines().next().unwrap().split_whitespace().skip(1);
    let ticks: Vec<u64> = fields.map(|field| field.parse().unwrap()).collect();
    let [user, nice, system, _, _, irq, softirq, steal, ..] = ticks[..] else { panic!("/proc/stat") };
    Duration::from_millis((user + nice + system + irq + softirq + steal) * 10)
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
