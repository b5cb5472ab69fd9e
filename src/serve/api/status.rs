//! `GET /v1/status`: how the service is doing.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use warp::reply::Response;

use crate::model::Millis;
use crate::serve::context::ServerContext;
use crate::serve::problem::Problem;
use crate::serve::request::ApiRequest;
use crate::serve::responses::json_response;
use crate::serve::route::{Route, RouteAvailability};
use crate::serve::route_filter::{ApiFilter, route_filter};
use crate::serve::security::TokenScope;
use crate::serve::service_info::ServiceInfo;
use crate::serve::view::{ClockComparison, View};

pub(in crate::serve) static STATUS: Route =
    Route::get("/v1/status", Some(TokenScope::Read), RouteAvailability::Always);

pub(in crate::serve) fn status_filter(server: &Arc<ServerContext>) -> impl ApiFilter + use<> {
    route_filter(server, &STATUS, get_status)
}

async fn get_status(server: Arc<ServerContext>, request: ApiRequest) -> Result<Response, Problem> {
    let body = status_json(&server.view, server.sessions.session_count(), server.open_connections());
    json_response(&request.headers, body).await
}

fn status_json(view: &View, subscribers: usize, connections: usize) -> Vec<u8> {
    let info = view.service_info();
    let (as_of, counts, clock_comparison) = (view.as_of(), view.counts(), view.compare_with_clock());
    let refused =
        view.refusal_counts().into_iter().map(|(reason, count)| (reason.code().to_string(), count.into()));
    let status = json!({
        "as_of": as_of,
        "now": view.freshness().now_ms(),
        "lag_ms": view.lag_ms(),
        "ready": view.is_ready(),
        "version": env!("CARGO_PKG_VERSION"),
        "generation": info.generation,
        "formula": info.formula,
        "window_s": seconds_json(info.window),
        "lateness_s": seconds_json(info.lateness),
        "history_s": seconds_json(info.history),
        "stale_after_s": seconds_json(info.stale_after),
        "units": info.units.temperature.name(),
        "wind_units": info.units.wind.name(),
        "workers": info.workers,
        "cities": view.city_count(),
        "stale_cities": clock_comparison.stale,
        "ahead_of_clock": ahead_of_clock_json(&clock_comparison),
        "sources": sources_json(view, info),
        "counts": {
            "inserted": counts.inserted,
            "corrected": counts.corrected,
            "withdrawn": counts.withdrawn,
            "nothing_to_withdraw": counts.nothing_to_withdraw,
            "old_revision": counts.old_revision,
            "superseded": counts.superseded,
        },
        "refused": refused.collect::<Map<String, Value>>(),
        "split_city": counts.split_city,
        "subscribers": subscribers,
        "connections": connections,
    });
    status.to_string().into_bytes()
}

fn ahead_of_clock_json(comparison: &ClockComparison) -> Value {
    let cities = comparison.furthest_ahead.iter();
    let cities: Vec<Value> =
        cities.map(|(city, at)| json!({"city": &**city, "reading_at": at.to_string()})).collect();
    json!({"count": comparison.ahead, "cities": cities})
}

fn seconds_json(duration: Millis) -> Value {
    let ms = duration.millis();
    if ms % 1_000 == 0 { json!(ms / 1_000) } else { json!(ms as f64 / 1e3) }
}

/// The partitions of each source, with how far results include them.
fn sources_json(view: &View, info: &ServiceInfo) -> Vec<Value> {
    let progress = view.partition_progress();
    let mut sources: Vec<(Arc<str>, Vec<Value>)> = Vec::new();
    for (index, name) in info.partitions.names().into_iter().enumerate() {
        let progress = progress.iter().find(|progress| usize::from(progress.partition.0) == index);
        let (applied, end, withheld) = progress
            .map_or((0, 0, 0), |progress| (progress.applied_until, progress.log_end, progress.withheld));
        let partition = json!({
            "partition": name.partition, "applied": applied, "end": end, "in_open_transaction": withheld,
        });
        match sources.iter_mut().find(|(source, _)| *source == name.source) {
            Some((_, partitions)) => partitions.push(partition),
            None => sources.push((name.source, vec![partition])),
        }
    }
    sources.into_iter().map(|(name, partitions)| json!({"name": name, "partitions": partitions})).collect()
}
