//! Log lines about the clients of a cluster: errors that their callbacks get, and librdkafka's own
//! log.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// The same error is logged at most this often: clients repeat their attempts, and report each.
const REPEAT_INTERVAL: Duration = Duration::from_secs(30);
/// Lines of librdkafka that are remembered, so that no second client repeats them.
const MAX_REMEMBERED_LINES: usize = 1000;

/// Logs the errors of one source's client, the same one once in 30 seconds.
pub struct KafkaErrorLog {
    source: Arc<str>,
    /// The last error that was logged, and when.
    last_logged: Mutex<Option<(RDKafkaErrorCode, Instant)>>,
}

impl KafkaErrorLog {
    pub fn new(source: Arc<str>) -> KafkaErrorLog {
        KafkaErrorLog { source, last_logged: Mutex::new(None) }
    }

    pub fn source(&self) -> &Arc<str> {
        &self.source
    }

    pub fn log_error(&self, error: &KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        // Neither is a failure: the reader of the partition handles both.
        if matches!(code, RDKafkaErrorCode::PartitionEOF | RDKafkaErrorCode::AutoOffsetReset) {
            return;
        }
        let mut last_logged = self.last_logged.lock();
        if !last_logged.is_some_and(|(last, when)| last == code && when.elapsed() < REPEAT_INTERVAL) {
            *last_logged = Some((code, Instant::now()));
            tracing::warn!(source = &*self.source, reason, "the Kafka cluster: {code}");
        }
    }
}

/// Writes a line of librdkafka's log to ours: errors as errors, warnings as warnings, the rest as
/// debug and trace lines. A line that any client logged within the last 30 seconds is a debug line,
/// since every client of a cluster that is down reports the same.
pub fn log_librdkafka(level: RDKafkaLogLevel, facility: &str, text: &str) {
    let level = tracing_level(level, facility);
    let level =
        if level <= tracing::Level::WARN && is_repeated(text) { tracing::Level::DEBUG } else { level };
    match level {
        tracing::Level::ERROR => tracing::error!(facility, "kafka: {text}"),
        tracing::Level::WARN => tracing::warn!(facility, "kafka: {text}"),
        tracing::Level::DEBUG => tracing::debug!(facility, "kafka: {text}"),
        _ => tracing::trace!(facility, "kafka: {text}"),
    }
}

fn tracing_level(level: RDKafkaLogLevel, facility: &str) -> tracing::Level {
    match level {
        // A cluster's properties are given to all its clients, and a producer warns of each that is
        // a consumer's. The configuration has been checked by then.
        _ if facility == "CONFWARN" => tracing::Level::DEBUG,
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error => tracing::Level::ERROR,
        RDKafkaLogLevel::Warning => tracing::Level::WARN,
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => tracing::Level::DEBUG,
        RDKafkaLogLevel::Debug => tracing::Level::TRACE,
    }
}

/// Whether a line was logged within the last 30 seconds, but for the times and counts at its end.
fn is_repeated(text: &str) -> bool {
    static LOGGED: LazyLock<Mutex<HashMap<String, Instant>>> = LazyLock::new(Mutex::default);
    let line = text.split(" (after ").next().unwrap_or(text);
    let mut logged = LOGGED.lock();
    if logged.len() >= MAX_REMEMBERED_LINES {
        logged.retain(|_, when| when.elapsed() < REPEAT_INTERVAL);
    }
    match logged.get_mut(line) {
        Some(when) if when.elapsed() < REPEAT_INTERVAL => true,
        Some(when) => {
            *when = Instant::now();
            false
        }
        // Above the limit every line is logged: more distinct errors than this are worth reading.
        None => {
            if logged.len() < MAX_REMEMBERED_LINES {
                logged.insert(line.to_owned(), Instant::now());
            }
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::TcpListener;
    use std::sync::mpsc::{self, Sender};

    use rdkafka::ClientContext;
    use rdkafka::producer::{BaseProducer, ProducerContext};
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;
    use crate::kafka::KafkaCluster;

    #[derive(Clone, Default)]
    struct LogBuffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for LogBuffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for LogBuffer {
        type Writer = LogBuffer;

        fn make_writer(&self) -> LogBuffer {
            self.clone()
        }
    }

    /// What `work` logs at the level `info`, which is the default of a configuration.
    fn logged(work: impl FnOnce()) -> String {
        let captured = LogBuffer::default();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_writer(captured.clone())
            .with_ansi(false)
            .finish();
        tracing::subscriber::with_default(subscriber, work);
        String::from_utf8(captured.0.lock().clone()).unwrap()
    }

    #[test]
    fn librdkafka_errors_and_warnings_keep_their_level() {
        use RDKafkaLogLevel::*;
        let cases = [
            (Emerg, "ERROR"),
            (Alert, "ERROR"),
            (Critical, "ERROR"),
            (Error, "ERROR"),
            (Warning, "WARN"),
            (Notice, ""),
            (Info, ""),
            (Debug, ""),
        ];
        for (level, expected) in cases {
            let text = logged(|| log_librdkafka(level, "TEST", &format!("a line of level {level:?}")));
            let shown = text.split_whitespace().nth(1).unwrap_or_default();
            assert_eq!(shown, expected, "{level:?}: {text}");
        }
        assert_eq!(logged(|| log_librdkafka(Warning, "CONFWARN", "a consumer property")), "");
    }

    #[test]
    fn librdkafka_line_of_second_client_is_not_logged_again() {
        let line = |after: u32| {
            logged(|| {
                let text =
                    format!("[thrd:b/1]: b/1: Connect failed: refused (after {after}ms in state CONNECT)");
                log_librdkafka(RDKafkaLogLevel::Error, "FAIL", &text);
            })
        };
        assert!(line(1).contains("after 1ms"));
        assert_eq!(line(2), "");
    }

    /// Sends on what its client logs.
    struct LoggingContext(Mutex<Sender<(RDKafkaLogLevel, String, String)>>);

    impl ClientContext for LoggingContext {
        fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
            // The test has ended if nobody receives.
            let _ = self.0.lock().send((level, facility.to_owned(), text.to_owned()));
        }
    }

    impl ProducerContext for LoggingContext {
        type DeliveryOpaque = ();

        fn delivery(&self, _: &rdkafka::producer::DeliveryResult<'_>, (): ()) {}
    }

    #[test]
    fn unreachable_broker_is_logged_as_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let brokers = listener.local_addr().unwrap().to_string();
        drop(listener);
        let cluster = KafkaCluster { brokers: brokers.clone(), properties: [].into() };
        let (sender, lines) = mpsc::channel();
        let context = LoggingContext(Mutex::new(sender));
        let producer: BaseProducer<LoggingContext> =
            cluster.producer_config().create_with_context(context).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let (level, facility, text) = loop {
            assert!(Instant::now() < deadline, "the client logs nothing about {brokers}");
            // Polls pass the log on to the context.
            producer.poll(Duration::from_millis(50));
            if let Ok(line) = lines.try_recv() {
                break line;
            }
        };
        let shown = logged(|| log_librdkafka(level, &facility, &text));
        assert!(shown.contains("ERROR") && shown.contains(&brokers), "{level:?} {facility} {text}: {shown}");
    }
}
