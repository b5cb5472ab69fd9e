//! What clients say.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::selection::{Cities, Rows, Selection};
use crate::model::OutputUnits;
use crate::model::reading::check_city;
use crate::serve::Limits;
use crate::serve::units;
use crate::serve::view::Bounds;
use crate::serve::wire::Said;

#[derive(Debug, PartialEq)]
pub(super) enum Request {
    Subscribe { id: Arc<str>, selection: Selection, resume: Option<String> },
    Unsubscribe { id: String },
    Ping,
}

/// An `error` message.
#[derive(Debug, PartialEq)]
pub(super) struct Problem {
    pub(super) id: Option<String>,
    pub(super) code: &'static str,
    pub(super) detail: String,
}

impl Problem {
    pub(super) fn of(id: &str, code: &'static str, detail: &str) -> Problem {
        Problem { id: Some(id.into()), code, detail: detail.into() }
    }

    pub(super) fn said(&self) -> Said<'_> {
        Said::Error { id: self.id.as_deref(), code: self.code, detail: &self.detail }
    }
}

const MAX_ID_CHARS: usize = 64;

/// A subscription that names no units gets those of `default`.
pub(super) fn parse(text: &str, limits: &Limits, default: OutputUnits) -> Result<Request, Problem> {
    let bad = |detail: &str| Problem { id: None, code: "bad_message", detail: detail.into() };
    let message: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| bad(&format!("not a JSON object: {error}")))?;
    match message.get("type").and_then(Value::as_str) {
        Some("ping") => Ok(Request::Ping),
        Some("unsubscribe") => Ok(Request::Unsubscribe { id: id(&message)? }),
        Some("subscribe") => {
            let id = id(&message)?;
            let problem = |(code, detail)| Problem { id: Some(id.clone()), code, detail };
            let selection = selection(&message, limits, default).map_err(problem)?;
            // What is not a string is no token either: the subscription begins anew.
            let token = |token: &Value| token.as_str().unwrap_or_default().to_string();
            let resume = field(&message, "resume").map(token);
            Ok(Request::Subscribe { id: id.as_str().into(), selection, resume })
        }
        _ => Err(bad("type must be subscribe, unsubscribe or ping")),
    }
}

/// `null` is as good as absent.
fn field<'a>(message: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    message.get(name).filter(|value| !value.is_null())
}

fn id(message: &Map<String, Value>) -> Result<String, Problem> {
    match message.get("id").and_then(Value::as_str) {
        Some(id) if (1..=MAX_ID_CHARS).contains(&id.chars().count()) => Ok(id.to_string()),
        _ => Err(Problem {
            id: None,
            code: "bad_message",
            detail: format!("id must be a string of 1 to {MAX_ID_CHARS} characters"),
        }),
    }
}

type Refused = (&'static str, String);

fn bad(detail: impl Into<String>) -> Refused {
    ("bad_subscription", detail.into())
}

fn selection(
    message: &Map<String, Value>,
    limits: &Limits,
    default: OutputUnits,
) -> Result<Selection, Refused> {
    let rows = match field(message, "rows").map(Value::as_str) {
        None | Some(Some("latest")) => Rows::Latest,
        Some(Some("window")) => Rows::Window,
        _ => return Err(bad("rows must be \"latest\" or \"window\"")),
    };
    let cities = match (field(message, "cities"), field(message, "box")) {
        (Some(Value::String(all)), None) if all == "all" => Cities::All,
        (Some(Value::Array(keys)), None) => Cities::Listed(listed(keys, rows, limits)?),
        (Some(_), None) => return Err(bad("cities must be \"all\" or a list of city keys")),
        (None, Some(bounds)) => Cities::Inside(bounds_of(bounds)?),
        _ => return Err(bad("name either cities or box")),
    };
    if rows == Rows::Window && !matches!(cities, Cities::Listed(_)) {
        return Err(bad("a window subscription takes a list of cities"));
    }
    Ok(Selection::new(cities, rows, chosen_units(message, default)?))
}

fn chosen_units(message: &Map<String, Value>, default: OutputUnits) -> Result<OutputUnits, Refused> {
    let name = |key: &str| match field(message, key) {
        None => Ok(None),
        Some(value) => value.as_str().map(Some).ok_or_else(|| bad(format!("{key} must be a string"))),
    };
    units::chosen(name(units::UNITS)?, name(units::WIND_UNITS)?, default).map_err(bad)
}

fn listed(keys: &[Value], rows: Rows, limits: &Limits) -> Result<Box<[Arc<str>]>, Refused> {
    let (kind, most) = match rows {
        Rows::Latest => ("latest", limits.cities),
        Rows::Window => ("window", limits.window_cities),
    };
    if keys.len() > most {
        let detail = format!("a {kind} subscription takes at most {most} cities, not {}", keys.len());
        return Err(("too_many_cities", detail));
    }
    if keys.is_empty() {
        return Err(bad("cities is empty: name at least one, or \"all\""));
    }
    let mut cities = Vec::with_capacity(keys.len());
    for key in keys {
        let key = key.as_str().ok_or_else(|| bad("a city key must be a string"))?;
        check_city(key).map_err(|refusal| bad(refusal.detail))?;
        cities.push(Arc::from(key));
    }
    cities.sort_unstable();
    cities.dedup();
    Ok(cities.into())
}

fn bounds_of(value: &Value) -> Result<Bounds, Refused> {
    let sides = value.as_array().map(|sides| sides.iter().map(Value::as_f64).collect::<Vec<_>>());
    let Some([Some(west), Some(south), Some(east), Some(north)]) = sides.as_deref() else {
        return Err(bad("box must be [west, south, east, north]"));
    };
    let longitudes = [west, east].iter().all(|side| (-180.0..=180.0).contains(*side));
    let latitudes = [south, north].iter().all(|side| (-90.0..=90.0).contains(*side));
    if !longitudes || !latitudes || south > north {
        return Err(bad("box must be [west, south, east, north] in degrees, south not above north"));
    }
    // Adding 0.0 turns -0.0 into 0.0, so that equal boxes have equal bits.
    Ok(Bounds { west: west + 0.0, south: south + 0.0, east: east + 0.0, north: north + 0.0 })
}
