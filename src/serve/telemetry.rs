//! Metrics of the service, as text for Prometheus.

use std::sync::LazyLock;
use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::view::View;
use crate::codec::{self, unknown_field_count};
use crate::panics;
use crate::panics::locks::SharedStateSection;

/// How often samples of histograms are moved to their buckets.
pub(super) const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

const LATENCY_BUCKETS_S: [f64; 14] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// The recorder of the process, which all servers share.
static RECORDER: LazyLock<PrometheusHandle> = LazyLock::new(|| {
    let buckets = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &LATENCY_BUCKETS_S)
        .unwrap_or_else(|_| PrometheusBuilder::new());
    let recorder = buckets.build_recorder();
    let handle = recorder.handle();
    if metrics::set_global_recorder(recorder).is_err() {
        tracing::warn!("another recorder of metrics is installed: /metrics stays empty");
    }
    describe_metrics();
    // Shown as 0 before the first one.
    for clocks in ["showed_twice", "skipped"] {
        counter!(codec::LOCAL_TIMES_METRIC, "clocks" => clocks).increment(0);
    }
    for scope in panics::PanicScope::ALL {
        counter!(panics::CAUGHT_PANICS_METRIC, "where" => scope.name()).increment(0);
    }
    handle
});

/// Installs the recorder. Metrics that are created earlier count nothing.
pub(super) fn install_recorder() {
    LazyLock::force(&RECORDER);
}

pub(super) fn run_upkeep() {
    RECORDER.run_upkeep();
}

/// Counts a response. `route` is the path as the documents write it, so that the label has few
/// values.
pub(super) fn record_request(route: &'static str, method: &'static str, status: u16, duration: Duration) {
    let labels = [("route", route), ("method", method)];
    histogram!("swelter_http_request_duration_seconds", &labels).record(duration.as_secs_f64());
    let labels = [("route", route), ("method", method), ("status", status_class(status))];
    counter!("swelter_http_requests_total", &labels).increment(1);
}

fn status_class(status: u16) -> &'static str {
    match status / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}

/// Counts readings that clients sent over HTTP or WebSocket.
pub(super) fn record_ingest(bytes: usize, accepted: usize, refused: usize) {
    counter!("swelter_ingest_bytes_total").increment(bytes as u64);
    counter!("swelter_ingest_records_total", "outcome" => "accepted").increment(accepted as u64);
    counter!("swelter_ingest_records_total", "outcome" => "refused").increment(refused as u64);
}

/// Counts a post that had more new cities than its client may add.
pub(super) fn record_refused_new_cities() {
    counter!("swelter_new_cities_refused_total").increment(1);
}

/// Counts a connection over the limit.
pub(super) fn record_rejected_connection() {
    counter!("swelter_connections_refused_total").increment(1);
}

/// The metrics as text for Prometheus.
pub(super) fn render_metrics(view: &View, connections: usize, connections_limit: usize) -> String {
    gauge!("swelter_ready").set(f64::from(u8::from(view.is_ready())));
    gauge!("swelter_as_of_lag_seconds").set(view.lag_ms() as f64 / 1e3);
    gauge!("swelter_connections").set(connections as f64);
    gauge!("swelter_connections_limit").set(connections_limit as f64);
    let counts = view.counts();
    for (outcome, count) in [
        ("inserted", counts.inserted),
        ("corrected", counts.corrected),
        ("withdrawn", counts.withdrawn),
        ("nothing_to_withdraw", counts.nothing_to_withdraw),
        ("old_revision", counts.old_revision),
        ("superseded", counts.superseded),
    ] {
        counter!("swelter_readings_total", "outcome" => outcome).absolute(count);
    }
    gauge!("swelter_split_cities").set(counts.split_city as f64);
    let comparison = view.compare_with_clock();
    gauge!("swelter_current_cities").set(comparison.with_current_row as f64);
    gauge!("swelter_stale_cities").set(comparison.stale as f64);
    counter!("swelter_unknown_fields_total").absolute(unknown_field_count());
    for (reason, count) in view.refusal_counts() {
        counter!("swelter_refused_total", "reason" => reason.code()).absolute(count);
    }
    for progress in view.partition_progress() {
        let Some(name) = view.service_info().partitions.name(progress.partition) else { continue };
        let labels = [("source", name.source.to_string()), ("partition", name.partition.to_string())];
        gauge!("swelter_log_applied_position", &labels).set(progress.applied_until as f64);
        gauge!("swelter_log_end_position", &labels).set(progress.log_end as f64);
        gauge!("swelter_log_withheld_positions", &labels).set(progress.withheld as f64);
    }
    // Rendering locks state of the recorder that every metric uses.
    let _section = SharedStateSection::enter();
    RECORDER.render()
}

fn describe_metrics() {
    describe_process();
    describe_readings();
    describe_answers_and_sinks();
}

