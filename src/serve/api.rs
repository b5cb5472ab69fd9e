//! The answers of the REST interface, as bytes of JSON.

use std::cmp::Ordering;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use super::ServiceInfo;
use super::freshness::Freshness;
use super::percent_encoding::QueryParameters;
use super::problem::{Problem, ProblemCode};
use super::units;
use super::view::{ClockComparison, QueryError, ServedCity, View};
use crate::codec::{
    push_aged_current_json, push_integer, push_json_text, push_number, push_row_json, push_units,
};
use crate::directory::{CityInfo, CitySearch, Directory};
use crate::model::refusal::quoted_excerpt;
use crate::model::time::TimeProblem;
use crate::model::{AnswerPiece, Category, EventTime, Millis, OutputUnits, QueryKind, TimeError};

/// What a city takes in a list, at most or nearly so.
pub(super) const MAX_CITY_BYTES: usize = 512;
/// The same for a row of a history.
pub(super) const MAX_ROW_BYTES: usize = 384;

/// Of a text that is searched for.
const MAX_SEARCH_CHARS: usize = 128;

#[derive(Clone, Copy, PartialEq, Eq)]
enum ListOrder {
    HeatIndex,
    RollingHeatIndex,
    City,
}

/// Which cities a list has, and how.
pub(super) struct CityListQuery {
    category: Option<Category>,
    country: Option<String>,
    /// Only cities that are called so.
    search: Option<String>,
    /// Only rows that are no older.
    max_row_age: Option<Millis>,
    sort_order: ListOrder,
    pub(super) limit: usize,
    units: OutputUnits,
}

impl CityListQuery {
    /// In `default` units where the query names no others.
    pub(super) fn parse(query: &str, default: OutputUnits) -> Result<CityListQuery, Problem> {
        let known = [
            "category",
            "country",
            "search",
            "max_age",
            "order",
            "limit",
            units::UNITS_PARAMETER,
            units::WIND_UNITS_PARAMETER,
        ];
        let parameters = QueryParameters::parse(query, &known)?;
        let units = units::units_of_query(&parameters, default)?;
        let bad = |detail: String| Problem::new(ProblemCode::BadParameter, detail);
        let category = match parameters.get("category") {
            None => None,
            Some(name) => {
                Some(Category::ALL.into_iter().find(|category| category.name() == name).ok_or_else(|| {
                    let names = Category::ALL.map(Category::name).join(", ");
                    bad(format!("category {} is none of {names}", quoted_excerpt(name)))
                })?)
            }
        };
        let order = match parameters.get("order") {
            None | Some("city") => ListOrder::City,
            Some("heat_index") => ListOrder::HeatIndex,
            Some("rolling_heat_index") => ListOrder::RollingHeatIndex,
            Some(other) => {
                let detail = format!(
                    "order {} is none of heat_index, rolling_heat_index, city",
                    quoted_excerpt(other)
                );
                return Err(bad(detail));
            }
        };
        let country = parameters.get("country").map(str::to_ascii_uppercase);
        if let Some(country) = country.as_deref().filter(|country| country.len() != 2) {
            return Err(bad(format!("country {} is not two letters (ISO 3166-1)", quoted_excerpt(country))));
        }
        let search = parameters.get("search").map(str::to_owned);
        if let Some(text) = search.as_deref().filter(|text| text.chars().count() > MAX_SEARCH_CHARS) {
            return Err(bad(format!(
                "search {} is longer than {MAX_SEARCH_CHARS} characters",
                quoted_excerpt(text)
            )));
        }
        let limit = parameters.parse_value("limit", "a whole number")?.unwrap_or(usize::MAX);
        let max_age = parameters.get("max_age").map(parse_max_age).transpose()?;
        Ok(CityListQuery { category, country, search, max_row_age: max_age, sort_order: order, limit, units })
    }

