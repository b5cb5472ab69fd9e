//! Random updates, and the rows that they make at each epoch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::Mutex;
use serde_json::Value;

use super::*;
use crate::codec;
use crate::model::{
    AnswerPiece, Category, CurrentRow, CurrentRowUpdate, EventTime, HeatIndex, Measurement, OutputUnits,
    Queries, Query, QueryKind, RemainingRows, Row, ViewUpdate, WatchedRow,
};

/// SplitMix64.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// The dataflow as the view sees it, and the oracle.
pub(super) struct ModelDataflow {
    pub(super) cities: Vec<Arc<str>>,
    log: Mutex<ModelHistory>,
    queries: Mutex<Vec<Query>>,
    /// Whether the queue of queries is full.
    pub(super) full: AtomicBool,
    /// Whether all granted rows are made at once.
    pub(super) whole: AtomicBool,
    pub(super) as_of: AtomicU64,
}

struct ModelHistory {
    rng: Rng,
    /// Responses that are not complete, by query.
    open: BTreeMap<u64, ModelResponse>,
    watched: BTreeSet<Arc<str>>,
    currents: Vec<(u64, Arc<str>, Option<CurrentRow>)>,
    rows: Vec<WatchedRow>,
}

/// A response whose rows are made one at a time, as far as they are granted.
struct ModelResponse {
    epoch: u64,
    city: Arc<str>,
    rows: Vec<(EventTime, Row)>,
    made: usize,
    granted: usize,
}

/// How far a piece overestimates the remaining rows.
const BOUND: u64 = 3;

impl ModelResponse {
    fn piece(&self, query: u64, first: usize, rows: usize) -> AnswerPiece {
        let left = self.rows.len() - first - rows;
        let rest = match left {
            0 => RemainingRows::Nothing,
            _ => RemainingRows::AtMost { rows: left as u64 + BOUND, pinned_bytes: 1000 },
        };
        let rows = self.rows[first..first + rows].to_vec();
        let (epoch, city, first) = (self.epoch, self.city.clone(), first as u64);
        AnswerPiece {
            query_id: query,
            epoch,
            city,
            is_city_known: true,
            first_row: first,
            rows,
            has_more: false,
            remaining: rest,
        }
    }
}

impl Queries for ModelDataflow {
    fn submit_queries(&self, queries: Vec<Query>) -> bool {
        let full = self.full.load(Ordering::Relaxed);
        if !full {
            self.queries.lock().extend(queries);
        }
        !full
    }
}

impl ModelDataflow {
    pub(super) fn new(seed: u64, cities: Vec<Arc<str>>) -> Arc<ModelDataflow> {
        let log = ModelHistory {
            rng: Rng(seed),
            open: BTreeMap::new(),
            watched: BTreeSet::new(),
            currents: Vec::new(),
            rows: Vec::new(),
        };
        Arc::new(ModelDataflow {
            cities,
            log: Mutex::new(log),
            queries: Mutex::default(),
            full: AtomicBool::new(false),
            whole: AtomicBool::new(false),
            as_of: AtomicU64::new(1_000),
        })
    }

    /// The next update: one to three epochs.
    pub(super) fn step(&self) -> ViewUpdate {
        let log = &mut *self.log.lock();
        let before = self.as_of.load(Ordering::Relaxed);
        let as_of = before + 1 + log.rng.below(3);
        let answered = before + 1 + log.rng.below(as_of - before);
        let queries = std::mem::take(&mut *self.queries.lock());
        let mut rows = Vec::new();
        for epoch in before + 1..=as_of {
            rows.extend(log.change_rows(epoch, &self.cities));
        }
        let mut watched_rows: Vec<_> =
            rows.iter().filter(|row| log.watched.contains(&row.city)).cloned().collect();
        log.rows.extend(rows.iter().cloned());
        let mut answers = Vec::new();
        for Query { id, city, kind, .. } in queries {
            if kind == QueryKind::Unwatch {
                log.watched.remove(&city);
                watched_rows.retain(|row| row.city != city || row.epoch <= answered);
                continue;
            }
            if kind == QueryKind::Watch && log.watched.insert(city.clone()) {
                watched_rows.retain(|row| row.city != city);
                watched_rows
                    .extend(rows.iter().filter(|row| row.city == city && row.epoch > answered).cloned());
            }
            answers.extend(log.accept_query(id, answered, city, kind));
        }
        let whole = self.whole.load(Ordering::Relaxed);
        let most = if whole { usize::MAX } else { log.rng.below(4) as usize };
        answers.extend(log.make_pieces(most));
        watched_rows.sort_by_key(|row| row.epoch);
        let current = log.change_currents(as_of, &self.cities).into_iter();
        let current = current.map(|(city, row)| CurrentRowUpdate { epoch: as_of, city, row }).collect();
        self.as_of.store(as_of, Ordering::Release);
        ViewUpdate {
            upper: as_of + 1,
            is_ready: true,
            current_rows: current,
            watched_rows,
            answers,
            ..ViewUpdate::default()
        }
    }

    /// An update that has only answers.
    pub(super) fn answer(&self, epoch: u64) -> ViewUpdate {
        let log = &mut *self.log.lock();
        let mut answers = Vec::new();
        for Query { id, city, kind, .. } in std::mem::take(&mut *self.queries.lock()) {
            if kind != QueryKind::Unwatch {
                answers.extend(log.accept_query(id, epoch, city, kind));
            }
        }
        answers.extend(log.make_pieces(usize::MAX));
        ViewUpdate { upper: epoch + 1, is_ready: true, answers, ..ViewUpdate::default() }
    }

