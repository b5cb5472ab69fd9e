//! How late a result is at a consumer that reads what is committed, from when its reading was due.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::Offset;
use rdkafka::consumer::BaseConsumer;
use rdkafka::message::Message;
use swelter::internals::model::EventTime;

use crate::BenchOptions;
use crate::backlog::swelter_config;
use crate::broker::{Broker, PARTITIONS};
use crate::load::{CITIES, LoadProducer, PayloadFormat, RecordShape, city_key};
use crate::measure::{CoreUsage, Latencies, now_micros};
use crate::server::Server;

const RECORD_SHAPE: RecordShape = RecordShape { form: PayloadFormat::Json, bytes: 100 };
/// An hour.
const HISTORY_READINGS: u64 = CITIES * 60;
const WARM_UP: Duration = Duration::from_secs(5);
/// What Kafka's own client has since 4.0. With less, a request has one reading, and the broker is
/// busy with requests alone.
const LINGER_MS: u32 = 5;

const DELIVERY_MODES: [(&str, &str); 4] = [
    ("exactly once, every 20 ms", "commit_interval = \"20ms\"\n"),
    ("exactly once, every 100 ms", "commit_interval = \"100ms\"\n"),
    ("exactly once, every 1 s", "commit_interval = \"1s\"\n"),
    ("at least once", "delivery = \"at_least_once\"\n"),
];

pub fn bench_latency(broker: &Broker, effort: &BenchOptions) {
    println!(
        "to a read_committed consumer of the results, {CITIES} cities, JSON of 100 bytes; from the time at which a reading was due,\n  \
         and from that of its record in one partition of {PARTITIONS}, which is the broker's:"
    );
    for rate in [15_000, 30_000] {
        for (mode, keys) in DELIVERY_MODES {
            for _ in 0..effort.rounds {
                let LatencyRun { seen, client, cores } = measure_latency(broker, rate, keys, effort.time);
                println!("  {rate:6} readings/s, {mode:27} due    {}", seen.from_due.to_text());
                println!("                     {:27} record {}  {cores}", "", seen.from_record.to_text());
                if client.quantile_ms(0.99) > 2.0 {
                    println!("    the client was late itself: {}", client.to_text());
                }
                let due = rate * effort.time.as_secs();
                let (all, sampled) = (seen.from_due.len(), seen.from_record.len());
                if all < due * 98 / 100 || sampled < due / PARTITIONS as u64 / 2 {
                    println!("    {all} of {due} readings seen, {sampled} of them with their record's time");
                }
            }
        }
    }
}

struct LatencyRun {
    seen: ObservedLatencies,
    /// How late readings were sent.
    client: Latencies,
    cores: String,
}

struct ObservedLatencies {
    from_due: Latencies,
    from_record: Latencies,
}

/// When the broker has taken records, by city and due time, in ms.
type BrokerTimestamps = Mutex<HashMap<(u64, i64), i64, foldhash::fast::RandomState>>;

fn measure_latency(broker: &Broker, rate: u64, keys: &str, time: Duration) -> LatencyRun {
    let input = broker.create_topic("in", PARTITIONS, &[("message.timestamp.type", "LogAppendTime")]);
    let output = broker.create_topic("out", PARTITIONS, &[("cleanup.policy", "compact")]);
    LoadProducer::new(broker, 20).send_history(&input.name, RECORD_SHAPE, HISTORY_READINGS);
    let server = Server::start_ready(&swelter_config(broker, &input.name, &output.name, RECORD_SHAPE, keys));
    server.wait_for_readings(HISTORY_READINGS);
    // Only what is due within it counts.
    let (from, upto) = (AtomicI64::new(i64::MAX), AtomicI64::new(i64::MAX));
    let (stop, taken) = (AtomicBool::new(false), BrokerTimestamps::default());
    thread::scope(|scope| {
        let (from, upto, stop, taken) = (&from, &upto, &stop, &taken);
        let name = &input.name;
        let producer = scope.spawn(move || produce(LoadProducer::new(broker, LINGER_MS), name, rate, stop));
        let records = broker.consumer_of(name, 0..1, Offset::End);
        scope.spawn(move || record_broker_timestamps(&records, taken, stop));
        let results = broker.consumer(&output.name, Offset::End);
        let consuming = scope.spawn(move || consume(&results, taken, from, upto));
        thread::sleep(WARM_UP);
        let cores = CoreUsage::start_measuring(&server);
        let begin = now_micros() / 1000;
        upto.store(begin + time.as_millis() as i64, Ordering::Relaxed);
        from.store(begin, Ordering::Relaxed);
        thread::sleep(time);
        let cores = cores.to_text(&server);
        let seen = consuming.join().unwrap();
        stop.store(true, Ordering::Relaxed);
        LatencyRun { seen, client: producer.join().unwrap(), cores }
    })
}

/// Notes when the broker has taken each record.
fn record_broker_timestamps(consumer: &BaseConsumer, taken: &BrokerTimestamps, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message.unwrap();
        let at = message.timestamp().to_millis().unwrap();
        if let Some(reading) = message.payload().and_then(parse_reading) {
            taken.lock().insert(reading, at);
        }
    }
}

/// Every city in turn, each reading at the millisecond that it is dated; and how much later it was
/// sent.
fn produce(mut loader: LoadProducer, topic: &str, rate: u64, stop: &AtomicBool) -> Latencies {
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
        loader.send_reading(topic, RECORD_SHAPE, city_key(number % CITIES), due, number);
        late.record(now_micros() - due * 1000);
        number += 1;
    }
    late
}

/// Times what is due from one time to another, until all of it has come or it is long over.
fn consume(
    consumer: &BaseConsumer,
    taken: &BrokerTimestamps,
    from: &AtomicI64,
    upto: &AtomicI64,
) -> ObservedLatencies {
    let mut seen = ObservedLatencies { from_due: Latencies::new(), from_record: Latencies::new() };
    let mut late = None;
    loop {
        let (from, upto) = (from.load(Ordering::Relaxed), upto.load(Ordering::Relaxed));
        let is_over = now_micros() / 1000 > upto.saturating_add(10_000);
        if is_over || late.is_some_and(|late: Instant| late.elapsed() > DRAIN_TIMEOUT) {
            return seen;
        }
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let Some(reading) = message.unwrap().key().and_then(parse_reading) else { continue };
        let (now, due) = (now_micros(), reading.1);
        let record = taken.lock().remove(&reading);
        if (from..upto).contains(&due) {
            seen.from_due.record(now - due * 1000);
            record.into_iter().for_each(|record| seen.from_record.record(now - record * 1000));
        } else if due >= upto {
            late.get_or_insert_with(Instant::now);
        }
    }
}

/// From the first result that is too new until the others have all come.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// City and time of what begins with `{"city":"..","reading_at":".."`, as a value does and a key of
/// a result.
fn parse_reading(json: &[u8]) -> Option<(u64, i64)> {
    let mut pieces = std::str::from_utf8(json).ok()?.split('"').skip(3).step_by(4);
    let (city, at) = (pieces.next()?.parse().ok()?, pieces.next()?);
    Some((city, at.parse::<EventTime>().ok()?.millis()))
}
