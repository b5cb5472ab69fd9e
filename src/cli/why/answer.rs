//! The answers of a service that explain a row, and whether they add up.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::model::TemperatureUnit;

/// A page of an answer.
#[derive(Debug, Deserialize, Serialize)]
pub struct WhyPage {
    as_of: u64,
    units: String,
    wind_units: String,
    row: Box<RawValue>,
    window: ExplainedWindow,
    /// If results are in a database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    arrivals_as_of: Option<Box<RawValue>>,
    readings: Vec<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    withdrawn: Option<Vec<Box<RawValue>>>,
    next: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ExplainedWindow {
    pub from: String,
    pub to: String,
    pub sum_e6: i64,
    pub count: u32,
}

/// The row, as far as it is shown.
#[derive(Debug, Deserialize)]
pub struct ExplainedRow {
    pub city: String,
    pub reading_at: String,
    pub rolling_heat_index: f64,
    count: u32,
}

/// A reading of the window.
#[derive(Debug, Deserialize)]
pub struct WindowReading {
    pub reading_at: String,
    pub heat_index: f64,
    pub heat_index_e6: i64,
    pub category: String,
    pub temperature: Option<f64>,
    pub humidity: Option<f64>,
    pub wind_speed: Option<f64>,
    #[serde(flatten)]
    pub history: KeyHistory,
}

/// A time of the window that has no reading, and for which something arrived.
#[derive(Debug, Deserialize)]
pub struct WithdrawnReading {
    pub reading_at: String,
    #[serde(flatten)]
    pub history: KeyHistory,
}

/// What arrived for a time, if results are in a database.
#[derive(Debug, Default, Deserialize)]
pub struct KeyHistory {
    #[serde(default)]
    pub pending: bool,
    #[serde(default)]
    pub earlier_arrivals: u64,
    #[serde(default)]
    pub arrivals: Vec<ReadingArrival>,
}

/// A reading or a withdrawal that arrived.
#[derive(Debug, Deserialize)]
pub struct ReadingArrival {
    pub source: String,
    pub partition: u32,
    pub position: u64,
    pub arrived_at: Option<String>,
    pub outcome: String,
    pub temperature: Option<f64>,
    pub humidity: Option<f64>,
    pub revision: Option<i64>,
}

/// All pages of an answer.
#[derive(Debug)]
pub struct Explanation {
    page: WhyPage,
    row: ExplainedRow,
    readings: Vec<WindowReading>,
    withdrawn: Vec<WithdrawnReading>,
    unit: TemperatureUnit,
}

fn unknown_answer(what: &str) -> String {
    format!("the service sent {what}: use the swelter of the same version")
}

impl WhyPage {
    pub fn parse(text: &str) -> Result<WhyPage, String> {
        serde_json::from_str(text).map_err(|error| unknown_answer(&format!("what is no answer ({error})")))
    }

    pub fn next_cursor(&self) -> Option<&str> {
        self.next.as_deref()
    }
}

impl Explanation {
    pub fn of_first_page(page: WhyPage) -> Result<Explanation, String> {
        let row = serde_json::from_str(page.row.get());
        let row = row.map_err(|error| unknown_answer(&format!("a row that is none ({error})")))?;
        let unit = TemperatureUnit::from_name(&page.units)
            .ok_or_else(|| unknown_answer(&format!("the unknown unit {:?}", page.units)))?;
        let readings = parse_readings(&page.readings)?;
        let withdrawn = parse_readings(page.withdrawn.as_deref().unwrap_or_default())?;
        Ok(Explanation { page, row, readings, withdrawn, unit })
    }

    /// Whether a page is of the window of the pages before.
    pub fn is_of_same_window(&self, page: &WhyPage) -> bool {
        page.window == self.page.window && page.units == self.page.units
    }

    pub fn add_page(&mut self, page: WhyPage) -> Result<(), String> {
        self.readings.extend(parse_readings(&page.readings)?);
        self.withdrawn.extend(parse_readings(page.withdrawn.as_deref().unwrap_or_default())?);
        self.page.readings.extend(page.readings);
        if let (Some(all), Some(withdrawn)) = (&mut self.page.withdrawn, page.withdrawn) {
            all.extend(withdrawn);
        }
        (self.page.as_of, self.page.arrivals_as_of, self.page.next) =
            (page.as_of, page.arrivals_as_of, page.next);
        Ok(())
    }

    pub fn as_of(&self) -> u64 {
        self.page.as_of
    }