    /// Queries that wait for an answer.
    pub(super) fn pending_query_count(&self) -> usize {
        let queries = self.queries.lock();
        queries
            .iter()
            .filter(|query| !matches!(query.kind, QueryKind::GrantRows { .. } | QueryKind::Cancel))
            .count()
    }

    pub(super) fn now(&self) -> u64 {
        self.as_of.load(Ordering::Acquire)
    }

    /// The rows that a client must have at an epoch.
    pub(super) fn map(
        &self,
        window: bool,
        is_selected: impl Fn(&str) -> bool,
        units: OutputUnits,
        as_of: u64,
    ) -> BTreeMap<String, Value> {
        let log = self.log.lock();
        let mut map = BTreeMap::new();
        for city in self.cities.iter().filter(|city| is_selected(city)) {
            let mut add = |write: &dyn Fn(&mut Vec<u8>)| {
                let mut text = Vec::new();
                write(&mut text);
                let row: Value = serde_json::from_slice(&text).unwrap();
                map.insert(client::key(window, &row), row);
            };
            if window {
                for (reading_at, row) in log.rows_at(city, as_of) {
                    add(&|out| codec::push_row_json(out, city, reading_at, &row, units));
                }
            } else if let Some(row) = log.current_at(city, as_of) {
                add(&|out| codec::push_current_json(out, city, &row, units));
            }
        }
        map
    }
}

impl ModelHistory {
    /// Accepts a query; returns its first piece, which counts the rows.
    fn accept_query(&mut self, id: u64, epoch: u64, city: Arc<str>, kind: QueryKind) -> Option<AnswerPiece> {
        match kind {
            QueryKind::GrantRows { rows } => {
                self.open.get_mut(&id)?.granted += rows as usize;
                None
            }
            QueryKind::Cancel => {
                self.open.remove(&id);
                None
            }
            _ => {
                let rows = self.rows_at(&city, epoch).into_iter().collect();
                let open = ModelResponse { epoch, city, rows, made: 0, granted: 0 };
                let piece = open.piece(id, 0, 0);
                if piece.remaining != RemainingRows::Nothing {
                    self.open.insert(id, open);
                }
                Some(piece)
            }
        }
    }

    /// Makes granted rows, each a piece of its own, in any order, at most `most` of a query.
    fn make_pieces(&mut self, most: usize) -> Vec<AnswerPiece> {
        let mut answers = Vec::new();
        for (&id, open) in &mut self.open {
            for _ in 0..most.min(open.granted).min(open.rows.len() - open.made) {
                answers.push(open.piece(id, open.made, 1));
                (open.made, open.granted) = (open.made + 1, open.granted - 1);
            }
        }
        self.open.retain(|_, open| open.made < open.rows.len());
        if self.rng.one_in(2) {
            answers.reverse();
        }
        answers
    }

    fn row(&mut self) -> Row {
        let heat_index = HeatIndex::from_micros(self.rng.below(130_000_000) as i64);
        let count = 1 + self.rng.below(2000) as u32;
        Row::new(heat_index, Category::of(heat_index), self.rng.below(1 << 40) as i64, count)
    }

    fn rows_at(&self, city: &str, epoch: u64) -> BTreeMap<EventTime, Row> {
        let mut rows = BTreeMap::new();
        for change in self.rows.iter().filter(|change| &*change.city == city && change.epoch <= epoch) {
            match change.row {
                Some(row) => rows.insert(change.reading_at, row),
                None => rows.remove(&change.reading_at),
            };
        }
        rows
    }

    fn current_at(&self, city: &str, epoch: u64) -> Option<CurrentRow> {
        let mut changes = self.currents.iter().rev();
        changes.find(|(at, key, _)| *at <= epoch && &**key == city).and_then(|(_, _, row)| *row)
    }

    fn change_rows(&mut self, epoch: u64, cities: &[Arc<str>]) -> Vec<WatchedRow> {
        let mut keys = BTreeSet::new();
        for _ in 0..self.rng.below(6) {
            keys.insert((self.rng.below(cities.len() as u64) as usize, self.rng.below(5) as i64));
        }
        let change = |(city, minute): (usize, i64)| WatchedRow {
            epoch,
            city: cities[city].clone(),
            reading_at: EventTime::from_millis(minute * 60_000).unwrap(),
            row: (!self.rng.one_in(3)).then(|| self.row()),
        };
        keys.into_iter().map(change).collect()
    }

    fn change_currents(&mut self, as_of: u64, cities: &[Arc<str>]) -> Vec<(Arc<str>, Option<CurrentRow>)> {
        let mut changed = BTreeMap::new();
        for _ in 0..self.rng.below(8) {
            let city = cities[self.rng.below(cities.len() as u64) as usize].clone();
            let row = (!self.rng.one_in(4)).then(|| self.current(as_of));
            changed.insert(city, row);
        }
        self.currents.extend(changed.iter().map(|(city, row)| (as_of, city.clone(), *row)));
        changed.into_iter().collect()
    }

    fn current(&mut self, as_of: u64) -> CurrentRow {
        let wind = self.rng.one_in(2).then_some(8.05);
        CurrentRow {
            reading_at: EventTime::from_millis(as_of as i64 * 60_000).unwrap(),
            row: self.row(),
            hour_ago: self.rng.one_in(2).then_some((77_000_000, 1)),
            measurement: self.rng.one_in(2).then(|| Measurement::new(86.4, 63.1, wind).unwrap()),
        }
    }
}
