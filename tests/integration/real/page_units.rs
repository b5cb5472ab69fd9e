//! The page in °C: what it shows is what the service says in °C, and what was chosen is still so when the page is loaded again.

use serde_json::{Value, json};

use super::browser::Browser;
use super::page::*;
use super::service::Service;
use super::{alone, prepared};

const SHOWN: &str = "['heat-index', 'rolling', 'trend', 'temperature'].map((name) => \
     document.querySelector(`[data-test=city-${name}]`).textContent)";
const CHOSEN: &str = "document.querySelector('[data-test=units] input:checked').value";

/// "30.1 °C", and with its sign where it is a difference.
fn celsius(value: &Value, is_difference: bool) -> String {
    let tenths = (value.as_f64().unwrap() * 10.0).round() / 10.0;
    let sign = if is_difference && tenths > 0.0 { "+" } else { "" };
    format!("{sign}{tenths:.1} °C")
}

fn shows_celsius(browser: &mut Browser, service: &Service) {
    let city = service.get(&format!("/v1/cities/{CITY}?units=celsius")).json();
    assert_eq!(city["units"], "celsius");
    let row = &city["current"];
    let values =
        [("heat_index", false), ("rolling_heat_index", false), ("trend", true), ("temperature", false)];
    let expected = values.map(|(name, is_difference)| celsius(&row[name], is_difference));
    browser.wait_for_value(SHOWN, &json!(expected));
    let hottest = "document.querySelector('[data-test=hottest] li:not([hidden]) data').textContent";
    browser.wait_for_value(hottest, &json!(expected[0]));
    browser.wait_for_value(CHOSEN, &json!("celsius"));
}

#[test]
fn the_page_shows_celsius_and_remembers_it() {
    let Some(chromium) = prepared("TEST_CHROMIUM") else { return };
    let _alone = alone();
    let mut service = Service::run(CONFIG);
    service.wait_until_ready();
    let newest = now();
    let readings: Value =
        (0..90).map(|back| reading(CITY, newest - back * MINUTE, 90.0 - back as f64 / 8.0)).collect();
    service.wait_until_applied(&service.post(&readings));
    let mut browser = Browser::start(&chromium);
    browser.resize(WIDE.0, WIDE.1, false);
    let url = format!("{}/#city={CITY}", service.url());
    browser.open(&url);
    browser.wait_for(IS_LIVE);
    browser.wait_for_value(CHOSEN, &json!("fahrenheit"));
    let fahrenheit = service.get(&format!("/v1/cities/{CITY}")).json();
    let shown = format!("{:.1} °F", fahrenheit["current"]["heat_index"].as_f64().unwrap());
    browser
        .wait_for_value("document.querySelector('[data-test=city-heat-index]').textContent", &json!(shown));
    browser.evaluate("document.getElementById('celsius').click()");
    shows_celsius(&mut browser, &service);
    browser.evaluate("location.reload()");
    browser.wait_for(IS_LIVE);
    shows_celsius(&mut browser, &service);
    // A cold reading, which is below zero only in °C.
    service.wait_until_applied(&service.post(&reading(CITY, newest + MINUTE / 2, 20.0)));
    browser.wait_for("document.querySelector('[data-test=city-temperature]').textContent.startsWith('-')");
    shows_celsius(&mut browser, &service);
    assert_quiet(&mut browser);
    assert_eq!(service.terminate().code(), Some(0));
}

#[test]
fn the_page_begins_in_the_units_of_the_service() {
    let Some(chromium) = prepared("TEST_CHROMIUM") else { return };
    let _alone = alone();
    let config = CONFIG.replace("[results]", "[results]\nunits = \"celsius\"\nwind_units = \"m/s\"");
    let mut service = Service::run(&config);
    service.wait_until_ready();
    let newest = now();
    service.wait_until_applied(
        &service.post(&json!([reading(CITY, newest, 90.0), reading(CITY, newest - 70 * MINUTE, 80.0)])),
    );
    let mut browser = Browser::start(&chromium);
    browser.open(&format!("{}/#city={CITY}", service.url()));
    browser.wait_for(IS_LIVE);
    shows_celsius(&mut browser, &service);
    browser.evaluate("document.getElementById('fahrenheit').click()");
    browser.wait_for("document.querySelector('[data-test=city-heat-index]').textContent.endsWith('°F')");
    assert_quiet(&mut browser);
    assert_eq!(service.terminate().code(), Some(0));
}
