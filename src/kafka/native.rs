//! librdkafka's own interface for the two calls that every record goes through: records are taken from the queue of a partition many
//! at once, and handed to a producer by the handle of their topic. By rdkafka's safe ones, a record at a time with an event of its own
//! and its topic looked up by name, a worker took a quarter more CPU time and a shard a seventh (`benches/runs`, kafka-profile.txt).
//! And for what rdkafka does not have: [`add_brokers`], a flush that waits without looking, [`TopicProducer::flush`], and the ids of
//! topics, [`topic_ids`], and a client's log as it is written, [`LogQueue`].
//!
//! The one module with unsafe code. It is safe since
//! - pointers that librdkafka gives are kept by one owner each, which gives each back once, when it is dropped;
//! - what they belong to, the client, is owned by or borrowed for the same value, and is given up after them;
//! - slices of a record borrow from the queue that holds it, and the queue is borrowed mutably to let go of it;
//! - what librdkafka is given (names, keys, values, headers) it copies before the call returns;
//! - error codes are read as integers: a code that the bindings' enum does not have would be no value of it;
//! - records are reached through the pointer that librdkafka gave, since it writes to them when headers are first asked for.
#![allow(unsafe_code)]

mod error_codes;
mod log_queue;
mod topic_ids;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::bindings as native;
use rdkafka::client::Client;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use rdkafka::types::RDKafkaRespErr;

pub use self::log_queue::LogQueue;
pub use self::topic_ids::{TopicState, describe_topic_ids, url_safe_topic_id};

/// `RD_KAFKA_RESP_ERR_NO_ERROR`.
const NO_ERROR: c_int = 0;

/// A code of librdkafka; one that rdkafka does not know is an unknown error.
fn error_code(code: c_int) -> RDKafkaErrorCode {
    RDKafkaRespErr::try_from(code).unwrap_or(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN).into()
}

/// How many are taken at once. What they may hold in all is limited where the client's queue is: it had room for them.
const FETCH_BATCH_RECORDS: usize = 256;

/// Tells a client of brokers, `host:port` separated by commas, beside those that it knows.
pub fn add_brokers<C: ClientContext>(client: &Client<C>, brokers: &str) {
    if let Ok(brokers) = CString::new(brokers) {
        // SAFETY: the client is borrowed; the text is copied before the call returns.
        unsafe { native::rd_kafka_brokers_add(client.native_ptr(), brokers.as_ptr()) };
    }
}

/// Where a partition ends, as the client's last fetch has said it: open transactions lie before it. Nothing before the first answer.
pub fn high_watermark<C: ClientContext>(client: &Client<C>, topic: &str, partition: i32) -> Option<u64> {
    let name = CString::new(topic).ok()?;
    let (mut low, mut high) = (-1, -1);
    // SAFETY: the client is borrowed; the name is read and the numbers are written before the call returns.
    let code = unsafe {
        error_codes::rd_kafka_get_watermark_offsets(
            client.native_ptr(),
            name.as_ptr(),
            partition,
            &raw mut low,
            &raw mut high,
        )
    };
    (code == NO_ERROR).then(|| u64::try_from(high).ok()).flatten()
}

/// What a client has fetched of a partition.
pub struct RecordQueue<C: ConsumerContext + 'static> {
    queue: NonNull<native::rd_kafka_queue_t>,
    /// Taken from the queue; those before `next` are given back.
    fetched: [*mut native::rd_kafka_message_t; FETCH_BATCH_RECORDS],
    next: usize,
    end: usize,
    /// Taken as well, and not given back yet.
    retained: Option<NonNull<native::rd_kafka_message_t>>,
    /// Keeps the client, the queue's separation from that of all partitions, and who is woken.
    _split: PartitionQueue<C>,
}

/// A record as it was fetched.
#[derive(Clone, Copy)]
pub struct FetchedRecord<'a> {
    /// No reference: librdkafka writes to what it points to.
    message: NonNull<native::rd_kafka_message_t>,
    queue: PhantomData<&'a ()>,
}

