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
                batch.body.extend_from_slice(format!(",\"note\":\"{}\"", "x".repeat(note)).as_bytes());
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
    let time = effort.time.min(Duration::from_secs(15));
    println!("POST /v1/readings with fsync, closed loops of {} s, medians of 3:", time.as_secs());
    for posts in &POSTS {
        let mut rates = Vec::new();
        let mut shown = String::new();
        for _ in 0..3 {
            let server = Server::ready("");
            let cores = Cores::since_now(&server);
            let (rate, latencies) = posts.run(&server, time);
            let lag = server.metric("swelter_as_of_lag_seconds");
            rates.push(rate);
            shown = format!("{}  {}; results {lag:.2} s behind", latencies.shown(), cores.shown(&server));
        }
        let Posts { name, connections, .. } = posts;
        println!("  {name:29} {connections:3} connections {:9.0} readings/s", median(rates));
        println!("    {shown}");
    }
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
                // Each connection has its own cities.
                let own = CITIES / connections * number;
                let mut batches: Vec<Batch> = (0..8)
                    .map(|batch| {
                        Batch::new(cities.iter().cycle().skip(own + batch * readings).take(readings), bytes)
                    })
                    .collect();
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
