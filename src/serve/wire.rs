//! Messages to subscribers as JSON: `docs/protocol.md` shows each of them.

use serde::Serialize;
use serde_json::Number;

use super::plan::ServeLimits;
use super::service_info::ServiceInfo;
use crate::codec::{push_integer, push_json_text, push_units};
use crate::model::OutputUnits;

/// Writes a `changes` message up to its token.
pub(super) fn begin_changes(out: &mut Vec<u8>, id: &str, as_of: u64, units: OutputUnits) {
    out.extend_from_slice(b"{\"type\":\"changes\",\"id\":");
    push_json_text(id, out);
    push_as_of(out, as_of);
    out.push(b',');
    push_units(out, units);
    out.extend_from_slice(b",\"token\":\"");
}

/// Writes a part of a snapshot up to its rows.
pub(super) fn begin_snapshot(out: &mut Vec<u8>, id: &str, as_of: u64, units: OutputUnits) {
    out.extend_from_slice(b"{\"type\":\"snapshot\",\"id\":");
    push_json_text(id, out);
    push_as_of(out, as_of);
    out.push(b',');
    push_units(out, units);
    out.extend_from_slice(b",\"rows\":[");
}

fn push_as_of(out: &mut Vec<u8>, as_of: u64) {
    out.extend_from_slice(b",\"as_of\":");
    push_integer(i64::try_from(as_of).unwrap_or(i64::MAX), out);
}

/// The messages without rows.
#[derive(Serialize)]
#[serde(tag = "type")]
pub(super) enum ServerMessage<'a> {
    #[serde(rename = "hello")]
    Hello {
        protocol: u32,
        generation: &'a str,
        formula: &'a str,
        window_s: Number,
        stale_after_s: Number,
        units: &'static str,
        wind_units: &'static str,
        now: u64,
        heartbeat_s: Number,
        limits: AdvertisedLimits,
    },
    #[serde(rename = "reset")]
    Reset { id: &'a str, reason: &'a str },
    #[serde(rename = "unsubscribed")]
    Unsubscribed { id: &'a str },
    #[serde(rename = "heartbeat")]
    Heartbeat { as_of: u64, now: u64 },
    #[serde(rename = "pong")]
    Pong { as_of: u64, now: u64 },
    #[serde(rename = "error")]
    Error {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        code: &'a str,
        detail: &'a str,
    },
}

/// The limits that a subscriber must know.
#[derive(Serialize)]
pub(super) struct AdvertisedLimits {
    message_bytes: usize,
    messages_per_s: u32,
    subscriptions: usize,
    cities: usize,
    window_cities: usize,
}

impl<'a> ServerMessage<'a> {
    pub(super) fn hello_message(info: &'a ServiceInfo, limits: &ServeLimits, now: u64) -> ServerMessage<'a> {
        ServerMessage::Hello {
            protocol: 1,
            generation: &info.generation,
            formula: info.formula,
            window_s: whole_seconds(info.window.millis()),
            stale_after_s: whole_seconds(info.stale_after.millis()),
            units: info.units.temperature.name(),
            wind_units: info.units.wind.name(),
            now,
            heartbeat_s: whole_seconds(i64::try_from(limits.heartbeat.as_millis()).unwrap_or(i64::MAX)),
            limits: AdvertisedLimits {
                message_bytes: limits.message_bytes,
                messages_per_s: limits.messages_per_second,
                subscriptions: limits.subscriptions,
                cities: limits.cities,
                window_cities: limits.window_cities,
            },
        }
    }

    pub(super) fn to_json(&self) -> String {
        // Strings and numbers always serialize.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Milliseconds as seconds, an integer if there is no fraction.
fn whole_seconds(ms: i64) -> Number {
    let fraction = Number::from_f64(ms as f64 / 1e3).filter(|_| ms % 1000 != 0);
    fraction.unwrap_or_else(|| (ms / 1000).into())
}
