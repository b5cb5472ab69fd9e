//! Requests of subscribers.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::selection::{CitySelection, Selection, SubscriptionKind};
use crate::model::OutputUnits;
use crate::model::reading::check_city_key;
use crate::serve::plan::ServeLimits;
use crate::serve::units;
use crate::serve::view::GeoBounds;
use crate::serve::wire::ServerMessage;

#[derive(Debug, PartialEq)]
pub(super) enum ClientRequest {
    Subscribe { id: Arc<str>, selection: Selection, resume: Option<String> },
    Unsubscribe { id: String },
    Ping,
}

/// Why a request is refused: an `error` message.
#[derive(Debug, PartialEq)]
pub(super) struct RequestError {
    pub(super) id: Option<String>,
    pub(super) code: &'static str,
    pub(super) detail: String,
}

impl RequestError {
    pub(super) fn for_subscription(id: &str, code: &'static str, detail: &str) -> RequestError {
        RequestError { id: Some(id.into()), code, detail: detail.into() }
    }

    pub(super) fn to_message(&self) -> ServerMessage<'_> {
        ServerMessage::Error { id: self.id.as_deref(), code: self.code, detail: &self.detail }
    }
}

const MAX_ID_CHARS: usize = 64;

/// Parses a message. A subscription that names no units gets those of `default`.
pub(super) fn parse_request(
    text: &str,
    limits: &ServeLimits,
    default: OutputUnits,
) -> Result<ClientRequest, RequestError> {
    let bad = |detail: &str| RequestError { id: None, code: "bad_message", detail: detail.into() };
    let message: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| bad(&format!("not a JSON object: {error}")))?;
    match message.get("type").and_then(Value::as_str) {
        Some("ping") => Ok(ClientRequest::Ping),
        Some("unsubscribe") => Ok(ClientRequest::Unsubscribe { id: parse_id(&message)? }),
        Some("subscribe") => {
            let id = parse_id(&message)?;
            let error = |(code, detail)| RequestError { id: Some(id.clone()), code, detail };
            let selection = parse_selection(&message, limits, default).map_err(error)?;
            // A value that is not a string is not a valid token: the subscription begins with a
            // snapshot.
            let token = |token: &Value| token.as_str().unwrap_or_default().to_string();
            let resume = non_null_field(&message, "resume").map(token);
            Ok(ClientRequest::Subscribe { id: id.as_str().into(), selection, resume })
        }
        _ => Err(bad("type must be subscribe, unsubscribe or ping")),
    }
}

/// A field; `null` counts as absent.
fn non_null_field<'a>(message: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    message.get(name).filter(|value| !value.is_null())
}

fn parse_id(message: &Map<String, Value>) -> Result<String, RequestError> {
    match message.get("id").and_then(Value::as_str) {
        Some(id) if (1..=MAX_ID_CHARS).contains(&id.chars().count()) => Ok(id.to_string()),
        _ => Err(RequestError {
            id: None,
            code: "bad_message",
            detail: format!("id must be a string of 1 to {MAX_ID_CHARS} characters"),
        }),
    }
}

/// Code and detail of an error.
type RequestFault = (&'static str, String);

fn bad_message(detail: impl Into<String>) -> RequestFault {
    ("bad_subscription", detail.into())
}

fn parse_selection(
    message: &Map<String, Value>,
    limits: &ServeLimits,
    default: OutputUnits,
) -> Result<Selection, RequestFault> {
    let kind = match non_null_field(message, "rows").map(Value::as_str) {
        None | Some(Some("latest")) => SubscriptionKind::Latest,
        Some(Some("window")) => SubscriptionKind::Window,
        _ => return Err(bad_message("rows must be \"latest\" or \"window\"")),
    };
    let cities = match (non_null_field(message, "cities"), non_null_field(message, "box")) {
        (Some(Value::String(all)), None) if all == "all" => CitySelection::All,
        (Some(Value::Array(keys)), None) => CitySelection::Listed(parse_city_list(keys, kind, limits)?),
        (Some(_), None) => return Err(bad_message("cities must be \"all\" or a list of city keys")),
        (None, Some(bounds)) => CitySelection::Inside(parse_bounds(bounds)?),
        _ => return Err(bad_message("name either cities or box")),
    };
    if kind == SubscriptionKind::Window && !matches!(cities, CitySelection::Listed(_)) {
        return Err(bad_message("a window subscription takes a list of cities"));
    }
    Ok(Selection::new(cities, kind, parse_units(message, default)?))
}

fn parse_units(message: &Map<String, Value>, default: OutputUnits) -> Result<OutputUnits, RequestFault> {
    let name = |key: &str| match non_null_field(message, key) {
        None => Ok(None),
        Some(value) => value.as_str().map(Some).ok_or_else(|| bad_message(format!("{key} must be a string"))),
    };
    units::units_or_default(name(units::UNITS_PARAMETER)?, name(units::WIND_UNITS_PARAMETER)?, default)
        .map_err(bad_message)
}

fn parse_city_list(
    keys: &[Value],
    kind: SubscriptionKind,
    limits: &ServeLimits,
) -> Result<Box<[Arc<str>]>, RequestFault> {
    let (kind, max_cities) = match kind {
        SubscriptionKind::Latest => ("latest", limits.cities),
        SubscriptionKind::Window => ("window", limits.window_cities),
    };
    if keys.len() > max_cities {
        let detail = format!("a {kind} subscription takes at most {max_cities} cities, not {}", keys.len());
        return Err(("too_many_cities", detail));
    }
    if keys.is_empty() {
        return Err(bad_message("cities is empty: name at least one, or \"all\""));
    }
    let mut cities = Vec::with_capacity(keys.len());
    for key in keys {
        let key = key.as_str().ok_or_else(|| bad_message("a city key must be a string"))?;
        check_city_key(key).map_err(|refusal| bad_message(refusal.detail))?;
        cities.push(Arc::from(key));
    }
    cities.sort_unstable();
    cities.dedup();
    Ok(cities.into())
}

fn parse_bounds(value: &Value) -> Result<GeoBounds, RequestFault> {
    let sides = value.as_array().map(|sides| sides.iter().map(Value::as_f64).collect::<Vec<_>>());
    let Some([Some(west), Some(south), Some(east), Some(north)]) = sides.as_deref() else {
        return Err(bad_message("box must be [west, south, east, north]"));
    };
    let longitudes = [west, east].iter().all(|side| (-180.0..=180.0).contains(*side));
    let latitudes = [south, north].iter().all(|side| (-90.0..=90.0).contains(*side));
    if !longitudes || !latitudes || south > north {
        return Err(bad_message("box must be [west, south, east, north] in degrees, south not above north"));
    }
    // Adding 0.0 turns -0.0 into 0.0, so that equal boxes have equal bits.
    Ok(GeoBounds { west: west + 0.0, south: south + 0.0, east: east + 0.0, north: north + 0.0 })
}
