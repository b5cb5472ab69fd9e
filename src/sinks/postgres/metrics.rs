//! The metrics of a shard in PostgreSQL.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge, Histogram};

use super::error::PostgresError;
use super::table_writes::WrittenRows;

/// What a shard reports beside the metrics of every sink.
pub struct ShardMetrics {
    inserted: Counter,
    updated: Counter,
    deleted: Counter,
    not_kept: Counter,
    commit_time: Histogram,
    lag: Gauge,
    connected: Gauge,
    retries: Box<dyn Fn(&'static str) -> Counter + Send>,
}

impl ShardMetrics {
    /// `label` names the sink.
    pub fn new(label: &(&'static str, String), shard: u16) -> ShardMetrics {
        let labels = [(label.0, label.1.clone()), ("shard", shard.to_string())];
        let rows = |change: &'static str| {
            let labels = [labels[0].clone(), labels[1].clone(), ("change", change.to_owned())];
            metrics::counter!("swelter_postgres_rows_total", &labels)
        };
        ShardMetrics {
            inserted: rows("inserted"),
            updated: rows("updated"),
            deleted: rows("deleted"),
            not_kept: rows("not_kept"),
            commit_time: metrics::histogram!("swelter_postgres_commit_seconds", &labels),
            lag: metrics::gauge!("swelter_postgres_lag_seconds", &labels),
            connected: metrics::gauge!("swelter_postgres_connections", &labels),
            retries: Box::new(move |reason| {
                let labels = [labels[0].clone(), labels[1].clone(), ("reason", reason.to_owned())];
                metrics::counter!("swelter_postgres_retries_total", &labels)
            }),
        }
    }

    pub fn set_connected(&self, is_connected: bool) {
        self.connected.set(if is_connected { 1.0 } else { 0.0 });
    }

    /// Counts a transaction that is tried again.
    pub fn count_retry(&self, error: &PostgresError) {
        (self.retries)(retry_reason(error)).increment(1);
    }

    /// Counts a committed transaction.
    pub fn count_commit(&self, rows: &WrittenRows, took: Duration, epoch: u64) {
        self.inserted.increment(rows.inserted);
        self.updated.increment(rows.updated);
        self.deleted.increment(rows.deleted);
        self.not_kept.increment(rows.not_kept);
        self.commit_time.record(took.as_secs_f64());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let committed = Duration::from_millis(epoch);
        self.lag.set(now.saturating_sub(committed).as_secs_f64());
    }
}

/// A class of faults, for the label of a metric.
fn retry_reason(error: &PostgresError) -> &'static str {
    let PostgresError::Server { code, .. } = error else {
        return match error {
            PostgresError::Timeout { .. } => "timeout",
            _ => "connection",
        };
    };
    match code.as_str() {
        "40001" | "40P01" => "conflict",
        "53100" => "disk_full",
        "25006" => "read_only",
        "57014" => "timeout",
        "55P03" => "lock",
        code if code.starts_with("57P") => "shutdown",
        code if code.starts_with("53") => "resources",
        code if code.starts_with("08") || code.starts_with("28") => "connection",
        _ => "other",
    }
}
