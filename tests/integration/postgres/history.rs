//! Histories that reach past memory, from a replica that may be behind, and rows as they were.

use serde_json::{Value, json};
use swelter::internals::model::{EventTime, Measurement, ReadingEvent};

use super::replica_case::ReplicaCase;
use crate::support::{LogEntry, MINUTE_MS, city_name, normalize_numbers, wait_for};

fn reading(city: u32, millis: i64, temperature: f64) -> LogEntry {
    let event = ReadingEvent::Reading(Measurement::new(temperature, 50.0, None).unwrap());
    LogEntry { city, millis, event, revision: None }
}

/// Waits until no page is refused.
fn wait_until_complete(case: &mut ReplicaCase) {
    case.wait_until_replayed();
    assert_eq!(case.check_histories(), 0, "the replica has everything");
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn history_of_two_databases_has_every_row_and_none_twice() {
    let mut case = ReplicaCase::start(71, 2, 60);
    case.post_random(40);
    wait_until_complete(&mut case);
    for _ in 0..5 {
        case.post_random(2);
        case.check_histories();
    }
    wait_until_complete(&mut case);
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn rows_that_a_lagging_replica_may_lack_are_refused_and_never_old() {
    let mut case = ReplicaCase::start(72, 1, 60);
    case.post_random(30);
    wait_until_complete(&mut case);
    case.pause_replay();
    // Three hours: more than the lateness of 90 minutes.
    case.post_random(18);
    case.wait_until_written();
    assert!(case.check_histories() > 0, "some rows are final, and not known to the replica");
    case.resume_replay();
    wait_until_complete(&mut case);
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn overlap_of_history_beyond_lateness_covers_a_lagging_replica() {
    // Ten hours are held, so the replica may be eight and a half hours behind.
    let mut case = ReplicaCase::start(73, 1, 600);
    case.post_random(90);
    wait_until_complete(&mut case);
    case.pause_replay();
    case.post_random(18);
    case.wait_until_written();
    assert_eq!(case.check_histories(), 0);
    case.resume_replay();
    wait_until_complete(&mut case);
}

/// The correction is final in the dataflow as soon as the late reading has come, and the replica has
/// neither.
#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn correction_after_silence_is_never_served_as_it_was_before() {
    let mut case = ReplicaCase::start(74, 1, 60);
    let first = case.now;
    let entries: Vec<LogEntry> =
        (0..30).map(|step| reading(0, first + step * 10 * MINUTE_MS, 80.0 + step as f64)).collect();
    case.post(&entries);
    wait_until_complete(&mut case);
    case.pause_replay();
    let corrected = first + 28 * 10 * MINUTE_MS;
    case.post(&[reading(0, corrected, 60.0)]);
    case.post(&[reading(0, first + 3 * 24 * 60 * MINUTE_MS, 90.0)]);
    let around = |at: i64| {
        let time = |millis: i64| EventTime::from_millis(millis).unwrap();
        format!("from={}&to={}", time(at), time(at + 1))
    };
    let refused = case.history_page(0, &around(corrected));
    assert_eq!((refused.status, &*refused.error_code()), (503, "replica_behind"), "{}", refused.body);
    assert_eq!(case.check_histories(), 1);
    case.resume_replay();
    case.wait_until_replayed();
    let served = case.history_page(0, &around(corrected)).json();
    let expected = case.expected_rows(0);
    let row = expected.iter().find(|row| row["reading_at"] == served["rows"][0]["reading_at"]).unwrap();
    assert_eq!(normalize_numbers(&served["rows"][0]), *row);
    assert!(row["heat_index"].as_f64().unwrap() < 65.0);
    assert_eq!(case.check_histories(), 0);
}

/// A history that was served, and the epoch that it was of.
struct PastHistory {
    city: u32,
    as_of: u64,
    rows: Vec<Value>,
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn rows_as_of_an_epoch_are_those_that_were_served_then() {
    let mut case = ReplicaCase::start(75, 1, 60);
    let mut past = Vec::new();
    for _ in 0..15 {
        case.post_random(2);
        for city in 0..3 {
            if case.oracle.high(city).is_none() {
                continue;
            }
            let page =
                case.history_page(city, &format!("from={}&limit=10000", oldest_live(&case, city))).json();
            let rows = page["rows"].as_array().unwrap().iter().map(normalize_numbers).collect();
            past.push(PastHistory { city, as_of: page["as_of"].as_u64().unwrap(), rows });
        }
    }
    // Epochs go on, so that the databases are complete up to the last one.
    case.post_random(3);
    case.wait_until_replayed();
    let newest = past.iter().map(|past| past.as_of).max().unwrap();
    wait_for("that the replica has reached the last epoch", || {
        let rows = case.clients(&case.replica)[0].query("select min(epoch) from shard", &[]);
        (rows[0].get::<_, Option<i64>>(0) >= i64::try_from(newest).ok()).then_some(())
    });
    let mut changed = 0;
    for PastHistory { city, as_of, rows } in past {
        let Some(first) = rows.first() else { continue };
        let from = first["reading_at"].as_str().unwrap();
        let page = case.history_page(city, &format!("from={from}&as_of={as_of}")).json();
        assert_eq!(page["as_of"], as_of);
        let found: Vec<Value> = page["rows"].as_array().unwrap().iter().map(normalize_numbers).collect();
        assert_eq!(found, rows, "city {city} as of {as_of}");
        let now = case.expected_rows(city);
        changed += rows.iter().filter(|row| !now.contains(row)).count();
    }
    assert!(changed > 10, "{changed} rows were changed by corrections and withdrawals since");
    let future = case.history_page(0, "as_of=99999999999999");
    assert_eq!((future.status, &*future.error_code()), (400, "bad_parameter"));
}

fn oldest_live(case: &ReplicaCase, city: u32) -> EventTime {
    let reach = case.oracle.settings().lateness.max(case.oracle.settings().history);
    EventTime::from_millis(case.oracle.high(city).unwrap().millis() - reach).unwrap()
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn dead_replica_costs_old_rows_only_and_is_left_alone() {
    let mut case = ReplicaCase::start(76, 1, 60);
    case.post_random(30);
    wait_until_complete(&mut case);
    case.replica.kill();
    let old = format!("to={}&limit=5", EventTime::from_millis(case.now - 200 * MINUTE_MS).unwrap());
    let city = (0..5).find(|city| case.oracle.high(*city).is_some()).unwrap();
    for _ in 0..20 {
        let refused = case.history_page(city, &old);
        assert_eq!(
            (refused.status, &*refused.error_code()),
            (503, "history_unavailable"),
            "{}",
            refused.body
        );
        assert!(refused.head.contains("retry-after: "), "{}", refused.head);
        let live = case.history_page(city, &format!("from={}", oldest_live(&case, city)));
        assert_eq!(live.status, 200, "{}", live.body);
    }
    assert!(case.service.log().contains("the history in PostgreSQL cannot be read"));
    case.replica.restart();
    wait_for("that old rows are served again", || {
        (case.history_page(city, &old).status == 200).then_some(())
    });
    assert_eq!(case.check_histories(), 0);
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn explanation_names_senders_corrections_and_withdrawals() {
    let mut case = ReplicaCase::start(77, 2, 60);
    let first = case.now;
    let at = |step: i64| first + step * MINUTE_MS;
    let entries: Vec<LogEntry> = (0..10).map(|step| reading(0, at(step), 80.0 + step as f64)).collect();
    case.post(&entries);
    let withdrawal = LogEntry { event: ReadingEvent::Withdrawal, ..reading(0, at(4), 0.0) };
    case.post(&[reading(0, at(3), 70.0), withdrawal]);
    case.wait_until_replayed();
    let why = |case: &ReplicaCase, step: i64| -> Value {
        let time = EventTime::from_millis(at(step)).unwrap();
        let path = format!("/v1/cities/{}/why?reading_at={time}", city_name(0).replace(' ', "%20"));
        case.service.get_json(&path)
    };
    check_explanation(&why(&case, 9), &at);

    case.pause_replay();
    case.post(&[reading(0, at(5), 71.0)]);
    case.wait_until_written();
    let pending = why(&case, 9);
    let is_pending = |answer: &Value| -> Vec<bool> {
        let readings = answer["readings"].as_array().unwrap();
        readings.iter().map(|reading| reading["pending"].as_bool().unwrap()).collect()
    };
    assert_eq!(is_pending(&pending), [false, false, false, false, true, false, false, false, false]);
    case.resume_replay();
    case.wait_until_replayed();
    assert!(is_pending(&why(&case, 9)).iter().all(|pending| !pending));

    // The row is final now, and no longer in memory.
    case.post(&[reading(0, at(600), 90.0)]);
    case.wait_until_replayed();
    let last = why(&case, 9);
    assert_eq!(last["window"]["count"], 9);
    assert_eq!(last["readings"][4]["temperature"], 71);
    let row = case.oracle.row(0, at(9)).unwrap();
    assert_eq!(last["window"]["sum_e6"], row.sum());
    assert_eq!(last["row"]["rolling_heat_index"].as_f64(), Some(row.rolling_heat_index()));
    let output = crate::support::swelter_command()
        .args(["why", &city_name(0), "--reading-at", &EventTime::from_millis(at(9)).unwrap().to_string()])
        .args(["--url", &format!("http://{}", case.service.address)])
        .output()
        .unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for line in
        ["    corrected by journal partition ", "    withdrawn by journal partition ", ": 71.0 °F, 50.0 %"]
    {
        assert!(table.contains(line), "{table}");
    }
}

fn check_explanation(answer: &Value, at: &dyn Fn(i64) -> i64) {
    let readings = answer["readings"].as_array().unwrap();
    assert_eq!((readings.len(), &answer["window"]["count"]), (9, &json!(9)));
    assert!(readings.iter().all(|reading| reading["pending"] == false && !reading["temperature"].is_null()));
    let outcomes = |entry: &Value| -> Vec<String> {
        let arrivals = entry["arrivals"].as_array().unwrap();
        arrivals.iter().map(|arrival| arrival["outcome"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(outcomes(&readings[3]), ["inserted", "corrected"]);
    let [before, after] = [0, 1].map(|i| readings[3]["arrivals"][i].clone());
    assert_eq!((&before["temperature"], &after["temperature"]), (&json!(83), &json!(70)));
    assert!(after["position"].as_u64() > before["position"].as_u64());
    assert_eq!((&after["source"], &after["partition"]), (&json!("journal"), &before["partition"]));
    assert!(after["arrived_at"].is_string());
    let withdrawn = answer["withdrawn"].as_array().unwrap();
    assert_eq!(withdrawn.len(), 1);
    assert_eq!(withdrawn[0]["reading_at"], EventTime::from_millis(at(4)).unwrap().to_string());
    assert_eq!(outcomes(&withdrawn[0]), ["inserted", "withdrawn"]);
}