impl<C: ConsumerContext + 'static> RecordQueue<C> {
    /// The queue of a partition, from now on apart from the consumer's. Whenever something comes into the empty queue, `woken` is
    /// called, by a thread of the client. None where there can be no such partition.
    pub fn split_from_consumer(
        consumer: &Arc<BaseConsumer<C>>,
        topic: &str,
        partition: i32,
        woken: impl Fn() + Send + Sync + 'static,
    ) -> Option<RecordQueue<C>> {
        let mut split = consumer.split_partition_queue(topic, partition)?;
        split.set_nonempty_callback(woken);
        let name = CString::new(topic).ok()?;
        // SAFETY: the consumer is kept by `split`; the name is read before the call returns.
        let queue = unsafe {
            native::rd_kafka_queue_get_partition(consumer.client().native_ptr(), name.as_ptr(), partition)
        };
        let queue = NonNull::new(queue)?;
        Some(RecordQueue {
            queue,
            fetched: [ptr::null_mut(); FETCH_BATCH_RECORDS],
            next: 0,
            end: 0,
            retained: None,
            _split: split,
        })
    }

    /// Takes more where nothing is left of what was taken: whether something was.
    pub fn fetch_more(&mut self) -> bool {
        if self.next == self.end {
            // SAFETY: the array has room for as many. All that it had is given back.
            let count = unsafe {
                native::rd_kafka_consume_batch_queue(
                    self.queue.as_ptr(),
                    0,
                    self.fetched.as_mut_ptr(),
                    self.fetched.len(),
                )
            };
            self.next = 0;
            self.end = usize::try_from(count).unwrap_or(0);
            return self.end > 0;
        }
        false
    }

    /// The first record of those that were taken, or what was met in its place; none where none is left.
    pub fn first_record(&mut self) -> Option<KafkaResult<FetchedRecord<'_>>> {
        let message = NonNull::new(*self.fetched[self.next..self.end].first()?)?;
        let record = FetchedRecord { message, queue: PhantomData };
        Some(match record.response_code() {
            NO_ERROR => Ok(record),
            code => Err(match error_code(code) {
                RDKafkaErrorCode::PartitionEOF => KafkaError::PartitionEOF(record.partition()),
                fatal @ RDKafkaErrorCode::Fatal => KafkaError::MessageConsumptionFatal(fatal),
                error => KafkaError::MessageConsumption(error),
            }),
        })
    }

    /// Of the first one; of the end of the partition, where the client stands: behind marks of transactions.
    pub fn first_offset(&self) -> Option<u64> {
        let message = NonNull::new(*self.fetched[self.next..self.end].first()?)?;
        u64::try_from(FetchedRecord { message, queue: PhantomData }.offset()).ok()
    }

    /// Lets go of the first, but keeps it as the last one that was given: [`RecordQueue::last_given`].
    pub fn pop_and_retain(&mut self) {
        if self.next < self.end {
            self.release_retained();
            self.retained = NonNull::new(self.fetched[self.next]);
            self.next += 1;
        }
    }

    /// The record that [`RecordQueue::pop_given`] has kept.
    pub fn retained_record(&mut self) -> Option<FetchedRecord<'_>> {
        self.retained.map(|message| FetchedRecord { message, queue: PhantomData })
    }

    /// Lets go of the one that was kept: it may hold all of the answer that it came in.
    pub fn release_retained(&mut self) {
        if let Some(message) = self.retained.take() {
            // SAFETY: it was taken, is given back once, and nothing borrows it.
            unsafe { native::rd_kafka_message_destroy(message.as_ptr()) };
        }
    }

    /// Lets go of the first.
    pub fn release_first(&mut self) {
        if self.next < self.end {
            // SAFETY: it was taken, is given back once, and nothing borrows it.
            unsafe { native::rd_kafka_message_destroy(self.fetched[self.next]) };
            self.next += 1;
        }
    }

    /// Lets go of all that was taken.
    pub fn release_all(&mut self) {
        while self.next < self.end {
            self.release_first();
        }
    }
}

impl<C: ConsumerContext + 'static> Drop for RecordQueue<C> {
    fn drop(&mut self) {
        self.release_retained();
        // SAFETY: each is given back once; the client goes after them, with the fields.
        unsafe {
            for message in &self.fetched[self.next..self.end] {
                native::rd_kafka_message_destroy(*message);
            }
            native::rd_kafka_queue_destroy(self.queue.as_ptr());
        }
    }
}

