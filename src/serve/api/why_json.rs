//! The explanation of a row as JSON.

use std::collections::BTreeMap;

use super::city_json::push_as_of;
use super::row_pages::cursor_behind;
use crate::codec::{
    push_heat_index_values, push_integer, push_json_text, push_measurement_values, push_row_json, push_units,
};
use crate::model::history_store::{FinalReading, StoredArrival, StoredArrivals};
use crate::model::{EventTime, HeatIndex, OutputUnits, Row};
use crate::serve::encoding_turns::ROWS_PER_TURN;
use crate::serve::view::View;

/// A row and a page of the readings of its window.
pub(super) struct Explanation {
    pub as_of: u64,
    pub reading_at: EventTime,
    pub row: Row,
    pub window_from: EventTime,
    pub readings: Vec<FinalReading>,
    /// Further readings follow on another page.
    pub has_more: bool,
    /// `None` if results are in no database.
    pub arrivals: Option<KnownArrivals>,
}

impl Explanation {
    /// The first and the last time of the page that begins at `from`.
    pub fn page_bounds(&self, from: EventTime) -> (EventTime, EventTime) {
        let last = self.readings.last().filter(|_| self.has_more).map(|reading| reading.reading_at);
        (from.max(self.window_from), last.unwrap_or(self.reading_at))
    }
}

/// What arrived for the keys of a page, as far as a database knows.
pub(super) struct KnownArrivals {
    /// The newest epoch that is complete in the database.
    complete_until: Option<u64>,
    by_key: BTreeMap<EventTime, Vec<StoredArrival>>,
}

impl KnownArrivals {
    pub fn new(found: StoredArrivals) -> KnownArrivals {
        let mut by_key: BTreeMap<EventTime, Vec<StoredArrival>> = BTreeMap::new();
        for arrival in found.arrivals {
            by_key.entry(arrival.reading_at).or_default().push(arrival);
        }
        KnownArrivals { complete_until: found.complete_until, by_key }
    }

    fn of_key(&self, reading_at: EventTime) -> &[StoredArrival] {
        self.by_key.get(&reading_at).map_or(&[], Vec::as_slice)
    }
}

/// Whether arrivals are known that lead to the heat index that a key has now.
fn leads_to(arrivals: &[StoredArrival], heat_index: Option<HeatIndex>) -> bool {
    // What was too late says nothing about the key.
    let last = arrivals.iter().rev().find(|arrival| &*arrival.outcome != "too_late");
    last.is_some_and(|last| last.heat_index_after == heat_index)
}

/// `{"as_of":..,"units":..,"wind_units":..,"row":{..},"window":{..},"readings":[..],"next":..}`.
pub(super) async fn explanation_json(
    view: &View,
    key: &str,
    explanation: Explanation,
    units: OutputUnits,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(1_024);
    push_as_of(&mut out, explanation.as_of);
    push_explained_row(&mut out, key, &explanation, units);
    let Explanation { readings, arrivals, .. } = &explanation;
    if let Some(arrivals) = arrivals {
        out.extend_from_slice(b",\"arrivals_as_of\":");
        push_optional_integer(&mut out, arrivals.complete_until.and_then(|epoch| i64::try_from(epoch).ok()));
    }
    out.extend_from_slice(b",\"readings\":[");
    for (i, piece) in readings.chunks(ROWS_PER_TURN).enumerate() {
        let _turn = view.encoding_turns().wait_for_turn().await;
        for (j, reading) in piece.iter().enumerate() {
            if i + j > 0 {
                out.push(b',');
            }
            push_reading(&mut out, reading, arrivals.as_ref(), units);
        }
    }
    out.push(b']');
    if let Some(arrivals) = arrivals {
        push_withdrawn(&mut out, readings, arrivals, units);
    }
    out.extend_from_slice(b",\"next\":");
    let last = readings.last().filter(|_| explanation.has_more);
    match last.and_then(|last| cursor_behind(last.reading_at)) {
        Some(next) => push_json_text(&next, &mut out),
        None => out.extend_from_slice(b"null"),
    }
    out.push(b'}');
    out
}

/// Appends the units, the row, and the bounds, the sum and the count of its window.
fn push_explained_row(out: &mut Vec<u8>, key: &str, explanation: &Explanation, units: OutputUnits) {
    let Explanation { reading_at, row, window_from, .. } = explanation;
    out.push(b',');
    push_units(out, units);
    out.extend_from_slice(b",\"row\":");
    push_row_json(out, key, *reading_at, row, units);
    out.extend_from_slice(b",\"window\":{\"from\":\"");
    window_from.write_to(out);
    out.extend_from_slice(b"\",\"to\":\"");
    reading_at.write_to(out);
    out.extend_from_slice(b"\",\"sum_e6\":");
    push_integer(row.sum(), out);
    out.extend_from_slice(b",\"count\":");
    push_integer(row.count().into(), out);
    out.push(b'}');
}

