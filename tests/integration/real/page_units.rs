//! The page in °C shows the values of the service in °C, and keeps the chosen unit when it is
//! loaded again.

use serde_json::{Value, json};

use super::browser::Browser;
use super::page::*;
use crate::support::prepared::{limit_browsers, prepared_variable};
use crate::support::{MINUTE_MS, ServiceBuilder, ServiceProcess};

const SHOWN_EXPRESSION: &str = "['heat-index', 'rolling', 'trend', 'temperature'].map((name) => \
     document.querySelector(`[data-test=city-${name}]`).textContent)";
const CHOSEN_UNITS_EXPRESSION: &str = "document.querySelector('[data-test=units] input:checked').value";

/// "30.1 °C", and with its sign where it is a difference.
fn celsius_text(value: &Value, is_difference: bool) -> String {
    let tenths = (value.as_f64().unwrap() * 10.0).round() / 10.0;
    let sign = if is_difference && tenths > 0.0 { "+" } else { "" };
    format!("{sign}{tenths:.1} °C")
}

fn check_shows_celsius(browser: &mut Browser, service: &ServiceProcess) {
    let city = service.get(&format!("/v1/cities/{CITY}?units=celsius")).json();
    assert_eq!(city["units"], "celsius");
    let row = &city["current"];
    let values =
        [("heat_index", false), ("rolling_heat_index", false), ("trend", true), ("temperature", false)];
    let expected = values.map(|(name, is_difference)| celsius_text(&row[name], is_difference));
    browser.wait_for_value(SHOWN_EXPRESSION, &json!(expected));
    let hottest = "document.querySelector('[data-test=hottest] li:not([hidden]) data').textContent";
    browser.wait_for_value(hottest, &json!(expected[0]));
    browser.wait_for_value(CHOSEN_UNITS_EXPRESSION, &json!("celsius"));
}

#[test]
#[ignore = "needs Chromium: scripts/test"]
fn page_switches_to_celsius_and_remembers() {
    let chromium = prepared_variable("TEST_CHROMIUM");
    let _browsers = limit_browsers();
    let service = ServiceBuilder::new(CONFIG).start().wait_until_ready();
    let newest = now();
    let readings: Value =
        (0..90).map(|back| reading(CITY, newest - back * MINUTE_MS, 90.0 - back as f64 / 8.0)).collect();
    service.wait_until_applied(&service.post(&readings));
    let mut browser = Browser::start(&chromium);
    browser.resize(DESKTOP_SIZE.0, DESKTOP_SIZE.1, false);
    let url = format!("{}/#city={CITY}", service.url());
    browser.open(&url);
    browser.wait_for(IS_LIVE_EXPRESSION);
    browser.wait_for_value(CHOSEN_UNITS_EXPRESSION, &json!("fahrenheit"));
    let fahrenheit = service.get(&format!("/v1/cities/{CITY}")).json();
    let shown = format!("{:.1} °F", fahrenheit["current"]["heat_index"].as_f64().unwrap());
    browser
        .wait_for_value("document.querySelector('[data-test=city-heat-index]').textContent", &json!(shown));
    browser.evaluate("document.getElementById('celsius').click()");
    check_shows_celsius(&mut browser, &service);
    browser.evaluate("location.reload()");
    browser.wait_for(IS_LIVE_EXPRESSION);
    check_shows_celsius(&mut browser, &service);
    // A cold reading, which is below zero only in °C.
    service.wait_until_applied(&service.post(&reading(CITY, newest + MINUTE_MS / 2, 20.0)));
    browser.wait_for("document.querySelector('[data-test=city-temperature]').textContent.startsWith('-')");
    check_shows_celsius(&mut browser, &service);
    assert_no_console_errors(&mut browser);
    service.terminate();
}

#[test]
#[ignore = "needs Chromium: scripts/test"]
fn page_starts_in_service_units() {
    let chromium = prepared_variable("TEST_CHROMIUM");
    let _browsers = limit_browsers();
    let config = CONFIG.replace("[results]", "[results]\nunits = \"celsius\"\nwind_units = \"m/s\"");
    let service = ServiceBuilder::new(&config).start().wait_until_ready();
    let newest = now();
    service.wait_until_applied(
        &service.post(&json!([reading(CITY, newest, 90.0), reading(CITY, newest - 70 * MINUTE_MS, 80.0)])),
    );
    let mut browser = Browser::start(&chromium);
    browser.open(&format!("{}/#city={CITY}", service.url()));
    browser.wait_for(IS_LIVE_EXPRESSION);
    check_shows_celsius(&mut browser, &service);
    browser.evaluate("document.getElementById('fahrenheit').click()");
    browser.wait_for("document.querySelector('[data-test=city-heat-index]').textContent.endsWith('°F')");
    assert_no_console_errors(&mut browser);
    service.terminate();
}
