//! What a process's server is told: closed batches as updates.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use super::SharedState;
use crate::dataflow::Closed;
use crate::dataflow::rolling::serving::{ProgressReport, ServingUpdate};
use crate::model::{
    Batch, CheckpointBarrier, CurrentRowUpdate, LogPosition, OutcomeCounts, PartitionIndex, Reason,
    ViewUpdate,
};
use crate::serve::Publisher;

pub struct ServingSink {
    publisher: Publisher,
    /// What was not taken yet.
    waiting: Option<ViewUpdate>,
    counts: OutcomeCounts,
    refused: Vec<(Reason, u64)>,
    /// Partitions that have not come to the end that they had at the start.
    behind: HashSet<PartitionIndex>,
    /// How far each partition was read.
    positions: BTreeMap<PartitionIndex, LogPosition>,
    /// Checkpoints of epochs that are not complete yet.
    marks: VecDeque<AlignedBarrier>,
}

/// A checkpoint is of the state after this epoch, which is complete up to these positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlignedBarrier {
    pub mark: CheckpointBarrier,
    pub epoch: u64,
    pub positions: BTreeMap<PartitionIndex, LogPosition>,
}

impl ServingSink {
    /// `starts` is where each partition is read from, by slot.
    pub fn new(publisher: Publisher, starts: &[LogPosition]) -> ServingSink {
        let positions: BTreeMap<PartitionIndex, LogPosition> =
            (0..).map(PartitionIndex).zip(starts.iter().copied()).collect();
        let behind = positions.keys().copied().collect();
        let (counts, refused, marks) = (OutcomeCounts::default(), Vec::new(), VecDeque::new());
        ServingSink { publisher, waiting: None, counts, refused, behind, positions, marks }
    }

    /// Has the positions noted that are complete with an epoch, which is sent now.
    pub fn add_barrier(&mut self, mark: CheckpointBarrier, epoch: u64) {
        self.marks.push_back(AlignedBarrier { mark, epoch, positions: BTreeMap::new() });
    }

    pub fn is_held_back(&self) -> bool {
        self.waiting.is_some()
    }

    /// Tells what has closed, and whether it could not tell it all. At the end, epochs before `end` are complete.
    /// Nothing is `ready` while the results are another generation's.
    pub fn publish_closed(
        &mut self,
        told: &Closed<ServingUpdate>,
        shared: &SharedState,
        ready: bool,
        end: u64,
    ) -> bool {
        loop {
            if let Some(update) = self.waiting.take() {
                self.waiting = self.publisher.publish_update(update).err();
                if self.waiting.is_some() {
                    return true;
                }
            }
            let Some(batch) = told.next_batch() else { return false };
            let mut update = self.build_update(batch, shared, end);
            update.is_ready &= ready;
            self.waiting = Some(update);
        }
    }

    fn build_update(&mut self, batch: Batch<ServingUpdate>, shared: &SharedState, end: u64) -> ViewUpdate {
        let mut update = ViewUpdate { upper: batch.upper.min(end), ..ViewUpdate::default() };
        let (mut counts, mut moved) = (OutcomeCounts::default(), HashMap::new());
        // A city changes at most once an epoch.
        let several = batch.changes.first().map(|(epoch, _)| *epoch) != batch.changes.last().map(|(e, _)| *e);
        let told =
            batch.changes.into_iter().flat_map(|(epoch, told)| told.into_iter().map(move |t| (epoch, t)));
        for (epoch, told) in told {
            self.complete_barriers(epoch, shared);
            match told {
                ServingUpdate::CurrentRow(current) => update.current_rows.push(current),
                ServingUpdate::WatchedRow(row) => update.watched_rows.push(row),
                ServingUpdate::AnswerPiece(answer) => update.answers.push(answer),
                ServingUpdate::OutcomeCounts(more) => counts.add(&more),
                ServingUpdate::Progress(ProgressReport { progress: Some(progress), caught_up, .. }) => {
                    let at = LogPosition { position: progress.applied_until, before: progress.before };
                    self.positions.insert(progress.partition, at);
                    moved.insert(progress.partition, progress);
                    if caught_up {
                        self.behind.remove(&progress.partition);
                    }
                }
                ServingUpdate::Progress(_) => {}
            }
        }
        self.complete_barriers(update.upper, shared);
        if !moved.is_empty() {
            shared.note_moved(moved.iter().map(|(slot, progress)| (*slot, progress.applied_until)));
        }
        if several {
            drop_superseded(&mut update.current_rows);
        }
        // Those of one worker are in order, those of several are not.
        update.watched_rows.sort_by_key(|row| row.epoch);
        update.progress = moved.into_values().collect();
        update.is_ready = self.behind.is_empty();
        if counts.split_city > 0 {
            tracing::warn!(
                cities = counts.split_city,
                "cities come from more than one partition: their results hold for this run only; give each city one log"
            );
        }
        if counts != OutcomeCounts::default() {
            self.counts.add(&counts);
            update.counts = Some(self.counts);
        }
        let refused = shared.refusals.counts();
        if refused != self.refused {
            update.refusal_counts = refused.clone();
            self.refused = refused;
        }
        update
    }
}

impl ServingSink {
    /// Tells of the marks before an epoch: what was read until now is what they include.
    fn complete_barriers(&mut self, epoch: u64, shared: &SharedState) {
        while self.marks.front().is_some_and(|marked| marked.epoch < epoch)
            && let Some(mut marked) = self.marks.pop_front()
        {
            marked.positions.clone_from(&self.positions);
            shared.marked(marked);
        }
    }
}

/// Leaves out rows that another one of the city has followed, but for the first behind an absence: since when a city is there, and
/// when it is not, is told of every epoch.
fn drop_superseded(current: &mut Vec<CurrentRowUpdate>) {
    // The last row of each city's presence, unless it is the first one.
    let mut last: HashMap<&str, Option<usize>> = HashMap::new();
    let mut kept = vec![true; current.len()];
    for (place, CurrentRowUpdate { city, row, .. }) in current.iter().enumerate() {
        match (row, last.get_mut(&**city)) {
            (None, _) => drop(last.remove(&**city)),
            (Some(_), None) => drop(last.insert(city, None)),
            (Some(_), Some(last)) => {
                if let Some(superseded) = last.replace(place) {
                    kept[superseded] = false;
                }
            }
        }
    }
    let mut kept = kept.into_iter();
    current.retain(|_| kept.next().unwrap_or(true));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Category, CurrentRow, EventTime, HeatIndex, Row};

    #[test]
    fn superseded_rows_are_dropped_but_presence_changes_kept() {
        let row = |minute: i64| CurrentRow {
            reading_at: EventTime::from_millis(minute * 60_000).unwrap(),
            row: Row::new(HeatIndex::default(), Category::None, 0, 1),
            hour_ago: None,
            measurement: None,
        };
        let at = |epoch: u64, city: &str, minute: Option<i64>| CurrentRowUpdate {
            epoch,
            city: city.into(),
            row: minute.map(row),
        };
        let mut told = vec![
            at(1, "a", Some(1)),
            at(1, "b", Some(1)),
            at(2, "a", Some(2)),
            at(3, "a", Some(3)),
            at(3, "b", None),
            at(4, "b", Some(4)),
            at(5, "a", None),
            at(6, "b", Some(5)),
        ];
        let mut left = told.clone();
        left.remove(2);
        drop_superseded(&mut told);
        assert_eq!(told, left);
    }
}
