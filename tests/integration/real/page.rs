//! The page in a browser shows the rows of the service, through corrections, withdrawals and kills.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};
use swelter::internals::model::EventTime;

use super::browser::Browser;
use crate::support::prepared::{limit_browsers, prepared_variable, print_line};
use crate::support::{ServiceBuilder, ServiceProcess, wait_for};

pub(super) const MINUTE_MS: i64 = 60_000;
pub(super) const CITY: &str = "5128581";
const CITIES: [&str; 4] = [CITY, "1796236", "5368361", "a place that no directory has"];
/// Readings a minute of each city.
const READINGS_PER_CITY: i64 = 120;
/// The wide screen and the phone, in CSS pixels.
pub(super) const DESKTOP_SIZE: (u32, u32) = (1280, 800);
pub(super) const PHONE_SIZE: (u32, u32) = (360, 740);

pub(super) const STATE_EXPRESSION: &str = "document.querySelector('[data-test=state]').dataset.state";
pub(super) const IS_LIVE_EXPRESSION: &str =
    "document.querySelector('[data-test=state]').dataset.state === 'live'";
pub(super) const COUNTS_EXPRESSION: &str = "Object.fromEntries([...document.querySelectorAll('[data-test=counts] button')].map((b) => \
     [b.dataset.category, Number(b.querySelector('data').value)]))";
pub(super) const HOTTEST_EXPRESSION: &str = "[...document.querySelectorAll('[data-test=hottest] li:not([hidden])')].map((li) => \
     [li.dataset.city, Number(li.querySelector('data').value)])";
const CURRENT_EXPRESSION: &str = "[...['heat-index', 'rolling', 'count', 'temperature'].map((name) => \
     Number(document.querySelector(`[data-test=city-${name}]`).value)), \
     document.querySelector('[data-test=city-reading-at]').dateTime]";
/// The chart's text for each reading, oldest first, by the keys that a user presses.
const READOUTS_EXPRESSION: &str = "(() => {
    const chart = document.querySelector('[data-test=chart]');
    const press = (key) => chart.dispatchEvent(new KeyboardEvent('keydown', { key }));
    const readout = () => document.querySelector('[data-test=readout]').textContent;
    const last = Number(chart.getAttribute('aria-valuemax'));
    const read = [];
    press('Home');
    for (let i = 0; i <= last; i += 1, press('ArrowRight')) read.push(readout());
    chart.dispatchEvent(new Event('blur'));
    return read;
})()";
/// Kind and rows of the newest change in the list.
const NEWEST_CHANGE_EXPRESSION: &str = "(() => {
    const { kind, rows } = document.querySelector('[data-test=changes] li').dataset;
    return [kind, Number(rows)];
})()";

pub(super) fn now() -> i64 {
    let millis = jiff::Timestamp::now().as_millisecond();
    millis - millis.rem_euclid(MINUTE_MS)
}

pub(super) fn reading(city: &str, at: i64, temperature: f64) -> Value {
    let at = EventTime::from_millis(at).unwrap().to_string();
    json!({"city": city, "reading_at": at, "temperature": temperature, "humidity": 55.5})
}

fn withdrawal(city: &str, at: i64) -> Value {
    json!({"city": city, "reading_at": EventTime::from_millis(at).unwrap().to_string(), "deleted": true})
}

/// Two hours of every city; the last one is the hottest.
fn two_hours_of_readings(newest: i64) -> Value {
    let of_city = |(n, city): (usize, &&str)| {
        let wave = move |minute: i64| 80.0 + 8.0 * n as f64 + 6.0 * (minute as f64 / 17.0).sin();
        let city = city.to_string();
        (0..READINGS_PER_CITY).map(move |minute| {
            reading(
                &city,
                newest - (READINGS_PER_CITY - 1 - minute) * MINUTE_MS,
                (wave(minute) * 10.0).round() / 10.0,
            )
        })
    };
    CITIES.iter().enumerate().flat_map(of_city).collect()
}