    /// `{"as_of":..,"now":..,"units":..,"wind_units":..,"stale_after_s":..,"stale_cities":..,"cities":[..]}`.
    pub(super) fn to_json(&self, view: &View) -> Vec<u8> {
        let directory = view.service_info().directory;
        let (mut cities, mut stale) = (Vec::new(), 0);
        let freshness = view.freshness();
        // Made before the view is read. A blank text finds all.
        let search = self.search.as_deref().and_then(|text| CitySearch::new(directory, text));
        let as_of = view.for_each_city(&mut |city| {
            let is_found = search.as_ref().is_none_or(|search| search.matches_city(&city.key));
            if is_found && self.is_in_country(city, directory) {
                stale += i64::from(is_stale(city, freshness));
                if self.includes(city, freshness) {
                    cities.push(city.clone());
                }
            }
        });
        cities.sort_unstable_by(|a, b| self.compare(a, b));
        cities.truncate(self.limit);
        let mut out = Vec::with_capacity(cities.len() * MAX_CITY_BYTES * 3 / 4 + 64);
        push_as_of(&mut out, as_of);
        push_now(&mut out, freshness);
        out.push(b',');
        push_units(&mut out, self.units);
        out.extend_from_slice(b",\"stale_after_s\":");
        push_number(view.service_info().stale_after.millis() as f64 / 1e3, &mut out);
        out.extend_from_slice(b",\"stale_cities\":");
        push_integer(stale, &mut out);
        out.extend_from_slice(b",\"cities\":[");
        for (at, city) in cities.iter().enumerate() {
            out.extend_from_slice(if at == 0 { b"{" } else { b",{" });
            push_city(&mut out, city, directory, freshness, self.units);
        }
        out.extend_from_slice(b"]}");
        out
    }

    fn is_in_country(&self, city: &ServedCity, directory: &Directory<'_>) -> bool {
        let is_in =
            |wanted| directory.find_by_key(&city.key).is_some_and(|entry| entry.country == Some(wanted));
        self.country.as_deref().is_none_or(is_in)
    }

    /// A stale row is in no category and no ranking.
    fn includes(&self, city: &ServedCity, freshness: Freshness) -> bool {
        let Some(current) = city.current else {
            return self.category.is_none() && self.max_row_age.is_none();
        };
        let age_ms = freshness.age_ms(current.reading_at);
        let ranks = self.category.is_some() || self.sort_order != ListOrder::City;
        self.max_row_age.is_none_or(|most| age_ms <= most.millis())
            && self.category.is_none_or(|wanted| current.row.category() == wanted)
            && !(ranks && freshness.is_stale(current.reading_at))
    }

    /// Hottest first, cities without a current row last, equals by their keys.
    fn compare(&self, a: &ServedCity, b: &ServedCity) -> Ordering {
        let heat = |city: &ServedCity| city.current.map(|current| current.row.heat_index());
        let rolling = |city: &ServedCity| {
            city.current.map_or(f64::NEG_INFINITY, |current| current.row.rolling_heat_index())
        };
        let first = match self.sort_order {
            ListOrder::City => Ordering::Equal,
            ListOrder::HeatIndex => heat(b).cmp(&heat(a)),
            ListOrder::RollingHeatIndex => rolling(b).total_cmp(&rolling(a)),
        };
        first.then_with(|| a.key.cmp(&b.key))
    }
}

fn is_stale(city: &ServedCity, freshness: Freshness) -> bool {
    city.current.is_some_and(|current| freshness.is_stale(current.reading_at))
}

/// Whole seconds, or a duration such as `90m`.
fn parse_max_age(text: &str) -> Result<Millis, Problem> {
    let seconds = |text: &str| -> Option<Millis> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<i64>().ok()?.checked_mul(1_000)).flatten().and_then(Millis::from_millis)
    };
    seconds(text).or_else(|| text.parse().ok()).ok_or_else(|| {
        let detail = format!(
            "max_age {} is neither whole seconds nor a duration such as 90s, 15m, 6h or 1d",
            quoted_excerpt(text)
        );
        Problem::new(ProblemCode::BadParameter, detail)
    })
}

fn push_as_of(out: &mut Vec<u8>, as_of: u64) {
    out.extend_from_slice(b"{\"as_of\":");
    push_integer(i64::try_from(as_of).unwrap_or(i64::MAX), out);
}

fn push_now(out: &mut Vec<u8>, freshness: Freshness) {
    out.extend_from_slice(b",\"now\":");
    push_integer(i64::try_from(freshness.now_ms()).unwrap_or(i64::MAX), out);
}

/// The members of a city's object, and its end.
fn push_city(
    out: &mut Vec<u8>,
    city: &ServedCity,
    directory: &Directory<'_>,
    freshness: Freshness,
    units: OutputUnits,
) {
    out.extend_from_slice(b"\"city\":");
    push_json_text(&city.key, out);
    push_directory_entry(out, directory.find_by_key(&city.key));
    out.extend_from_slice(b",\"current\":");
    match &city.current {
        Some(current) => {
            let (at, key) = (current.reading_at, &city.key);
            push_aged_current_json(out, key, current, units, freshness.is_stale(at), freshness.age_ms(at));
        }
        None => out.extend_from_slice(b"null"),
    }
    out.push(b'}');
}

