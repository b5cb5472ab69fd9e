//! The page and the clock: old readings are dated, greyed, in no ranking and no count, and nothing
//! is called live because of them.

use std::fs;

use serde_json::{Value, json};

use super::browser::Browser;
use super::page::*;
use crate::support::prepared::{limit_browsers, prepared_variable};
use crate::support::{MINUTE_MS, ServiceBuilder};

const HOUR_MS: i64 = 60 * MINUTE_MS;
const LONDON: &str = "2643743";
const UNPLACED_CITY: &str = "a place that no directory has";

fn element_text(browser: &mut Browser, part: &str) -> String {
    let element = format!("document.querySelector('[data-test={part}]').textContent");
    browser.evaluate(&element).as_str().unwrap().to_owned()
}

fn check_shown(browser: &mut Browser, counts: &Value, hottest: &[&str], total: usize) {
    browser.wait_for_value(COUNTS_EXPRESSION, counts);
    let keys = format!("{HOTTEST_EXPRESSION}.map(([key]) => key)");
    browser.wait_for_value(&keys, &json!(hottest));
    browser
        .wait_for_value("document.querySelector('[data-test=total]').textContent", &json!(total.to_string()));
}

fn category_counts(fresh: &[(&str, u32)], stale: u32) -> Value {
    let mut counts = json!({"none": 0, "caution": 0, "extreme_caution": 0, "danger": 0, "extreme_danger": 0});
    counts["stale"] = stale.into();
    fresh.iter().for_each(|(category, count)| counts[*category] = (*count).into());
    counts
}

/// Checks the panel of a city whose row is stale.
fn assert_panel_is_stale(browser: &mut Browser, age: &str) {
    browser.wait_for("!document.querySelector('[data-test=city-stale]').hidden");
    let (note, at) = (element_text(browser, "city-stale"), element_text(browser, "city-reading-at"));
    assert!(note.contains(&format!("read {age} ago")), "{note}");
    assert_eq!(element_text(browser, "city-age"), format!("{age} ago"));
    // Date, time and zone.
    let is_dated =
        at.contains("202") && at.contains(':') && at.chars().last().is_some_and(|c| c.is_alphanumeric());
    assert!(is_dated && at.split_whitespace().count() >= 4, "{at}");
    assert!(element_text(browser, "city-category").starts_with("Was: "));
    assert_eq!(
        browser.evaluate("document.querySelector('#city-mark use').getAttribute('href')"),
        "#mark-stale"
    );
}

#[test]
#[ignore = "needs Chromium: scripts/test"]
fn page_shows_no_stale_row_as_live() {
    let chromium = prepared_variable("TEST_CHROMIUM");
    let _browsers = limit_browsers();
    let folder = tempfile::tempdir().unwrap();
    let clock = folder.path().join("clock");
    fs::write(&clock, "0").unwrap();
    let service = ServiceBuilder::new(CONFIG)
        .env("SWELTER_TEST_CLOCK_OFFSET_FILE", clock.to_str().unwrap())
        .start()
        .wait_until_ready();
    let mut browser = Browser::start(&chromium);
    browser.resize(DESKTOP_SIZE.0, DESKTOP_SIZE.1, false);
    browser.open(&format!("{}/#city={CITY}", service.url()));
    browser.wait_for_value(STATE_EXPRESSION, &json!("empty"));

    // Sixteen months old, and the hottest of all.
    let newest = now();
    service.wait_until_applied(&service.post(&reading(CITY, newest - 480 * 24 * HOUR_MS, 104.0)));
    browser.wait_for_value(STATE_EXPRESSION, &json!("replaying"));
    browser.wait_for_value(STATE_EXPRESSION, &json!("no_fresh"));
    assert!(element_text(&mut browser, "state").contains("No fresh readings since "));
    check_shown(&mut browser, &category_counts(&[], 1), &[], 0);
    assert_panel_is_stale(&mut browser, "15 months");
    browser.wait_for(
        "document.getElementById('hottest-empty').textContent.startsWith('No fresh readings. The newest')",
    );
    let album = ScreenshotFolder::open_folder();
    take_screenshots(&mut browser, &album, "stale-");

    // Others are fresh, one just so, and one was read five hours ago.
    let others = json!([
        reading(LONDON, newest, 70.0),
        reading("5368361", newest - 2 * HOUR_MS, 85.0),
        reading(UNPLACED_CITY, newest - 5 * HOUR_MS, 95.0)
    ]);
    service.wait_until_applied(&service.post(&others));
    browser.wait_for(IS_LIVE_EXPRESSION);
    check_shown(&mut browser, &category_counts(&[("none", 1), ("caution", 1)], 2), &["5368361", LONDON], 2);
    let listed = service.get("/v1/cities?order=heat_index").json();
    let listed: Vec<&str> =
        listed["cities"].as_array().unwrap().iter().map(|city| city["city"].as_str().unwrap()).collect();
    assert_eq!(listed, ["5368361", LONDON], "the page ranks as the service does");
    browser.evaluate(&format!("location.hash = '#city={LONDON}'"));
    browser.wait_for("document.querySelector('[data-test=city-name]').textContent === 'London'");
    browser.wait_for("document.querySelector('[data-test=city-stale]').hidden");
    assert!(element_text(&mut browser, "city-age").ends_with(" ago"));
    // The search finds stale cities and marks them.
    browser.evaluate(
        "(() => { const search = document.getElementById('search'); search.value = 'a place'; \
         search.dispatchEvent(new Event('input')); })()",
    );
    browser.wait_for("document.querySelector('[data-test=found] button.stale .category')?.textContent === 'Stale: 5 hours ago'");
    // The list of stale cities filters the map too.
    browser.evaluate("document.querySelector('[data-category=stale]').click()");
    browser.wait_for("document.getElementById('hottest-empty').textContent === 'No city with a fresh reading is in these categories.'");
    browser.evaluate("document.getElementById('all-categories').click()");
    take_screenshots(&mut browser, &album, "fresh-");

    // Only the service's clock moves.
    fs::write(&clock, (4 * HOUR_MS).to_string()).unwrap();
    browser.wait_for_value(STATE_EXPRESSION, &json!("no_fresh"));
    check_shown(&mut browser, &category_counts(&[], 4), &[], 0);
    assert_panel_is_stale(&mut browser, "4 hours");
    assert!(service.get("/v1/cities?order=heat_index").json()["cities"].as_array().unwrap().is_empty());
    assert_fits(&mut browser);
    assert_no_console_errors(&mut browser);
    service.terminate();
}
