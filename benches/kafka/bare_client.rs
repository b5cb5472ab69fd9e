//! A loop without anything between: what reading the input and writing such an output costs by
//! itself.

use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::broker::{Broker, PARTITIONS};
use crate::server::own_cpu_time;

const CALL_TIMEOUT: Duration = Duration::from_secs(60);
const COMMIT_INTERVAL: Duration = Duration::from_millis(100);
const SAMPLE_RECORDS: usize = 100_000;

/// Records as swelter wrote them; they are written over and over.
pub struct RecordSample(Vec<OutputRecord>);

struct OutputRecord {
    key: Vec<u8>,
    value: Vec<u8>,
    as_of: Vec<u8>,
}

impl RecordSample {
    pub fn read_from_topic(broker: &Broker, topic: &str) -> RecordSample {
        let consumer = broker.consumer(topic, Offset::Beginning);
        let mut sample = Vec::new();
        let deadline = Instant::now() + CALL_TIMEOUT;
        while sample.len() < SAMPLE_RECORDS && Instant::now() < deadline {
            let Some(message) = consumer.poll(Duration::from_secs(2)) else { break };
            let message = message.unwrap();
            let header = message.headers().and_then(|headers| headers.iter().next()?.value);
            sample.push(OutputRecord {
                key: message.key().unwrap_or_default().to_vec(),
                value: message.payload().unwrap_or_default().to_vec(),
                as_of: header.unwrap_or_default().to_vec(),
            });
        }
        assert!(!sample.is_empty(), "no results");
        RecordSample(sample)
    }

    /// Bytes of a record, key and value.
    pub fn bytes_per_record(&self) -> usize {
        self.0.iter().map(|written| written.key.len() + written.value.len()).sum::<usize>() / self.0.len()
    }
}

/// Reads so many records and writes as many, in transactions: wall and CPU seconds.
pub fn run_bare_copy(
    broker: &Broker,
    input: &str,
    output: &str,
    readings: u64,
    sample: &RecordSample,
) -> (f64, f64) {
    let (begun, cpu) = (Instant::now(), own_cpu_time());
    let consumer = broker.consumer(input, Offset::Beginning);
    let mut config = broker.client_config();
    config
        .set("transactional.id", output)
        .set("linger.ms", "1")
        .set("queue.buffering.max.messages", "500000")
        .set("queue.buffering.max.kbytes", "262144");
    let producer: BaseProducer = config.create().unwrap();
    producer.init_transactions(CALL_TIMEOUT).unwrap();
    copy_records(&consumer, &producer, output, readings, sample);
    (begun.elapsed().as_secs_f64(), (own_cpu_time() - cpu).as_secs_f64())
}

fn copy_records(
    consumer: &BaseConsumer,
    producer: &BaseProducer,
    output: &str,
    readings: u64,
    sample: &RecordSample,
) {
    let mut copied = 0;
    while copied < readings {
        producer.begin_transaction().unwrap();
        let due = Instant::now() + COMMIT_INTERVAL;
        while copied < readings && (copied % 256 != 0 || Instant::now() < due) {
            let message = consumer.poll(CALL_TIMEOUT).expect("all records come").unwrap();
            let written = &sample.0[copied as usize % sample.0.len()];
            send_record(producer, output, message.partition() % PARTITIONS, written);
            copied += 1;
        }
        producer.flush(CALL_TIMEOUT).unwrap();
        producer.commit_transaction(CALL_TIMEOUT).unwrap();
    }
}

fn send_record(producer: &BaseProducer, topic: &str, partition: i32, written: &OutputRecord) {
    let headers =
        || OwnedHeaders::new_with_capacity(1).insert(Header { key: "as_of", value: Some(&written.as_of) });
    let mut record = BaseRecord::to(topic)
        .partition(partition)
        .key(&written.key)
        .payload(&written.value)
        .headers(headers());
    loop {
        match producer.send(record) {
            Ok(()) => return,
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                producer.poll(Duration::from_millis(1));
            }
            Err((error, _)) => panic!("{error}"),
        }
    }
}
