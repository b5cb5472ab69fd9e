//! What serving is told of an epoch, and the answers to its questions.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Changed, Rolling};
use crate::model::{
    Answer, CityId, CityName, Counts, CurrentRow, EventTime, Progress, Query, Question, WatchedRow,
};

/// A piece of what closed epochs say, for serving. It carries names, so it means the same to every worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Told {
    /// A city's current row from this epoch on.
    Current {
        city: Arc<str>,
        row: Option<CurrentRow>,
    },
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
    pub progress: Progress,
    /// The reader has come to the end that the partition had at the start.
    pub caught_up: bool,
}

/// Which cities of a worker are watched.
#[derive(Debug, Default)]
pub struct Watched {
    /// By name: a city can be watched before its first reading.
    names: HashSet<Arc<str>>,
    /// By id.
    cities: HashSet<u32, foldhash::fast::RandomState>,
}

impl Watched {
    /// Learns of a city that was introduced.
    pub fn introduced(&mut self, city: &CityName, rolling: &Rolling) {
        if self.names.contains(&*city.name)
            && let Some(CityId(id)) = rolling.city(&city.name)
        {
            self.cities.insert(id);
        }
    }

    /// Tells what an epoch has changed. The answers of the epoch come after it.
    pub fn tell(&self, epoch: u64, changed: &Changed, rolling: &Rolling, told: &mut Vec<Told>) {
        let names = &rolling.cities.names;
        if changed.counts != Counts::default() {
            told.push(Told::Counts(changed.counts));
        }
        for (city, row) in changed.current_rows() {
            told.push(Told::Current { city: names.get(city), row: row.copied() });
        }
        if self.cities.is_empty() {
            return;
        }
        let rows = changed.rows.iter().flatten().filter(|change| change.before != change.after);
        for change in rows.filter(|change| self.cities.contains(&change.city.0)) {
            let (city, reading_at, row) = (names.get(change.city), change.reading_at, change.after);
            told.push(Told::Row(WatchedRow { epoch, city, reading_at, row }));
        }
    }

    /// Answers a query as of `epoch`, which has been applied.
    pub fn answer(&mut self, epoch: u64, query: Query, rolling: &mut Rolling) -> Option<Told> {
        let Query { id, city: name, question } = query;
        let city = rolling.city(&name);
        let (from, to, limit) = match question {
            Question::Unwatch => {
                self.names.remove(&name);
                city.map(|CityId(id)| self.cities.remove(&id));
                return None;
            }
            Question::Watch => {
                self.names.insert(Arc::clone(&name));
                city.map(|CityId(id)| self.cities.insert(id));
                (EventTime::MIN, Some(EventTime::MAX), usize::MAX)
            }
            Question::History { from, to, limit } => {
                (from, EventTime::from_millis(to.millis() - 1), limit as usize)
            }
        };
        let (mut rows, mut more) = (Vec::new(), false);
        if let Some((city, to)) = city.zip(to) {
            rolling.servable_rows(city, from, to, |millis, row| {
                more = rows.len() == limit;
                // Held times come from event times.
                if let Some(reading_at) = EventTime::from_millis(millis).filter(|_| !more) {
                    rows.push((reading_at, row));
                }
            });
        }
        Some(Told::Answer(Answer { query: id, epoch, city: name, known: city.is_some(), rows, more }))
    }
}
