//! The messages of `docs/protocol.md` that a subscriber receives.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// The supported version of the protocol.
pub const PROTOCOL_VERSION: u32 = 1;

pub enum ServiceMessage<'a> {
    Hello(HelloMessage),
    Snapshot(SnapshotMessage<'a>),
    Changes(ChangesMessage<'a>),
    Reset(ResetMessage),
    Error(ErrorMessage),
    /// A heartbeat, or an unknown message of a newer service: either proves that the connection is
    /// alive.
    Heartbeat,
}

#[derive(Debug, Deserialize)]
pub struct HelloMessage {
    pub protocol: u32,
    pub heartbeat_s: f64,
    /// The age from which on a current row is stale; older services do not send it.
    pub stale_after_s: Option<f64>,
    /// The service's clock, ms.
    pub now: Option<u64>,
    pub limits: Option<HelloLimits>,
}

#[derive(Debug, Deserialize)]
pub struct HelloLimits {
    pub message_bytes: Option<usize>,
}

#[derive(Debug, Deserialize)]
pub struct SnapshotMessage<'a> {
    pub id: String,
    pub as_of: u64,
    pub complete: bool,
    pub token: Option<String>,
    #[serde(borrow)]
    pub units: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub wind_units: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub rows: Vec<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
pub struct ChangesMessage<'a> {
    pub id: String,
    pub as_of: u64,
    pub token: String,
    #[serde(borrow)]
    pub units: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub wind_units: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub upserts: Vec<&'a RawValue>,
    #[serde(borrow)]
    pub removals: Vec<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
pub struct ResetMessage {
    pub id: String,
    pub reason: String,
}

#[derive(Debug, Deserialize)]
pub struct ErrorMessage {
    pub id: Option<String>,
    pub code: String,
    #[serde(default)]
    pub detail: String,
}

/// The fields of a row that are shown.
#[derive(Debug, Deserialize)]
pub struct ShownRow<'a> {
    #[serde(borrow)]
    pub city: Cow<'a, str>,
    #[serde(borrow)]
    pub reading_at: Cow<'a, str>,
    pub heat_index: f64,
    pub rolling_heat_index: f64,
    #[serde(borrow)]
    pub category: Cow<'a, str>,
}

#[derive(Debug, Deserialize)]
pub struct ShownRowKey<'a> {
    #[serde(borrow)]
    pub city: Cow<'a, str>,
    #[serde(borrow)]
    pub reading_at: Cow<'a, str>,
}

/// The units of a message's rows. Older services do not send them, and use °F and mph.
#[derive(Clone, Copy, Debug, Default)]
pub struct RowUnits<'a> {
    pub temperature: Option<&'a str>,
    pub wind: Option<&'a str>,
}

impl SnapshotMessage<'_> {
    pub fn row_units(&self) -> RowUnits<'_> {
        RowUnits { temperature: self.units.as_deref(), wind: self.wind_units.as_deref() }
    }
}

impl ChangesMessage<'_> {
    pub fn row_units(&self) -> RowUnits<'_> {
        RowUnits { temperature: self.units.as_deref(), wind: self.wind_units.as_deref() }
    }
}

impl ServiceMessage<'_> {
    /// Parses a message; `None` if it is not valid in the protocol.
    pub fn parse_message(text: &str) -> Option<ServiceMessage<'_>> {
        #[derive(Deserialize)]
        struct Kind<'a> {
            #[serde(rename = "type", borrow)]
            kind: Cow<'a, str>,
        }
        let kind: Kind<'_> = serde_json::from_str(text).ok()?;
        Some(match kind.kind.as_ref() {
            "hello" => ServiceMessage::Hello(serde_json::from_str(text).ok()?),
            "snapshot" => ServiceMessage::Snapshot(serde_json::from_str(text).ok()?),
            "changes" => ServiceMessage::Changes(serde_json::from_str(text).ok()?),
            "reset" => ServiceMessage::Reset(serde_json::from_str(text).ok()?),
            "error" => ServiceMessage::Error(serde_json::from_str(text).ok()?),
            _ => ServiceMessage::Heartbeat,
        })
    }
}
