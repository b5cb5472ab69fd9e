//! A client's log in a queue of its own, in the order of what the client does.

use std::ffi::{CStr, c_int};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdkafka::bindings as native;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};

use super::error_codes::{self, NO_ERROR};

/// The log lines of a client, which are no longer passed to its context.
pub struct LogQueue<C: ConsumerContext + 'static> {
    queue: NonNull<native::rd_kafka_queue_t>,
    // Dropped after the queue.
    _client: Arc<BaseConsumer<C>>,
}

// SAFETY: librdkafka's queues are made for use by any thread.
unsafe impl<C: ConsumerContext + 'static> Send for LogQueue<C> {}

impl<C: ConsumerContext + 'static> LogQueue<C> {
    /// Redirects the client's log lines to a queue. `None` if librdkafka refuses.
    pub fn redirect_from(client: &Arc<BaseConsumer<C>>) -> Option<LogQueue<C>> {
        let native = client.client().native_ptr();
        // SAFETY: the client is kept; the queue is given back once, when this is dropped.
        let queue = unsafe { NonNull::new(native::rd_kafka_queue_new(native))? };
        let redirected = LogQueue { queue, _client: Arc::clone(client) };
        // SAFETY: client and queue live.
        let code = unsafe { error_codes::rd_kafka_set_log_queue(native, queue.as_ptr()) };
        (code == NO_ERROR).then_some(redirected)
    }

    /// Calls `on_line` with the level, facility and text of each queued line, without waiting.
    pub fn drain(&mut self, mut on_line: impl FnMut(RDKafkaLogLevel, &str, &str)) {
        // SAFETY: the queue lives; an event is given back once, and what it says is read before
        // that.
        unsafe {
            while let Some(event) = NonNull::new(native::rd_kafka_queue_poll(self.queue.as_ptr(), 0)) {
                let (mut facility, mut text, mut severity) = (ptr::null(), ptr::null(), 0);
                let code = native::rd_kafka_event_log(
                    event.as_ptr(),
                    &raw mut facility,
                    &raw mut text,
                    &raw mut severity,
                );
                if code == 0 && !facility.is_null() && !text.is_null() {
                    let [facility, text] =
                        [facility, text].map(|text| CStr::from_ptr(text).to_string_lossy());
                    on_line(syslog_level(severity), &facility, &text);
                }
                native::rd_kafka_event_destroy(event.as_ptr());
            }
        }
    }
}

/// By syslog's numbers.
fn syslog_level(severity: c_int) -> RDKafkaLogLevel {
    match severity {
        ..=2 => RDKafkaLogLevel::Critical,
        3 => RDKafkaLogLevel::Error,
        4 => RDKafkaLogLevel::Warning,
        5 => RDKafkaLogLevel::Notice,
        6 => RDKafkaLogLevel::Info,
        _ => RDKafkaLogLevel::Debug,
    }
}

impl<C: ConsumerContext + 'static> Drop for LogQueue<C> {
    fn drop(&mut self) {
        // SAFETY: it is ours, and given back once, before the client.
        unsafe { native::rd_kafka_queue_destroy(self.queue.as_ptr()) };
    }
}
