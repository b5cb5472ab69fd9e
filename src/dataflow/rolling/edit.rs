//! Everything but an in-order append: readings set, replaced and withdrawn anywhere, one arrival at a time in log order.

use super::chunk::{CHUNK_ROWS, Frame, Held};
use super::part::Part;
use super::revisions::Revisions;
use super::store::{CityIndex, END, Store};
use crate::model::{OutcomeKind, Revision};

/// A row's place: the index of its part within the city, and its own there. The place behind a part's last row means the
/// next part's first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub chunk: usize,
    pub row: usize,
}

/// What an epoch does to one key's reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta {
    pub millis: i64,
    pub before: Option<Held>,
    pub after: Option<Held>,
}

/// How many withdrawals of a city without a reading are remembered, however old they are. Beyond them are those that are no more than
/// the lateness older than the newest.
pub const REMEMBERED_WITHDRAWALS: usize = 64;

impl Store {
    /// Sets (`Some`) or withdraws (`None`) the reading at `millis`, unless its revision is old; a `retried` one only where there
    /// is neither a reading nor the mark of a withdrawal. Between the first edit of an epoch, which [`Store::begin_edits`]
    /// precedes, and [`Store::finish_edits`], the city's head is stale.
    pub fn edit(
        &mut self,
        city: u32,
        millis: i64,
        event: Option<Held>,
        revision: Option<Revision>,
        retried: bool,
    ) -> (OutcomeKind, Option<Delta>) {
        self.index[city as usize].has_read |= event.is_some();
        let place = self.seek(city, millis);
        let before = self.get(city, place, millis);
        let mark = self.index[city as usize].withdrawn.get(&millis).copied();
        if retried && (before.is_some() || mark.is_some()) {
            return (OutcomeKind::Superseded, None);
        }
        let remembered = match before {
            Some(_) => self.part(city, place.chunk).revision(place.row),
            None => mark.flatten(),
        };
        if let (Some(new), Some(old)) = (revision, remembered)
            && new.number() < old.number()
        {
            return (OutcomeKind::OldRevision, None);
        }
        let kind = match (before, event) {
            (Some(_), Some(_)) => OutcomeKind::Corrected,
            (None, Some(_)) => OutcomeKind::Inserted,
            (Some(_), None) => OutcomeKind::Withdrawn,
            (None, None) => OutcomeKind::NothingToWithdraw,
        };
        let delta = Delta { millis, before, after: event };
        let same = before == event && revision == remembered && (before.is_some() || mark.is_some());
        if !same {
            self.put(city, place, delta, revision);
        }
        self.note_edit(city, delta, same);
        (kind, (before != event).then_some(delta))
    }

    fn put(&mut self, city: u32, place: Place, delta: Delta, revision: Option<Revision>) {
        let Delta { millis, before, after } = delta;
        match (before, after) {
            (Some(_), Some(held)) => self.replace(city, place, held, revision),
            (None, Some(held)) => {
                let place = self.insert(city, place, millis, held);
                self.set_revision(city, place, revision);
                self.index[city as usize].withdrawn.remove(&millis);
            }
            (Some(_), None) => {
                self.remove(city, place);
                self.mark(city, millis, revision);
            }
            (None, None) => self.mark(city, millis, revision),
        }
    }

    /// Remembers a withdrawal. Of a city without a reading no lateness passes it, so their number is limited.
    fn mark(&mut self, city: u32, millis: i64, revision: Option<Revision>) {
        let lateness = self.retention.lateness.millis();
        let CityIndex { withdrawn, has_read, .. } = &mut self.index[city as usize];
        withdrawn.insert(millis, revision);
        let newest = withdrawn.last_key_value().map_or(millis, |(&newest, _)| newest);
        while !*has_read
            && withdrawn.len() > REMEMBERED_WITHDRAWALS
            && withdrawn.first_key_value().is_some_and(|(&oldest, _)| oldest < newest - lateness)
        {
            withdrawn.pop_first();
        }
    }

