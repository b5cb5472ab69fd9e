//! Calls of a client that rdkafka does not have.

use std::ffi::CString;

use rdkafka::ClientContext;
use rdkafka::bindings as native;
use rdkafka::client::Client;

use super::error_codes::{self, NO_ERROR};

/// Adds brokers, `host:port` separated by commas, to those that a client knows.
pub fn add_brokers<C: ClientContext>(client: &Client<C>, brokers: &str) {
    if let Ok(brokers) = CString::new(brokers) {
        // SAFETY: the client is borrowed; the text is copied before the call returns.
        unsafe { native::rd_kafka_brokers_add(client.native_ptr(), brokers.as_ptr()) };
    }
}

/// The end of a partition, by the client's last fetch: open transactions lie before it. `None`
/// before the first response.
pub fn high_watermark<C: ClientContext>(client: &Client<C>, topic: &str, partition: i32) -> Option<u64> {
    let name = CString::new(topic).ok()?;
    let (mut low, mut high) = (-1, -1);
    // SAFETY: the client is borrowed; the name is read and the numbers are written before the call
    // returns.
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