    pub fn row(&self) -> &ExplainedRow {
        &self.row
    }

    pub fn window(&self) -> &ExplainedWindow {
        &self.page.window
    }

    pub fn readings(&self) -> &[WindowReading] {
        &self.readings
    }

    pub fn withdrawn(&self) -> &[WithdrawnReading] {
        &self.withdrawn
    }

    pub fn unit(&self) -> TemperatureUnit {
        self.unit
    }

    pub fn wind_unit(&self) -> &str {
        &self.page.wind_units
    }

    /// The answer as the service writes it, with the readings of all pages.
    pub fn to_json(&self) -> std::io::Result<String> {
        Ok(serde_json::to_string(&self.page)?)
    }

    /// Adds the readings up again.
    ///
    /// # Errors
    ///
    /// If they do not give the sum, the count and the mean that the service says.
    pub fn verify(&self) -> Result<(), String> {
        let sum: i64 = self.readings.iter().map(|reading| reading.heat_index_e6).sum();
        let count = self.readings.len();
        let ExplainedWindow { sum_e6, count: expected, .. } = *self.window();
        if (sum, count) != (sum_e6, expected as usize) || self.row.count != expected {
            return Err(format!(
                "the readings add up to {sum} in {count} readings, and the service says {sum_e6} in {expected}: please report it"
            ));
        }
        let (mean, served) = (self.unit.mean(sum, expected), self.row.rolling_heat_index);
        if mean.to_bits() != served.to_bits() {
            return Err(format!("the mean is {mean}, and the service says {served}: please report it"));
        }
        Ok(())
    }
}

fn parse_readings<T: for<'de> Deserialize<'de>>(readings: &[Box<RawValue>]) -> Result<Vec<T>, String> {
    let parsed: Result<Vec<_>, _> =
        readings.iter().map(|reading| serde_json::from_str(reading.get())).collect();
    parsed.map_err(|error| unknown_answer(&format!("a reading that is none ({error})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(readings: &[(&str, i64)], next: Option<&str>, mean: f64) -> WhyPage {
        let readings: Vec<_> = readings
            .iter()
            .map(|(at, e6)| {
                serde_json::json!({"reading_at": at, "heat_index": *e6 as f64 / 1e6, "heat_index_e6": e6,
                    "category": "none", "temperature": null, "humidity": null, "wind_speed": null})
            })
            .collect();
        let text = serde_json::json!({"as_of": 7, "units": "fahrenheit", "wind_units": "mph",
            "row": {"city": "a", "reading_at": "2025-11-24T16:00:00Z", "heat_index": 70, "rolling_heat_index": mean,
                "count": 3, "category": "none"},
            "window": {"from": "2025-11-23T16:00:00Z", "to": "2025-11-24T16:00:00Z", "sum_e6": 210_000_001, "count": 3},
            "readings": readings, "next": next});
        WhyPage::parse(&text.to_string()).unwrap()
    }

    #[test]
    fn pages_of_one_window_are_joined_and_added_up() {
        let mean = TemperatureUnit::Fahrenheit.mean(210_000_001, 3);
        let first = page(&[("a", 70_000_000), ("b", 70_000_001)], Some("x"), mean);
        let mut all = Explanation::of_first_page(first).unwrap();
        assert!(all.verify().unwrap_err().contains("add up to 140000001 in 2 readings"));
        let second = page(&[("c", 70_000_000)], None, mean);
        assert!(all.is_of_same_window(&second));
        all.add_page(second).unwrap();
        all.verify().unwrap();
        let json: serde_json::Value = serde_json::from_str(&all.to_json().unwrap()).unwrap();
        assert_eq!(
            (json["readings"].as_array().unwrap().len(), &json["next"]),
            (3, &serde_json::Value::Null)
        );
        let mut changed = page(&[("c", 70_000_000)], None, mean);
        changed.window.sum_e6 += 1;
        assert!(!all.is_of_same_window(&changed));
    }

    #[test]
    fn mean_that_differs_in_its_last_bit_is_an_error() {
        let mean = TemperatureUnit::Fahrenheit.mean(210_000_001, 3);
        let readings = [("a", 70_000_000), ("b", 70_000_001), ("c", 70_000_000)];
        let other = f64::from_bits(mean.to_bits() + 1);
        let all = Explanation::of_first_page(page(&readings, None, other)).unwrap();
        assert!(all.verify().unwrap_err().contains("the mean is"));
    }
}
