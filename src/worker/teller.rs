//! What worker 0 tells serving: closed batches as updates.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Refusals;
use crate::dataflow::Closed;
use crate::dataflow::rolling::told::Told;
use crate::model::{Batch, Counts, Reason, Slot, Update};
use crate::serve::Publisher;

pub struct Teller {
    publisher: Publisher,
    /// What was not taken yet.
    waiting: Option<Update>,
    counts: Counts,
    refused: Vec<(Reason, u64)>,
    /// Partitions that have not come to the end that they had at the start.
    behind: HashSet<Slot>,
}

impl Teller {
    pub fn new(publisher: Publisher, partitions: usize) -> Teller {
        let behind = (0..partitions).map(|slot| Slot(slot as u16)).collect();
        Teller { publisher, waiting: None, counts: Counts::default(), refused: Vec::new(), behind }
    }

    pub fn is_held_back(&self) -> bool {
        self.waiting.is_some()
    }

    /// Tells what has closed, and whether it could not tell it all. At the end, epochs before `end` are complete.
    pub fn tell(&mut self, told: &Closed<Told>, refusals: &Refusals, end: u64) -> bool {
        loop {
            if let Some(update) = self.waiting.take() {
                self.waiting = self.publisher.publish(update).err();
                if self.waiting.is_some() {
                    return true;
                }
            }
            let Some(batch) = told.take() else { return false };
            self.waiting = Some(self.update(batch, refusals, end));
        }
    }

    fn update(&mut self, batch: Batch<Told>, refusals: &Refusals, end: u64) -> Update {
        let mut update = Update { upper: batch.upper.min(end), ..Update::default() };
        let (mut counts, mut moved) = (Counts::default(), HashMap::new());
        // A city changes at most once an epoch.
        let several = batch.changes.first().map(|(epoch, _)| *epoch) != batch.changes.last().map(|(e, _)| *e);
        let mut places = HashMap::new();
        for told in batch.changes.into_iter().flat_map(|(_, told)| told) {
            match told {
                Told::Current { city, row } => {
                    let place = update.current.len();
                    match several.then(|| *places.entry(Arc::clone(&city)).or_insert(place)) {
                        Some(known) if known < place => update.current[known].1 = row,
                        _ => update.current.push((city, row)),
                    }
                }
                Told::Row(row) => update.rows.push(row),
                Told::Answer(answer) => update.answers.push(answer),
                Told::Counts(more) => counts.add(&more),
                Told::Read(read) => {
                    moved.insert(read.progress.slot, read.progress);
                    if read.caught_up {
                        self.behind.remove(&read.progress.slot);
                    }
                }
            }
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
        let refused = refusals.counts();
        if refused != self.refused {
            update.refused = refused.clone();
            self.refused = refused;
        }
        update
    }
}
