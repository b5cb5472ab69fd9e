//! Everything but an in-order append: readings set, replaced and withdrawn anywhere, one arrival at a time in log order.

use super::chunk::{CHUNK_ROWS, Frame, Held, NO_CHUNK};
use super::revisions::Revisions;
use super::store::{Edits, Store};
use crate::model::{OutcomeKind, Revision};

/// A row's place: the number of its chunk within the city, and its index there. The place behind a chunk's last row means
/// the next chunk's first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

impl Store {
    /// Sets (`Some`) or withdraws (`None`) the reading at `millis`, unless its revision is old; a `retried` one only where there
    /// is neither a reading nor the mark of a withdrawal. Between the first edit of an epoch, which [`Store::seal`] precedes,
    /// and [`Store::finish_edits`], the city's head is stale.
    pub fn edit(
        &mut self,
        city: u32,
        millis: i64,
        event: Option<Held>,
        revision: Option<Revision>,
        retried: bool,
    ) -> (OutcomeKind, Option<Delta>) {
        let place = self.seek(city, millis);
        let before = self.get(city, place).filter(|(at, _)| *at == millis).map(|(_, held)| held);
        if retried && (before.is_some() || self.index[city as usize].withdrawn.contains_key(&millis)) {
            return (OutcomeKind::Superseded, None);
        }
        let remembered = match before {
            Some(_) => self.chunk(city, place.chunk).revisions.as_ref().and_then(|r| r.get(place.row)),
            None => self.index[city as usize].withdrawn.get(&millis).copied().flatten(),
        };
        if let (Some(new), Some(old)) = (revision, remembered)
            && new.number() < old.number()
        {
            return (OutcomeKind::OldRevision, None);
        }
        let kind = match (before, event) {
            (Some(_), Some(held)) => {
                self.replace(city, place, held, revision);
                OutcomeKind::Corrected
            }
            (None, Some(held)) => {
                let place = self.insert(city, place, millis, held);
                self.set_revision(city, place, revision);
                self.index[city as usize].withdrawn.remove(&millis);
                OutcomeKind::Inserted
            }
            (before, None) => {
                self.index[city as usize].withdrawn.insert(millis, revision);
                match before {
                    Some(_) => {
                        self.remove(city, place);
                        OutcomeKind::Withdrawn
                    }
                    None => OutcomeKind::NothingToWithdraw,
                }
            }
        };
        (kind, (before != event).then_some(Delta { millis, before, after: event }))
    }

    /// Makes the city fit for appends again.
    pub fn finish_edits(&mut self, city: u32) {
        let index = &mut self.index[city as usize];
        if std::mem::take(&mut index.relink) {
            for (i, &chunk) in index.chunks.iter().enumerate() {
                self.arena.get_mut(chunk).next = index.chunks.get(i + 1).copied().unwrap_or(NO_CHUNK);
            }
        }
        self.refresh(city);
        self.trim(city);
        self.heads[city as usize].edits = Edits::None;
    }

    fn replace(&mut self, city: u32, place: Place, held: Held, revision: Option<Revision>) {
        let id = self.index[city as usize].chunks[place.chunk];
        self.arena.get_mut(id).replace(place.row, held);
        self.set_revision(city, place, revision);
    }

    fn set_revision(&mut self, city: u32, place: Place, revision: Option<Revision>) {
        let id = self.index[city as usize].chunks[place.chunk];
        let chunk = self.arena.get_mut(id);
        if revision.is_some() || chunk.revisions.is_some() {
            let rows = usize::from(chunk.len);
            chunk.revisions.get_or_insert_with(|| Box::new(Revisions::none(rows))).set(place.row, revision);
        }
    }

    fn remove(&mut self, city: u32, place: Place) {
        let index = &mut self.index[city as usize];
        let id = index.chunks[place.chunk];
        self.arena.get_mut(id).remove(place.row);
        if self.arena.get(id).len == 0 {
            index.chunks.remove(place.chunk);
            index.relink = true;
            self.arena.free(id);
        }
    }

    /// Inserts a reading at `place`, where [`Store::seek`] found that it belongs; returns where it went.
    fn insert(&mut self, city: u32, place: Place, millis: i64, held: Held) -> Place {
        // The end of the chunk before is the same place, and keeps chunks full.
        if place.row == 0 && place.chunk > 0 {
            let chunk = place.chunk - 1;
            let end = Place { chunk, row: usize::from(self.chunk(city, chunk).len) };
            if end.row < CHUNK_ROWS && self.try_insert(city, end, millis, held) {
                return end;
            }
        }
        if place.chunk == self.index[city as usize].chunks.len() {
            return self.insert_chunk(city, place.chunk, millis, held);
        }
        let mut place = place;
        if self.chunk(city, place.chunk).is_full() && place.row > 0 {
            self.split(city, Place { chunk: place.chunk, row: CHUNK_ROWS / 2 });
            if place.row > CHUNK_ROWS / 2 {
                place = Place { chunk: place.chunk + 1, row: place.row - CHUNK_ROWS / 2 };
            }
        }
        if !self.chunk(city, place.chunk).is_full() && self.try_insert(city, place, millis, held) {
            return place;
        }
        // No frame spans the chunk and this time, or it is full and begins here: a chunk of its own, between its neighbours.
        if place.row > 0 && place.row < usize::from(self.chunk(city, place.chunk).len) {
            self.split(city, place);
        }
        let chunk = place.chunk + usize::from(place.row > 0);
        self.insert_chunk(city, chunk, millis, held)
    }

    fn try_insert(&mut self, city: u32, place: Place, millis: i64, held: Held) -> bool {
        let id = self.index[city as usize].chunks[place.chunk];
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
        let upper = self.arena.allocate();
        let index = &mut self.index[city as usize];
        let (lower_chunk, upper_chunk) = self.arena.get_two(index.chunks[place.chunk], upper);
        lower_chunk.split_into(place.row, upper_chunk);
        index.chunks.insert(place.chunk + 1, upper);
        index.relink = true;
    }

    fn insert_chunk(&mut self, city: u32, chunk: usize, millis: i64, held: Held) -> Place {
        let id = self.arena.allocate();
        self.arena.get_mut(id).frame = Frame::starting_at(millis);
        self.index[city as usize].chunks.insert(chunk, id);
        self.index[city as usize].relink = true;
        let place = Place { chunk, row: 0 };
        let inserted = self.try_insert(city, place, millis, held);
        debug_assert!(inserted, "an empty chunk takes any time");
        place
    }
}
