//! Readings as records: 15,000 cities in turn, each in order.

use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use swelter::internals::model::EventTime;

use crate::broker::Broker;

pub const CITIES: u64 = 15_000;

#[derive(Clone, Copy, PartialEq)]
pub enum PayloadFormat {
    Json,
    Avro,
}

/// What records look like. All beyond the fields of a reading is in one more field, which is not
/// known to the reader.
#[derive(Clone, Copy)]
pub struct RecordShape {
    pub form: PayloadFormat,
    pub bytes: usize,
}

/// Of bare data.
pub const READING_SCHEMA: &str = r#"{"type":"record","name":"Reading","fields":[
{"name":"city","type":"string"},{"name":"reading_at","type":{"type":"long","logicalType":"timestamp-millis"}},
{"name":"temperature","type":"double"},{"name":"humidity","type":"double"},{"name":"wind_speed","type":"double"},
{"name":"station","type":"string"}]}"#;

impl RecordShape {
    pub fn name(self) -> String {
        let form = if self.form == PayloadFormat::Json { "JSON" } else { "Avro" };
        format!("{form}, {:4} bytes", self.bytes)
    }

    pub fn write_record(self, city: u64, at: i64, number: u64, out: &mut Vec<u8>) {
        use std::io::Write as _;
        out.clear();
        let temperature = 60.0 + (number * 7 % 400) as f64 / 10.0;
        let humidity = 30.0 + (number * 11 % 600) as f64 / 10.0;
        let wind = (number * 13 % 200) as f64 / 10.0;
        if self.form == PayloadFormat::Avro {
            push_text(format!("{city}").as_bytes(), out);
            push_long(at, out);
            [temperature, humidity, wind]
                .iter()
                .for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
            push_text(&PADDING[..self.bytes.saturating_sub(out.len() + 2)], out);
            return;
        }
        let at = EventTime::from_millis(at).unwrap();
        write!(
            out,
            "{{\"city\":\"{city}\",\"reading_at\":\"{at}\",\"temperature\":{temperature},\"humidity\":{humidity},\
             \"wind_speed\":{wind}"
        )
        .unwrap();
        if let Some(missing) = self.bytes.checked_sub(out.len() + 14) {
            out.extend_from_slice(b",\"station\":\"");
            out.extend_from_slice(&PADDING[..missing]);
            out.push(b'"');
        }
        out.push(b'}');
    }
}

const PADDING: [u8; 2048] = [b'x'; 2048];

fn push_text(text: &[u8], out: &mut Vec<u8>) {
    push_long(text.len() as i64, out);
    out.extend_from_slice(text);
}

fn push_long(number: i64, out: &mut Vec<u8>) {
    let mut left = ((number << 1) ^ (number >> 63)) as u64;
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

/// The key of a city, as `data/cities.csv` might have it.
pub fn city_key(number: u64) -> u64 {
    1_000_000 + number * 37 % 5_000_000
}

pub struct LoadProducer {
    producer: BaseProducer,
    value: Vec<u8>,
}

impl LoadProducer {
    pub fn new(broker: &Broker, linger_ms: u32) -> LoadProducer {
        let mut config = broker.client_config();
        config
            .set("partitioner", "murmur2_random")
            .set("acks", "all")
            .set("linger.ms", linger_ms.to_string())
            .set("queue.buffering.max.messages", "1000000");
        LoadProducer { producer: config.create().unwrap(), value: Vec::new() }
    }

    /// Queues one record.
    pub fn send_reading(&mut self, topic: &str, shape: RecordShape, city: u64, at: i64, number: u64) {
        shape.write_record(city, at, number, &mut self.value);
        let key = city.to_string();
        let mut record = BaseRecord::to(topic).key(&key).payload(&self.value);
        loop {
            match self.producer.send(record) {
                Ok(()) => return,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    self.producer.poll(Duration::from_millis(5));
                }
                Err((error, _)) => panic!("{error}"),
            }
        }
    }

    pub fn poll(&self) {
        self.producer.poll(Duration::ZERO);
    }

    pub fn flush(&self) {
        self.producer.flush(Duration::from_secs(120)).unwrap();
    }

    /// Readings a minute apart, of which the last are of this minute.
    pub fn send_history(&mut self, topic: &str, shape: RecordShape, readings: u64) {
        let rounds = readings.div_ceil(CITIES) as i64;
        let begin = crate::measure::now_micros() / 60_000_000 - rounds;
        for number in 0..readings {
            let minute = begin + (number / CITIES) as i64;
            self.send_reading(topic, shape, city_key(number % CITIES), minute * 60_000, number);
            if number % 1024 == 0 {
                self.poll();
            }
        }
        self.flush();
    }
}