impl<'a> FetchedRecord<'a> {
    /// What stands in place of a record, if anything.
    fn response_code(self) -> c_int {
        // SAFETY: the queue has the record; the code is as wide as C's integer, and read as one.
        unsafe { (&raw const (*self.message.as_ptr()).err).cast::<c_int>().read() }
    }

    fn partition(self) -> i32 {
        // SAFETY: the queue has the record.
        unsafe { (*self.message.as_ptr()).partition }
    }

    pub fn offset(self) -> i64 {
        // SAFETY: the queue has the record.
        unsafe { (*self.message.as_ptr()).offset }
    }

    pub fn key(self) -> Option<&'a [u8]> {
        let message = self.message.as_ptr();
        // SAFETY: the client keeps so many bytes there as long as the record.
        unsafe { slice_of((*message).key, (*message).key_len) }
    }

    pub fn value(self) -> Option<&'a [u8]> {
        let message = self.message.as_ptr();
        // SAFETY: as above.
        unsafe { slice_of((*message).payload, (*message).len) }
    }

    /// In ms since 1970; the producer's or the log's.
    pub fn timestamp(self) -> Option<i64> {
        let mut kind = native::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: it reads the record and writes the kind, one of the three that there are.
        let time = unsafe { native::rd_kafka_message_timestamp(self.message.as_ptr(), &raw mut kind) };
        (kind != native::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE).then_some(time)
    }

    /// The number of the leader that took it, where the broker says so.
    pub fn leader_epoch(self) -> Option<i32> {
        // SAFETY: it reads the record.
        let epoch = unsafe { native::rd_kafka_message_leader_epoch(self.message.as_ptr()) };
        (epoch >= 0).then_some(epoch)
    }

    pub fn headers(self) -> FetchedHeaders<'a> {
        let mut headers = ptr::null_mut();
        // SAFETY: the client reads them at the first call and keeps them in the record, which nobody else has: a queue is of one
        // thread. Where there are none or they cannot be read, it says so and writes nothing.
        let answer =
            unsafe { error_codes::rd_kafka_message_headers(self.message.as_ptr(), &raw mut headers) };
        let found = answer == NO_ERROR;
        FetchedHeaders {
            headers: found.then(|| NonNull::new(headers)).flatten(),
            next: 0,
            record: PhantomData,
        }
    }
}

/// The headers of a record in their order: names that are text, and values.
pub struct FetchedHeaders<'a> {
    headers: Option<NonNull<native::rd_kafka_headers_t>>,
    next: usize,
    record: PhantomData<FetchedRecord<'a>>,
}

impl<'a> Iterator for FetchedHeaders<'a> {
    type Item = (&'a str, Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (name, value) = self.header_at(self.next)?;
            self.next += 1;
            if let Ok(name) = name.to_str() {
                return Some((name, value));
            }
        }
    }
}

impl<'a> FetchedHeaders<'a> {
    fn header_at(&self, number: usize) -> Option<(&'a CStr, Option<&'a [u8]>)> {
        let headers = self.headers?;
        let (mut name, mut value, mut length) = (ptr::null(), ptr::null(), 0);
        // SAFETY: the record keeps the headers, whose names end with a zero; a number behind the last is answered with an error.
        unsafe {
            let answer = error_codes::rd_kafka_header_get_all(
                headers.as_ptr(),
                number,
                &raw mut name,
                &raw mut value,
                &raw mut length,
            );
            if answer != NO_ERROR || name.is_null() {
                return None;
            }
            Some((CStr::from_ptr(name), slice_of(value, length)))
        }
    }
}

/// # Safety
///
/// Where `start` is not null, so many bytes must stand there for `'a`.
unsafe fn slice_of<'a>(start: *const c_void, length: usize) -> Option<&'a [u8]> {
    // SAFETY: the caller's.
    (!start.is_null()).then(|| unsafe { std::slice::from_raw_parts(start.cast(), length) })
}

