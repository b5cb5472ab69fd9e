//! What the tables hold, beside what they must hold after a log.

use std::collections::BTreeMap;

use swelter::internals::model::{
    Category, EventTime, HeatIndex, Measurement, ReadingEvent, Row as ResultRow,
};
use tokio_postgres::Row;

use super::applied_log::{AppliedArrival, AppliedLog, Summary, outcome_code};
use super::test_schema::TestClient;
use crate::support::RunSettings;

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// Rows as text, by key. Numbers are written so that other bits are another text.
type TextRows = BTreeMap<String, String>;

/// A table, and the query for its rows: the city first, then the rest of the key.
struct Query {
    table: &'static str,
    sql: &'static str,
    parse: fn(&Row) -> (String, String),
}

const QUERIES: [Query; 6] = [
    Query {
        table: "city",
        sql: "select name, exact, begins is null and city_id = (('x0' || encode(sha256(convert_to(name, 'UTF8')), 'hex'))::bit(68) << 3)::bit(64)::bigint from city",
        parse: |row| (row.get(0), format!("{} {}", row.get::<_, bool>(1), row.get::<_, bool>(2))),
    },
    Query {
        table: "reading",
        sql: "select name, (extract(epoch from reading_at) * 1000)::bigint, temperature, humidity, wind_speed, heat_index_e6, category, revision
            from reading join city using (city_id)",
        parse: |row| {
            let heat = (row.get::<_, i64>(5), row.get::<_, i16>(6));
            (row_key(row), format!("{} {heat:?} {:?}", measured(row, 2), row.get::<_, Option<i64>>(7)))
        },
    },
    Query {
        table: "arrival",
        sql: "select name, row_number() over (partition by name order by as_of, seq), (extract(epoch from reading_at) * 1000)::bigint,
                temperature, humidity, wind_speed, revision, outcome, heat_index_e6, category, heat_index_before_e6, category_before
            from arrival join city using (city_id)",
        parse: |row| {
            let heat = |at: usize| (row.get::<_, Option<i64>>(at), row.get::<_, Option<i16>>(at + 1));
            let (at, revision, outcome): (i64, Option<i64>, i16) = (row.get(2), row.get(6), row.get(7));
            let text = format!(
                "{} {} {revision:?} {outcome} {:?} {:?}",
                time(at),
                measured(row, 3),
                heat(8),
                heat(10)
            );
            (format!("{} {:06}", row.get::<_, &str>(0), row.get::<_, i64>(1)), text)
        },
    },
    Query {
        table: "now",
        sql: "select name, (extract(epoch from high) * 1000)::bigint, temperature, humidity, wind_speed, (extract(epoch from reading_at) * 1000)::bigint,
                heat_index_e6, sum_e6, count, category
            from now join city using (city_id)",
        parse: |row| {
            let reading_at: Option<i64> = row.get(5);
            let result: (Option<i64>, Option<i64>, Option<i32>, Option<i16>) =
                (row.get(6), row.get(7), row.get(8), row.get(9));
            let text = format!("{} {:?} {} {result:?}", time(row.get(1)), reading_at.map(time), measured(row, 2));
            (row.get(0), text)
        },
    },
    Query {
        table: "hour",
        sql: "select name, (extract(epoch from hour_at) * 1000)::bigint, readings, sum_e6, max_e6, (extract(epoch from max_at) * 1000)::bigint, c0, c1, c2, c3, c4,
                final, hour_at = date_trunc('hour', hour_at)
            from hour join city using (city_id)",
        parse: |row| (row_key(row), summary(row)),
    },
    Query {
        table: "day",
        sql: "select name, (extract(epoch from starts) * 1000)::bigint, readings, sum_e6, max_e6, (extract(epoch from max_at) * 1000)::bigint, c0, c1, c2, c3, c4,
                final, day.zone = 'UTC' and starts = day::timestamp at time zone 'UTC' and ends = (day + 1)::timestamp at time zone 'UTC'
            from day join city using (city_id)",
        parse: |row| (row_key(row), summary(row)),
    },
];

fn row_key(row: &Row) -> String {
    format!("{} {}", row.get::<_, &str>(0), time(row.get(1)))
}

fn time(millis: i64) -> EventTime {
    EventTime::from_millis(millis).unwrap()
}

fn measured(row: &Row, at: usize) -> String {
    let values: [Option<f64>; 3] = [row.get(at), row.get(at + 1), row.get(at + 2)];
    format!("{values:?}")
}

fn expected_measurement(measurement: Option<&Measurement>) -> String {
    let values = [
        measurement.map(Measurement::temperature),
        measurement.map(Measurement::humidity),
        measurement.and_then(Measurement::wind_speed),
    ];
    format!("{values:?}")
}

/// The columns of a summary, and whether the bounds of the row are right.
fn summary(row: &Row) -> String {
    let (readings, sum, max, max_at): (i32, i64, i64, i64) = (row.get(2), row.get(3), row.get(4), row.get(5));
    let categories: [i32; 5] = std::array::from_fn(|category| row.get(6 + category));
    let (is_final, is_bounded): (bool, bool) = (row.get(11), row.get(12));
    format!("{readings} {sum} {max} {} {categories:?} {is_final} {is_bounded}", time(max_at))
}

