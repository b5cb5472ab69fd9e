//! Who gets what: a message is built once for all subscriptions that are equal, and shared.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::name_limits::names_bytes;
use super::outbox::Outbox;
use super::selection::{CitySelection, ResumeTokens, Selection, SubscriptionKind};
use crate::codec;
use crate::model::{OutputUnits, WatchedRow};
use crate::serve::budget::QuotaShare;
use crate::serve::view::{AppliedUpdate, CurrentRowChange};
use crate::serve::wire;

type FastMap<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// Subscriptions of equal selection, units included, and of equal id form a group.
pub(super) struct SubscriptionRouter {
    tokens: ResumeTokens,
    groups: Vec<Option<SubscriptionGroup>>,
    free_groups: Vec<u32>,
    group_indexes: FastMap<(Arc<Selection>, Arc<str>), u32>,
    latest_by_city: FastMap<Arc<str>, Vec<u32>>,
    window_by_city: FastMap<Arc<str>, Vec<u32>>,
    /// Those that name no cities.
    unlisted_groups: Vec<u32>,
}

struct SubscriptionGroup {
    selection: Arc<Selection>,
    id: Arc<str>,
    members: Vec<(Arc<Outbox>, u16)>,
    /// What its names take.
    _names: QuotaShare,
    /// What of the update at hand concerns the group, as numbers of pieces.
    picked_changes: Vec<u32>,
}

/// The changes of an update as JSON, each encoded once in each of the units that it is asked for in.
#[derive(Default)]
struct EncodedChanges {
    text: Vec<u8>,
    ranges: Vec<(Range<usize>, bool)>,
    /// Those of the change at hand, by their units; a removal is the same in all.
    current_encodings: Vec<(Option<OutputUnits>, u32)>,
}

