//! The explanation of a row as a table.

use std::io::{self, Write};

use super::answer::{Explanation, KeyHistory, ReadingArrival};
use crate::model::printable::printable;
use crate::model::{EventTime, TemperatureUnit};

/// Writes the readings, and the sum, the count and the mean below them.
pub fn write_table(explanation: &Explanation, out: &mut impl Write) -> io::Result<()> {
    let (row, window) = (explanation.row(), explanation.window());
    let (symbol, wind_unit) = (explanation.unit().symbol(), printable(explanation.wind_unit()));
    let as_of = i64::try_from(explanation.as_of()).ok().and_then(EventTime::from_millis);
    writeln!(out, "city    {}", printable(&row.city))?;
    writeln!(out, "row     {}", printable(&row.reading_at))?;
    writeln!(out, "window  {} to {}, both included", printable(&window.from), printable(&window.to))?;
    match as_of {
        Some(as_of) => writeln!(out, "as of   {as_of} ({})", explanation.as_of())?,
        None => writeln!(out, "as of   {}", explanation.as_of())?,
    }
    writeln!(out)?;
    writeln!(
        out,
        "{:<24}  {:>14}  {:>13}  {:<15}  {:>11}  {:>8}  {:>9}",
        "reading_at", "heat index", "1e-6 °F", "category", "temperature", "humidity", "wind"
    )?;
    let optional =
        |value: Option<f64>, unit: &str| value.map_or("-".into(), |value| format!("{value:.1}{unit}"));
    for reading in explanation.readings() {
        writeln!(
            out,
            "{:<24}  {:>14}  {:>13}  {:<15}  {:>11}  {:>8}  {:>9}",
            printable(&reading.reading_at),
            format!("{:.6} {symbol}", reading.heat_index),
            reading.heat_index_e6,
            printable(&reading.category.replace('_', " ")),
            optional(reading.temperature, &format!(" {symbol}")),
            optional(reading.humidity, " %"),
            optional(reading.wind_speed, &format!(" {wind_unit}")),
        )?;
        write_history(&reading.history, symbol, out)?;
    }
    for withdrawn in explanation.withdrawn() {
        writeln!(out, "{:<24}  {:>14}", printable(&withdrawn.reading_at), "none")?;
        write_history(&withdrawn.history, symbol, out)?;
    }
    writeln!(out)?;
    writeln!(out, "sum     {} × 1e-6 °F", window.sum_e6)?;
    writeln!(out, "count   {}", window.count)?;
    let how = match explanation.unit() {
        TemperatureUnit::Fahrenheit => "sum / count / 1,000,000",
        TemperatureUnit::Celsius => "(sum / count / 1,000,000 - 32) / 1.8",
    };
    writeln!(out, "mean    {} {symbol} = {how}", row.rolling_heat_index)
}

/// Writes what arrived for a time, below its line.
fn write_history(history: &KeyHistory, symbol: &str, out: &mut impl Write) -> io::Result<()> {
    if history.earlier_arrivals > 0 {
        writeln!(out, "    ({} earlier arrivals are left out)", history.earlier_arrivals)?;
    }
    for arrival in &history.arrivals {
        writeln!(out, "    {}", arrival_text(arrival, symbol))?;
    }
    if history.pending {
        writeln!(out, "    pending: the database does not have the newest arrival yet")?;
    }
    Ok(())
}

fn arrival_text(arrival: &ReadingArrival, symbol: &str) -> String {
    let ReadingArrival { source, partition, position, .. } = arrival;
    let mut text = format!(
        "{} by {} partition {partition} position {position}",
        printable(&arrival.outcome.replace('_', " ")),
        printable(source)
    );
    if let Some(at) = &arrival.arrived_at {
        text += &format!(", arrived {}", printable(at));
    }
    if let (Some(temperature), Some(humidity)) = (arrival.temperature, arrival.humidity) {
        text += &format!(": {temperature:.1} {symbol}, {humidity:.1} %");
    }
    if let Some(revision) = arrival.revision {
        text += &format!(", revision {revision}");
    }
    text
}
