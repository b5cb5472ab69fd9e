//! Applies all arrivals that are no in-order appends: readings set, replaced and withdrawn at any
//! time, one arrival after the other in log order.

use super::chunk::{CHUNK_ROWS, PackedHeat, TimeFrame};
use super::part::{ReadingsPart, RowPosition};
use super::revisions::Revisions;
use super::store::{AFTER_ALL_TIMES, CityIndex, ReadingStore};
use crate::model::{OutcomeKind, Revision};

/// The change of one key's reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadingDelta {
    pub millis: i64,
    pub before: Option<PackedHeat>,
    pub after: Option<PackedHeat>,
}

/// The most tombstones of a city that never had a reading, whatever their age. Beyond this number,
/// tombstones are kept only if they are at most the lateness older than the newest tombstone.
pub const MAX_TOMBSTONES_WITHOUT_READING: usize = 64;

impl ReadingStore {
    /// Sets (`Some`) or withdraws (`None`) the reading at `millis`, unless its revision is older
    /// than the stored one. A `retried` reading counts only if the key has neither a reading nor a
    /// tombstone. [`ReadingStore::begin_edits`] must be called before the first edit of an epoch;
    /// the city's head is stale until [`ReadingStore::finish_edits`]. The delta of an arrival that
    /// loses has the same reading before and after.
    pub fn edit_reading(
        &mut self,
        city: u32,
        millis: i64,
        event: Option<PackedHeat>,
        revision: Option<Revision>,
        retried: bool,
    ) -> (OutcomeKind, ReadingDelta) {
        self.index[city as usize].has_accepted_reading |= event.is_some();
        let position = self.seek_row(city, millis);
        let before = self.reading_at(city, position, millis);
        let tombstone = self.index[city as usize].tombstones.get(&millis).copied();
        let unchanged = ReadingDelta { millis, before, after: before };
        if retried && (before.is_some() || tombstone.is_some()) {
            return (OutcomeKind::Superseded, unchanged);
        }
        let remembered = match before {
            Some(_) => self.part_view(city, position.part).revision(position.row),
            None => tombstone.flatten(),
        };
        if let (Some(new), Some(old)) = (revision, remembered)
            && new.number() < old.number()
        {
            return (OutcomeKind::OldRevision, unchanged);
        }
        let kind = match (before, event) {
            (Some(_), Some(_)) => OutcomeKind::Corrected,
            (None, Some(_)) => OutcomeKind::Inserted,
            (Some(_), None) => OutcomeKind::Withdrawn,
            (None, None) => OutcomeKind::NothingToWithdraw,
        };
        let delta = ReadingDelta { millis, before, after: event };
        let same = before == event && revision == remembered && (before.is_some() || tombstone.is_some());
        if !same {
            self.put_reading(city, position, delta, revision);
        }
        self.record_edit(city, delta, same);
        (kind, delta)
    }

    fn put_reading(
        &mut self,
        city: u32,
        position: RowPosition,
        delta: ReadingDelta,
        revision: Option<Revision>,
    ) {
        let ReadingDelta { millis, before, after } = delta;
        match (before, after) {
            (Some(_), Some(held)) => self.replace_reading(city, position, held, revision),
            (None, Some(held)) => {
                let position = self.insert_reading(city, position, millis, held);
                self.set_revision(city, position, revision);
                self.index[city as usize].tombstones.remove(&millis);
            }
            (Some(_), None) => {
                self.remove_reading(city, position);
                self.record_tombstone(city, millis, revision);
            }
            (None, None) => self.record_tombstone(city, millis, revision),
        }
    }

    /// Records the tombstone of a withdrawal. Lateness never expires the tombstones of a city
    /// without a reading, so their number is limited here.
    fn record_tombstone(&mut self, city: u32, millis: i64, revision: Option<Revision>) {
        let lateness = self.retention.lateness.millis();
        let CityIndex { tombstones: withdrawn, has_accepted_reading: has_read, .. } =
            &mut self.index[city as usize];
        withdrawn.insert(millis, revision);
        let newest = withdrawn.last_key_value().map_or(millis, |(&newest, _)| newest);
        while !*has_read
            && withdrawn.len() > MAX_TOMBSTONES_WITHOUT_READING
            && withdrawn.first_key_value().is_some_and(|(&oldest, _)| oldest < newest - lateness)
        {
            withdrawn.pop_first();
        }
    }