/// A change that groups are to be told of.
#[derive(Clone, Copy)]
enum ChangeToEncode<'a> {
    Latest(&'a CurrentRowChange),
    Window(&'a WatchedRow),
}

impl EncodedChanges {
    /// Adds what `write` writes; an upsert, or else a removal.
    fn add_encoded(&mut self, upsert: bool, write: impl FnOnce(&mut Vec<u8>)) -> u32 {
        let start = self.text.len();
        write(&mut self.text);
        self.ranges.push((start..self.text.len(), upsert));
        self.ranges.len() as u32 - 1
    }

    /// The number of the change at hand in some units; encoded, where it is not yet.
    fn encoded_index(&mut self, piece: ChangeToEncode<'_>, units: OutputUnits) -> Option<u32> {
        let encoded = self.current_encodings.iter().find(|(of, _)| of.is_none_or(|of| of == units));
        if let Some(&(_, number)) = encoded {
            return Some(number);
        }
        let (of, number) = match piece {
            ChangeToEncode::Latest(CurrentRowChange { city, current_row: Some(row), .. }) => {
                (Some(units), self.add_encoded(true, |out| codec::push_current_json(out, city, row, units)))
            }
            ChangeToEncode::Latest(CurrentRowChange { city, previous_reading_at: was, .. }) => {
                let was = (*was)?;
                (None, self.add_encoded(false, |out| codec::push_key_json(out, city, was)))
            }
            ChangeToEncode::Window(WatchedRow { city, reading_at, row: Some(row), .. }) => (
                Some(units),
                self.add_encoded(true, |out| codec::push_row_json(out, city, *reading_at, row, units)),
            ),
            ChangeToEncode::Window(WatchedRow { city, reading_at, .. }) => {
                (None, self.add_encoded(false, |out| codec::push_key_json(out, city, *reading_at)))
            }
        };
        self.current_encodings.push((of, number));
        Some(number)
    }
}

impl SubscriptionRouter {
    pub(super) fn new(tokens: ResumeTokens) -> SubscriptionRouter {
        SubscriptionRouter {
            tokens,
            groups: Vec::new(),
            free_groups: Vec::new(),
            group_indexes: FastMap::default(),
            latest_by_city: FastMap::default(),
            window_by_city: FastMap::default(),
            unlisted_groups: Vec::new(),
        }
    }

    /// Returns the selection as the group holds it, so that equal ones are held once; nothing where the names of a new group would
    /// take more than their share.
    pub(super) fn join_group(
        &mut self,
        selection: Selection,
        id: &Arc<str>,
        outbox: &Arc<Outbox>,
        slot: u16,
        mut names: QuotaShare,
    ) -> Option<Arc<Selection>> {
        let bytes = names_bytes(&selection);
        let key = (Arc::new(selection), id.clone());
        let number = match self.group_indexes.get(&key) {
            Some(&number) => number,
            None if names.try_grow(bytes) => self.add_group(key, names),
            None => return None,
        };
        let group = self.groups[number as usize].as_mut()?;
        group.members.push((outbox.clone(), slot));
        Some(group.selection.clone())
    }

    fn add_group(&mut self, key: (Arc<Selection>, Arc<str>), names: QuotaShare) -> u32 {
        let (selection, id) = key.clone();
        let (members, picked) = (Vec::new(), Vec::new());
        let group = Some(SubscriptionGroup {
            selection: selection.clone(),
            id,
            members,
            _names: names,
            picked_changes: picked,
        });
        let number = match self.free_groups.pop() {
            Some(number) => {
                self.groups[number as usize] = group;
                number
            }
            None => {
                self.groups.push(group);
                self.groups.len() as u32 - 1
            }
        };
        self.group_indexes.insert(key, number);
        match (&selection.cities, selection.kind) {
            (CitySelection::Listed(keys), rows) => {
                let index = if rows == SubscriptionKind::Latest {
                    &mut self.latest_by_city
                } else {
                    &mut self.window_by_city
                };
                for key in keys {
                    index.entry(key.clone()).or_default().push(number);
                }
            }
            _ => self.unlisted_groups.push(number),
        }
        number
    }

    pub(super) fn leave_group(
        &mut self,
        selection: &Arc<Selection>,
        id: &Arc<str>,
        outbox: &Arc<Outbox>,
        slot: u16,
    ) {
        let key = (selection.clone(), id.clone());
        let Some(&number) = self.group_indexes.get(&key) else { return };
        let Some(group) = &mut self.groups[number as usize] else { return };
        let member = |(of, at): &(Arc<Outbox>, u16)| *at == slot && Arc::ptr_eq(of, outbox);
        if let Some(at) = group.members.iter().position(member) {
            group.members.swap_remove(at);
        }
        if !group.members.is_empty() {
            return;
        }
        self.groups[number as usize] = None;
        self.free_groups.push(number);
        self.group_indexes.remove(&key);
        if let CitySelection::Listed(keys) = &selection.cities {
            let index = if selection.kind == SubscriptionKind::Latest {
                &mut self.latest_by_city
            } else {
                &mut self.window_by_city
            };
            for key in keys {
                let Some(groups) = index.get_mut(key) else { continue };
                groups.retain(|group| *group != number);
                if groups.is_empty() {
                    index.remove(key);
                }
            }
        } else {
            self.unlisted_groups.retain(|group| *group != number);
        }
    }

    /// Queues the messages of an update; returns how many rows were left to be merged.
    pub(super) fn route_update(&mut self, applied: &AppliedUpdate) -> u64 {
        let mut pieces = EncodedChanges::default();
        let mut picking = Vec::new();
        for change in &applied.current {
            self.pick_latest_change(change, &mut pieces, &mut picking);
        }
        if !self.window_by_city.is_empty() {
            // Only the last change of a key counts.
            let mut seen = HashSet::new();
            for row in applied.rows.iter().rev() {
                let Some(groups) = self.window_by_city.get(&row.city) else { continue };
                if seen.insert((&row.city, row.reading_at)) {
                    pieces.current_encodings.clear();
                    pick_for_groups(
                        &mut self.groups,
                        groups,
                        ChangeToEncode::Window(row),
                        &mut pieces,
                        &mut picking,
                    );
                }
            }
        }
        picking.into_iter().map(|number| self.send_to_group(number, applied.as_of, &pieces)).sum()
    }

    fn pick_latest_change(
        &mut self,
        change: &CurrentRowChange,
        pieces: &mut EncodedChanges,
        picking: &mut Vec<u32>,
    ) {
        let listed = self.latest_by_city.get(&change.city).map_or(&[][..], |groups| groups);
        let inside = |number: &&u32| {
            let group = self.groups[**number as usize].as_ref();
            group.is_some_and(|group| group.selection.city_filter().matches(&change.city, change.location))
        };
        let wide: Vec<u32> = self.unlisted_groups.iter().filter(inside).copied().collect();
        if listed.is_empty() && wide.is_empty() {
            return;
        }
        pieces.current_encodings.clear();
        pick_for_groups(&mut self.groups, listed, ChangeToEncode::Latest(change), pieces, picking);
        pick_for_groups(&mut self.groups, &wide, ChangeToEncode::Latest(change), pieces, picking);
    }

    fn send_to_group(&mut self, number: u32, as_of: u64, pieces: &EncodedChanges) -> u64 {
        let Some(group) = &mut self.groups[number as usize] else { return 0 };
        let bytes: usize =
            group.picked_changes.iter().map(|&piece| pieces.ranges[piece as usize].0.len() + 1).sum();
        let mut text = Vec::with_capacity(bytes + 256);
        wire::begin_changes(&mut text, &group.id, as_of, group.selection.units);
        self.tokens.push_token(&mut text, as_of, group.selection.digest());
        for (upserts, between) in [(true, &b"\",\"upserts\":["[..]), (false, b"],\"removals\":[")] {
            text.extend_from_slice(between);
            let mut first = true;
            for &piece in &group.picked_changes {
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
        let rows = group.picked_changes.len() as u32;
        group.picked_changes.clear();
        // Rows are written as UTF-8.
        let Ok(text) = Utf8Bytes::try_from(text) else { return 0 };
        group.members.iter().map(|(outbox, slot)| outbox.push_message(*slot, as_of, rows, &text)).sum()
    }
}

fn pick_for_groups(
    groups: &mut [Option<SubscriptionGroup>],
    numbers: &[u32],
    piece: ChangeToEncode<'_>,
    pieces: &mut EncodedChanges,
    picking: &mut Vec<u32>,
) {
    for &number in numbers {
        let Some(group) = &mut groups[number as usize] else { continue };
        let Some(picked) = pieces.encoded_index(piece, group.selection.units) else { return };
        if group.picked_changes.is_empty() {
            picking.push(number);
        }
        group.picked_changes.push(picked);
    }
}
