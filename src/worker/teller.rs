//! What a process's server is told: closed batches as updates.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use super::Shared;
use crate::dataflow::Closed;
use crate::dataflow::rolling::told::{Read, Told};
use crate::model::{Batch, Counts, CurrentAt, LogPosition, Mark, Reason, Slot, Update};
use crate::serve::Publisher;

pub struct Teller {
    publisher: Publisher,
    /// What was not taken yet.
    waiting: Option<Update>,
    counts: Counts,
    refused: Vec<(Reason, u64)>,
    /// Partitions that have not come to the end that they had at the start.
    behind: HashSet<Slot>,
    /// How far each partition was read.
    positions: BTreeMap<Slot, LogPosition>,
    /// Checkpoints of epochs that are not complete yet.
    marks: VecDeque<Marked>,
}

/// A checkpoint is of the state after this epoch, which is complete up to these positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    pub mark: Mark,
    pub epoch: u64,
    pub positions: BTreeMap<Slot, LogPosition>,
}

impl Teller {
    /// `starts` is where each partition is read from, by slot.
    pub fn new(publisher: Publisher, starts: &[LogPosition]) -> Teller {
        let positions: BTreeMap<Slot, LogPosition> = (0..).map(Slot).zip(starts.iter().copied()).collect();
        let behind = positions.keys().copied().collect();
        let (counts, refused, marks) = (Counts::default(), Vec::new(), VecDeque::new());
        Teller { publisher, waiting: None, counts, refused, behind, positions, marks }
    }

    /// Has the positions noted that are complete with an epoch, which is sent now.
    pub fn note(&mut self, mark: Mark, epoch: u64) {
        self.marks.push_back(Marked { mark, epoch, positions: BTreeMap::new() });
    }

    pub fn is_held_back(&self) -> bool {
        self.waiting.is_some()
    }

    /// Tells what has closed, and whether it could not tell it all. At the end, epochs before `end` are complete.
    /// Nothing is `ready` while the results are another generation's.
    pub fn tell(&mut self, told: &Closed<Told>, shared: &Shared, ready: bool, end: u64) -> bool {
        loop {
            if let Some(update) = self.waiting.take() {
                self.waiting = self.publisher.publish(update).err();
                if self.waiting.is_some() {
                    return true;
                }
            }
            let Some(batch) = told.take() else { return false };
            let mut update = self.update(batch, shared, end);
            update.ready &= ready;
            self.waiting = Some(update);
        }
    }

    fn update(&mut self, batch: Batch<Told>, shared: &Shared, end: u64) -> Update {
        let mut update = Update { upper: batch.upper.min(end), ..Update::default() };
        let (mut counts, mut moved) = (Counts::default(), HashMap::new());
        // A city changes at most once an epoch.
        let several = batch.changes.first().map(|(epoch, _)| *epoch) != batch.changes.last().map(|(e, _)| *e);
        let told =
            batch.changes.into_iter().flat_map(|(epoch, told)| told.into_iter().map(move |t| (epoch, t)));
        for (epoch, told) in told {
            self.pass_marks(epoch, shared);
            match told {
                Told::Current(current) => update.current.push(current),
                Told::Row(row) => update.rows.push(row),
                Told::Answer(answer) => update.answers.push(answer),
                Told::Counts(more) => counts.add(&more),
                Told::Read(Read { progress: Some(progress), caught_up, .. }) => {
                    let at = LogPosition { position: progress.applied, before: progress.before };
                    self.positions.insert(progress.slot, at);
                    moved.insert(progress.slot, progress);
                    if caught_up {
                        self.behind.remove(&progress.slot);
                    }
                }
                Told::Read(_) => {}
            }
        }
        self.pass_marks(update.upper, shared);
        if !moved.is_empty() {
            shared.note_moved(moved.iter().map(|(slot, progress)| (*slot, progress.applied)));
        }
        if several {
            drop_superseded(&mut update.current);
        }
        // Those of one worker are in order, those of several are not.
        update.rows.sort_by_key(|row| row.epoch);
        update.progress = moved.into_values().collect();
        update.ready = self.behind.is_empty();
        if counts.split_city > 0 {
            tracing::warn!(
                cities = counts.split_city,
                "cities come from more than one partition: their results hold for this run only; give each city one log"
            );
        }
        if counts != Counts::default() {
            self.counts.add(&counts);
            update.counts = Some(self.counts);
        }
        let refused = shared.refusals.counts();
        if refused != self.refused {
            update.refused = refused.clone();
            self.refused = refused;
        }
        update
    }
}

impl Teller {
    /// Tells of the marks before an epoch: what was read until now is what they include.
    fn pass_marks(&mut self, epoch: u64, shared: &Shared) {
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
fn drop_superseded(current: &mut Vec<CurrentAt>) {
    // The last row of each city's presence, unless it is the first one.
    let mut last: HashMap<&str, Option<usize>> = HashMap::new();
    let mut kept = vec![true; current.len()];
    for (place, CurrentAt { city, row, .. }) in current.iter().enumerate() {
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
    fn presence_is_told_of_every_epoch_and_the_newest_row() {
        let row = |minute: i64| CurrentRow {
            reading_at: EventTime::from_millis(minute * 60_000).unwrap(),
            row: Row::new(HeatIndex::default(), Category::None, 0, 1),
            hour_ago: None,
            measurement: None,
        };
        let at = |epoch: u64, city: &str, minute: Option<i64>| CurrentAt {
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
