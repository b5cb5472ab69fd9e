//! Who gets what: a message is built once for all subscriptions that are equal, and shared.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::names::names_bytes;
use super::outbox::Outbox;
use super::selection::{Cities, Rows, Selection, Tokens};
use crate::codec;
use crate::model::{OutputUnits, WatchedRow};
use crate::serve::budget::Share;
use crate::serve::view::{Applied, Changed};
use crate::serve::wire;

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// Subscriptions of equal selection, units included, and of equal id form a group.
pub(super) struct Routes {
    tokens: Tokens,
    groups: Vec<Option<Group>>,
    free: Vec<u32>,
    numbers: Map<(Arc<Selection>, Arc<str>), u32>,
    latest: Map<Arc<str>, Vec<u32>>,
    window: Map<Arc<str>, Vec<u32>>,
    /// Those that name no cities.
    wide: Vec<u32>,
}

struct Group {
    selection: Arc<Selection>,
    id: Arc<str>,
    members: Vec<(Arc<Outbox>, u16)>,
    /// What its names take.
    _names: Share,
    /// What of the update at hand concerns the group, as numbers of pieces.
    picked: Vec<u32>,
}

/// The changes of an update as JSON, each encoded once in each of the units that it is asked for in.
#[derive(Default)]
struct Pieces {
    text: Vec<u8>,
    ranges: Vec<(Range<usize>, bool)>,
    /// Those of the change at hand, by their units; a removal is the same in all.
    at_hand: Vec<(Option<OutputUnits>, u32)>,
}