    /// Updates the running sums, and the time from which the next snapshot must include the city.
    /// `same` means that neither reading nor revision changed.
    fn record_edit(&mut self, city: u32, delta: ReadingDelta, same: bool) {
        let (index, head) = (&mut self.index[city as usize], &mut self.heads[city as usize]);
        index.edited_from = index.edited_from.min(match delta.before.or(delta.after) {
            Some(_) if !same => delta.millis,
            None if same => AFTER_ALL_TIMES,
            // No reading changed, but tombstones or measurements may have.
            _ => AFTER_ALL_TIMES - 1,
        });
        if delta.millis >= index.window_floor {
            head.window_sum += delta.sum_change();
            head.window_count = (i64::from(head.window_count) + delta.count_change()) as u32;
        }
    }

    /// Notes that the next snapshot must include the city, although its readings did not change.
    pub fn note_change_without_readings(&mut self, city: u32) {
        let index = &mut self.index[city as usize];
        index.edited_from = index.edited_from.min(AFTER_ALL_TIMES - 1);
    }

    fn replace_reading(
        &mut self,
        city: u32,
        position: RowPosition,
        held: PackedHeat,
        revision: Option<Revision>,
    ) {
        let chunk = self.open_part(city, position.part);
        self.arena.get_mut(chunk).replace_row(position.row, held);
        self.set_revision(city, position, revision);
    }

    fn set_revision(&mut self, city: u32, position: RowPosition, revision: Option<Revision>) {
        let chunk = self.open_part(city, position.part);
        let chunk = self.arena.get_mut(chunk);
        if revision.is_some() || chunk.revisions.is_some() {
            let rows = usize::from(chunk.len);
            chunk
                .revisions
                .get_or_insert_with(|| Box::new(Revisions::without_revisions(rows)))
                .set(position.row, revision);
        }
    }

    fn remove_reading(&mut self, city: u32, position: RowPosition) {
        let chunk = self.open_part(city, position.part);
        self.arena.get_mut(chunk).remove_row(position.row);
        if self.arena.get(chunk).len == 0 {
            self.index[city as usize].parts.remove(position.part);
            self.arena.free_chunk(chunk);
        }
    }

    /// Inserts a reading at `place`, which [`ReadingStore::seek_row`] returned for it. Returns the
    /// position of the new row.
    fn insert_reading(
        &mut self,
        city: u32,
        position: RowPosition,
        millis: i64,
        held: PackedHeat,
    ) -> RowPosition {
        // The end of the previous part is the same position in time. Using it keeps parts full.
        if position.row == 0 && position.part > 0 {
            let chunk = position.part - 1;
            let end = RowPosition { part: chunk, row: self.part_view(city, chunk).len() };
            if end.row < CHUNK_ROWS && self.try_insert_reading(city, end, millis, held) {
                return end;
            }
        }
        if position.part == self.end_position(city).part {
            return self.insert_part(city, position.part, millis, held);
        }
        let mut position = position;
        let is_full = |store: &ReadingStore, chunk: usize| store.part_view(city, chunk).len() == CHUNK_ROWS;
        if is_full(self, position.part) && position.row > 0 {
            self.split_part(city, RowPosition { part: position.part, row: CHUNK_ROWS / 2 });
            if position.row > CHUNK_ROWS / 2 {
                position = RowPosition { part: position.part + 1, row: position.row - CHUNK_ROWS / 2 };
            }
        }
        if !is_full(self, position.part) && self.try_insert_reading(city, position, millis, held) {
            return position;
        }
        // No time frame spans the part and this time, or the part is full and begins here: insert a
        // new part between its neighbours.
        if position.row > 0 && position.row < self.part_view(city, position.part).len() {
            self.split_part(city, position);
        }
        let chunk = position.part + usize::from(position.row > 0);
        self.insert_part(city, chunk, millis, held)
    }

    fn try_insert_reading(
        &mut self,
        city: u32,
        position: RowPosition,
        millis: i64,
        held: PackedHeat,
    ) -> bool {
        let id = self.open_part(city, position.part);
        let chunk = self.arena.get_mut(id);
        let packed = chunk.frame.pack_row(millis, held);
        let packed =
            packed.or_else(|| chunk.reframe(millis).then(|| chunk.frame.pack_row(millis, held)).flatten());
        if let Some(row) = packed {
            chunk.insert_row(position.row, row);
        }
        packed.is_some()
    }

    fn split_part(&mut self, city: u32, position: RowPosition) {
        let (lower, upper) = (self.open_part(city, position.part), self.arena.allocate_chunk());
        let (lower_chunk, upper_chunk) = self.arena.get_two(lower, upper);
        lower_chunk.split_into(position.row, upper_chunk);
        self.index[city as usize].parts.insert(position.part + 1, ReadingsPart::Open(upper));
    }

