//! How many readings are taken in over HTTP, each durable before it is answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use swelter::model::EventTime;

use crate::Effort;
use crate::http::{Kept, post};
use crate::measure::{Cores, Latencies, median, now_micros};
use crate::server::Server;

const CITIES: usize = 15_000;
const TIME: &[u8] = b"0000-00-00T00:00:00.000Z";

/// A body of readings, one a line, whose time can be set again and again.
pub struct Batch {
    body: Vec<u8>,
    times: Vec<usize>,
}

impl Batch {
    /// A reading of each city, of at least so many bytes.
    pub fn new<'a>(cities: impl Iterator<Item = &'a String>, bytes: usize) -> Batch {
        let mut batch = Batch { body: Vec::new(), times: Vec::new() };
        for (number, city) in cities.enumerate() {
            let start = batch.body.len();
            batch.body.extend_from_slice(format!("{{\"city\":\"{city}\",\"reading_at\":\"").as_bytes());
            batch.times.push(batch.body.len());
            batch.body.extend_from_slice(TIME);
            let (tenths, percent) = (700 + number % 300, 20 + number % 70);
            let rest = format!("\",\"temperature\":{},\"humidity\":{percent}", tenths as f64 / 10.0);
            batch.body.extend_from_slice(rest.as_bytes());
            let note = bytes.saturating_sub(batch.body.len() - start + ",\"note\":\"\"}".len());
            if note > 0 {
                batch.body.extend_from_slice(format!(",\"note\":\"{}\"", noise(number, note)).as_bytes());
            }
            batch.body.extend_from_slice(b"}\n");
        }
        batch
    }

    pub fn set_time(&mut self, ms: i64) {
        let mut text = TIME.to_vec();
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
fn noise(seed: usize, length: usize) -> String {
    let mut state = seed as u64 + 1;
    let mut letter = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'0' + (state >> 58) as u8).to_string().replace('\\', "z")
    };
    (0..length).map(|_| letter()).collect()
}

/// One way to post: in closed loops, each connection as fast as it is answered.
struct Posts {
    name: &'static str,
    content: &'static str,
    connections: usize,
    readings: usize,
    bytes: usize,
}

const POSTS: [Posts; 5] = [
    Posts::new("1,000 a post, 100 bytes each", "application/x-ndjson", 4, 1000, 100),
    Posts::new("1,000 a post, 1 kB each", "application/x-ndjson", 4, 1000, 1000),
    Posts::new("one by one, 100 bytes each", "application/json", 64, 1, 100),
    Posts::new("one by one, 1 kB each", "application/json", 64, 1, 1000),
    Posts::new("one by one, a single client", "application/json", 1, 1, 100),
];

pub fn posts(effort: &Effort) {
    let time = effort.time.min(Duration::from_secs(8));
    println!("POST /v1/readings with fsync, closed loops of {} s, medians of 3:", time.as_secs());
    for posts in &POSTS {
        let mut rates = Vec::new();
        let mut shown = String::new();
        for _ in 0..3 {
            let server = Server::ready("");
            let cores = Cores::since_now(&server);
            let (rate, latencies) = posts.run(&server, time);
            let cores = cores.shown(&server);
            let behind = caught_up(&server);
            rates.push(rate);
            shown = format!("{}  {cores}; in the results {behind:.2} s later", latencies.shown());
        }
        let Posts { name, connections, .. } = posts;
        println!("  {name:29} {connections:3} connections {:9.0} readings/s", median(rates));
        println!("    {shown}");
    }
}

/// Seconds until the results hold all that was acknowledged.
fn caught_up(server: &Server) -> f64 {
    let start = Instant::now();
    let accepted = server.metric("swelter_ingest_records_total");
    server.wait_for_readings(accepted as u64);
    start.elapsed().as_secs_f64()
}

impl Posts {
    const fn new(
        name: &'static str,
        content: &'static str,
        connections: usize,
        readings: usize,
        bytes: usize,
    ) -> Posts {
        Posts { name, content, connections, readings, bytes }
    }

    /// Readings a second, and how long posts took.
    fn run(&self, server: &Server, time: Duration) -> (f64, Latencies) {
        let stop = Arc::new(AtomicBool::new(false));
        let start = Instant::now();
        let client = |number| {
            let (stop, address) = (stop.clone(), server.address);
            let &Posts { content, connections, readings, bytes, .. } = self;
            thread::spawn(move || {
                let cities: Vec<String> =
                    (0..CITIES).map(|city| format!("{:07}", 1_000_000 + city)).collect();
                // Each connection has its own cities, so that no reading is a correction.
                let own = &cities[CITIES / connections * number..CITIES / connections * (number + 1)];
                let batch = |batch| own.iter().cycle().skip(batch * readings).take(readings);
                let mut batches: Vec<Batch> = (0..8).map(|number| Batch::new(batch(number), bytes)).collect();
                let (mut kept, mut latencies, mut posted) = (Kept::connect(address), Latencies::new(), 0);
                for batch in (0..batches.len()).cycle() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let start = Instant::now();
                    batches[batch].set_time(now_micros() / 1000);
                    let status = kept.ask(&post(address, content, batches[batch].body()));
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
