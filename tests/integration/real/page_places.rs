//! The page and places: cities without a place are listed, and the search finds local names and
//! countries.

use std::fs;

use serde_json::{Value, json};

use super::browser::Browser;
use super::page::*;
use crate::support::ServiceBuilder;
use crate::support::prepared::{limit_browsers, prepared_variable};

const UNPLACED_EXPRESSION: &str = "[...document.querySelectorAll('[data-test=unplaced] li:not([hidden])')].map((li) => \
     [li.dataset.city, li.querySelector('.name').textContent])";
const FOUND_EXPRESSION: &str =
    "[...document.querySelectorAll('[data-test=found] li:not([hidden])')].map((li) => li.dataset.city)";

fn search_for(browser: &mut Browser, text: &str) {
    browser.evaluate(&format!(
        "(() => {{ const search = document.getElementById('search'); search.value = '{text}'; \
         search.dispatchEvent(new Event('input')); }})()"
    ));
}

#[test]
#[ignore = "needs Chromium: scripts/test"]
fn page_lists_unplaced_cities_and_finds_local_names() {
    let chromium = prepared_variable("TEST_CHROMIUM");
    let _browsers = limit_browsers();
    let folder = tempfile::tempdir().unwrap();
    let places = folder.path().join("places.csv");
    let text = "id,name,country,latitude,longitude,time_zone\nroof,Roof,AT,48.2,16.4,\ncellar,Cellar,DE,,,\n";
    fs::write(&places, text).unwrap();
    let mut service = ServiceBuilder::new(format!("places = '{}'\n{CONFIG}", places.display())).start();
    service.wait_for_ready();
    let newest = now();
    let readings: Value = ["roof", "cellar", "a place that no directory has", CITY, "2867714"]
        .iter()
        .zip(0..)
        .map(|(city, n)| reading(city, newest, 70.0 + f64::from(n)))
        .collect();
    service.wait_until_applied(&service.post(&readings));
    let mut browser = Browser::start(&chromium);
    browser.resize(DESKTOP_SIZE.0, DESKTOP_SIZE.1, false);
    browser.open(&service.url());
    browser.wait_for(IS_LIVE_EXPRESSION);
    let nowhere = "a place that no directory has";
    browser.wait_for_value(UNPLACED_EXPRESSION, &json!([[nowhere, nowhere], ["cellar", "Cellar"]]));
    browser
        .wait_for("document.querySelector('[data-test=unplaced-count]').textContent === '2 without a place'");
    for (text, found) in [
        ("München", json!(["2867714"])),
        ("Мюнхен", json!(["2867714"])),
        ("big apple", json!([CITY])),
        ("Austria", json!(["roof"])),
        ("Germany", json!(["2867714", "cellar"])),
        ("roof", json!(["roof"])),
    ] {
        search_for(&mut browser, text);
        browser.wait_for_value(FOUND_EXPRESSION, &found);
    }
    browser.evaluate("document.querySelector('[data-test=unplaced] [data-city=cellar] button').click()");
    browser.wait_for("document.querySelector('[data-test=city-name]').textContent === 'Cellar'");

    take_screenshots(&mut browser, &ScreenshotFolder::open_folder(), "places-");
    assert_fits(&mut browser);
    assert_no_console_errors(&mut browser);
    service.terminate();
}