    /// Keeps up the running sums, and what the next snapshot must hold; `same`: key and revision are as they were.
    fn note_edit(&mut self, city: u32, delta: Delta, same: bool) {
        let (index, head) = (&mut self.index[city as usize], &mut self.heads[city as usize]);
        index.edited_from = index.edited_from.min(match delta.before.or(delta.after) {
            Some(_) if !same => delta.millis,
            None if same => END,
            // No reading is another one; marks or measurements may be.
            _ => END - 1,
        });
        if delta.millis >= index.floor {
            head.run_sum += delta.sum();
            head.run_count = (i64::from(head.run_count) + delta.count()) as u32;
        }
    }

    fn replace(&mut self, city: u32, place: Place, held: Held, revision: Option<Revision>) {
        let chunk = self.open(city, place.chunk);
        self.arena.get_mut(chunk).replace(place.row, held);
        self.set_revision(city, place, revision);
    }

    fn set_revision(&mut self, city: u32, place: Place, revision: Option<Revision>) {
        let chunk = self.open(city, place.chunk);
        let chunk = self.arena.get_mut(chunk);
        if revision.is_some() || chunk.revisions.is_some() {
            let rows = usize::from(chunk.len);
            chunk.revisions.get_or_insert_with(|| Box::new(Revisions::none(rows))).set(place.row, revision);
        }
    }

    fn remove(&mut self, city: u32, place: Place) {
        let chunk = self.open(city, place.chunk);
        self.arena.get_mut(chunk).remove(place.row);
        if self.arena.get(chunk).len == 0 {
            self.index[city as usize].parts.remove(place.chunk);
            self.arena.free(chunk);
        }
    }

    /// Inserts a reading at `place`, where [`Store::seek`] found that it belongs; returns where it went.
    fn insert(&mut self, city: u32, place: Place, millis: i64, held: Held) -> Place {
        // The end of the part before is the same place, and keeps parts full.
        if place.row == 0 && place.chunk > 0 {
            let chunk = place.chunk - 1;
            let end = Place { chunk, row: self.part(city, chunk).len() };
            if end.row < CHUNK_ROWS && self.try_insert(city, end, millis, held) {
                return end;
            }
        }
        if place.chunk == self.end(city).chunk {
            return self.insert_part(city, place.chunk, millis, held);
        }
        let mut place = place;
        let is_full = |store: &Store, chunk: usize| store.part(city, chunk).len() == CHUNK_ROWS;
        if is_full(self, place.chunk) && place.row > 0 {
            self.split(city, Place { chunk: place.chunk, row: CHUNK_ROWS / 2 });
            if place.row > CHUNK_ROWS / 2 {
                place = Place { chunk: place.chunk + 1, row: place.row - CHUNK_ROWS / 2 };
            }
        }
        if !is_full(self, place.chunk) && self.try_insert(city, place, millis, held) {
            return place;
        }
        // No frame spans the part and this time, or it is full and begins here: a part of its own, between its neighbours.
        if place.row > 0 && place.row < self.part(city, place.chunk).len() {
            self.split(city, place);
        }
        let chunk = place.chunk + usize::from(place.row > 0);
        self.insert_part(city, chunk, millis, held)
    }

    fn try_insert(&mut self, city: u32, place: Place, millis: i64, held: Held) -> bool {
        let id = self.open(city, place.chunk);
        let chunk = self.arena.get_mut(id);
        let packed = chunk.frame.pack(millis, held);
        let packed =
            packed.or_else(|| chunk.reframe(millis).then(|| chunk.frame.pack(millis, held)).flatten());
        if let Some(row) = packed {
            chunk.insert(place.row, row);
        }
        packed.is_some()
    }

    fn split(&mut self, city: u32, place: Place) {
        let (lower, upper) = (self.open(city, place.chunk), self.arena.allocate());
        let (lower_chunk, upper_chunk) = self.arena.get_two(lower, upper);
        lower_chunk.split_into(place.row, upper_chunk);
        self.index[city as usize].parts.insert(place.chunk + 1, Part::Open(upper));
    }

