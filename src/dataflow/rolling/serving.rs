//! What serving is told of an epoch, and the answers to its questions.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{CurrentChange, EpochChanges, Rolling};
use crate::model::{
    AnswerPiece, CityId, CityIntroduction, CurrentRowUpdate, OutcomeCounts, PartitionProgress, Query,
    QueryKind, WatchedRow,
};

/// A piece of what closed epochs say, for serving. It carries names, so it means the same to every worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ServingUpdate {
    /// A city's current row from this epoch on.
    CurrentRow(CurrentRowUpdate),
    WatchedRow(WatchedRow),
    AnswerPiece(AnswerPiece),
    /// What became of the epoch's arrivals at one worker.
    OutcomeCounts(OutcomeCounts),
    Progress(ProgressReport),
}

/// How far a partition was read for an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressReport {
    pub epoch: u64,
    /// None where it only says that the epoch is in use.
    pub progress: Option<PartitionProgress>,
    /// The reader has come to the end that the partition had at the start.
    pub caught_up: bool,
}

/// A set of processes: the bit of each.
pub type ProcessSet = u64;

/// The set of one process.
pub fn process_set_of(process: u8) -> ProcessSet {
    1 << (process % 64)
}

/// What is for every process.
pub const ALL_PROCESSES: ProcessSet = ProcessSet::MAX;

/// Which cities of a worker are watched, and by which processes.
#[derive(Debug, Default)]
pub struct CityWatchers {
    /// By name: a city can be watched before its first reading.
    watchers_by_name: HashMap<Arc<str>, ProcessSet>,
    /// By id.
    watchers_by_id: HashMap<u32, ProcessSet, foldhash::fast::RandomState>,
}

impl CityWatchers {
    /// Learns of a city that was introduced.
    pub fn on_city_introduced(&mut self, city: &CityIntroduction, rolling: &Rolling) {
        if let Some(watching) = self.watchers_by_name.get(&*city.name)
            && let Some(CityId(id)) = rolling.find_city(&city.name)
        {
            self.watchers_by_id.insert(id, *watching);
        }
    }

    /// Whether changes of the city's rows are told.
    pub fn is_watched(&self, CityId(city): CityId) -> bool {
        !self.watchers_by_id.is_empty() && self.watchers_by_id.contains_key(&city)
    }

    /// Tells what an epoch has changed. The answers of the epoch come after it.
    pub fn collect_updates(
        &self,
        epoch: u64,
        changed: &EpochChanges,
        rolling: &Rolling,
        updates: &mut Vec<(ProcessSet, ServingUpdate)>,
    ) {
        let names = &rolling.cities.names;
        if changed.counts != OutcomeCounts::default() {
            updates.push((ALL_PROCESSES, ServingUpdate::OutcomeCounts(changed.counts)));
        }
        for CurrentChange { city, after, .. } in changed.current_changes() {
            let current = CurrentRowUpdate { epoch, city: names.get(city), row: after.copied() };
            updates.push((ALL_PROCESSES, ServingUpdate::CurrentRow(current)));
        }
        if self.watchers_by_id.is_empty() {
            return;
        }
        let rows = changed.rows.iter().flatten().filter(|change| change.before != change.after);
        for change in rows {
            if let Some(watching) = self.watchers_by_id.get(&change.city.0) {
                let (city, reading_at, row) = (names.get(change.city), change.reading_at, change.after);
                updates.push((
                    *watching,
                    ServingUpdate::WatchedRow(WatchedRow { epoch, city, reading_at, row }),
                ));
            }
        }
    }

    /// Notes whether a process watches a city, where the query is about that.
    pub fn apply_watch_query(&mut self, query: &Query, rolling: &Rolling) {
        let asker = process_set_of(query.process);
        let city = || rolling.find_city(&query.city);
        match query.kind {
            QueryKind::Watch => self.set_watchers(&query.city, city(), |watching| watching | asker),
            QueryKind::Unwatch => self.set_watchers(&query.city, city(), |watching| watching & !asker),
            QueryKind::History { .. } | QueryKind::GrantRows { .. } | QueryKind::Cancel => {}
        }
    }

    fn set_watchers(
        &mut self,
        name: &Arc<str>,
        city: Option<CityId>,
        change: impl Fn(ProcessSet) -> ProcessSet,
    ) {
        let watching = change(self.watchers_by_name.get(name).copied().unwrap_or(0));
        if watching == 0 {
            self.watchers_by_name.remove(name);
            city.map(|CityId(id)| self.watchers_by_id.remove(&id));
        } else {
            self.watchers_by_name.insert(Arc::clone(name), watching);
            city.map(|CityId(id)| self.watchers_by_id.insert(id, watching));
        }
    }
}
