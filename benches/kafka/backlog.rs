//! From a topic that is full to one of results.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rdkafka::Offset;

use crate::BenchOptions;
use crate::bare_client::{self, RecordSample};
use crate::broker::{Broker, PARTITIONS, Topic};
use crate::load::{CITIES, LoadProducer, PayloadFormat, READING_SCHEMA, RecordShape};
use crate::pairs::{Builds, PAIRS, PairedRatio};
use crate::server::{BINARY, Server};

const COMMIT_TIMEOUT: Duration = Duration::from_secs(900);

const RECORD_SHAPES: [RecordShape; 4] = [
    RecordShape { form: PayloadFormat::Json, bytes: 100 },
    RecordShape { form: PayloadFormat::Avro, bytes: 100 },
    RecordShape { form: PayloadFormat::Json, bytes: 1000 },
    RecordShape { form: PayloadFormat::Avro, bytes: 1000 },
];

pub fn bench_backlog(broker: &Broker, effort: &BenchOptions) {
    let millions = effort.readings as f64 / 1e6;
    println!(
        "a backlog of {millions} M readings of {CITIES} cities, {PARTITIONS} partitions, exactly once, commits every 100 ms:"
    );
    for shape in RECORD_SHAPES {
        let input = broker.create_topic("in", PARTITIONS, &[("message.timestamp.type", "LogAppendTime")]);
        LoadProducer::new(broker, 20).send_history(&input.name, shape, effort.readings);
        for round in 0..effort.rounds {
            let output = broker.create_topic("out", PARTITIONS, &[("cleanup.policy", "compact")]);
            bench_swelter(broker, &input, &output, effort.readings, shape);
            let sample = RecordSample::read_from_topic(broker, &output.name);
            let copy = broker.create_topic("copy", PARTITIONS, &[("cleanup.policy", "compact")]);
            let took = bare_client::run_bare_copy(broker, &input.name, &copy.name, effort.readings, &sample);
            print_rates(
                &format!("bare loop, {} bytes out", sample.bytes_per_record()),
                effort.readings,
                took,
            );
            if round == 0 && shape.bytes == 100 {
                bench_restart(broker, &input, &output, shape);
            }
        }
        if shape.form == PayloadFormat::Json && shape.bytes == 100 {
            let output = broker.create_topic("out", PARTITIONS, &[("cleanup.policy", "compact")]);
            let current = format!("current_topic = \"{}-now\"\n", output.name);
            let config = swelter_config(broker, &input.name, &output.name, shape, &current);
            let (server, took) = run_until_committed(broker, &output, effort.readings, &BINARY, &config);
            print_rates("swelter, current rows too", effort.readings, took);
            drop(server);
        }
    }
}

/// The same backlog through two builds.
pub fn bench_pairs(broker: &Broker, effort: &BenchOptions) {
    let against = effort.against.clone().expect("--against BINARY, the other build");
    let builds = Builds { old: against, new: BINARY.clone() };
    let shape = RECORD_SHAPES[0];
    let input = broker.create_topic("in", PARTITIONS, &[("message.timestamp.type", "LogAppendTime")]);
    LoadProducer::new(broker, 20).send_history(&input.name, shape, effort.readings);
    let millions = effort.readings as f64 / 1e6;
    let name = shape.name();
    println!(
        "a backlog of {millions} M readings of {CITIES} cities, {name}, exactly once, {PAIRS} pairs of two builds:"
    );
    let pairs = builds.measure_in_turn(|binary| {
        let output = broker.create_topic("out", PARTITIONS, &[("cleanup.policy", "compact")]);
        let config = swelter_config(broker, &input.name, &output.name, shape, "");
        run_until_committed(broker, &output, effort.readings, binary, &config).1
    });
    let ratio =
        |of: fn(&(f64, f64)) -> f64| PairedRatio::new(pairs.iter().map(|(old, new)| (of(old), of(new))));
    println!("  CPU seconds   {}", ratio(|took| took.1).to_text("s"));
    println!("  wall seconds  {}", ratio(|took| took.0).to_text("s"));
}

fn print_rates(what: &str, readings: u64, (wall, cpu): (f64, f64)) {
    let thousands = readings as f64 / 1e3;
    println!(
        "  {what:34} {:6.0} k readings/s  {:6.0} k a CPU second  ({wall:.1} s, {cpu:.1} CPU s)",
        thousands / wall,
        thousands / cpu
    );
}

fn bench_swelter(broker: &Broker, input: &Topic<'_>, output: &Topic<'_>, readings: u64, shape: RecordShape) {
    let config = swelter_config(broker, &input.name, &output.name, shape, "");
    let (server, took) = run_until_committed(broker, output, readings, &BINARY, &config);
    print_rates(&format!("swelter, {}", shape.name()), readings, took);
    println!("    {:.0} MB resident", server.resident_bytes() as f64 / 1e6);
}

/// Wall and CPU seconds from the start of the process until everything is committed.
fn run_until_committed(
    broker: &Broker,
    output: &Topic<'_>,
    readings: u64,
    binary: &Path,
    config: &str,
) -> (Server, (f64, f64)) {
    let begun = Instant::now();
    let server = Server::start_binary(binary, config);
    let consumer = broker.consumer(&output.name, Offset::End);
    while server.metric("swelter_readings_total") < readings as f64
        || broker.committed_offsets(&consumer, &output.name) < readings
    {
        assert!(begun.elapsed() < COMMIT_TIMEOUT, "the backlog is not worked off");
        std::thread::sleep(Duration::from_millis(50));
    }
    let took = (begun.elapsed().as_secs_f64(), server.cpu_time().as_secs_f64());
    (server, took)
}

/// How long the next start takes: everything is replayed, and nothing is written.
fn bench_restart(broker: &Broker, input: &Topic<'_>, output: &Topic<'_>, shape: RecordShape) {
    let begun = Instant::now();
    let server = Server::start_ready(&swelter_config(broker, &input.name, &output.name, shape, ""));
    let wall = begun.elapsed().as_secs_f64();
    println!("    started again: serves after {wall:.1} s, {:.1} CPU s", server.cpu_time().as_secs_f64());
}

pub fn swelter_config(broker: &Broker, input: &str, output: &str, shape: RecordShape, more: &str) -> String {
    let format = match shape.form {
        PayloadFormat::Json => String::new(),
        PayloadFormat::Avro => {
            let file = format!("{}/bench-reading.avsc", env!("CARGO_TARGET_TMPDIR"));
            fs::write(&file, READING_SCHEMA).unwrap();
            format!("format = \"avro\"\nschema_file = \"{file}\"\n")
        }
    };
    let brokers = &broker.address;
    format!(
        "[ingest]\nenabled = false\n\
         [[sources]]\ntype = \"kafka\"\nbrokers = \"{brokers}\"\ntopic = \"{input}\"\ncreate_topics = true\n{format}\
         [[sinks]]\ntype = \"kafka\"\nbrokers = \"{brokers}\"\ntopic = \"{output}\"\ncreate_topics = true\n{more}"
    )
}