    fn insert_part(&mut self, city: u32, chunk: usize, millis: i64, held: Held) -> Place {
        let id = self.arena.allocate();
        self.arena.get_mut(id).frame = Frame::starting_at(millis);
        let index = &mut self.index[city as usize];
        index.parts.insert(chunk, Part::Open(id));
        // What was the tail is packed, too.
        index.opened = index.opened.min(chunk.saturating_sub(1) as u32);
        let place = Place { chunk, row: 0 };
        let inserted = self.try_insert(city, place, millis, held);
        debug_assert!(inserted, "an empty chunk takes any time");
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataflow::rolling::Retention;
    use crate::model::{Block, Category, Duration, HeatIndex};

    fn held(micros: i64) -> Held {
        Held::new(HeatIndex::from_micros(micros), Category::None)
    }

    /// A city with a reading a second, whose revisions are 5.
    fn filled(seconds: i64) -> Store {
        let span = Duration::from_millis(3_600_000).unwrap();
        let mut store = Store::new(Retention { window: span, lateness: span, history: span }, false);
        let city = store.add_city();
        for second in 0..seconds {
            let head = &mut store.heads[city as usize];
            (head.high, head.newest) = (second * 1000, second * 1000);
            store.append(city, second * 1000, held(second), Revision::new(5));
        }
        store
    }

    fn edit(
        store: &mut Store,
        millis: i64,
        event: Option<Held>,
        revision: i64,
        retried: bool,
    ) -> OutcomeKind {
        store.begin_edits(0);
        let (kind, _) = store.edit(0, millis, event, Revision::new(revision), retried);
        store.finish_edits(0);
        #[cfg(debug_assertions)]
        store.check(0);
        kind
    }

    fn blocks(store: &Store) -> Vec<Block> {
        let packed = |part: &Part| match part {
            Part::Packed(block) => Some(block.clone()),
            Part::Open(_) => None,
        };
        store.index[0].parts.iter().filter_map(packed).collect()
    }

    /// How many of the blocks were there before.
    fn kept(store: &Store, before: &[Block]) -> usize {
        blocks(store).iter().filter(|block| before.iter().any(|before| before.is(block))).count()
    }

    #[test]
    fn what_changes_nothing_leaves_blocks_alone() {
        let mut store = filled(400);
        let before = blocks(&store);
        assert_eq!(before.len(), 3);
        for second in [0, 100, 127, 128, 300] {
            let (millis, same) = (second * 1000, Some(held(second)));
            assert_eq!(edit(&mut store, millis, Some(held(7)), 4, false), OutcomeKind::OldRevision);
            assert_eq!(edit(&mut store, millis, None, 4, false), OutcomeKind::OldRevision);
            assert_eq!(edit(&mut store, millis, Some(held(7)), 6, true), OutcomeKind::Superseded);
            assert_eq!(store.index[0].edited_from, END);
            assert_eq!(edit(&mut store, millis, same, 5, false), OutcomeKind::Corrected);
            // The snapshot has the city, which may have other measurements, and no reading of it.
            assert_eq!(std::mem::replace(&mut store.index[0].edited_from, END), END - 1);
            assert_eq!(edit(&mut store, millis + 1, None, 1, false), OutcomeKind::NothingToWithdraw);
            store.index[0].edited_from = END;
            assert_eq!(edit(&mut store, millis + 1, None, 1, false), OutcomeKind::NothingToWithdraw);
            assert_eq!(store.index[0].edited_from, END);
        }
        assert_eq!(kept(&store, &before), 3);
        // The same reading with another revision is not the same.
        assert_eq!(edit(&mut store, 100_000, Some(held(100)), 6, false), OutcomeKind::Corrected);
        assert_eq!((store.index[0].edited_from, kept(&store, &before)), (100_000, 2));
        assert_eq!(edit(&mut store, 100_000, Some(held(100)), 5, false), OutcomeKind::OldRevision);
    }

    #[test]
    fn a_reading_between_two_blocks_changes_one() {
        let mut store = filled(400);
        edit(&mut store, 50_000, None, 6, false);
        let before = blocks(&store);
        assert_eq!(edit(&mut store, 127_500, Some(held(1)), 1, false), OutcomeKind::Inserted);
        assert_eq!((blocks(&store).len(), kept(&store, &before)), (3, 2), "the first had room");
        let before = blocks(&store);
        edit(&mut store, 127_600, Some(held(1)), 1, false);
        assert_eq!((blocks(&store).len(), kept(&store, &before)), (4, 3), "both are full");
    }
}
