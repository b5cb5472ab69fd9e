//! The ids of topics, for which rdkafka has no call: one request for all.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::{self, NonNull};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::bindings as native;
use rdkafka::client::Client;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

use super::error_codes::{self, NO_ERROR, error_code};

/// The state of a topic in its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicState {
    Missing,
    /// The id is as Kafka's own tools write it; brokers before 2.8 have none.
    Present {
        id: Option<String>,
        partitions: u32,
    },
    /// The cluster cannot say.
    Unknown(RDKafkaErrorCode),
}

/// Lists which topics exist, with their ids: all in one request (DescribeTopics). It creates none.
///
/// # Errors
///
/// If no broker responds in this time.
pub fn describe_topic_ids<C: ClientContext>(
    client: &Client<C>,
    topics: &[&str],
    wait: Duration,
) -> KafkaResult<BTreeMap<String, TopicState>> {
    let mut states = BTreeMap::new();
    if topics.is_empty() {
        return Ok(states);
    }
    let response = DescribeResponse::describe(client, topics, wait)?;
    let mut count = 0;
    // SAFETY: the event is an answer to DescribeTopics, and what it holds lives as long as it.
    unsafe {
        let result = native::rd_kafka_event_DescribeTopics_result(response.0.as_ptr());
        let ids = match result.is_null() {
            true => ptr::null_mut(),
            false => native::rd_kafka_DescribeTopics_result_topics(result, &raw mut count),
        };
        for at in 0..if ids.is_null() { 0 } else { count } {
            let topic = *ids.add(at);
            let name = CStr::from_ptr(native::rd_kafka_TopicDescription_name(topic));
            states.insert(name.to_string_lossy().into_owned(), topic_state(topic));
        }
    }
    Ok(states)
}

/// # Safety
///
/// The description must be alive.
unsafe fn topic_state(topic: *const native::rd_kafka_TopicDescription_t) -> TopicState {
    // SAFETY: the description lives, by the caller; so do the error, the id and the partitions,
    // which it has.
    let (code, id, partitions) = unsafe {
        let error = native::rd_kafka_TopicDescription_error(topic);
        let code = if error.is_null() { NO_ERROR } else { error_codes::rd_kafka_error_code(error) };
        let mut partitions = 0;
        native::rd_kafka_TopicDescription_partitions(topic, &raw mut partitions);
        (code, id_of(native::rd_kafka_TopicDescription_topic_id(topic)), partitions as u32)
    };
    match code {
        NO_ERROR => TopicState::Present { id, partitions },
        code => match error_code(code) {
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => TopicState::Missing,
            code => TopicState::Unknown(code),
        },
    }
}

/// # Safety
///
/// The id must be alive, if it is not null.
unsafe fn id_of(id: *const native::rd_kafka_Uuid_t) -> Option<String> {
    if id.is_null() {
        return None;
    }
    // SAFETY: the id lives, by the caller, and has its own text, which ends with a zero.
    let (is_zero, text) = unsafe {
        let is_zero = native::rd_kafka_Uuid_most_significant_bits(id) == 0
            && native::rd_kafka_Uuid_least_significant_bits(id) == 0;
        (is_zero, native::rd_kafka_Uuid_base64str(id))
    };
    if is_zero || text.is_null() {
        return None;
    }
    // SAFETY: as above.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    Some(url_safe_topic_id(&text))
}

/// The id in the alphabet of `kafka-topics.sh --describe`: librdkafka uses the other one of base64.
pub fn url_safe_topic_id(id: &str) -> String {
    id.replace('+', "-").replace('/', "_")
}

/// The event of a response, which is released once.
struct DescribeResponse(NonNull<native::rd_kafka_event_t>);

impl DescribeResponse {
    fn describe<C: ClientContext>(
        client: &Client<C>,
        topics: &[&str],
        wait: Duration,
    ) -> KafkaResult<DescribeResponse> {
        let invalid = || KafkaError::AdminOp(RDKafkaErrorCode::InvalidTopic);
        let names = topics.iter().map(|topic| CString::new(*topic).map_err(|_| invalid()));
        let names = names.collect::<KafkaResult<Vec<CString>>>()?;
        let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        let wait = c_int::try_from(wait.as_millis()).unwrap_or(c_int::MAX);
        let mut problem = [0 as c_char; 128];
        // SAFETY: the client is borrowed; names and options are copied by the call; each thing that
        // is made here is given back once, the queue after the only event that comes to it.
        let response = unsafe {
            let client = client.native_ptr();
            let queue = native::rd_kafka_queue_new(client);
            let topics =
                native::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
            let options = native::rd_kafka_AdminOptions_new(
                client,
                native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
            );
            error_codes::rd_kafka_AdminOptions_set_request_timeout(
                options,
                wait,
                problem.as_mut_ptr(),
                problem.len(),
            );
            native::rd_kafka_DescribeTopics(client, topics, options, queue);
            // The request ends within its own timeout, with an error if need be.
            let response = native::rd_kafka_queue_poll(queue, wait.saturating_add(1_000));
            native::rd_kafka_AdminOptions_destroy(options);
            native::rd_kafka_TopicCollection_destroy(topics);
            native::rd_kafka_queue_destroy(queue);
            response
        };
        let timed_out = KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut);
        let response = DescribeResponse(NonNull::new(response).ok_or(timed_out)?);
        // SAFETY: the event is ours.
        match unsafe { error_codes::rd_kafka_event_error(response.0.as_ptr()) } {
            NO_ERROR => Ok(response),
            code => Err(KafkaError::AdminOp(error_code(code))),
        }
    }
}

impl Drop for DescribeResponse {
    fn drop(&mut self) {
        // SAFETY: it is ours, and given back once.
        unsafe { native::rd_kafka_event_destroy(self.0.as_ptr()) };
    }
}