/// Compares everything that the page shows with the responses of the service.
fn compare_page(browser: &mut Browser, service: &ServiceProcess) {
    let listed = service.get("/v1/cities?order=heat_index").json();
    let rows: Vec<&Value> =
        listed["cities"].as_array().unwrap().iter().map(|city| &city["current"]).collect();
    let mut counts =
        json!({"none": 0, "caution": 0, "extreme_caution": 0, "danger": 0, "extreme_danger": 0, "stale": 0});
    counts["stale"] = listed["stale_cities"].clone();
    for row in &rows {
        let count = &mut counts[row["category"].as_str().unwrap()];
        *count = (count.as_u64().unwrap() + 1).into();
    }
    browser.wait_for_value(COUNTS_EXPRESSION, &counts);
    let hottest: Value = rows.iter().map(|row| json!([row["city"], row["heat_index"]])).collect();
    browser.wait_for_value(HOTTEST_EXPRESSION, &hottest);
    let current = rows.iter().find(|row| row["city"] == CITY).unwrap();
    let values = ["heat_index", "rolling_heat_index", "count", "temperature", "reading_at"];
    browser.wait_for_value(CURRENT_EXPRESSION, &values.iter().map(|name| current[name].clone()).collect());
    compare_chart(browser, service);
}

fn compare_chart(browser: &mut Browser, service: &ServiceProcess) {
    wait_for("the chart has the rows of the history", || {
        let history = service.get(&format!("/v1/cities/{CITY}/history")).json();
        let (readouts, rows) = (browser.evaluate(READOUTS_EXPRESSION), history["rows"].as_array()?.clone());
        let readouts = readouts.as_array()?;
        let equal = readouts.len() == rows.len()
            && readouts
                .iter()
                .zip(&rows)
                .all(|(readout, row)| readout_matches_row(readout.as_str().unwrap(), row));
        equal.then_some(())
    });
}

/// Whether a readout such as "Mon 10:00 · heat index 86.5 °F · rolling mean 80.1 °F of 37 ·
/// caution" is of this row.
fn readout_matches_row(readout: &str, row: &Value) -> bool {
    let parts: Vec<&str> = readout.split(" · ").collect();
    let [_, heat_index, rolling, category] = parts[..] else { panic!("{readout}") };
    let (rolling, count) = rolling.split_once(" of ").unwrap();
    // One decimal is shown.
    let near =
        |shown: &str, name: &str| (leading_number(shown) - row[name].as_f64().unwrap()).abs() < 0.050_001;
    let name = row["category"].as_str().unwrap().replace("none", "no_caution").replace('_', " ");
    near(heat_index, "heat_index")
        && near(rolling, "rolling_heat_index")
        && count.parse().ok() == row["count"].as_u64()
        && category == name
}

/// The number before the unit.
fn leading_number(text: &str) -> f64 {
    let number = text.trim_end_matches("°F").trim().rsplit(' ').next().unwrap();
    number.replace('\u{2212}', "-").parse().unwrap()
}

fn wait_for_change(browser: &mut Browser, kind: &str, rows: i64) {
    browser.wait_for_value(NEWEST_CHANGE_EXPRESSION, &json!([kind, rows]));
}

pub(super) fn assert_fits(browser: &mut Browser) {
    let beyond =
        browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth");
    assert_eq!(beyond, 0, "the page is wider than the screen");
}

pub(super) fn assert_no_console_errors(browser: &mut Browser) {
    let console = browser.console_messages();
    assert!(console.is_empty(), "{console:#?}");
}

/// Where screenshots go: they are kept where TEST_SCREENSHOTS names a folder.
pub(super) struct ScreenshotFolder {
    folder: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

impl ScreenshotFolder {
    pub(super) fn open_folder() -> ScreenshotFolder {
        match std::env::var_os("TEST_SCREENSHOTS") {
            Some(folder) => ScreenshotFolder { folder: folder.into(), _temporary: None },
            None => {
                let folder = tempfile::tempdir().unwrap();
                ScreenshotFolder { folder: folder.path().to_owned(), _temporary: Some(folder) }
            }
        }
    }

