//! How late a result is at a consumer that reads what is committed, from when its reading was due.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::BaseConsumer;
use rdkafka::message::Message;
use swelter::model::EventTime;

use crate::Effort;
use crate::backlog::config;
use crate::broker::{Broker, PARTITIONS};
use crate::load::{CITIES, Form, Loader, Shape, city};
use crate::measure::{Cores, Latencies, now_micros};
use crate::server::Server;

const SHAPE: Shape = Shape { form: Form::Json, bytes: 100 };
/// An hour.
const PAST: u64 = CITIES * 60;
const WARM_UP: Duration = Duration::from_secs(5);

const MODES: [(&str, &str); 4] = [
    ("exactly once, every 20 ms", "commit_interval = \"20ms\"\n"),
    ("exactly once, every 100 ms", "commit_interval = \"100ms\"\n"),
    ("exactly once, every 1 s", "commit_interval = \"1s\"\n"),
    ("at least once", "delivery = \"at_least_once\"\n"),
];

pub fn all(broker: &Broker, effort: &Effort) {
    println!(
        "from schedule to a read_committed consumer of the results, {CITIES} cities, JSON of 100 bytes:"
    );
    for rate in [15_000, 30_000] {
        for (mode, keys) in MODES {
            for _ in 0..effort.rounds {
                let (latencies, client, cores) = measured(broker, rate, keys, effort.time);
                println!("  {rate:6} readings/s, {mode:27} {}  {cores}", latencies.shown());
                if client.at(0.99) > 2.0 {
                    println!("    of which the client was late itself: {}", client.shown());
                }
                let (seen, due) = (latencies.len(), rate * effort.time.as_secs());
                if seen < due * 98 / 100 {
                    println!("    {seen} of {due} readings seen");
                }
            }
        }
    }
}

fn measured(broker: &Broker, rate: u64, keys: &str, time: Duration) -> (Latencies, Latencies, String) {
    let input = broker.topic("in", PARTITIONS, &[("message.timestamp.type", "LogAppendTime")]);
    let output = broker.topic("out", PARTITIONS, &[("cleanup.policy", "compact")]);
    Loader::new(broker, 20).past(&input.name, SHAPE, PAST);
    let server = Server::ready(&config(broker, &input.name, &output.name, SHAPE, keys));
    server.wait_for_readings(PAST);
    // Only what is due within it counts.
    let (from, upto) = (AtomicI64::new(i64::MAX), AtomicI64::new(i64::MAX));
    let stop = Arc::new(AtomicBool::new(false));
    thread::scope(|scope| {
        let producing = stop.clone();
        let input = &input.name;
        let producer = scope.spawn(move || produce(Loader::new(broker, 1), input, rate, &producing));
        let consumer = broker.consumer(&output.name, Offset::End);
        let (from, upto) = (&from, &upto);
        let consuming = scope.spawn(move || consume(&consumer, from, upto));
        thread::sleep(WARM_UP);
        let cores = Cores::since_now(&server);
        let begin = now_micros() / 1000;
        upto.store(begin + time.as_millis() as i64, Ordering::Relaxed);
        from.store(begin, Ordering::Relaxed);
        thread::sleep(time);
        let cores = cores.shown(&server);
        let latencies = consuming.join().unwrap();
        stop.store(true, Ordering::Relaxed);
        (latencies, producer.join().unwrap(), cores)
    })
}

/// Every city in turn, each reading at the millisecond that it is dated; and how much later it was sent.
fn produce(mut loader: Loader, topic: &str, rate: u64, stop: &AtomicBool) -> Latencies {
    let mut late = Latencies::new();
    let first = now_micros() / 1000 + 10;
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let due = first + (number * 1000 / rate) as i64;
        let wait = due * 1000 - now_micros();
        if wait > 0 {
            loader.poll();
            thread::sleep(Duration::from_micros(wait as u64));
        }
        loader.send(topic, SHAPE, city(number % CITIES), due, number);
        late.record(now_micros() - due * 1000);
        number += 1;
    }
    late
}

/// Times what is due from one time to another, until all of it has come or it is long over.
fn consume(consumer: &BaseConsumer, from: &AtomicI64, upto: &AtomicI64) -> Latencies {
    let mut latencies = Latencies::new();
    let mut late = None;
    loop {
        let now = now_micros();
        let (from, upto) = (from.load(Ordering::Relaxed), upto.load(Ordering::Relaxed));
        if upto != i64::MAX && now / 1000 > upto + 10_000
            || late.is_some_and(|late: Instant| late.elapsed() > GRACE)
        {
            return latencies;
        }
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let Some(due) = message.unwrap().key().and_then(due) else { continue };
        if (from..upto).contains(&due) {
            latencies.record(now_micros() - due * 1000);
        } else if due >= upto {
            late.get_or_insert_with(Instant::now);
        }
    }
}

/// From the first result that is too new until the others have all come.
const GRACE: Duration = Duration::from_secs(3);

/// When the reading of a key was due: `{"city":"..","reading_at":".."}`.
fn due(key: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(key).ok()?.strip_suffix("\"}")?;
    let at = text.rsplit('"').next()?;
    EventTime::parse(at, None).ok().map(EventTime::millis)
}