fn describe_process() {
    describe_gauge!("swelter_ready", "1 once replay has passed the ends that the logs had at the start");
    describe_gauge!(
        "swelter_as_of_lag_seconds",
        Unit::Seconds,
        "Clock time less the newest epoch that is served; if epochs are ahead of the clock, time since the last update"
    );
    describe_gauge!("swelter_connections", "Open connections, WebSockets included");
    describe_gauge!(
        "swelter_connections_limit",
        "Connections that are served at once: serve.limits.connections, or fewer if the limit of open files is low"
    );
    describe_gauge!(
        "swelter_task_failing",
        "1 while a task of the service itself fails and is retried; what depends on it waits, as the log says"
    );
    describe_counter!("swelter_connections_refused_total", "Connections over the limit, which were rejected");
    describe_counter!(
        panics::CAUGHT_PANICS_METRIC,
        "Panics that ended a client's connection, request or session, and nothing else"
    );
}

fn describe_readings() {
    describe_counter!("swelter_readings_total", "Readings and withdrawals since the start, by what they did");
    describe_gauge!("swelter_current_cities", "Cities that have a current row");
    describe_gauge!(
        "swelter_stale_cities",
        "Cities whose current row is older than results.stale_after, by this host's clock"
    );
    describe_gauge!("swelter_split_cities", "Cities that came from more than one partition");
    describe_counter!(
        codec::LOCAL_TIMES_METRIC,
        "Times without an offset that the clocks of their zone showed twice, or skipped"
    );
    describe_counter!(
        "swelter_unknown_fields_total",
        "Fields of readings that are not known, such as unit, since the start; replayed readings count again"
    );
    describe_counter!("swelter_refused_total", "Readings refused since the start, by reason");
    describe_gauge!(
        "swelter_log_applied_position",
        "Results include every record of the partition before this one"
    );
    describe_gauge!("swelter_log_end_position", "The end of the partition");
    describe_gauge!(
        "swelter_log_withheld_positions",
        "Positions before the end that wait for the end of an open transaction of another producer"
    );
    describe_counter!(
        "swelter_ingest_bytes_total",
        Unit::Bytes,
        "Bytes of bodies and messages with readings"
    );
    describe_counter!(
        "swelter_ingest_records_total",
        "Readings sent to this server, by whether they went to the log"
    );
    describe_counter!(
        "swelter_new_cities_refused_total",
        "Posts and messages refused because their new cities were more than the client may add"
    );
}

fn describe_answers_and_sinks() {
    describe_counter!(
        "swelter_http_requests_total",
        "Requests answered, by route, method and class of status"
    );
    describe_histogram!(
        "swelter_http_request_duration_seconds",
        Unit::Seconds,
        "From the head of a request to the head of its answer"
    );
    describe_gauge!(
        "swelter_kafka_lag",
        "Positions of a partition that are not read yet, those in open transactions included"
    );
    describe_counter!("swelter_sink_records_total", "Records that a shard has made durable");
    describe_counter!(
        "swelter_sink_commits_total",
        "Transactions of a shard, or with at_least_once its progress records"
    );
    describe_gauge!("swelter_sink_durable_epoch", "The epoch that a shard's output is durable up to");
    describe_histogram!(
        "swelter_history_read_seconds",
        Unit::Seconds,
        "How long reads of older rows from PostgreSQL took, by database and by whether it has answered"
    );
    describe_counter!(
        "swelter_postgres_rows_total",
        "Rows that a shard has committed to PostgreSQL, by whether they were inserted, updated or deleted, or are too old to be kept"
    );
    describe_histogram!(
        "swelter_postgres_commit_seconds",
        Unit::Seconds,
        "From the first statement of a transaction until PostgreSQL has committed it"
    );
    describe_gauge!(
        "swelter_postgres_lag_seconds",
        "How old the newest committed epoch was when it was committed, by this host's clock"
    );
    describe_counter!(
        "swelter_postgres_retries_total",
        "Transactions and connections of a shard that are tried again, by the kind of fault"
    );
    describe_gauge!(
        "swelter_postgres_connections",
        "Connections of a shard with PostgreSQL: 1, or 0 while it has none"
    );
    describe_gauge!("swelter_subscriber_sessions", "Open WebSocket sessions of subscribers");
    describe_gauge!("swelter_subscriptions", "Subscriptions of all sessions");
    describe_counter!("swelter_sent_messages_total", "Messages sent to subscribers");
    describe_counter!("swelter_sent_rows_total", "Rows sent to subscribers");
    describe_counter!("swelter_sent_bytes_total", Unit::Bytes, "Bytes of messages sent to subscribers");
    describe_counter!(
        "swelter_conflated_rows_total",
        "Changes of rows that were merged for slow subscribers"
    );
}
