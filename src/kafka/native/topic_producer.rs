//! A producer that reaches its topics by their handles.

use std::ffi::{CString, c_char, c_void};
use std::ptr::{self, NonNull};
use std::time::Duration;

use rdkafka::bindings as native;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};

use super::error_codes::{self, NO_ERROR, error_code};

/// A producer of some topics.
pub struct TopicProducer<C: ProducerContext + 'static> {
    topics: Vec<TopicHandle>,
    // Dropped after the handles of its topics.
    client: BaseProducer<C>,
}

struct TopicHandle(NonNull<native::rd_kafka_topic_t>);

// SAFETY: librdkafka's handles are made for use by any thread.
unsafe impl Send for TopicHandle {}

impl Drop for TopicHandle {
    fn drop(&mut self) {
        // SAFETY: it is given back once, before the client.
        unsafe { native::rd_kafka_topic_destroy(self.0.as_ptr()) };
    }
}

/// A record to produce. Nothing of it need live longer than the call.
pub struct ProducerRecord<'a, H> {
    /// The topic's index among those of the producer.
    pub topic: usize,
    pub partition: i32,
    /// In ms since 1970.
    pub timestamp: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: H,
}

// The context's opaque value of a record is `()`, so none is given.
impl<C: ProducerContext<DeliveryOpaque = ()> + 'static> TopicProducer<C> {
    /// # Errors
    ///
    /// If a name cannot be a topic's.
    pub fn new(client: BaseProducer<C>, topics: &[String]) -> KafkaResult<TopicProducer<C>> {
        let refused = || KafkaError::MessageProduction(RDKafkaErrorCode::UnknownTopic);
        let mut handles = Vec::with_capacity(topics.len());
        for topic in topics {
            let name = CString::new(topic.as_str()).map_err(|_| refused())?;
            // SAFETY: the client is there; the name is copied. Without settings the topic has those
            // of the client.
            let handle = unsafe {
                native::rd_kafka_topic_new(client.client().native_ptr(), name.as_ptr(), ptr::null_mut())
            };
            handles.push(TopicHandle(NonNull::new(handle).ok_or_else(refused)?));
        }
        Ok(TopicProducer { topics: handles, client })
    }

    /// The client, for calls that do not produce records.
    pub fn client(&self) -> &BaseProducer<C> {
        &self.client
    }

    /// Sends all queued records at once, whatever `linger.ms` says, and waits up to `wait`. True if
    /// none is in flight any more.
    pub fn flush_within(&self, wait: Duration) -> bool {
        let wait = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the client is there.
        let code = unsafe { error_codes::rd_kafka_flush(self.client.client().native_ptr(), wait) };
        let is_done = code == NO_ERROR;
        if !is_done {
            // Reports of failed records count as in flight, and a poll without a wait would take
            // only one of them.
            self.client.poll(Duration::from_millis(1));
        }
        is_done
    }

    /// Queues a record. Its delivery is reported to the client's context.
    ///
    /// # Errors
    ///
    /// If the record was not queued.
    pub fn queue_record<'a, H>(&self, record: &ProducerRecord<'a, H>) -> KafkaResult<()>
    where
        H: Iterator<Item = (&'a str, &'a [u8])> + Clone,
    {
        use native::rd_kafka_vtype_t as Kind;
        let Some(topic) = self.topics.get(record.topic) else {
            return Err(KafkaError::MessageProduction(RDKafkaErrorCode::UnknownTopic));
        };
        let headers = UnsentHeaders::new(record.headers.clone());
        let parts = [
            vu_part(Kind::RD_KAFKA_VTYPE_RKT, VuValue { rkt: topic.0.as_ptr() }),
            vu_part(Kind::RD_KAFKA_VTYPE_PARTITION, VuValue { i32_: record.partition }),
            vu_part(Kind::RD_KAFKA_VTYPE_MSGFLAGS, VuValue { i: native::RD_KAFKA_MSG_F_COPY }),
            vu_part(Kind::RD_KAFKA_VTYPE_TIMESTAMP, VuValue { i64_: record.timestamp }),
            vu_part(Kind::RD_KAFKA_VTYPE_KEY, VuValue { mem: vu_memory(record.key) }),
            vu_part(Kind::RD_KAFKA_VTYPE_VALUE, VuValue { mem: vu_memory(record.value) }),
            vu_part(Kind::RD_KAFKA_VTYPE_HEADERS, VuValue { headers: headers.0 }),
        ];
        // SAFETY: each part has the member of the union that its kind says; key and value are
        // copied; the headers are the client's where the call succeeds, and else remain ours.
        unsafe {
            let error =
                native::rd_kafka_produceva(self.client.client().native_ptr(), parts.as_ptr(), parts.len());
            if error.is_null() {
                std::mem::forget(headers);
                return Ok(());
            }
            let code = error_code(error_codes::rd_kafka_error_code(error));
            native::rd_kafka_error_destroy(error);
            Err(KafkaError::MessageProduction(code))
        }
    }
}

type VuValue = native::rd_kafka_vu_s__bindgen_ty_1;

fn vu_part(vtype: native::rd_kafka_vtype_t, u: VuValue) -> native::rd_kafka_vu_t {
    native::rd_kafka_vu_t { vtype, u }
}

fn vu_memory(bytes: Option<&[u8]>) -> native::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 {
    native::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 {
        ptr: bytes.map_or(ptr::null_mut(), |bytes| bytes.as_ptr().cast_mut().cast()),
        size: bytes.map_or(0, <[u8]>::len),
    }
}

/// Headers of a record that is not queued yet.
struct UnsentHeaders(*mut native::rd_kafka_headers_t);

impl UnsentHeaders {
    fn new<'a>(headers: impl Iterator<Item = (&'a str, &'a [u8])>) -> UnsentHeaders {
        // SAFETY: names and values are copied. It fails only for headers that are read-only.
        unsafe {
            let unsent = UnsentHeaders(native::rd_kafka_headers_new(1));
            for (name, value) in headers {
                native::rd_kafka_header_add(
                    unsent.0,
                    name.as_ptr().cast::<c_char>(),
                    name.len().cast_signed(),
                    value.as_ptr().cast::<c_void>(),
                    value.len().cast_signed(),
                );
            }
            unsent
        }
    }
}

impl Drop for UnsentHeaders {
    fn drop(&mut self) {
        // SAFETY: ours as long as no record has them.
        unsafe { native::rd_kafka_headers_destroy(self.0) };
    }
}
