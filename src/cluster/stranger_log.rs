//! Log lines about refused unproven connections, limited to one a minute.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

const LOG_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct StrangerLog(Mutex<RefusedStrangers>);

/// Refusals not logged yet, and the time of the last line.
#[derive(Default)]
struct RefusedStrangers {
    count: u64,
    last: Option<(Option<SocketAddr>, String)>,
    said_at: Option<Instant>,
}

impl StrangerLog {
    /// Records a refusal, with the address if known.
    pub fn refuse(&self, from: Option<SocketAddr>, why: String) {
        let mut refused = self.0.lock();
        refused.add(from, why);
        refused.write_line(Instant::now());
    }

    /// Logs the recorded refusals if a line is due.
    pub fn log_if_due(&self) {
        self.0.lock().write_line(Instant::now());
    }
}

impl RefusedStrangers {
    fn add(&mut self, from: Option<SocketAddr>, why: String) {
        self.count += 1;
        self.last = Some((from, why));
    }

    /// The line to log now, if one is due.
    fn line(&mut self, now: Instant) -> Option<String> {
        if self.said_at.is_some_and(|said_at| now.saturating_duration_since(said_at) < LOG_INTERVAL) {
            return None;
        }
        let (from, why) = self.last.take()?;
        let count = std::mem::take(&mut self.count);
        self.said_at = Some(now);
        let from = from.map_or_else(String::new, |from| format!(" from {from}"));
        Some(match count {
            1 => format!("a connection to the cluster port{from} was refused: {why}"),
            count => format!(
                "{count} more connections to the cluster port were refused since the last line of this kind; the last one{from}: {why}"
            ),
        })
    }

    fn write_line(&mut self, now: Instant) {
        if let Some(line) = self.line(now) {
            tracing::warn!("{line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_calls_are_logged_once_a_minute_with_count() {
        let (mut refused, began) = (RefusedStrangers::default(), Instant::now());
        let from = Some("10.0.0.9:77".parse().unwrap());
        let mut lines = Vec::new();
        for second in 0..150 {
            let now = began + Duration::from_secs(second);
            if second < 100 {
                for _ in 0..1_000 {
                    refused.add(from, format!("at {second}"));
                    lines.extend(refused.line(now));
                }
            }
            lines.extend(refused.line(now));
        }
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert_eq!(lines[0], "a connection to the cluster port from 10.0.0.9:77 was refused: at 0");
        assert!(
            lines[1].starts_with("60000 more connections") && lines[1].ends_with("10.0.0.9:77: at 60"),
            "{lines:?}"
        );
        assert!(lines[2].starts_with("39999 more connections"), "also once no more come: {lines:?}");
    }
}
