//! A check of which topic the fetched records are from: after a topic is deleted and recreated,
//! librdkafka continues with the new topic without an error.

use std::sync::Arc;

use parking_lot::Mutex;
use rdkafka::consumer::BaseConsumer;

use super::client_context::SourceClientContext;
use crate::kafka;
use crate::kafka::native::{LogQueue, url_safe_topic_id};
use crate::sources::SourceError;

pub(super) const TOPIC_REMEDY: &str =
    "restore the topic that was read, or begin anew with empty outputs (docs/disaster-recovery.md)";

/// The topic whose id is compared with that of the client's fetches.
pub(super) struct FetchedTopic {
    topic: String,
    /// The id when the source was opened.
    id: Option<String>,
    client_log: Mutex<ClientLog>,
}

struct ClientLog {
    queue: LogQueue<SourceClientContext>,
    /// The id of another topic that the client has switched to.
    other_id: Option<String>,
}

impl FetchedTopic {
    pub(super) fn new(
        topic: &str,
        id: Option<String>,
        client: &Arc<BaseConsumer<SourceClientContext>>,
    ) -> Option<Self> {
        let queue = LogQueue::redirect_from(client)?;
        Some(FetchedTopic {
            topic: topic.to_owned(),
            id,
            client_log: Mutex::new(ClientLog { queue, other_id: None }),
        })
    }

    pub(super) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Checks that all records fetched until now are from the topic that was opened. The client
    /// logs a changed id before it fetches with it. So a caller that first takes records and then
    /// calls this delivers none of another topic. That holds for brokers from 3.1 on, which are
    /// fetched from by topic id.
    pub(super) fn check_topic_id(&self) -> Result<(), SourceError> {
        let mut lines = self.client_log.lock();
        let ClientLog { queue, other_id: another } = &mut *lines;
        queue.drain(|level, facility, text| {
            kafka::log_librdkafka(level, facility, text);
            if let (Some(changed), Some(own)) = (parse_changed_id(text, &self.topic), &self.id)
                && changed != *own
            {
                another.get_or_insert(changed);
            }
        });
        match another {
            None => Ok(()),
            Some(id) => Err(SourceError::Fatal(topic_recreated_text(
                &self.topic,
                id,
                self.id.as_deref().unwrap_or("none"),
            ))),
        }
    }
}

pub(super) fn topic_recreated_text(topic: &str, id: &str, read_id: &str) -> String {
    format!(
        "topic {topic} was deleted and recreated while it was read: it has the id {id}, and had {read_id}; no record of the new one was read: {TOPIC_REMEDY}"
    )
}

/// Parses the new id of a topic from a log line of the client.
fn parse_changed_id(text: &str, topic: &str) -> Option<String> {
    let (_, ids) = text.split_once(&format!("Topic {topic} changed id from "))?;
    let (_, id) = ids.split_once(" to ")?;
    Some(url_safe_topic_id(id.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_id_change_is_parsed_from_client_log_line() {
        let line =
            "[thrd:main]: Topic readings changed id from AAAAAAAAAAAAAAAAAAAAAA to b+c/fE1xT4qk5Vn0Zs2zUg";
        assert_eq!(parse_changed_id(line, "readings").as_deref(), Some("b-c_fE1xT4qk5Vn0Zs2zUg"));
        assert_eq!(parse_changed_id(line, "reading"), None);
        assert_eq!(parse_changed_id("Topic readings [0] Leader 1 Epoch 0", "readings"), None);
    }
}
