//! REST responses against the oracle.

use std::time::Duration;

use serde_json::Value;

use super::entries::city_name;
use super::http::{get, get_with_timeout};
use super::oracle::Oracle;
use super::rows::{current_json, normalize_numbers, row_json};

pub fn get_json(address: &str, path: &str) -> Value {
    let answer = get(address, path).unwrap_or_else(|error| panic!("{address}{path}: {error}"));
    assert_eq!(answer.status, 200, "{address}{path}: {}", answer.body);
    serde_json::from_str(&answer.body).unwrap()
}

/// The status of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceStatus {
    pub generation: String,
    pub ready: bool,
    pub as_of: u64,
    /// Records of all logs that results include, and all that there are.
    pub applied: u64,
    pub end: u64,
    pub too_late: u64,
}

impl ServiceStatus {
    /// `None` if it does not answer in time.
    pub fn fetch_status(address: &str, patience: Duration) -> Option<ServiceStatus> {
        let answer = get_with_timeout(address, "/v1/status", patience).ok()?;
        let status: Value = serde_json::from_str(&answer.body).ok()?;
        let partitions = || {
            let sources = status["sources"].as_array().into_iter().flatten();
            sources.flat_map(|source| source["partitions"].as_array().into_iter().flatten())
        };
        let sum = |name: &str| partitions().map(|partition| partition[name].as_u64()).sum::<Option<u64>>();
        Some(ServiceStatus {
            generation: status["generation"].as_str()?.to_string(),
            ready: status["ready"].as_bool()?,
            as_of: status["as_of"].as_u64()?,
            applied: sum("applied")?,
            end: sum("end")?,
            too_late: status["refused"]["too_late"].as_u64().unwrap_or(0),
        })
    }
}

/// Removes the ages of current rows, which depend on when they were served.
pub fn remove_ages(cities: &mut Value) {
    for city in cities.as_array_mut().unwrap() {
        let Some(row) = city["current"].as_object_mut() else { continue };
        assert!(row.remove("stale").is_some_and(|stale| stale.is_boolean()));
        assert!(row.remove("age_s").is_some_and(|age| age.is_number()));
    }
}

/// Checks the current rows of all cities; returns their number.
pub fn check_current(address: &str, oracle: &Oracle) -> usize {
    let current = oracle.current();
    let expected: Vec<Value> =
        current.iter().map(|(city, row)| current_json(&city_name(*city), row)).collect();
    let mut answer = get_json(address, "/v1/cities?order=city");
    remove_ages(&mut answer["cities"]);
    let served = answer["cities"].as_array().unwrap().iter().map(|city| &city["current"]);
    let mut served: Vec<Value> = served.filter(|row| !row.is_null()).map(normalize_numbers).collect();
    // Sorted by name.
    let mut expected = expected;
    for rows in [&mut served, &mut expected] {
        rows.sort_by(|a, b| a["city"].as_str().cmp(&b["city"].as_str()));
    }
    assert_eq!(served, expected, "the current rows at {address}");
    served.len()
}

/// Checks all pages of a city's history; returns the number of rows.
pub fn check_history(address: &str, oracle: &Oracle, city: u32) -> usize {
    if !oracle.knows_city(city) {
        return 0;
    }
    let name = city_name(city);
    let path = format!("/v1/cities/{}/history?limit=25", name.replace(' ', "%20"));
    let expected: Vec<Value> =
        oracle.servable_rows(city).iter().map(|(at, row)| row_json(&name, *at, row)).collect();
    let (mut rows, mut cursor) = (Vec::new(), None);
    loop {
        let page = get_json(
            address,
            &match &cursor {
                None => path.clone(),
                Some(cursor) => format!("{path}&cursor={cursor}"),
            },
        );
        rows.extend(page["rows"].as_array().unwrap().iter().map(normalize_numbers));
        match page["next"].as_str() {
            Some(next) => cursor = Some(next.to_string()),
            None => break,
        }
    }
    assert_eq!(rows, expected, "the history of {name} at {address}");
    rows.len()
}