/// What the directory says of a city, null where it says nothing.
fn push_directory_entry(out: &mut Vec<u8>, entry: Option<CityInfo<'_>>) {
    let coordinates = entry.and_then(|entry| entry.coordinates);
    for (name, text) in [
        (&b",\"name\":"[..], entry.map(|entry| entry.name)),
        (b",\"country\":", entry.and_then(|entry| entry.country)),
        (b",\"time_zone\":", entry.and_then(|entry| entry.time_zone)),
    ] {
        out.extend_from_slice(name);
        match text {
            Some(text) => push_json_text(text, out),
            None => out.extend_from_slice(b"null"),
        }
    }
    for (name, number) in [
        (&b",\"latitude\":"[..], coordinates.map(|at| at.latitude)),
        (b",\"longitude\":", coordinates.map(|at| at.longitude)),
        (b",\"population\":", entry.and_then(|entry| entry.population).map(f64::from)),
    ] {
        out.extend_from_slice(name);
        match number {
            Some(number) => push_number(number, out),
            None => out.extend_from_slice(b"null"),
        }
    }
}

/// A city's object, and what the head of its answer says.
pub(super) struct CityResponse {
    pub(super) body: Vec<u8>,
    /// An entity tag: the answers with one tag differ in nothing but `as_of`, `now` and `age_s`.
    pub(super) entity_tag: String,
    /// Of the current row.
    pub(super) age_ms: Option<i64>,
}

pub(super) fn city_response(view: &View, key: &str, query: &str) -> Result<CityResponse, Problem> {
    let parameters = QueryParameters::parse(query, &[units::UNITS_PARAMETER, units::WIND_UNITS_PARAMETER])?;
    let units = units::units_of_query(&parameters, view.service_info().units)?;
    // Asked first, so that it never says more than the row holds.
    let as_of = view.as_of();
    let city = view.city(key).ok_or_else(|| unknown_city(key))?;
    let freshness = view.freshness();
    let mut out = Vec::with_capacity(MAX_CITY_BYTES);
    push_as_of(&mut out, as_of);
    push_now(&mut out, freshness);
    out.push(b',');
    push_units(&mut out, units);
    out.push(b',');
    push_city(&mut out, &city, view.service_info().directory, freshness, units);
    let stale = if is_stale(&city, freshness) { ".stale" } else { "" };
    let OutputUnits { temperature, wind } = units;
    let (unit, wind_unit) = (temperature.name(), wind.name());
    let tag =
        format!("W/\"{}.{}{stale}.{unit}.{wind_unit}\"", view.service_info().generation, city.changed_epoch);
    let age_ms = city.current.map(|current| freshness.age_ms(current.reading_at));
    Ok(CityResponse { body: out, entity_tag: tag, age_ms })
}

fn unknown_city(key: &str) -> Problem {
    Problem::new(
        ProblemCode::UnknownCity,
        format!("there has never been a reading of city {}", quoted_excerpt(key)),
    )
}

/// Which rows a history has.
pub(super) struct HistoryQuery {
    from: EventTime,
    to: EventTime,
    pub(super) limit: u32,
    units: OutputUnits,
}

impl HistoryQuery {
    /// At most `most` rows, in `default` units where the query names no others.
    pub(super) fn parse(query: &str, most: u32, default: OutputUnits) -> Result<HistoryQuery, Problem> {
        let known = ["from", "to", "limit", "cursor", units::UNITS_PARAMETER, units::WIND_UNITS_PARAMETER];
        let parameters = QueryParameters::parse(query, &known)?;
        let units = units::units_of_query(&parameters, default)?;
        let bad = |detail: String| Problem::new(ProblemCode::BadParameter, detail);
        let time = |name: &str, default: EventTime| match parameters.get(name) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|error: TimeError| {
                let hint = match error.problem {
                    TimeProblem::BadOffset if text.contains(' ') => "; in an address + is written %2B",
                    _ => "",
                };
                bad(format!("{name}: {error}{hint}"))
            }),
        };
        let mut from = time("from", EventTime::MIN)?;
        let to = time("to", EventTime::MAX)?;
        if let Some(cursor) = parameters.get("cursor") {
            let cursor = decode_cursor(cursor);
            from = cursor.ok_or_else(|| bad("cursor is not one of this server's".into()))?.max(from);
        }
        match parameters.parse_value("limit", "a whole number from 1")? {
            Some(0) => Err(bad("limit \"0\" is not a whole number from 1".into())),
            limit => Ok(HistoryQuery { from, to, limit: limit.unwrap_or(most).min(most), units }),
        }
    }
}

const CURSOR_VERSION: u8 = 1;