/// A change that groups are to be told of.
#[derive(Clone, Copy)]
enum Piece<'a> {
    Latest(&'a Changed),
    Window(&'a WatchedRow),
}

impl Pieces {
    /// Adds what `write` writes; an upsert, or else a removal.
    fn add(&mut self, upsert: bool, write: impl FnOnce(&mut Vec<u8>)) -> u32 {
        let start = self.text.len();
        write(&mut self.text);
        self.ranges.push((start..self.text.len(), upsert));
        self.ranges.len() as u32 - 1
    }

    /// The number of the change at hand in some units; encoded, where it is not yet.
    fn number(&mut self, piece: Piece<'_>, units: OutputUnits) -> Option<u32> {
        let encoded = self.at_hand.iter().find(|(of, _)| of.is_none_or(|of| of == units));
        if let Some(&(_, number)) = encoded {
            return Some(number);
        }
        let (of, number) = match piece {
            Piece::Latest(Changed { city, now: Some(row), .. }) => {
                (Some(units), self.add(true, |out| codec::push_current_json(out, city, row, units)))
            }
            Piece::Latest(Changed { city, was, .. }) => {
                let was = (*was)?;
                (None, self.add(false, |out| codec::push_key_json(out, city, was)))
            }
            Piece::Window(WatchedRow { city, reading_at, row: Some(row), .. }) => {
                (Some(units), self.add(true, |out| codec::push_row_json(out, city, *reading_at, row, units)))
            }
            Piece::Window(WatchedRow { city, reading_at, .. }) => {
                (None, self.add(false, |out| codec::push_key_json(out, city, *reading_at)))
            }
        };
        self.at_hand.push((of, number));
        Some(number)
    }
}

impl Routes {
    pub(super) fn new(tokens: Tokens) -> Routes {
        Routes {
            tokens,
            groups: Vec::new(),
            free: Vec::new(),
            numbers: Map::default(),
            latest: Map::default(),
            window: Map::default(),
            wide: Vec::new(),
        }
    }

    /// Returns the selection as the group holds it, so that equal ones are held once; nothing where the names of a new group would
    /// take more than their share.
    pub(super) fn join(
        &mut self,
        selection: Selection,
        id: &Arc<str>,
        outbox: &Arc<Outbox>,
        slot: u16,
        mut names: Share,
    ) -> Option<Arc<Selection>> {
        let bytes = names_bytes(&selection);
        let key = (Arc::new(selection), id.clone());
        let number = match self.numbers.get(&key) {
            Some(&number) => number,
            None if names.grow(bytes) => self.add(key, names),
            None => return None,
        };
        let group = self.groups[number as usize].as_mut()?;
        group.members.push((outbox.clone(), slot));
        Some(group.selection.clone())
    }

    fn add(&mut self, key: (Arc<Selection>, Arc<str>), names: Share) -> u32 {
        let (selection, id) = key.clone();
        let (members, picked) = (Vec::new(), Vec::new());
        let group = Some(Group { selection: selection.clone(), id, members, _names: names, picked });
        let number = match self.free.pop() {
            Some(number) => {
                self.groups[number as usize] = group;
                number
            }
            None => {
                self.groups.push(group);
                self.groups.len() as u32 - 1
            }
        };
        self.numbers.insert(key, number);
        match (&selection.cities, selection.rows) {
            (Cities::Listed(keys), rows) => {
                let index = if rows == Rows::Latest { &mut self.latest } else { &mut self.window };
                for key in keys {
                    index.entry(key.clone()).or_default().push(number);
                }
            }
            _ => self.wide.push(number),
        }
        number
    }

    pub(super) fn leave(
        &mut self,
        selection: &Arc<Selection>,
        id: &Arc<str>,
        outbox: &Arc<Outbox>,
        slot: u16,
    ) {
        let key = (selection.clone(), id.clone());
        let Some(&number) = self.numbers.get(&key) else { return };
        let Some(group) = &mut self.groups[number as usize] else { return };
        let member = |(of, at): &(Arc<Outbox>, u16)| *at == slot && Arc::ptr_eq(of, outbox);
        if let Some(at) = group.members.iter().position(member) {
            group.members.swap_remove(at);
        }
        if !group.members.is_empty() {
            return;
        }
        self.groups[number as usize] = None;
        self.free.push(number);
        self.numbers.remove(&key);
        if let Cities::Listed(keys) = &selection.cities {
            let index = if selection.rows == Rows::Latest { &mut self.latest } else { &mut self.window };
            for key in keys {
                let Some(groups) = index.get_mut(key) else { continue };
                groups.retain(|group| *group != number);
                if groups.is_empty() {
                    index.remove(key);
                }
            }
        } else {
            self.wide.retain(|group| *group != number);
        }
    }

    /// Queues the messages of an update; returns how many rows were left to be merged.
    pub(super) fn route(&mut self, applied: &Applied) -> u64 {
        let mut pieces = Pieces::default();
        let mut picking = Vec::new();
        for change in &applied.current {
            self.pick_latest(change, &mut pieces, &mut picking);
        }
        if !self.window.is_empty() {
            // Only the last change of a key counts.
            let mut seen = HashSet::new();
            for row in applied.rows.iter().rev() {
                let Some(groups) = self.window.get(&row.city) else { continue };
                if seen.insert((&row.city, row.reading_at)) {
                    pieces.at_hand.clear();
                    pick(&mut self.groups, groups, Piece::Window(row), &mut pieces, &mut picking);
                }
            }
        }
        picking.into_iter().map(|number| self.send(number, applied.as_of, &pieces)).sum()
    }

    fn pick_latest(&mut self, change: &Changed, pieces: &mut Pieces, picking: &mut Vec<u32>) {
        let listed = self.latest.get(&change.city).map_or(&[][..], |groups| groups);
        let inside = |number: &&u32| {
            let group = self.groups[**number as usize].as_ref();
            group.is_some_and(|group| group.selection.select().takes(&change.city, change.place))
        };
        let wide: Vec<u32> = self.wide.iter().filter(inside).copied().collect();
        if listed.is_empty() && wide.is_empty() {
            return;
        }
        pieces.at_hand.clear();
        pick(&mut self.groups, listed, Piece::Latest(change), pieces, picking);
        pick(&mut self.groups, &wide, Piece::Latest(change), pieces, picking);
    }

    fn send(&mut self, number: u32, as_of: u64, pieces: &Pieces) -> u64 {
        let Some(group) = &mut self.groups[number as usize] else { return 0 };
        let bytes: usize = group.picked.iter().map(|&piece| pieces.ranges[piece as usize].0.len() + 1).sum();
        let mut text = Vec::with_capacity(bytes + 256);
        wire::begin_changes(&mut text, &group.id, as_of, group.selection.units);
        self.tokens.push(&mut text, as_of, group.selection.digest());
        for (upserts, between) in [(true, &b"\",\"upserts\":["[..]), (false, b"],\"removals\":[")] {
            text.extend_from_slice(between);
            let mut first = true;
            for &piece in &group.picked {
                let (range, upsert) = &pieces.ranges[piece as usize];
                if *upsert == upserts {
                    if !std::mem::take(&mut first) {
                        text.push(b',');
                    }
                    text.extend_from_slice(&pieces.text[range.clone()]);
                }
            }
        }
        text.extend_from_slice(b"]}");
        let rows = group.picked.len() as u32;
        group.picked.clear();
        // Rows are written as UTF-8.
        let Ok(text) = Utf8Bytes::try_from(text) else { return 0 };
        group.members.iter().map(|(outbox, slot)| outbox.push(*slot, as_of, rows, &text)).sum()
    }
}

fn pick(
    groups: &mut [Option<Group>],
    numbers: &[u32],
    piece: Piece<'_>,
    pieces: &mut Pieces,
    picking: &mut Vec<u32>,
) {
    for &number in numbers {
        let Some(group) = &mut groups[number as usize] else { continue };
        let Some(picked) = pieces.number(piece, group.selection.units) else { return };
        if group.picked.is_empty() {
            picking.push(number);
        }
        group.picked.push(picked);
    }
}
