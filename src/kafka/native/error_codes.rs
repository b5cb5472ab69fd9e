//! Functions that return an error code, declared as in C: with an integer.

use std::ffi::{c_char, c_int, c_void};

use rdkafka::bindings as native;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::types::RDKafkaRespErr;

unsafe extern "C" {
    pub fn rd_kafka_flush(client: *mut native::rd_kafka_t, timeout_ms: c_int) -> c_int;
    pub fn rd_kafka_get_watermark_offsets(
        client: *mut native::rd_kafka_t,
        topic: *const c_char,
        partition: i32,
        low: *mut i64,
        high: *mut i64,
    ) -> c_int;
    pub fn rd_kafka_error_code(error: *const native::rd_kafka_error_t) -> c_int;
    pub fn rd_kafka_event_error(event: *mut native::rd_kafka_event_t) -> c_int;
    pub fn rd_kafka_set_log_queue(
        client: *mut native::rd_kafka_t,
        queue: *mut native::rd_kafka_queue_t,
    ) -> c_int;
    pub fn rd_kafka_AdminOptions_set_request_timeout(
        options: *mut native::rd_kafka_AdminOptions_t,
        timeout_ms: c_int,
        problem: *mut c_char,
        problem_length: usize,
    ) -> c_int;
    pub fn rd_kafka_message_headers(
        message: *const native::rd_kafka_message_t,
        headers: *mut *mut native::rd_kafka_headers_t,
    ) -> c_int;
    pub fn rd_kafka_header_get_all(
        headers: *const native::rd_kafka_headers_t,
        number: usize,
        name: *mut *const c_char,
        value: *mut *const c_void,
        length: *mut usize,
    ) -> c_int;
}

/// `RD_KAFKA_RESP_ERR_NO_ERROR`.
pub const NO_ERROR: c_int = 0;

/// librdkafka's code as rdkafka's; a code that rdkafka does not know becomes `Unknown`.
pub fn error_code(code: c_int) -> RDKafkaErrorCode {
    RDKafkaRespErr::try_from(code).unwrap_or(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN).into()
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
}
