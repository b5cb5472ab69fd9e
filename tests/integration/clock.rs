//! A service whose clock is put forward and back while it runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use swelter::internals::model::EventTime;

use crate::support::{HttpResponse, ServiceBuilder, ServiceProcess, get, post, swelter_command, wait_for};

const DAY_MS: i64 = 86_400_000;

fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn reading(city: &str, at: i64) -> String {
    let at = EventTime::from_millis(at).unwrap();
    format!(r#"{{"city":"{city}","reading_at":"{at}","temperature":80,"humidity":50}}"#)
}

/// A data folder, and a file with the offset of the service's clock.
struct SkewedHost {
    folder: tempfile::TempDir,
}

impl SkewedHost {
    fn new() -> SkewedHost {
        let host = SkewedHost { folder: tempfile::tempdir().unwrap() };
        host.set_clock_offset(0);
        host
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn offset_file(&self) -> PathBuf {
        self.folder.path().join("offset")
    }

    fn set_clock_offset(&self, offset_ms: i64) {
        // Renamed, because the service may read it at any time.
        let new = self.folder.path().join("offset.new");
        fs::write(&new, offset_ms.to_string()).unwrap();
        fs::rename(new, self.offset_file()).unwrap();
    }

    /// `agree` is the time in ms after which a clock that is ahead is accepted.
    fn start(&self, agree: Option<u64>) -> ServiceProcess {
        let service = ServiceBuilder::new("")
            .data(&self.data())
            .env("SWELTER_TEST_CLOCK_OFFSET_FILE", self.offset_file().to_str().unwrap());
        match agree {
            Some(ms) => service.env("SWELTER_TEST_CLOCK_AGREE_MS", ms.to_string()).start(),
            None => service.start(),
        }
    }
}

fn post_reading(service: &ServiceProcess, reading: &str) -> HttpResponse {
    post(&service.address, "application/json", reading).unwrap()
}

/// Checks that the reading is refused in the response by its arrival time, and so makes no dead
/// letter.
fn check_refused_as_future(service: &ServiceProcess, host: &SkewedHost, reading: &str) {
    let answer = post_reading(service, reading);
    assert_eq!((answer.status, &*answer.error_code()), (422, "none_accepted"), "{}", answer.body);
    assert!(answer.body.contains("in_the_future"), "{}", answer.body);
    let letters = fs::read_to_string(host.data().join("dead-letters.jsonl")).unwrap_or_default();
    assert!(!letters.contains("in_the_future"), "{letters}");
}

#[test]
fn clock_ahead_for_one_post_holds_it_back_and_keeps_future_bound() {
    let host = SkewedHost::new();
    let service = host.start(None).wait_until_ready();
    assert_eq!(post_reading(&service, &reading("a", now())).status, 200);
    wait_for("the reading", || (get(&service.address, "/v1/cities/a").ok()?.status == 200).then_some(()));
    host.set_clock_offset(30 * DAY_MS);
    let held = post_reading(&service, &reading("a", now() + 30 * DAY_MS));
    assert_eq!((held.status, &*held.error_code()), (503, "clock_ahead"), "{}", held.body);
    assert!(held.body.contains("ahead of the expected time"), "{}", held.body);
    let ready = get(&service.address, "/readyz").unwrap();
    assert_eq!((ready.status, &*ready.error_code()), (503, "clock_ahead"));
    assert_eq!(get(&service.address, "/v1/cities/a").unwrap().status, 200);
    host.set_clock_offset(0);
    let service = service.wait_until_ready();
    let future = reading("a", now() + 20 * DAY_MS);
    check_refused_as_future(&service, &host, &future);
    service.terminate();
    // Also if the clock was ahead when the service stopped and started.
    host.set_clock_offset(30 * DAY_MS);
    let service = host.start(None);
    assert_eq!(post_reading(&service, &future).error_code(), "clock_ahead");
    host.set_clock_offset(0);
    let service = service.wait_until_ready();
    check_refused_as_future(&service, &host, &future);
    let row = service.get_json("/v1/cities/a")["current"]["reading_at"].as_str().unwrap().to_owned();
    assert!(row.parse::<EventTime>().unwrap().millis() <= now(), "{row}");
    service.terminate();
}

#[test]
fn persistent_clock_ahead_is_accepted_and_its_readings_listed() {
    let host = SkewedHost::new();
    let service = host.start(Some(1_500)).wait_until_ready();
    assert_eq!(post_reading(&service, &reading("right", now())).status, 200);
    host.set_clock_offset(30 * DAY_MS);
    let began = Instant::now();
    wait_for("the clock to be believed", || {
        (post_reading(&service, &reading("ahead", now() + 30 * DAY_MS)).status == 200).then_some(())
    });
    assert!(began.elapsed() >= Duration::from_millis(1_400), "{:?}", began.elapsed());
    wait_for("the reading", || (get(&service.address, "/v1/cities/ahead").ok()?.status == 200).then_some(()));
    host.set_clock_offset(0);
    assert_eq!(
        post_reading(&service, &reading("right", now())).status,
        200,
        "a clock that falls is believed at once"
    );
    check_refused_as_future(&service, &host, &reading("right", now() + DAY_MS));
    let listed = |service: &ServiceProcess| {
        wait_for("the city that is ahead", || {
            let ahead = service.get_json("/v1/status")["ahead_of_clock"].clone();
            (ahead["count"] == 1).then(|| ahead["cities"][0]["city"].clone())
        })
    };
    assert_eq!(listed(&service), "ahead");
    let status = service.get_json("/v1/status");
    assert!(status["as_of"].as_i64().unwrap() > now() + 29 * DAY_MS, "epochs never fall: {status}");
    // Once the clock is back for longer than the lag may be: a lag counted from `as_of` would be
    // negative, and one counted from the last epoch would be longer and grow.
    let back = Instant::now();
    wait_for("a short lag", || {
        let lag_ms = service.get_json("/v1/status")["lag_ms"].as_i64().unwrap();
        (back.elapsed() > Duration::from_millis(2_500) && (0..2_000).contains(&lag_ms)).then_some(())
    });
    let status = service.get_json("/v1/status");
    assert_eq!(service.log().matches("was put back by 30 d").count(), 1, "{}", service.log());
    let counts = status["counts"].clone();
    service.terminate();
    // A replay decides the same.
    let service = host.start(None).wait_until_ready();
    assert_eq!(listed(&service), "ahead");
    assert_eq!(service.get_json("/v1/status")["counts"]["inserted"], counts["inserted"]);
    // A right reading is too late for the city, as docs/troubleshooting.md says: it is rebuilt in
    // another folder.
    let answer = post_reading(&service, &reading("ahead", now()));
    assert_eq!(answer.status, 422, "{}", answer.body);
    assert!(answer.body.contains("too_late"), "{}", answer.body);
    // A late reading in the same post as the city's first is a dead letter.
    let both = format!("[{},{}]", reading("second", now()), reading("second", now() - 2 * DAY_MS));
    assert_eq!(post_reading(&service, &both).status, 200);
    wait_for("the refusal", || (service.get_json("/v1/status")["refused"]["too_late"] == 1).then_some(()));
    service.terminate();
    rebuild_from_journal(&host);
}

fn rebuild_from_journal(host: &SkewedHost) {
    let (wrong, exported) = (host.folder.path().join("wrong"), host.folder.path().join("refused.jsonl"));
    fs::rename(host.data(), &wrong).unwrap();
    let run = |data: &Path, args: &[&str]| {
        let mut command = swelter_command();
        let output = command.arg("dead-letters").args(args).arg("--data-dir").arg(data).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let file = exported.to_str().unwrap();
    run(&wrong, &["export", "--reason", "too_late", "--out", file]);
    let service = host.start(None).wait_until_ready();
    for city in ["ahead", "second"] {
        assert_eq!(post_reading(&service, &reading(city, now() - 2 * DAY_MS - 3_600_000)).status, 200);
    }
    service.terminate();
    run(&host.data(), &["resubmit", file]);
    let service = host.start(None).wait_until_ready();
    let city = service.get_json("/v1/cities/second");
    assert_eq!(city["current"]["count"], 2, "{city}");
    assert_eq!(service.get_json("/v1/status")["ahead_of_clock"]["count"], 0);
    service.terminate();
}
