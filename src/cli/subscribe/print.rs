//! The output of a subscriber: text lines, or one JSON object per line.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::Instant;

use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::message::{HelloMessage, RowUnits, ShownRow, ShownRowKey};
use crate::directory::Directory;
use crate::model::printable::{printable, printable_json};
use crate::model::{EventTime, TemperatureUnit};

/// Output for the printer, in order.
#[derive(Debug, PartialEq)]
pub enum PrinterOutput {
    /// Whole lines for standard output.
    Lines(String),
    /// A line for standard error.
    Notice(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputStyle {
    Human,
    Json,
}

/// The service's clock, by which rows are stale.
#[derive(Clone, Copy, Debug)]
pub struct ServiceClock {
    now_ms: u64,
    received_at: Instant,
    stale_after_ms: f64,
}

impl ServiceClock {
    pub fn new(hello: &HelloMessage) -> Option<ServiceClock> {
        let stale_after_ms = hello.stale_after_s? * 1e3;
        Some(ServiceClock { now_ms: hello.now?, received_at: Instant::now(), stale_after_ms })
    }

    /// A remark such as "stale: 5 h old", if the row is stale.
    fn stale_remark(&self, reading_at: &str) -> Option<String> {
        let reading_at = reading_at.parse::<EventTime>().ok()?.millis() as f64;
        let age_ms = self.now_ms as f64 + self.received_at.elapsed().as_secs_f64() * 1e3 - reading_at;
        let (age, unit) = match age_ms / 60_000.0 {
            minutes if minutes < 1.0 => (age_ms / 1e3, "s"),
            minutes if minutes < 120.0 => (minutes, "min"),
            minutes if minutes < 48.0 * 60.0 => (minutes / 60.0, "h"),
            minutes => (minutes / (24.0 * 60.0), "d"),
        };
        (age_ms > self.stale_after_ms).then(|| format!("stale: {:.0} {unit} old", age.floor()))
    }
}

impl OutputStyle {
    /// Adds a line; false if the row is invalid. With a clock the row is a current one, and may be
    /// stale.
    pub fn push_upsert(
        self,
        as_of: u64,
        row: &RawValue,
        units: RowUnits<'_>,
        clock: Option<&ServiceClock>,
        out: &mut String,
    ) -> bool {
        let Ok(fields) = serde_json::from_str::<ShownRow<'_>>(row.get()) else { return false };
        match self {
            OutputStyle::Json => push_json("upsert", as_of, units, row, out),
            OutputStyle::Human => {
                let unit = unit_symbol(units);
                let remark = clock.and_then(|clock| clock.stale_remark(&fields.reading_at));
                let remark = remark.map_or(String::new(), |remark| format!("  ({remark})"));
                let _ = writeln!(
                    out,
                    "{:<20}  {:<36}  {:>6.1} {unit}  mean {:>6.1} {unit}  {}{remark}",
                    escape_text(&fields.reading_at),
                    city_label(&fields.city),
                    fields.heat_index,
                    fields.rolling_heat_index,
                    escape_text(&fields.category.replace('_', " ")),
                );
            }
        }
        true
    }

    /// Adds a line; false if the key is invalid.
    pub fn push_removal(self, as_of: u64, key: &RawValue, out: &mut String) -> bool {
        let Ok(fields) = serde_json::from_str::<ShownRowKey<'_>>(key.get()) else { return false };
        match self {
            OutputStyle::Json => push_json("removal", as_of, RowUnits::default(), key, out),
            OutputStyle::Human => {
                let _ = writeln!(
                    out,
                    "{:<20}  {:<36}  removed",
                    escape_text(&fields.reading_at),
                    city_label(&fields.city)
                );
            }
        }
        true
    }

    pub fn snapshot_end_output(self, as_of: u64) -> Option<PrinterOutput> {
        let json = || format!("{{\"event\":\"snapshot_end\",\"as_of\":{as_of}}}\n");
        (self == OutputStyle::Json).then(|| PrinterOutput::Lines(json()))
    }

    /// The output for a reset: all rows so far are invalid.
    pub fn reset_output(self, reason: &str) -> PrinterOutput {
        match self {
            OutputStyle::Json => {
                let line = serde_json::json!({"event": "reset", "reason": reason}).to_string();
                PrinterOutput::Lines(format!("{}\n", printable_json(&line)))
            }
            OutputStyle::Human => {
                PrinterOutput::Notice(format!("all rows are sent again ({})", escape_text(reason)))
            }
        }
    }
}

/// Copies the row unchanged, except for line ends, which JSON has only between tokens.
fn push_json(event: &str, as_of: u64, units: RowUnits<'_>, row: &RawValue, out: &mut String) {
    let row = row.get().replace(['\n', '\r'], " ");
    let row = printable_json(&row);
    let _ = write!(out, "{{\"event\":\"{event}\",\"as_of\":{as_of}");
    for (name, unit) in [("units", units.temperature), ("wind_units", units.wind)] {
        if let Some(unit) = unit {
            let unit = serde_json::json!(unit).to_string();
            let _ = write!(out, ",\"{name}\":{}", printable_json(&unit));
        }
    }
    let _ = writeln!(out, ",\"row\":{row}}}");
}

/// The symbol of the unit of heat indexes; the name of an unknown unit.
fn unit_symbol(units: RowUnits<'_>) -> Cow<'_, str> {
    match units.temperature {
        None => TemperatureUnit::Fahrenheit.symbol().into(),
        Some(name) => {
            TemperatureUnit::from_name(name).map_or_else(|| printable(name), |unit| unit.symbol().into())
        }
    }
}

/// The city's name, if the directory has it, and its key.
fn city_label(key: &str) -> String {
    let city = Directory::shipped().find_by_key(key);
    city.map_or_else(
        || escape_text(key),
        |city| format!("{}, {} ({key})", city.name, city.country.unwrap_or_default()),
    )
}

/// Escapes text of the service, so that it contains no control sequences of a terminal.
pub fn escape_text(text: &str) -> String {
    printable(text).into_owned()
}

/// Prints until the channel is closed.
///
/// # Errors
///
/// If standard output cannot be written.
pub fn print_outputs(mut outputs: mpsc::Receiver<PrinterOutput>) -> io::Result<()> {
    while let Some(output) = outputs.blocking_recv() {
        match output {
            PrinterOutput::Lines(lines) => {
                let mut out = io::stdout().lock();
                out.write_all(lines.as_bytes())?;
                out.flush()?;
            }
            PrinterOutput::Notice(line) => {
                // A failure to print a notice is ignored.
                let _ = writeln!(io::stderr(), "{line}");
            }
        }
    }
    Ok(())
}