fn expected_summary(summary: &Summary, is_final: bool) -> String {
    let Summary { readings, sum, max, max_at, categories } = summary;
    format!("{readings} {sum} {max} {} {categories:?} {is_final} true", time(*max_at))
}

/// The expected contents of the tables.
pub struct ExpectedTables<'a> {
    pub log: &'a AppliedLog,
    pub settings: RunSettings,
    /// The name of a city.
    pub name: &'a dyn Fn(u32) -> String,
}

impl ExpectedTables<'_> {
    /// The first difference between the tables of all databases and what they must hold.
    pub fn find_difference(&self, databases: &[&TestClient]) -> Option<String> {
        QUERIES.iter().find_map(|Query { table, sql, parse }| {
            let (mut found, mut count) = (TextRows::new(), 0);
            for database in databases {
                let rows = database.query(sql, &[]);
                count += rows.len();
                found.extend(rows.iter().map(parse));
            }
            if count != found.len() {
                return Some(format!("{table} has {} rows twice", count - found.len()));
            }
            first_difference(table, &found, &self.expected(table))
        })
    }

    fn expected(&self, table: &str) -> TextRows {
        match table {
            "city" => self.cities(),
            "reading" => self.readings(),
            "arrival" => self.arrivals(),
            "now" => self.current(),
            "hour" => self.summaries(HOUR_MS),
            "day" => self.summaries(DAY_MS),
            _ => panic!("{table}"),
        }
    }

    fn cities(&self) -> TextRows {
        let cities = self.log.arrivals.iter().map(|arrival| (self.name)(arrival.entry.city));
        cities.map(|name| (name, "true true".into())).collect()
    }

    fn readings(&self) -> TextRows {
        let row = |(&(city, millis), (measurement, revision)): (&(u32, i64), &(Measurement, Option<i64>))| {
            let row = self.log.oracle.row(city, millis).unwrap();
            let heat = (row.heat_index().micros(), row.category() as i16);
            let text = format!("{} {heat:?} {revision:?}", expected_measurement(Some(measurement)));
            (format!("{} {}", (self.name)(city), time(millis)), text)
        };
        self.log.measured.iter().map(row).collect()
    }

    fn arrivals(&self) -> TextRows {
        let mut numbers: BTreeMap<u32, usize> = BTreeMap::new();
        let heat = |heat: Option<(HeatIndex, Category)>| -> (Option<i64>, Option<i16>) {
            heat.map(|(heat_index, category)| (heat_index.micros(), category as i16)).unzip()
        };
        let row = |AppliedArrival { entry, outcome, before, after, .. }: &AppliedArrival| {
            let number = numbers.entry(entry.city).or_default();
            *number += 1;
            let measurement = match &entry.event {
                ReadingEvent::Withdrawal => None,
                event => event.measurement(),
            };
            let text = format!(
                "{} {} {:?} {} {:?} {:?}",
                time(entry.millis),
                expected_measurement(measurement),
                entry.revision,
                outcome_code(*outcome),
                heat(*after),
                heat(*before)
            );
            (format!("{} {number:06}", (self.name)(entry.city)), text)
        };
        self.log.arrivals.iter().map(row).collect()
    }

    fn current(&self) -> TextRows {
        let current = self.log.oracle.current();
        let row = |(city, high): (&u32, &i64)| {
            let current = current.get(city);
            let row: Option<&ResultRow> = current.map(|current| &current.row);
            let result = (
                row.map(|row| row.heat_index().micros()),
                row.map(ResultRow::sum),
                row.map(|row| row.count() as i32),
                row.map(|row| row.category() as i16),
            );
            let measurement = current.and_then(|current| current.measurement);
            let text = format!(
                "{} {:?} {} {result:?}",
                time(*high),
                current.map(|current| current.reading_at),
                expected_measurement(measurement.as_ref())
            );
            ((self.name)(*city), text)
        };
        self.log.highs.iter().map(row).collect()
    }

    fn summaries(&self, length: i64) -> TextRows {
        let row = |((city, starts), summary): (&(u32, i64), &Summary)| {
            let passed = self.log.highs[city] - self.settings.lateness;
            let text = expected_summary(summary, starts + length <= passed);
            (format!("{} {}", (self.name)(*city), time(*starts)), text)
        };
        self.log.summaries(length).iter().map(row).collect()
    }
}

fn first_difference(table: &str, found: &TextRows, expected: &TextRows) -> Option<String> {
    let keys = found.keys().chain(expected.keys());
    let different: Vec<&String> = keys.filter(|key| found.get(*key) != expected.get(*key)).collect();
    let key = different.first()?;
    Some(format!(
        "{table} has {} of {} rows; {} differ, such as {key}:\n   {:?}\nnot {:?}",
        found.len(),
        expected.len(),
        different.len(),
        found.get(*key),
        expected.get(*key)
    ))
}