/// Where the next page begins.
fn encode_cursor(from: EventTime) -> String {
    let mut bytes = [CURSOR_VERSION; 9];
    bytes[1..].copy_from_slice(&from.millis().to_be_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn decode_cursor(text: &str) -> Option<EventTime> {
    let bytes: [u8; 9] = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
    let [CURSOR_VERSION, millis @ ..] = bytes else { return None };
    EventTime::from_millis(i64::from_be_bytes(millis))
}

/// `{"as_of":..,"units":..,"wind_units":..,"city":..,"rows":[..],"next":cursor|null}`.
pub(super) async fn history_json(view: &View, key: &str, range: HistoryQuery) -> Result<Vec<u8>, Problem> {
    let key: Arc<str> = key.into();
    let question = QueryKind::History { from: range.from, to: range.to, limit: range.limit };
    let busy = |busy: QueryError| Problem::new(ProblemCode::Overloaded, busy.to_string());
    let mut waiting = view.query_city(key.clone(), question).map_err(busy)?;
    let mut out = Vec::with_capacity(512);
    push_as_of(&mut out, waiting.wait_for_epoch().await.map_err(busy)?);
    out.push(b',');
    push_units(&mut out, range.units);
    out.extend_from_slice(b",\"city\":");
    push_json_text(&key, &mut out);
    out.extend_from_slice(b",\"rows\":[");
    let (mut count, mut last, mut has_more) = (0, None, false);
    while let Some(AnswerPiece { is_city_known: known, rows, has_more: more, .. }) =
        waiting.next_piece().await.map_err(busy)?
    {
        if !known {
            return Err(unknown_city(&key));
        }
        let _turn = view.encoding_turns().wait_for_turn().await;
        for (reading_at, row) in rows {
            if count > 0 {
                out.push(b',');
            }
            push_row_json(&mut out, &key, reading_at, &row, range.units);
            (count, last) = (count + 1, Some(reading_at));
        }
        has_more |= more;
    }
    let next =
        last.filter(|_| has_more).and_then(|at| EventTime::from_millis(at.millis() + 1)).map(encode_cursor);
    out.extend_from_slice(b"],\"next\":");
    match next {
        Some(next) => push_json_text(&next, &mut out),
        None => out.extend_from_slice(b"null"),
    }
    out.push(b'}');
    Ok(out)
}

/// How the service is.
pub(super) fn status_json(view: &View, subscribers: usize, connections: usize) -> Vec<u8> {
    let facts = view.service_info();
    let (as_of, counts, against_clock) = (view.as_of(), view.counts(), view.compare_with_clock());
    let refused =
        view.refusal_counts().into_iter().map(|(reason, count)| (reason.code().to_string(), count.into()));
    let status = json!({
        "as_of": as_of,
        "now": view.freshness().now_ms(),
        "lag_ms": view.lag_ms(),
        "ready": view.is_ready(),
        "version": env!("CARGO_PKG_VERSION"),
        "generation": facts.generation,
        "formula": facts.formula,
        "window_s": seconds_json(facts.window),
        "lateness_s": seconds_json(facts.lateness),
        "history_s": seconds_json(facts.history),
        "stale_after_s": seconds_json(facts.stale_after),
        "units": facts.units.temperature.name(),
        "wind_units": facts.units.wind.name(),
        "workers": facts.workers,
        "cities": view.city_count(),
        "stale_cities": against_clock.stale,
        "ahead_of_clock": ahead_of_clock_json(&against_clock),
        "sources": sources_json(view, facts),
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

fn ahead_of_clock_json(found: &ClockComparison) -> Value {
    let cities = found.furthest_ahead.iter();
    let cities: Vec<Value> =
        cities.map(|(city, at)| json!({"city": &**city, "reading_at": at.to_string()})).collect();
    json!({"count": found.ahead, "cities": cities})
}

fn seconds_json(duration: Millis) -> Value {
    let ms = duration.millis();
    if ms % 1_000 == 0 { json!(ms / 1_000) } else { json!(ms as f64 / 1e3) }
}

/// The partitions with how far they have come, by source.
fn sources_json(view: &View, facts: &ServiceInfo) -> Vec<Value> {
    let progress = view.partition_progress();
    let mut sources: Vec<(Arc<str>, Vec<Value>)> = Vec::new();
    for (slot, name) in facts.partitions.names().into_iter().enumerate() {
        let come = progress.iter().find(|progress| usize::from(progress.partition.0) == slot);
        let (applied, end) = come.map_or((0, 0), |progress| (progress.applied_until, progress.log_end));
        let withheld = come.map_or(0, |progress| progress.withheld);
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