fn push_reading(
    out: &mut Vec<u8>,
    reading: &FinalReading,
    arrivals: Option<&KnownArrivals>,
    units: OutputUnits,
) {
    let FinalReading { reading_at, row, measurement } = reading;
    push_key(out, *reading_at);
    out.push(b',');
    push_heat_index_values(out, row, units);
    let arrived = arrivals.map(|arrivals| arrivals.of_key(*reading_at));
    let is_pending = arrived.is_some_and(|arrived| !leads_to(arrived, Some(row.heat_index())));
    // A sender's measurement is that of the newest arrival that counts, if that is known.
    let sent = arrived.filter(|_| !is_pending).and_then(|arrived| {
        arrived.iter().rev().find(|arrival| changes_reading(arrival)).and_then(|arrival| arrival.measurement)
    });
    push_measurement_values(out, measurement.as_ref().or(sent.as_ref()), units);
    if let Some(arrived) = arrived {
        push_arrivals(out, arrived, is_pending, units);
    }
    out.push(b'}');
}

/// Whether an arrival has set or removed the reading of its key.
fn changes_reading(arrival: &StoredArrival) -> bool {
    matches!(&*arrival.outcome, "inserted" | "corrected" | "withdrawn" | "held" | "retried")
}

/// Appends the keys of the page that have arrivals and no reading.
fn push_withdrawn(
    out: &mut Vec<u8>,
    readings: &[FinalReading],
    arrivals: &KnownArrivals,
    units: OutputUnits,
) {
    out.extend_from_slice(b",\"withdrawn\":[");
    let is_read = |at: &EventTime| readings.binary_search_by_key(at, |reading| reading.reading_at).is_ok();
    let withdrawn = arrivals.by_key.iter().filter(|(at, _)| !is_read(at));
    for (i, (reading_at, arrived)) in withdrawn.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        push_key(out, *reading_at);
        push_arrivals(out, arrived, !leads_to(arrived, None), units);
        out.push(b'}');
    }
    out.push(b']');
}

/// Appends an object up to its time.
fn push_key(out: &mut Vec<u8>, reading_at: EventTime) {
    out.extend_from_slice(b"{\"reading_at\":\"");
    reading_at.write_to(out);
    out.push(b'"');
}

/// Appends what arrived for a key, oldest first, and whether more of it is still to come.
fn push_arrivals(out: &mut Vec<u8>, arrivals: &[StoredArrival], is_pending: bool, units: OutputUnits) {
    out.extend_from_slice(if is_pending { b",\"pending\":true" } else { b",\"pending\":false" });
    out.extend_from_slice(b",\"earlier_arrivals\":");
    let omitted = arrivals.first().map_or(0, |first| first.omitted_before);
    push_integer(i64::try_from(omitted).unwrap_or(i64::MAX), out);
    out.extend_from_slice(b",\"arrivals\":[");
    for (i, arrival) in arrivals.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        push_arrival(out, arrival, units);
    }
    out.push(b']');
}

fn push_arrival(out: &mut Vec<u8>, arrival: &StoredArrival, units: OutputUnits) {
    push_as_of(out, arrival.as_of);
    out.extend_from_slice(b",\"source\":");
    push_json_text(&arrival.source, out);
    out.extend_from_slice(b",\"partition\":");
    push_integer(arrival.partition.into(), out);
    out.extend_from_slice(b",\"position\":");
    push_integer(i64::try_from(arrival.position).unwrap_or(i64::MAX), out);
    out.extend_from_slice(b",\"arrived_at\":");
    match arrival.arrived_at {
        Some(at) => {
            out.push(b'"');
            at.write_to(out);
            out.push(b'"');
        }
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"outcome\":");
    push_json_text(&arrival.outcome, out);
    push_measurement_values(out, arrival.measurement.as_ref(), units);
    out.extend_from_slice(b",\"revision\":");
    push_optional_integer(out, arrival.revision);
    out.extend_from_slice(b",\"heat_index_e6\":");
    push_optional_integer(out, arrival.heat_index_after.map(HeatIndex::micros));
    out.push(b'}');
}

fn push_optional_integer(out: &mut Vec<u8>, value: Option<i64>) {
    match value {
        Some(value) => push_integer(value, out),
        None => out.extend_from_slice(b"null"),
    }
}