/// A producer of some topics.
pub struct TopicProducer<C: ProducerContext + 'static> {
    topics: Vec<TopicHandle>,
    // Goes after the handles of its topics.
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

/// What a record is made of; nothing of it need live longer than the call that it is for.
pub struct ProducerRecord<'a, H> {
    /// The topic's number among those of the producer.
    pub topic: usize,
    pub partition: i32,
    /// When it was made, in ms since 1970.
    pub timestamp: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: H,
}

// The context's opaque value of a record is nothing, so none need be given with it.
impl<C: ProducerContext<DeliveryOpaque = ()> + 'static> TopicProducer<C> {
    /// # Errors
    ///
    /// Where a name cannot be one of a topic.
    pub fn new(client: BaseProducer<C>, topics: &[String]) -> KafkaResult<TopicProducer<C>> {
        let refused = || KafkaError::MessageProduction(RDKafkaErrorCode::UnknownTopic);
        let mut handles = Vec::with_capacity(topics.len());
        for topic in topics {
            let name = CString::new(topic.as_str()).map_err(|_| refused())?;
            // SAFETY: the client is there; the name is copied. Without settings the topic has those of the client.
            let handle = unsafe {
                native::rd_kafka_topic_new(client.client().native_ptr(), name.as_ptr(), ptr::null_mut())
            };
            handles.push(TopicHandle(NonNull::new(handle).ok_or_else(refused)?));
        }
        Ok(TopicProducer { topics: handles, client })
    }

    /// For all but records of its topics.
    pub fn client(&self) -> &BaseProducer<C> {
        &self.client
    }

    /// Has all that is queued sent at once, whatever `linger.ms` says, and waits a while: whether nothing is under way any more.
    pub fn flush_within(&self, wait: Duration) -> bool {
        let wait = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the client is there.
        let answer = unsafe { error_codes::rd_kafka_flush(self.client.client().native_ptr(), wait) };
        let is_done = answer == NO_ERROR;
        if !is_done {
            // Reports of what has failed count as under way; without a wait, one of them would be heard of.
            self.client.poll(Duration::from_millis(1));
        }
        is_done
    }

    /// Queues a record. It is reported as others of the client are, without an opaque value.
    ///
    /// # Errors
    ///
    /// Where it was not queued, and why.
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
        // SAFETY: each part has the member of the union that its kind says; key and value are copied; the headers are the client's
        // where the call succeeds, and else remain ours.
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
            let made = UnsentHeaders(native::rd_kafka_headers_new(1));
            for (name, value) in headers {
                native::rd_kafka_header_add(
                    made.0,
                    name.as_ptr().cast::<c_char>(),
                    name.len().cast_signed(),
                    value.as_ptr().cast::<c_void>(),
                    value.len().cast_signed(),
                );
            }
            made
        }
    }
}

impl Drop for UnsentHeaders {
    fn drop(&mut self) {
        // SAFETY: ours as long as no record has them.
        unsafe { native::rd_kafka_headers_destroy(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_error_codes_become_unknown_error() {
        assert_eq!(error_code(3), RDKafkaErrorCode::UnknownTopicOrPartition);
        assert_eq!(error_code(-191), RDKafkaErrorCode::PartitionEOF);
        for unknown in [999, -999, i32::MAX, i32::MIN] {
            assert_eq!(error_code(unknown), RDKafkaErrorCode::Unknown);
        }
    }

    /// A record is given with whatever code librdkafka has for it, also one that is newer than its bindings.
    #[test]
    fn record_with_unknown_error_code_is_an_error() {
        let mut message = std::mem::MaybeUninit::<native::rd_kafka_message_t>::zeroed();
        // SAFETY: the field is within the message, and is written and read as an integer.
        unsafe { (&raw mut (*message.as_mut_ptr()).err).cast::<c_int>().write(12_345) };
        let message = NonNull::new(message.as_mut_ptr()).unwrap();
        let record = FetchedRecord { message, queue: PhantomData };
        assert_eq!(
            (record.response_code(), error_code(record.response_code())),
            (12_345, RDKafkaErrorCode::Unknown)
        );
        assert_eq!((record.offset(), record.key(), record.value()), (0, None, None));
    }
}
