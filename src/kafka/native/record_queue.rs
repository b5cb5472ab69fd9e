//! The queue of a partition: records are fetched from it many at once.

use std::ffi::{CStr, CString, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdkafka::bindings as native;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

use super::error_codes::{self, NO_ERROR, error_code};

/// How many records are fetched at once. Their bytes are limited by the client's queue, which held
/// them.
const FETCH_BATCH_RECORDS: usize = 256;

/// The records that a client has fetched of a partition.
pub struct RecordQueue<C: ConsumerContext + 'static> {
    queue: NonNull<native::rd_kafka_queue_t>,
    /// Fetched from the queue; those before `next` are released.
    fetched: [*mut native::rd_kafka_message_t; FETCH_BATCH_RECORDS],
    next: usize,
    end: usize,
    /// The last record that was popped, if it is not released yet.
    retained: Option<NonNull<native::rd_kafka_message_t>>,
    /// Keeps the client, the separation from the queue of all partitions, and the callback.
    _split: PartitionQueue<C>,
}

/// A fetched record.
#[derive(Clone, Copy)]
pub struct FetchedRecord<'a> {
    /// A pointer, not a reference: librdkafka writes to the message.
    message: NonNull<native::rd_kafka_message_t>,
    queue: PhantomData<&'a ()>,
}

impl<C: ConsumerContext + 'static> RecordQueue<C> {
    /// The queue of a partition, separated from the consumer's. Whenever something enters the empty
    /// queue, a thread of the client calls `woken`. `None` if there can be no such partition.
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

    /// Fetches more records if all fetched ones are released. True if it fetched any.
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

    /// The first fetched record, or the error in its place; `None` if none is left.
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

    /// The offset of the first record; for the end of the partition, the client's position, behind
    /// transaction markers.
    pub fn first_offset(&self) -> Option<u64> {
        let message = NonNull::new(*self.fetched[self.next..self.end].first()?)?;
        u64::try_from(FetchedRecord { message, queue: PhantomData }.offset()).ok()
    }

    /// Pops the first record and retains it for [`RecordQueue::retained_record`].
    pub fn pop_and_retain(&mut self) {
        if self.next < self.end {
            self.release_retained();
            self.retained = NonNull::new(self.fetched[self.next]);
            self.next += 1;
        }
    }

    /// The record that [`RecordQueue::pop_and_retain`] has retained.
    pub fn retained_record(&mut self) -> Option<FetchedRecord<'_>> {
        self.retained.map(|message| FetchedRecord { message, queue: PhantomData })
    }

    /// Releases the retained record, which may keep the whole fetch response in memory.
    pub fn release_retained(&mut self) {
        if let Some(message) = self.retained.take() {
            // SAFETY: it was taken, is given back once, and nothing borrows it.
            unsafe { native::rd_kafka_message_destroy(message.as_ptr()) };
        }
    }

    /// Releases the first record.
    pub fn release_first(&mut self) {
        if self.next < self.end {
            // SAFETY: it was taken, is given back once, and nothing borrows it.
            unsafe { native::rd_kafka_message_destroy(self.fetched[self.next]) };
            self.next += 1;
        }
    }

    /// Releases all fetched records.
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
    /// The error code in place of a record, or [`NO_ERROR`].
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

    /// In ms since 1970, of the producer or of the log.
    pub fn timestamp(self) -> Option<i64> {
        let mut kind = native::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: it reads the record and writes the kind, one of the three that there are.
        let time = unsafe { native::rd_kafka_message_timestamp(self.message.as_ptr(), &raw mut kind) };
        (kind != native::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE).then_some(time)
    }

    /// The epoch of the leader that appended the record, if the broker says so.
    pub fn leader_epoch(self) -> Option<i32> {
        // SAFETY: it reads the record.
        let epoch = unsafe { native::rd_kafka_message_leader_epoch(self.message.as_ptr()) };
        (epoch >= 0).then_some(epoch)
    }

    pub fn headers(self) -> FetchedHeaders<'a> {
        let mut headers = ptr::null_mut();
        // SAFETY: the client reads them at the first call and keeps them in the record, which
        // nobody else has: a queue is of one thread. Where there are none or they cannot be read,
        // it says so and writes nothing.
        let code = unsafe { error_codes::rd_kafka_message_headers(self.message.as_ptr(), &raw mut headers) };
        let is_found = code == NO_ERROR;
        FetchedHeaders {
            headers: is_found.then(|| NonNull::new(headers)).flatten(),
            next: 0,
            record: PhantomData,
        }
    }
}

/// The headers of a record in order: names that are UTF-8, and values.
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
        // SAFETY: the record keeps the headers, whose names end with a zero; a number behind the
        // last is answered with an error.
        unsafe {
            let code = error_codes::rd_kafka_header_get_all(
                headers.as_ptr(),
                number,
                &raw mut name,
                &raw mut value,
                &raw mut length,
            );
            if code != NO_ERROR || name.is_null() {
                return None;
            }
            Some((CStr::from_ptr(name), slice_of(value, length)))
        }
    }
}

/// # Safety
///
/// If `start` is not null, it must point to `length` bytes that live for `'a`.
unsafe fn slice_of<'a>(start: *const c_void, length: usize) -> Option<&'a [u8]> {
    // SAFETY: the caller's.
    (!start.is_null()).then(|| unsafe { std::slice::from_raw_parts(start.cast(), length) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record may have any code, also one that is newer than the bindings.
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
