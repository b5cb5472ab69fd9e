//! Publishes closed epochs to the server of the process, as updates of its view.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use super::closed_epochs::ClosedEpochs;
use super::commands::{AlignedBarrier, WorkerEvent};
use super::shared_state::SharedState;
use crate::dataflow::rolling::serving::{ProgressReport, ServingUpdate};
use crate::model::{
    CheckpointBarrier, CurrentRowUpdate, LogPosition, OutcomeCounts, PartitionIndex, Reason, ViewUpdate,
};
use crate::serve::Publisher;

pub struct ServingSink {
    publisher: Publisher,
    /// An update that the server has not accepted yet.
    waiting: Option<ViewUpdate>,
    /// Epochs below this one were sent on.
    upper: u64,
    counts: OutcomeCounts,
    refused: Vec<(Reason, u64)>,
    /// Partitions that have not reached the log end that they had at the start.
    behind: HashSet<PartitionIndex>,
    /// The position of each partition.
    positions: BTreeMap<PartitionIndex, LogPosition>,
    /// Barriers whose epochs are not complete yet.
    barriers: VecDeque<AlignedBarrier>,
}

impl ServingSink {
    /// `starts` holds the start position of each partition, by index.
    pub fn new(publisher: Publisher, starts: &[LogPosition]) -> ServingSink {
        let positions: BTreeMap<PartitionIndex, LogPosition> =
            (0..).map(PartitionIndex).zip(starts.iter().copied()).collect();
        ServingSink {
            publisher,
            waiting: None,
            upper: 0,
            counts: OutcomeCounts::default(),
            refused: Vec::new(),
            behind: positions.keys().copied().collect(),
            positions,
            barriers: VecDeque::new(),
        }
    }

    /// Adds a barrier that is sent with an epoch. Its positions follow when the epoch is complete.
    pub fn add_barrier(&mut self, barrier: CheckpointBarrier, epoch: u64) {
        self.barriers.push_back(AlignedBarrier { barrier, epoch, positions: BTreeMap::new() });
    }

    pub fn is_held_back(&self) -> bool {
        self.waiting.is_some()
    }

    /// Publishes the closed epochs. Returns true if the server does not accept all of them now. At
    /// the end, epochs before `end` are complete. `is_ready` is false while another generation owns
    /// the results.
    pub fn publish_closed(
        &mut self,
        updates: &mut ClosedEpochs<ServingUpdate>,
        shared: &SharedState,
        is_ready: bool,
        end: u64,
    ) -> bool {
        loop {
            if let Some(update) = self.waiting.take() {
                self.waiting = self.publisher.publish_update(update).err();
                if self.waiting.is_some() {
                    return true;
                }
            }
            let upper = updates.collect();
            if upper <= self.upper {
                return false;
            }
            self.upper = upper;
            let mut update = self.build_update(updates, upper.min(end), shared);
            update.is_ready &= is_ready;
            self.waiting = Some(update);
        }
    }

    /// Builds one update of the view from all closed epochs.
    fn build_update(
        &mut self,
        updates: &mut ClosedEpochs<ServingUpdate>,
        upper: u64,
        shared: &SharedState,
    ) -> ViewUpdate {
        let mut update = ViewUpdate { upper, ..ViewUpdate::default() };
        let (mut counts, mut moved) = (OutcomeCounts::default(), HashMap::new());
        let (mut first_epoch, mut last_epoch) = (None, None);
        while let Some((epoch, piece)) = updates.next_before(self.upper) {
            first_epoch.get_or_insert(epoch);
            last_epoch = Some(epoch);
            self.complete_barriers(epoch, shared);
            for served in piece {
                match served {
                    ServingUpdate::CurrentRow(current) => update.current_rows.push(current),
                    ServingUpdate::WatchedRow(row) => update.watched_rows.push(row),
                    ServingUpdate::AnswerPiece(answer) => update.answers.push(answer),
                    ServingUpdate::OutcomeCounts(more) => counts.add(&more),
                    ServingUpdate::Progress(ProgressReport {
                        progress: Some(progress), caught_up, ..
                    }) => {
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
        }
        self.complete_barriers(upper, shared);
        if !moved.is_empty() {
            shared.set_positions(
                moved.iter().map(|(partition, progress)| (*partition, progress.applied_until)),
            );
        }
        // A city changes at most once an epoch.
        if first_epoch != last_epoch {
            drop_superseded(&mut update.current_rows);
        }
        // Rows of one worker are in order, those of several workers are not.
        update.watched_rows.sort_by_key(|row| row.epoch);
        update.progress = moved.into_values().collect();
        update.is_ready = self.behind.is_empty();
        self.add_counts(&mut update, counts, shared);
        update
    }

    fn add_counts(&mut self, update: &mut ViewUpdate, counts: OutcomeCounts, shared: &SharedState) {
        if counts.split_city > 0 {
            tracing::warn!(
                cities = counts.split_city,
                "readings of the same cities come from more than one partition, so their results may differ after a restart: send all readings of a city to one partition"
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
    }

    /// Reports the barriers before an epoch: their checkpoints include all records read until now.
    fn complete_barriers(&mut self, epoch: u64, shared: &SharedState) {
        while self.barriers.front().is_some_and(|aligned| aligned.epoch < epoch)
            && let Some(mut aligned) = self.barriers.pop_front()
        {
            aligned.positions.clone_from(&self.positions);
            shared.report(WorkerEvent::BarrierAligned(aligned));
        }
    }
}

/// Drops rows that a later row of the same city replaces, except the first one after an absence:
/// serving needs every epoch at which a city appears or disappears.
fn drop_superseded(current: &mut Vec<CurrentRowUpdate>) {
    // The last row of each city's presence, unless it is the first one.
    let mut last: HashMap<&str, Option<usize>> = HashMap::new();
    let mut is_current = vec![true; current.len()];
    for (index, CurrentRowUpdate { city, row, .. }) in current.iter().enumerate() {
        match (row, last.get_mut(&**city)) {
            (None, _) => drop(last.remove(&**city)),
            (Some(_), None) => drop(last.insert(city, None)),
            (Some(_), Some(last)) => {
                if let Some(superseded) = last.replace(index) {
                    is_current[superseded] = false;
                }
            }
        }
    }
    let mut is_current = is_current.into_iter();
    current.retain(|_| is_current.next().unwrap_or(true));
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