    fn insert_part(&mut self, city: u32, chunk: usize, millis: i64, held: PackedHeat) -> RowPosition {
        let id = self.arena.allocate_chunk();
        self.arena.get_mut(id).frame = TimeFrame::starting_at(millis);
        let index = &mut self.index[city as usize];
        index.parts.insert(chunk, ReadingsPart::Open(id));
        // The former tail must be packed, too.
        index.first_opened_part = index.first_opened_part.min(chunk.saturating_sub(1) as u32);
        let position = RowPosition { part: chunk, row: 0 };
        let inserted = self.try_insert_reading(city, position, millis, held);
        debug_assert!(inserted, "an empty chunk takes any time");
        position
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataflow::rolling::Retention;
    use crate::model::{Block, Category, HeatIndex, Millis};

    fn held(micros: i64) -> PackedHeat {
        PackedHeat::new(HeatIndex::from_micros(micros), Category::None)
    }

    /// A city with one reading a second, all with revision 5.
    fn filled(seconds: i64) -> ReadingStore {
        let span = Millis::from_millis(3_600_000).unwrap();
        let mut store = ReadingStore::new(Retention { window: span, lateness: span, history: span }, false);
        let city = store.add_city();
        for second in 0..seconds {
            let head = &mut store.heads[city as usize];
            (head.high, head.newest) = (second * 1000, second * 1000);
            store.append_reading(city, second * 1000, held(second), Revision::new(5));
        }
        store
    }

    fn edit(
        store: &mut ReadingStore,
        millis: i64,
        event: Option<PackedHeat>,
        revision: i64,
        retried: bool,
    ) -> OutcomeKind {
        store.begin_edits(0);
        let (kind, _) = store.edit_reading(0, millis, event, Revision::new(revision), retried);
        store.finish_edits(0);
        #[cfg(debug_assertions)]
        store.assert_city_invariants(0);
        kind
    }

    fn blocks(store: &ReadingStore) -> Vec<Block> {
        let packed = |part: &ReadingsPart| match part {
            ReadingsPart::Packed(block) => Some(block.clone()),
            ReadingsPart::Open(_) => None,
        };
        store.index[0].parts.iter().filter_map(packed).collect()
    }

    /// How many of the blocks are the same as before.
    fn kept(store: &ReadingStore, before: &[Block]) -> usize {
        blocks(store).iter().filter(|block| before.iter().any(|before| before.ptr_eq(block))).count()
    }

    #[test]
    fn unchanged_readings_do_not_copy_blocks() {
        let mut store = filled(400);
        let before = blocks(&store);
        assert_eq!(before.len(), 3);
        for second in [0, 100, 127, 128, 300] {
            let (millis, same) = (second * 1000, Some(held(second)));
            assert_eq!(edit(&mut store, millis, Some(held(7)), 4, false), OutcomeKind::OldRevision);
            assert_eq!(edit(&mut store, millis, None, 4, false), OutcomeKind::OldRevision);
            assert_eq!(edit(&mut store, millis, Some(held(7)), 6, true), OutcomeKind::Superseded);
            assert_eq!(store.index[0].edited_from, AFTER_ALL_TIMES);
            assert_eq!(edit(&mut store, millis, same, 5, false), OutcomeKind::Corrected);
            // The next snapshot includes the city, whose measurements may differ, but none of its
            // readings.
            assert_eq!(
                std::mem::replace(&mut store.index[0].edited_from, AFTER_ALL_TIMES),
                AFTER_ALL_TIMES - 1
            );
            assert_eq!(edit(&mut store, millis + 1, None, 1, false), OutcomeKind::NothingToWithdraw);
            store.index[0].edited_from = AFTER_ALL_TIMES;
            assert_eq!(edit(&mut store, millis + 1, None, 1, false), OutcomeKind::NothingToWithdraw);
            assert_eq!(store.index[0].edited_from, AFTER_ALL_TIMES);
        }
        assert_eq!(kept(&store, &before), 3);
        // The same reading with another revision is a change.
        assert_eq!(edit(&mut store, 100_000, Some(held(100)), 6, false), OutcomeKind::Corrected);
        assert_eq!((store.index[0].edited_from, kept(&store, &before)), (100_000, 2));
        assert_eq!(edit(&mut store, 100_000, Some(held(100)), 5, false), OutcomeKind::OldRevision);
    }

    #[test]
    fn reading_between_blocks_changes_one_block() {
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
