//! A loop without anything between: what reading the input and writing such an output costs by itself.

use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::broker::{Broker, PARTITIONS};
use crate::server::own_cpu;

const CALL: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_millis(100);
const SAMPLE: usize = 100_000;

/// Records as swelter wrote them; they are written over and over.
pub struct Sample(Vec<Written>);

struct Written {
    key: Vec<u8>,
    value: Vec<u8>,
    as_of: Vec<u8>,
}

impl Sample {
    pub fn take(broker: &Broker, topic: &str) -> Sample {
        let consumer = broker.consumer(topic, Offset::Beginning);
        let mut sample = Vec::new();
        let deadline = Instant::now() + CALL;
        while sample.len() < SAMPLE && Instant::now() < deadline {
            let Some(message) = consumer.poll(Duration::from_secs(2)) else { break };
            let message = message.unwrap();
            let header = message.headers().and_then(|headers| headers.iter().next()?.value);
            sample.push(Written {
                key: message.key().unwrap_or_default().to_vec(),
                value: message.payload().unwrap_or_default().to_vec(),
                as_of: header.unwrap_or_default().to_vec(),
            });
        }
        assert!(!sample.is_empty(), "no results");
        Sample(sample)
    }

    /// Bytes of a record, key and value.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|written| written.key.len() + written.value.len()).sum::<usize>() / self.0.len()
    }
}

/// Reads so many records and writes as many, in transactions: wall and CPU seconds.
pub fn run(broker: &Broker, input: &str, output: &str, readings: u64, sample: &Sample) -> (f64, f64) {
    let (begun, cpu) = (Instant::now(), own_cpu());
    let consumer = broker.consumer(input, Offset::Beginning);
    let mut config = broker.client();
    config
        .set("transactional.id", output)
        .set("linger.ms", "1")
        .set("queue.buffering.max.messages", "500000")
        .set("queue.buffering.max.kbytes", "262144");
    let producer: BaseProducer = config.create().unwrap();
    producer.init_transactions(CALL).unwrap();
    copy(&consumer, &producer, output, readings, sample);
    (begun.elapsed().as_secs_f64(), (own_cpu() - cpu).as_secs_f64())
}

fn copy(consumer: &BaseConsumer, producer: &BaseProducer, output: &str, readings: u64, sample: &Sample) {
    let mut copied = 0;
    while copied < readings {
        producer.begin_transaction().unwrap();
        let due = Instant::now() + INTERVAL;
        while copied < readings && (copied % 256 != 0 || Instant::now() < due) {
            let message = consumer.poll(CALL).expect("all records come").unwrap();
            let written = &sample.0[copied as usize % sample.0.len()];
            send(producer, output, message.partition() % PARTITIONS, written);
            copied += 1;
        }
        producer.flush(CALL).unwrap();
        producer.commit_transaction(CALL).unwrap();
    }
}

fn send(producer: &BaseProducer, topic: &str, partition: i32, written: &Written) {
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
