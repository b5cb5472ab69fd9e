//! The callbacks of the consumer of a source: errors, its log, and failed commits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

use crate::kafka::{self, error_log::KafkaErrorLog};

/// Receives the callbacks of the consumer.
pub(super) struct SourceClientContext {
    error_log: KafkaErrorLog,
    commit_failed: AtomicBool,
}

impl SourceClientContext {
    pub(super) fn new(source: Arc<str>) -> SourceClientContext {
        SourceClientContext { error_log: KafkaErrorLog::new(source), commit_failed: AtomicBool::new(false) }
    }

    /// Logs a failed commit, but only the first one: nothing depends on commits.
    pub(super) fn warn_commit_failed(&self, error: &KafkaError) {
        if !self.commit_failed.swap(true, Ordering::Relaxed) {
            let source = &**self.error_log.source();
            tracing::warn!(source, %error, "positions cannot be committed to the consumer group, so monitors of its lag do not see them; swelter itself does not need them");
        }
    }
}

impl ClientContext for SourceClientContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        kafka::log_librdkafka(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.error_log.log_error(&error, reason);
    }
}

impl ConsumerContext for SourceClientContext {
    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        match result {
            Ok(()) => self.commit_failed.store(false, Ordering::Relaxed),
            Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => {}
            Err(error) => self.warn_commit_failed(&error),
        }
    }
}
