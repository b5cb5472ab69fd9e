//! The state that the servers build from the dataflow's updates, and the rankings, against the
//! oracle.

use std::collections::BTreeMap;
use std::fmt::Debug;

use swelter::internals::dataflow::rolling::serving::ServingUpdate;
use swelter::internals::model::{Category, CurrentRow, CurrentRowUpdate, EventTime, OutcomeCounts, Row};

use crate::support::dataflow_runner::{
    self, EXPLAIN_QUERY_ID, EpochOutput, HOTTEST_CITIES, WATCHED_CITY_AND_EPOCHS,
};
use crate::support::{Oracle, city_name, city_number};

pub fn accumulate_diffs<D: Ord + Clone + Debug>(
    held: &mut BTreeMap<D, isize>,
    diffs: impl Iterator<Item = (D, isize)>,
) {
    for (datum, diff) in diffs {
        *held.entry(datum).or_insert(0) += diff;
    }
    held.retain(|_, count| *count != 0);
    assert!(held.values().all(|count| *count == 1), "{held:?}");
}

/// The state that servers build from the updates of each epoch.
#[derive(Default)]
pub struct ServingState {
    epoch: usize,
    current: BTreeMap<u32, CurrentRow>,
    /// Of the watched city, since its snapshot.
    watched: Option<BTreeMap<i64, Row>>,
    pub counts: OutcomeCounts,
}

impl ServingState {
    /// Before an epoch.
    pub fn at(epoch: usize) -> ServingState {
        ServingState { epoch, ..ServingState::default() }
    }

    /// Applies the updates of an epoch; then the state must be that of the oracle. `explained` is
    /// the city and the time of the row that the epoch asks an explanation of.
    pub fn check_epoch(&mut self, output: &EpochOutput, oracle: &Oracle, explained: Option<(u32, i64)>) {
        let (watched, while_watched) = WATCHED_CITY_AND_EPOCHS;
        let mut answers = BTreeMap::new();
        for told in &output.serving_updates {
            match told {
                ServingUpdate::CurrentRow(CurrentRowUpdate { city, row: Some(row), .. }) => {
                    self.current.insert(city_number(city), *row);
                }
                ServingUpdate::CurrentRow(CurrentRowUpdate { city, row: None, .. }) => {
                    self.current.remove(&city_number(city)).expect("what is removed was there");
                }
                ServingUpdate::WatchedRow(change) => {
                    assert_eq!((&*change.city, change.epoch), (&*city_name(watched), self.epoch as u64));
                    assert!(while_watched.start < self.epoch && self.epoch <= while_watched.end);
                    let at = change.reading_at.millis();
                    let rows = self.watched.as_mut().expect("the snapshot comes first");
                    match change.row {
                        Some(row) => rows.insert(at, row),
                        None => rows.remove(&at),
                    };
                }
                ServingUpdate::AnswerPiece(answer) => {
                    assert_eq!(answer.epoch, self.epoch as u64);
                    answers.insert(answer.query_id % dataflow_runner::QUERY_IDS_PER_EPOCH, answer);
                }
                ServingUpdate::OutcomeCounts(counts) => self.counts.add(counts),
                ServingUpdate::Progress(_) => unreachable!("no progress was sent"),
            }
        }
        assert_eq!(self.current, oracle.current(), "current rows as told");
        let rows = |rows: &[(EventTime, Row)]| -> Vec<(i64, Row)> {
            rows.iter().map(|(at, row)| (at.millis(), *row)).collect()
        };
        for city in 0..4 {
            let answer = &answers[&u64::from(city)];
            assert_eq!(
                (answer.is_city_known, answer.has_more),
                (oracle.knows_city(city), false),
                "{answer:?}"
            );
            assert_eq!(rows(&answer.rows), oracle.servable_rows(city), "history");
        }
        let servable = oracle.servable_rows(watched);
        let first = &answers[&4];
        assert_eq!(rows(&first.rows), servable[..servable.len().min(3)], "the first page");
        assert_eq!(first.has_more, servable.len() > 3);
        if let Some((city, millis)) = explained {
            let answer = &answers[&EXPLAIN_QUERY_ID];
            let (row, readings, measured) = oracle.explanation(city, millis);
            assert_eq!(answer.is_city_known, oracle.knows_city(city));
            assert_eq!(rows(&answer.rows), readings, "the readings of a window");
            assert_eq!(answer.high, oracle.high(city), "the newest admitted time");
            if let Some(explained) = &answer.explained_row {
                let held = explained.measurements.iter().map(|(at, held)| (at.millis(), *held));
                assert_eq!((explained.row, held.collect()), (row, measured), "the explained row");
            } else {
                assert!(!answer.is_city_known, "{answer:?}");
            }
            if let Some(row) = row {
                let sum: i64 = readings.iter().map(|(_, reading)| reading.sum()).sum();
                assert_eq!((row.sum(), row.count() as usize), (sum, readings.len()), "adds up");
            }
        }
        if let Some(snapshot) = answers.get(&5) {
            self.watched = Some(rows(&snapshot.rows).into_iter().collect());
        }
        if let (Some(known), true) = (&self.watched, self.epoch <= while_watched.end) {
            // A row that turns final stays, and stays right: only the servable ones are compared.
            let held = servable.iter().filter_map(|(at, _)| Some((*at, *known.get(at)?)));
            assert_eq!(held.collect::<Vec<_>>(), servable, "watched rows");
        }
        self.epoch += 1;
    }
}

pub fn check_rankings(
    hottest: &mut BTreeMap<(String, i64), isize>,
    categories: &mut BTreeMap<(Category, isize), isize>,
    output: &EpochOutput,
    oracle: &Oracle,
) {
    accumulate_diffs(
        hottest,
        output.hottest.iter().map(|(city, micros, diff)| ((city.clone(), *micros), *diff)),
    );
    let current = oracle.current();
    let mut ranked: Vec<_> =
        current.iter().map(|(city, row)| (city_name(*city), row.row.heat_index().micros())).collect();
    ranked.sort_by_key(|(city, micros)| (-micros, city.clone()));
    ranked.truncate(HOTTEST_CITIES);
    ranked.sort();
    assert_eq!(hottest.keys().cloned().collect::<Vec<_>>(), ranked, "hottest");
    accumulate_diffs(categories, output.categories.iter().map(|(c, diff)| ((c.category, c.cities), *diff)));
    let mut counts: BTreeMap<Category, isize> = BTreeMap::new();
    current.values().for_each(|row| *counts.entry(row.row.category()).or_insert(0) += 1);
    assert_eq!(
        categories.keys().copied().collect::<Vec<_>>(),
        counts.into_iter().collect::<Vec<_>>(),
        "categories"
    );
}
