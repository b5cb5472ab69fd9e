//! The rolling mean, time travel and arrivals by SQL, bit for bit as the oracle has them.

use std::collections::BTreeMap;

use swelter::internals::model::{Category, HeatIndex, Row};

use super::applied_log::{AppliedArrival, outcome_code};
use super::filled_log::{CITY_NAMES, FilledLog, city_id};
use super::server::shared_server;
use super::test_schema::TestSchema;
use crate::support::{MINUTE_MS, RUN_SETTINGS, Random, RunSettings};

const DAY_MS: i64 = 24 * 60 * MINUTE_MS;

/// A row of results: heat index and mean as bits, so that equal means equal.
#[derive(Debug, PartialEq, Eq)]
struct SqlRow {
    heat_index: u64,
    rolling_heat_index: u64,
    count: i64,
    category: String,
}

impl SqlRow {
    fn expected(row: &Row) -> SqlRow {
        SqlRow {
            heat_index: row.heat_index().fahrenheit().to_bits(),
            rolling_heat_index: row.rolling_heat_index().to_bits(),
            count: row.count().into(),
            category: row.category().name().to_owned(),
        }
    }
}

const COLUMNS: &str =
    "(extract(epoch from reading_at) * 1000)::bigint, heat_index, rolling_heat_index, count, category";

fn sql_rows(found: &[tokio_postgres::Row]) -> BTreeMap<i64, SqlRow> {
    let row = |row: &tokio_postgres::Row| {
        let bits = |column: usize| row.get::<_, f64>(column).to_bits();
        let (heat_index, rolling_heat_index) = (bits(1), bits(2));
        (row.get(0), SqlRow { heat_index, rolling_heat_index, count: row.get(3), category: row.get(4) })
    };
    let rows: BTreeMap<i64, SqlRow> = found.iter().map(row).collect();
    assert_eq!(rows.len(), found.len(), "a time comes twice");
    rows
}

fn expected_rows(
    rows: &BTreeMap<(u32, i64), Row>,
    city: u32,
    range: std::ops::Range<i64>,
) -> BTreeMap<i64, SqlRow> {
    rows.range((city, range.start)..(city, range.end))
        .map(|((_, millis), row)| (*millis, SqlRow::expected(row)))
        .collect()
}

fn rolling(schema: &TestSchema, city: u32, range: &std::ops::Range<i64>) -> BTreeMap<i64, SqlRow> {
    let query = format!("select {COLUMNS} from rolling($1, epoch_time($2), epoch_time($3))");
    sql_rows(&schema.client.query(&query, &[&CITY_NAMES[city as usize], &range.start, &range.end]))
}

fn rolling_as_of(
    schema: &TestSchema,
    city: u32,
    range: &std::ops::Range<i64>,
    as_of: i64,
) -> BTreeMap<i64, SqlRow> {
    let query = format!("select {COLUMNS} from rolling_as_of($1, epoch_time($2), epoch_time($3), $4)");
    sql_rows(&schema.client.query(&query, &[&CITY_NAMES[city as usize], &range.start, &range.end, &as_of]))
}

fn cities() -> std::ops::Range<u32> {
    0..CITY_NAMES.len() as u32
}

fn filled_schema(settings: RunSettings, seed: u64, arrivals: usize) -> (TestSchema, FilledLog) {
    let (schema, log) = (TestSchema::migrated(&shared_server()), FilledLog::new(settings, seed, arrivals));
    log.fill(&schema);
    (schema, log)
}

