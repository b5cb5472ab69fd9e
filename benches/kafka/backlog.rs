//! From a topic that is full to one of results.

use std::fs;
use std::time::{Duration, Instant};

use rdkafka::Offset;

use crate::Effort;
use crate::bare::{self, Sample};
use crate::broker::{Broker, PARTITIONS, Topic};
use crate::load::{CITIES, Form, Loader, SCHEMA, Shape};
use crate::server::Server;

const PATIENCE: Duration = Duration::from_secs(900);

const SHAPES: [Shape; 4] = [
    Shape { form: Form::Json, bytes: 100 },
    Shape { form: Form::Avro, bytes: 100 },
    Shape { form: Form::Json, bytes: 1000 },
    Shape { form: Form::Avro, bytes: 1000 },
];

pub fn all(broker: &Broker, effort: &Effort) {
    let millions = effort.readings as f64 / 1e6;
    println!(
        "a backlog of {millions} M readings of {CITIES} cities, {PARTITIONS} partitions, exactly once, commits every 100 ms:"
    );
    for shape in SHAPES {
        let input = broker.topic("in", PARTITIONS, &[("message.timestamp.type", "LogAppendTime")]);
        Loader::new(broker, 20).past(&input.name, shape, effort.readings);
        for round in 0..effort.rounds {
            let output = broker.topic("out", PARTITIONS, &[("cleanup.policy", "compact")]);
            swelter(broker, &input, &output, effort.readings, shape);
            let sample = Sample::take(broker, &output.name);
            let copy = broker.topic("copy", PARTITIONS, &[("cleanup.policy", "compact")]);
            let took = bare::run(broker, &input.name, &copy.name, effort.readings, &sample);
            show(&format!("bare loop, {} bytes out", sample.bytes()), effort.readings, took);
            if round == 0 && shape.bytes == 100 {
                again(broker, &input, &output, shape);
            }
        }
        if shape.form == Form::Json && shape.bytes == 100 {
            let output = broker.topic("out", PARTITIONS, &[("cleanup.policy", "compact")]);
            let current = format!("current_topic = \"{}-now\"\n", output.name);
            let (server, took) = run(broker, &input, &output, effort.readings, shape, &current);
            show("swelter, current rows too", effort.readings, took);
            drop(server);
        }
    }
}

fn show(what: &str, readings: u64, (wall, cpu): (f64, f64)) {
    let thousands = readings as f64 / 1e3;
    println!(
        "  {what:34} {:6.0} k readings/s  {:6.0} k a CPU second  ({wall:.1} s, {cpu:.1} CPU s)",
        thousands / wall,
        thousands / cpu
    );
}

fn swelter(broker: &Broker, input: &Topic<'_>, output: &Topic<'_>, readings: u64, shape: Shape) {
    let (server, took) = run(broker, input, output, readings, shape, "");
    show(&format!("swelter, {}", shape.name()), readings, took);
    println!("    {:.0} MB resident", server.resident() as f64 / 1e6);
}

/// Wall and CPU seconds from the start of the process until everything is committed.
fn run(
    broker: &Broker,
    input: &Topic<'_>,
    output: &Topic<'_>,
    readings: u64,
    shape: Shape,
    more: &str,
) -> (Server, (f64, f64)) {
    let begun = Instant::now();
    let server = Server::listening(&config(broker, &input.name, &output.name, shape, more));
    let consumer = broker.consumer(&output.name, Offset::End);
    while server.metric("swelter_readings_total") < readings as f64
        || broker.committed(&consumer, &output.name) < readings
    {
        assert!(begun.elapsed() < PATIENCE, "the backlog is not worked off");
        std::thread::sleep(Duration::from_millis(50));
    }
    let took = (begun.elapsed().as_secs_f64(), server.cpu().as_secs_f64());
    (server, took)
}

/// How long the next start takes: everything is replayed, and nothing is written.
fn again(broker: &Broker, input: &Topic<'_>, output: &Topic<'_>, shape: Shape) {
    let begun = Instant::now();
    let server = Server::ready(&config(broker, &input.name, &output.name, shape, ""));
    let wall = begun.elapsed().as_secs_f64();
    println!("    started again: serves after {wall:.1} s, {:.1} CPU s", server.cpu().as_secs_f64());
}

pub fn config(broker: &Broker, input: &str, output: &str, shape: Shape, more: &str) -> String {
    let format = match shape.form {
        Form::Json => String::new(),
        Form::Avro => {
            let file = format!("{}/bench-reading.avsc", env!("CARGO_TARGET_TMPDIR"));
            fs::write(&file, SCHEMA).unwrap();
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