    pub(super) fn take_screenshot(&self, browser: &mut Browser, name: &str, whole: bool) {
        let path = self.folder.join(name);
        browser.screenshot(&path, whole);
        assert!(is_not_blank(&path), "{} is empty", path.display());
    }
}

/// An empty page is a few kilobytes.
fn is_not_blank(path: &Path) -> bool {
    std::fs::metadata(path).unwrap().len() > 10_000
}

pub(super) const CONFIG: &str = "[results]\nformula = \"nws\"\n[serve.limits]\nheartbeat = \"1s\"\n";

#[test]
#[ignore = "needs Chromium: scripts/test"]
fn page_shows_changes_and_survives_service_kill() {
    let chromium = prepared_variable("TEST_CHROMIUM");
    let _browsers = limit_browsers();
    let mut service = ServiceBuilder::new(CONFIG).start().wait_until_ready();
    let newest = now();
    service.wait_until_applied(&service.post(&two_hours_of_readings(newest)));
    let mut browser = Browser::start(&chromium);
    browser.resize(DESKTOP_SIZE.0, DESKTOP_SIZE.1, false);
    browser.open(&format!("{}/#city={CITY}", service.url()));
    browser.wait_for(IS_LIVE_EXPRESSION);
    browser.wait_for("document.querySelector('[data-test=city]').dataset.city === '5128581'");
    browser.wait_for_value(
        "document.querySelector('[data-test=city-name]').textContent",
        &json!("New York City"),
    );
    browser.wait_for("document.querySelector('[data-test=as-of]').dateTime !== ''");
    browser.wait_for("/ms|s/.test(document.querySelector('[data-test=lag]').textContent)");
    compare_page(&mut browser, &service);
    browser.evaluate("window.sameDocument = true");

    // A city that is new to the page.
    service.wait_until_applied(&service.post(&reading("2643743", newest, 70.0)));
    browser.wait_for(
        "document.querySelector('[data-city=\"2643743\"] .name')?.textContent === 'London' && \
         document.querySelector('[data-city=\"2643743\"] .place').textContent !== ''",
    );
    compare_page(&mut browser, &service);

    let correct = |service: &ServiceProcess, back: i64, temperature: f64| {
        service.wait_until_applied(&service.post(&reading(CITY, newest - back * MINUTE_MS, temperature)));
    };
    // Of a past reading: the window of each one after it holds it.
    correct(&service, 60, 109.5);
    wait_for_change(&mut browser, "correction", 61);
    compare_page(&mut browser, &service);
    // Of the newest, which is the current one.
    correct(&service, 0, 97.0);
    wait_for_change(&mut browser, "correction", 1);
    compare_page(&mut browser, &service);
    service.wait_until_applied(&service.post(&withdrawal(CITY, newest - 30 * MINUTE_MS)));
    wait_for_change(&mut browser, "withdrawal", 31);
    compare_page(&mut browser, &service);
    // The newest again: an older reading takes its place.
    service.wait_until_applied(&service.post(&withdrawal(CITY, newest)));
    wait_for_change(&mut browser, "withdrawal", 1);
    service.wait_until_applied(&service.post(&reading(CITY, newest - 10 * MINUTE_MS - MINUTE_MS / 2, 88.0)));
    wait_for_change(&mut browser, "late", 11);
    compare_page(&mut browser, &service);

    service.kill_in_place();
    browser.wait_for("document.querySelector('[data-test=state]').dataset.state !== 'live'");
    service.restart();
    // Posted before the page has reconnected: it must not miss it.
    let missed = service.post(&reading(CITY, newest - 20 * MINUTE_MS, 60.0));
    service.wait_for_ready();
    service.wait_until_applied(&missed);
    browser.wait_for(IS_LIVE_EXPRESSION);
    compare_page(&mut browser, &service);
    wait_for_change(&mut browser, "correction", 21);
    correct(&service, 40, 99.9);
    wait_for_change(&mut browser, "correction", 40);
    compare_page(&mut browser, &service);
    assert_eq!(browser.evaluate("window.sameDocument"), true, "the page was loaded again");

    take_screenshots(&mut browser, &ScreenshotFolder::open_folder(), "");
    compare_page(&mut browser, &service);
    assert_no_console_errors(&mut browser);
    service.terminate();
    browser.wait_for_value(STATE_EXPRESSION, &json!("waiting"));
    assert_no_console_errors(&mut browser);
}

/// Light and dark, wide and on a phone.
pub(super) fn take_screenshots(browser: &mut Browser, album: &ScreenshotFolder, prefix: &str) {
    for scheme in ["light", "dark"] {
        browser.set_color_scheme(scheme);
        for ((width, height), name) in [(DESKTOP_SIZE, "wide"), (PHONE_SIZE, "phone")] {
            browser.resize(width, height, name == "phone");
            browser.wait_for(&format!(
                "innerWidth === {width} && matchMedia('(prefers-color-scheme: {scheme})').matches"
            ));
            // Two frames: one that lays out, one that draws.
            browser.wait_for(
                "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))",
            );
            assert_fits(browser);
            album.take_screenshot(browser, &format!("{prefix}{name}-{scheme}.png"), name == "phone");
        }
    }
    browser.resize(DESKTOP_SIZE.0, DESKTOP_SIZE.1, false);
}

/// A reading a minute, some of which come late.
const FULL_WINDOW_READINGS: u64 = 1380;

#[test]
#[ignore = "needs Chromium: scripts/test"]
fn demo_is_live_with_a_day_of_history() {
    let chromium = prepared_variable("TEST_CHROMIUM");
    let _browsers = limit_browsers();
    let mut browser = Browser::start(&chromium);
    browser.resize(DESKTOP_SIZE.0, DESKTOP_SIZE.1, false);
    browser.set_color_scheme("light");
    let began = Instant::now();
    let service = ServiceBuilder::demo(200).start();
    browser.open(&service.url());
    browser.wait_for(IS_LIVE_EXPRESSION);
    browser.wait_for("document.querySelector('[data-test=total]').textContent === '200'");
    let live = began.elapsed();
    wait_for("all windows are full", || {
        let listed = service.get("/v1/cities").json();
        let full = |city: &Value| city["current"]["count"].as_u64() > Some(FULL_WINDOW_READINGS);
        listed["cities"].as_array()?.iter().all(full).then_some(())
    });
    let full = began.elapsed();
    let (live, full) = (live.as_secs_f64(), full.as_secs_f64());
    print_line(&format!(
        "the demo of 200 cities was live after {live:.1} s, with a day of history after {full:.1} s"
    ));

    browser.evaluate("document.querySelector('[data-test=hottest] button').click()");
    browser.wait_for("document.querySelector('[data-test=city-heat-index]').value !== ''");
    // A reading a minute, some of them late.
    browser
        .wait_for("Number(document.querySelector('[data-test=chart]').getAttribute('aria-valuemax')) > 1380");
    let city = browser.evaluate("document.querySelector('[data-test=city]').dataset.city");
    let newest = browser.evaluate("document.querySelector('[data-test=city-reading-at]').dateTime");
    let newest = newest.as_str().unwrap().parse::<EventTime>().unwrap().millis();
    service.post(&reading(city.as_str().unwrap(), newest - 600 * MINUTE_MS, 96.0));
    // Of a reading or of a gap. The demo's own changes are of the last minutes.
    browser.wait_for(
        "[...document.querySelectorAll('[data-test=changes] li')].some((li) => \
         /correction|late/.test(li.dataset.kind) && Number(li.dataset.rows) > 500)",
    );
    assert_fits(&mut browser);
    ScreenshotFolder::open_folder().take_screenshot(&mut browser, "demo.png", false);
    assert_no_console_errors(&mut browser);
    service.terminate();
}