/// All times of a log.
fn times(log: &FilledLog) -> std::ops::Range<i64> {
    let times = || log.log.arrivals.iter().map(|arrival| arrival.entry.millis);
    times().min().unwrap()..times().max().unwrap() + 1
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn rolling_means_equal_oracle_bit_for_bit() {
    let rothfusz = RunSettings {
        formula: swelter::internals::dataflow::heat_index::Formula::Rothfusz,
        window: DAY_MS,
        lateness: DAY_MS,
        history: DAY_MS,
    };
    for (settings, seed) in [(RUN_SETTINGS, 1), (rothfusz, 2)] {
        let (schema, log) = filled_schema(settings, seed, 2_000);
        let (rows, all) = (log.log.oracle.rows(), times(&log));
        let mut random = Random::new(seed);
        for city in cities() {
            assert_eq!(rolling(&schema, city, &all), expected_rows(&rows, city, all.clone()));
            for _ in 0..10 {
                let at = |random: &mut Random| {
                    all.start + random.below((all.end - all.start) as u64) as i64 / MINUTE_MS * MINUTE_MS
                };
                let (one, other) = (at(&mut random), at(&mut random));
                let range = one.min(other)..one.max(other);
                assert_eq!(
                    rolling(&schema, city, &range),
                    expected_rows(&rows, city, range.clone()),
                    "{range:?}"
                );
            }
            let query = format!("select {COLUMNS} from result_rows where city = $1");
            let found = sql_rows(&schema.client.query(&query, &[&CITY_NAMES[city as usize]]));
            assert_eq!(found, expected_rows(&rows, city, all.clone()));
        }
        let all = schema.client.query("select count(*) from result_rows", &[]);
        assert_eq!(all[0].get::<_, i64>(0), rows.len() as i64);
    }
}

/// A day of an interval would have 23 or 25 hours on days when the clocks change.
#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn rolling_window_does_not_depend_on_session_zone() {
    let settings = RunSettings { window: 30 * DAY_MS, lateness: DAY_MS, history: DAY_MS, ..RUN_SETTINGS };
    let (schema, log) = filled_schema(settings, 3, 400);
    // Its clocks go back at 2026-01-11, within the log.
    schema.client.execute("set timezone to 'XXX3YYY2,J1/0,J11/0'");
    let (rows, all) = (log.log.oracle.rows(), times(&log));
    for city in cities() {
        assert_eq!(rolling(&schema, city, &all), expected_rows(&rows, city, all.clone()));
    }
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn time_travel_equals_oracle_of_that_time() {
    let (schema, log) = filled_schema(RUN_SETTINGS, 4, 2_000);
    let all = times(&log);
    assert!(log.snapshots.len() > 5);
    for snapshot in &log.snapshots {
        for city in cities() {
            let found = rolling_as_of(&schema, city, &all, snapshot.as_of);
            assert_eq!(found, expected_rows(&snapshot.rows, city, all.clone()), "as of {}", snapshot.as_of);
        }
    }
    for city in cities() {
        assert_eq!(rolling_as_of(&schema, city, &all, log.last_epoch), rolling(&schema, city, &all));
        assert!(rolling_as_of(&schema, city, &all, 0).is_empty());
    }
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn time_travel_beyond_committed_epoch_is_refused() {
    let (schema, log) = filled_schema(RUN_SETTINGS, 5, 50);
    let query = "select * from rolling_as_of($1, epoch_time($2), epoch_time($3), $4)";
    let ask = |city: &str, from: i64, to: i64, at: i64| {
        let refused = schema.client.try_query(query, &[&city, &from, &to, &at]).err()?;
        let refused = refused.as_db_error().unwrap().clone();
        Some((refused.code().code().to_owned(), refused.message().to_owned()))
    };
    let all = times(&log);
    for (from, to) in [(all.start, all.end), (0, 1), (all.end, all.start)] {
        assert_eq!(ask("Oslo", from, to, log.last_epoch), None);
        let (code, text) = ask("Oslo", from, to, log.last_epoch + 1).unwrap();
        assert_eq!(code, "SW001", "{text}");
        assert!(text.contains(&log.last_epoch.to_string()), "{text}");
    }
    assert_eq!(ask("Atlantis", all.start, all.end, i64::MAX), None, "an unknown city has no rows");
    schema.client.execute("update shard set epoch = null");
    assert_eq!(ask("Oslo", 0, 1, 1).unwrap().0, "SW001");
}

/// A mean of a part of its window would be wrong, so there is none.
#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn rolling_means_begin_a_window_after_the_oldest_kept_reading() {
    let (schema, log) = filled_schema(RUN_SETTINGS, 6, 1_500);
    let (rows, all) = (log.log.oracle.rows(), times(&log));
    let kept_from = (all.start + all.end) / 2 / DAY_MS * DAY_MS;
    let set = format!("set kept_from = (epoch_time({kept_from}) at time zone 'UTC')::date");
    schema.client.execute(&format!("update shard {set}"));
    schema.client.execute("set timezone to 'Asia/Kathmandu'");
    let check = |city: u32, begins: i64| {
        let expected = expected_rows(&rows, city, begins..all.end);
        assert!(!expected.is_empty() && expected != expected_rows(&rows, city, all.clone()));
        assert_eq!(rolling(&schema, city, &all), expected);
        assert_eq!(rolling_as_of(&schema, city, &all, log.last_epoch), expected);
        let query = format!("select {COLUMNS} from result_rows where city = $1");
        assert_eq!(sql_rows(&schema.client.query(&query, &[&CITY_NAMES[city as usize]])), expected);
    };
    check(0, kept_from + RUN_SETTINGS.window);
    let begins = kept_from + DAY_MS + 7 * MINUTE_MS;
    let set = format!("update city set begins = epoch_time({begins}) where city_id = {}", city_id(1));
    schema.client.execute(&set);
    check(1, begins + RUN_SETTINGS.window);
    check(2, kept_from + RUN_SETTINGS.window);
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn means_of_any_size_are_rounded_once() {
    let schema = TestSchema::migrated(&shared_server());
    let mut random = Random::new(7);
    let mut cases = vec![(0, 1), (i64::MAX, 1 << 28), (-i64::MAX, 3), ((1 << 53) + 1, 1), (1 << 53, 7)];
    for _ in 0..2_000 {
        let sum = random.next() as i64 >> random.below(63);
        let bits = random.below(29);
        cases.push((sum, 1 + random.below(1 << bits) as u32));
    }
    let (sums, counts): (Vec<i64>, Vec<i64>) =
        cases.iter().map(|(sum, count)| (*sum, i64::from(*count))).unzip();
    let query = "select mean_fahrenheit(sum, n) from unnest($1::bigint[], $2::bigint[]) with ordinality as of(sum, n, at) order by at";
    let found = schema.client.query(query, &[&sums, &counts]);
    assert_eq!(found.len(), cases.len());
    for (found, (sum, count)) in found.iter().zip(cases) {
        let row = Row::new(HeatIndex::from_micros(0), Category::None, sum, count);
        let mean: f64 = found.get(0);
        assert_eq!(mean.to_bits(), row.rolling_heat_index().to_bits(), "{sum} / {count}");
    }
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn arrivals_show_what_was_there_before() {
    let (schema, log) = filled_schema(RUN_SETTINGS, 8, 1_000);
    let query = "select city, as_of, seq, (extract(epoch from reading_at) * 1000)::bigint, outcome, temperature_before, humidity_before,
        heat_index_before, category_before, heat_index, category from arrival_rows order by position";
    let found = schema.client.query(query, &[]);
    assert_eq!(found.len(), log.log.arrivals.len());
    let mut corrected = 0;
    for (row, (arrival, (as_of, seq))) in found.iter().zip(log.log.arrivals.iter().zip(&log.places)) {
        let AppliedArrival { entry, before, after, measurement_before, .. } = arrival;
        let key: (&str, i64, i32, i64) = (row.get(0), row.get(1), row.get(2), row.get(3));
        let name = CITY_NAMES[entry.city as usize];
        assert_eq!(key, (name, *as_of, *seq, entry.millis));
        let found: (Option<f64>, Option<f64>) = (row.get(5), row.get(6));
        let measured = measurement_before.map(|before| (before.temperature(), before.humidity()));
        assert_eq!(found, measured.unzip(), "{key:?}");
        for (at, heat) in [(7, before), (9, after)] {
            let found: (Option<f64>, Option<&str>) = (row.get(at), row.get(at + 1));
            let expected = heat.map(|(heat_index, category)| (heat_index.fahrenheit(), category.name()));
            assert_eq!(found, expected.unzip(), "{key:?}");
        }
        corrected += usize::from(row.get::<_, &str>(4) == "corrected");
    }
    assert!(corrected > 20, "{corrected}");
    let names = schema.client.query("select code from outcome where name = outcome_name(code)", &[]);
    assert_eq!(names.len(), 9);
    let codes: Vec<i16> = log.log.arrivals.iter().map(|arrival| outcome_code(arrival.outcome)).collect();
    assert!((1..=5).all(|code| codes.contains(&code)), "an outcome is missing");
}

/// The lines of a plan.
fn plan(schema: &TestSchema, query: &str) -> String {
    // The tables are so small that other ways cost no more.
    schema.client.execute("set enable_seqscan = off; set enable_bitmapscan = off; analyze");
    let lines = schema.client.query(&format!("explain (costs off) {query}"), &[]);
    lines.iter().map(|line| line.get::<_, String>(0) + "\n").collect()
}

/// The bounds reach the scan: only the partitions of the range and of the window before it are read,
/// by their keys, and nothing is sorted that the key sorts already.
#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn rolling_reads_only_its_range_by_key() {
    let (schema, log) = filled_schema(RUN_SETTINGS, 9, 1_500);
    let all = times(&log);
    let day = (all.start / DAY_MS + 3) * DAY_MS;
    let range = format!("'Oslo', '{0}'::timestamptz, '{0}'::timestamptz + interval '1 hour'", time(day));
    for (call, table) in [
        (format!("rolling({range})"), "reading"),
        (format!("rolling_as_of({range}, {})", log.last_epoch), "arrival"),
    ] {
        let plan = plan(&schema, &format!("select * from {call}"));
        let read = plan.matches(&format!(" on {table}_2026")).count();
        let removed = plan.lines().find_map(|line| line.trim().strip_prefix("Subplans Removed: "));
        let partitions = schema
            .client
            .query("select count(*) from pg_inherits where inhparent = $1::text::regclass", &[&table]);
        let partitions: i64 = partitions[0].get(0);
        assert!(
            partitions > 4 && read == 2,
            "{read} of {partitions} are read ({removed:?} removed):\n{plan}"
        );
        assert!(!plan.contains("Seq Scan on reading") && !plan.contains("Seq Scan on arrival"), "{plan}");
        assert!(!plan.contains("Function Scan"), "{call} is not inlined:\n{plan}");
        assert!(!plan.contains("  Sort\n") || table == "arrival", "{plan}");
    }
    let by_city = plan(&schema, "select * from result_rows where city = 'Oslo'");
    assert!(!by_city.contains("Sort") && !by_city.contains("Seq Scan on reading"), "{by_city}");
}

fn time(millis: i64) -> swelter::internals::model::EventTime {
    swelter::internals::model::EventTime::from_millis(millis).unwrap()
}
