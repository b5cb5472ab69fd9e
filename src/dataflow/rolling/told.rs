//! What serving is told of an epoch, and the answers to its questions.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Changed, Rolling};
use crate::model::{Answer, CityId, CityName, Counts, CurrentAt, Progress, Query, Question, WatchedRow};

/// A piece of what closed epochs say, for serving. It carries names, so it means the same to every worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Told {
    /// A city's current row from this epoch on.
    Current(CurrentAt),
    Row(WatchedRow),
    Answer(Answer),
    /// What became of the epoch's arrivals at one worker.
    Counts(Counts),
    Read(Read),
}

/// How far a partition was read for an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    pub epoch: u64,
    /// None where it only says that the epoch is in use.
    pub progress: Option<Progress>,
    /// The reader has come to the end that the partition had at the start.
    pub caught_up: bool,
}

/// A set of processes: the bit of each.
pub type Processes = u64;

/// The set of one process.
pub fn process_bit(process: u8) -> Processes {
    1 << (process % 64)
}

/// What is for every process.
pub const EVERY_PROCESS: Processes = Processes::MAX;

/// Which cities of a worker are watched, and by which processes.
#[derive(Debug, Default)]
pub struct Watched {
    /// By name: a city can be watched before its first reading.
    names: HashMap<Arc<str>, Processes>,
    /// By id.
    cities: HashMap<u32, Processes, foldhash::fast::RandomState>,
}

impl Watched {
    /// Learns of a city that was introduced.
    pub fn introduced(&mut self, city: &CityName, rolling: &Rolling) {
        if let Some(watching) = self.names.get(&*city.name)
            && let Some(CityId(id)) = rolling.city(&city.name)
        {
            self.cities.insert(id, *watching);
        }
    }

    /// Whether changes of the city's rows are told.
    pub fn is_watched(&self, CityId(city): CityId) -> bool {
        !self.cities.is_empty() && self.cities.contains_key(&city)
    }

    /// Tells what an epoch has changed. The answers of the epoch come after it.
    pub fn tell(&self, epoch: u64, changed: &Changed, rolling: &Rolling, told: &mut Vec<(Processes, Told)>) {
        let names = &rolling.cities.names;
        if changed.counts != Counts::default() {
            told.push((EVERY_PROCESS, Told::Counts(changed.counts)));
        }
        for (city, row) in changed.current_rows() {
            let current = CurrentAt { epoch, city: names.get(city), row: row.copied() };
            told.push((EVERY_PROCESS, Told::Current(current)));
        }
        if self.cities.is_empty() {
            return;
        }
        let rows = changed.rows.iter().flatten().filter(|change| change.before != change.after);
        for change in rows {
            if let Some(watching) = self.cities.get(&change.city.0) {
                let (city, reading_at, row) = (names.get(change.city), change.reading_at, change.after);
                told.push((*watching, Told::Row(WatchedRow { epoch, city, reading_at, row })));
            }
        }
    }

    /// Notes whether a process watches a city, where the query is about that.
    pub fn note(&mut self, query: &Query, rolling: &Rolling) {
        let asker = process_bit(query.process);
        let city = || rolling.city(&query.city);
        match query.question {
            Question::Watch => self.watch(&query.city, city(), |watching| watching | asker),
            Question::Unwatch => self.watch(&query.city, city(), |watching| watching & !asker),
            Question::History { .. } | Question::Grant { .. } | Question::Cancel => {}
        }
    }

    fn watch(&mut self, name: &Arc<str>, city: Option<CityId>, change: impl Fn(Processes) -> Processes) {
        let watching = change(self.names.get(name).copied().unwrap_or(0));
        if watching == 0 {
            self.names.remove(name);
            city.map(|CityId(id)| self.cities.remove(&id));
        } else {
            self.names.insert(Arc::clone(name), watching);
            city.map(|CityId(id)| self.cities.insert(id, watching));
        }
    }
}
