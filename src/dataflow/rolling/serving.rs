//! Updates for serving: what an epoch changed, and responses to queries.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::epoch_changes::EpochChanges;
use super::state::Rolling;
use crate::model::{
    AnswerPiece, CityId, CityIntroduction, CurrentChange, CurrentRowUpdate, OutcomeCounts, PartitionProgress,
    Query, QueryKind, WatchedRow,
};

/// An update for serving, from a closed epoch. It names cities by key, so it means the same to
/// every worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ServingUpdate {
    /// The current row of a city from this epoch on.
    CurrentRow(CurrentRowUpdate),
    WatchedRow(WatchedRow),
    AnswerPiece(AnswerPiece),
    /// Counts of the outcomes of an epoch's arrivals at one worker.
    OutcomeCounts(OutcomeCounts),
    Progress(ProgressReport),
}

/// How far a partition was read for an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressReport {
    pub epoch: u64,
    /// `None` if the report only shows that the epoch is in use.
    pub progress: Option<PartitionProgress>,
    /// The reader has reached the end that the partition had when the run started.
    pub caught_up: bool,
}

/// A set of processes: bit `p` is process `p`.
pub type ProcessSet = u64;

/// The set of one process.
pub fn process_set_of(process: u8) -> ProcessSet {
    1 << (process % 64)
}

/// The set of all processes.
pub const ALL_PROCESSES: ProcessSet = ProcessSet::MAX;

/// Which cities of a worker are watched, and by which processes.
#[derive(Debug, Default)]
pub struct CityWatchers {
    /// By city key: a city can be watched before its first reading.
    watchers_by_name: HashMap<Arc<str>, ProcessSet>,
    /// By [`CityId`].
    watchers_by_id: HashMap<u32, ProcessSet, foldhash::fast::RandomState>,
}

impl CityWatchers {
    /// Adds a city that was introduced.
    pub fn on_city_introduced(&mut self, city: &CityIntroduction, rolling: &Rolling) {
        if let Some(watching) = self.watchers_by_name.get(&*city.name)
            && let Some(CityId(id)) = rolling.find_city(&city.name)
        {
            self.watchers_by_id.insert(id, *watching);
        }
    }

    /// Whether any process watches the city, so changes of its rows are sent.
    pub fn is_watched(&self, CityId(city): CityId) -> bool {
        !self.watchers_by_id.is_empty() && self.watchers_by_id.contains_key(&city)
    }

    /// Appends the updates of an epoch's changes. The query responses of the epoch come after them.
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

    /// Starts or ends watching, if the query asks for that.
    pub fn apply_watch_query(&mut self, query: &Query, rolling: &Rolling) {
        let asker = process_set_of(query.process);
        let city = || rolling.find_city(&query.city);
        match query.kind {
            QueryKind::Watch => self.set_watchers(&query.city, city(), |watching| watching | asker),
            QueryKind::Unwatch => self.set_watchers(&query.city, city(), |watching| watching & !asker),
            QueryKind::History { .. }
            | QueryKind::Explain { .. }
            | QueryKind::GrantRows { .. }
            | QueryKind::Cancel => {}
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
