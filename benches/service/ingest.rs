//! How many readings are taken in over HTTP, each durable before it is answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use swelter::internals::model::EventTime;

use crate::BenchOptions;
use crate::http::{KeepAliveClient, post_request};
use crate::measure::{CoreUsage, Latencies, median, now_micros};
use crate::server::Server;

const CITIES: usize = 15_000;
const TIME_PLACEHOLDER: &[u8] = b"0000-00-00T00:00:00.000Z";

/// A body of readings, one a line, whose time can be set again and again.
pub struct PostBatch {
    body: Vec<u8>,
    times: Vec<usize>,
}

impl PostBatch {
    /// A reading of each city, of at least so many bytes.
    pub fn new<'a>(cities: impl Iterator<Item = &'a String>, bytes: usize) -> PostBatch {
        let mut batch = PostBatch { body: Vec::new(), times: Vec::new() };
        for (number, city) in cities.enumerate() {
            let start = batch.body.len();
            batch.body.extend_from_slice(format!("{{\"city\":\"{city}\",\"reading_at\":\"").as_bytes());
            batch.times.push(batch.body.len());
            batch.body.extend_from_slice(TIME_PLACEHOLDER);
            let (tenths, percent) = (700 + number % 300, 20 + number % 70);
            let rest = format!("\",\"temperature\":{},\"humidity\":{percent}", tenths as f64 / 10.0);
            batch.body.extend_from_slice(rest.as_bytes());
            let note = bytes.saturating_sub(batch.body.len() - start + ",\"note\":\"\"}".len());
            if note > 0 {
                batch.body.extend_from_slice(
                    format!(",\"note\":\"{}\"", incompressible_text(number, note)).as_bytes(),
                );
            }
            batch.body.extend_from_slice(b"}\n");
        }
        batch
    }

    pub fn set_time(&mut self, ms: i64) {
        let mut text = TIME_PLACEHOLDER.to_vec();
        let written = EventTime::from_millis(ms).unwrap().to_string();
        let written = written.trim_end_matches('Z').as_bytes();
        text[..written.len()].copy_from_slice(written);
        if written.len() == 19 {
            text[19] = b'.';
        }
        for &at in &self.times {
            self.body[at..at + text.len()].copy_from_slice(&text);
        }
    }

    pub fn body(&self) -> &[u8] {
        &self.body
    }
}

/// Text that compresses by a quarter at most, so that the journal has to write it.
fn incompressible_text(seed: usize, length: usize) -> String {
    let mut state = seed as u64 + 1;
    let mut letter = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'0' + (state >> 58) as u8).to_string().replace('\\', "z")
    };
    (0..length).map(|_| letter()).collect()
}

/// One way to post: in closed loops, each connection as fast as it is answered.
struct PostScenario {
    name: &'static str,
    content: &'static str,
    connections: usize,
    readings: usize,
    bytes: usize,
}

const POST_SCENARIOS: [PostScenario; 5] = [
    PostScenario::new("1,000 a post_request, 100 bytes each", "application/x-ndjson", 4, 1000, 100),
    PostScenario::new("1,000 a post_request, 1 kB each", "application/x-ndjson", 4, 1000, 1000),
    PostScenario::new("one by one, 100 bytes each", "application/json", 64, 1, 100),
    PostScenario::new("one by one, 1 kB each", "application/json", 64, 1, 1000),
    PostScenario::new("one by one, a single client", "application/json", 1, 1, 100),
];

pub fn bench_posts(effort: &BenchOptions) {
    let time = effort.time.min(Duration::from_secs(8));
    println!("POST /v1/readings with fsync, closed loops of {} s, medians of 3:", time.as_secs());
    for posts in &POST_SCENARIOS {
        let mut rates = Vec::new();
        let mut shown = String::new();
        for _ in 0..3 {
            let server = Server::start_ready("");
            let cores = CoreUsage::start_measuring(&server);
            let (rate, latencies) = posts.run_posts(&server, time);
            let cores = cores.to_text(&server);
            let behind = seconds_to_catch_up(&server);
            rates.push(rate);
            shown = format!("{}  {cores}; in the results {behind:.2} s later", latencies.to_text());
        }
        let PostScenario { name, connections, .. } = posts;
        println!("  {name:29} {connections:3} connections {:9.0} readings/s", median(rates));
        println!("    {shown}");
    }
}

/// Seconds until the results hold all that was acknowledged.
fn seconds_to_catch_up(server: &Server) -> f64 {
    let start = Instant::now();
    let accepted = server.metric("swelter_ingest_records_total");
    server.wait_for_readings(accepted as u64);
    start.elapsed().as_secs_f64()
}

impl PostScenario {
    const fn new(
        name: &'static str,
        content: &'static str,
        connections: usize,
        readings: usize,
        bytes: usize,
    ) -> PostScenario {
        PostScenario { name, content, connections, readings, bytes }
    }

    /// Readings a second, and how long posts took.
    fn run_posts(&self, server: &Server, time: Duration) -> (f64, Latencies) {
        let stop = Arc::new(AtomicBool::new(false));
        let start = Instant::now();
        let client = |number| {
            let (stop, address) = (stop.clone(), server.address);
            let &PostScenario { content, connections, readings, bytes, .. } = self;
            thread::spawn(move || {
                let cities: Vec<String> =
                    (0..CITIES).map(|city| format!("{:07}", 1_000_000 + city)).collect();
                // Each connection has its own cities, so that no reading is a correction.
                let own = &cities[CITIES / connections * number..CITIES / connections * (number + 1)];
                let batch = |batch| own.iter().cycle().skip(batch * readings).take(readings);
                let mut batches: Vec<PostBatch> =
                    (0..8).map(|number| PostBatch::new(batch(number), bytes)).collect();
                let (mut kept, mut latencies, mut posted) =
                    (KeepAliveClient::connect(address), Latencies::new(), 0);
                for batch in (0..batches.len()).cycle() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let start = Instant::now();
                    batches[batch].set_time(now_micros() / 1000);
                    let status = kept.request_status(&post_request(address, content, batches[batch].body()));
                    match status {
                        200 => posted += readings,
                        429 => thread::sleep(Duration::from_millis(1)),
                        other => panic!("a post was answered {other}"),
                    }
                    latencies.record(start.elapsed().as_micros() as i64);
                }
                (posted, latencies)
            })
        };
        let clients: Vec<_> = (0..self.connections).map(client).collect();
        thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        let (mut readings, mut all) = (0, Latencies::new());
        for client in clients {
            let (posted, latencies) = client.join().unwrap();
            readings += posted;
            all.add(&latencies);
        }
        (readings as f64 / start.elapsed().as_secs_f64(), all)
    }
}
