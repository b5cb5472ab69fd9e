//! Cities as JSON.

use crate::codec::{push_aged_current_json, push_integer, push_json_text, push_number};
use crate::directory::{CityInfo, Directory};
use crate::model::OutputUnits;
use crate::serve::freshness::Freshness;
use crate::serve::view::ServedCity;

/// Bytes that a city takes in a list, hardly ever more.
pub(super) const MAX_CITY_BYTES: usize = 512;

pub(super) fn is_stale(city: &ServedCity, freshness: Freshness) -> bool {
    city.current.is_some_and(|current| freshness.is_stale(current.reading_at))
}

pub(super) fn push_as_of(out: &mut Vec<u8>, as_of: u64) {
    out.extend_from_slice(b"{\"as_of\":");
    push_integer(i64::try_from(as_of).unwrap_or(i64::MAX), out);
}

pub(super) fn push_now(out: &mut Vec<u8>, freshness: Freshness) {
    out.extend_from_slice(b",\"now\":");
    push_integer(i64::try_from(freshness.now_ms()).unwrap_or(i64::MAX), out);
}

/// Writes the members of a city's object, and its end.
pub(super) fn push_city(
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

/// Writes the directory's entry of a city, with null for what it does not have.
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
        (&b",\"latitude\":"[..], coordinates.map(|coordinates| coordinates.latitude)),
        (b",\"longitude\":", coordinates.map(|coordinates| coordinates.longitude)),
        (b",\"population\":", entry.and_then(|entry| entry.population).map(f64::from)),
    ] {
        out.extend_from_slice(name);
        match number {
            Some(number) => push_number(number, out),
            None => out.extend_from_slice(b"null"),
        }
    }
}
