//! From a topic that is full to one of results.

use std::fs;
use std::time::{Duration, Instant};

use rdkafka::Offset;

use crate::BenchOptions;
use crate::bare_client::{self, RecordSample};
use crate::broker::{Broker, PARTITIONS, Topic};
use crate::load::{CITIES, LoadProducer, PayloadFormat, READING_SCHEMA, RecordShape};
use crate::server::Server;

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
            let (server, took) =
                run_until_committed(broker, &input, &output, effort.readings, shape, &current);
            print_rates("swelter, current rows too", effort.readings, took);
            drop(server);
        }
    }
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
    let (server, took) = run_until_committed(broker, input, output, readings, shape, "");
    print_rates(&format!("swelter, {}", shape.name()), readings, took);
    println!("    {:.0} MB resident", server.resident_bytes() as f64 / 1e6);
}

/// Wall and CPU seconds from the start of the process until everything is committed.
fn run_until_committed(
    broker: &Broker,
    input: &Topic<'_>,
    output: &Topic<'_>,
    readings: u64,
    shape: RecordShape,
    more: &str,
) -> (Server, (f64, f64)) {
    let begun = Instant::now();
    let server = Server::start_listening(&swelter_config(broker, &input.name, &output.name, shape, more));
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
