//! What clients say of a cluster, told in our log.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// How often the same trouble is told.
const REPEAT_INTERVAL: Duration = Duration::from_secs(30);

/// Tells what is wrong, and the same again only now and then: clients repeat themselves while they try.
pub struct KafkaErrorLog {
    source: Arc<str>,
    /// What was told last, and when.
    last_logged: Mutex<Option<(RDKafkaErrorCode, Instant)>>,
}

impl KafkaErrorLog {
    /// Of the client of a source.
    pub fn new(source: Arc<str>) -> KafkaErrorLog {
        KafkaErrorLog { source, last_logged: Mutex::new(None) }
    }

    pub fn source(&self) -> &Arc<str> {
        &self.source
    }

    pub fn log_error(&self, error: &KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        // The end of a partition, and what its reader is told.
        if matches!(code, RDKafkaErrorCode::PartitionEOF | RDKafkaErrorCode::AutoOffsetReset) {
            return;
        }
        let mut told = self.last_logged.lock().unwrap_or_else(PoisonError::into_inner);
        if !told.is_some_and(|(last, when)| last == code && when.elapsed() < REPEAT_INTERVAL) {
            *told = Some((code, Instant::now()));
            tracing::warn!(source = &*self.source, reason, "the Kafka cluster: {code}");
        }
    }
}
