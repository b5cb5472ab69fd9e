//! Routes updates to subscriptions. A message is built once for all equal subscriptions, which
//! share it.

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

/// Finds the subscriptions that a change concerns. Subscriptions of equal selection, units
/// included, and of equal id form a group.
pub(super) struct SubscriptionRouter {
    tokens: ResumeTokens,
    groups: Vec<Option<SubscriptionGroup>>,
    free_groups: Vec<u32>,
    group_indexes: FastMap<(Arc<Selection>, Arc<str>), u32>,
    latest_by_city: FastMap<Arc<str>, Vec<u32>>,
    window_by_city: FastMap<Arc<str>, Vec<u32>>,
    /// Groups that list no cities.
    unlisted_groups: Vec<u32>,
}

struct SubscriptionGroup {
    selection: Arc<Selection>,
    id: Arc<str>,
    members: Vec<GroupMember>,
    /// Memory of the names that its selection lists.
    _names_share: QuotaShare,
    /// The changes of the current update that concern the group, as indexes of encoded changes.
    picked_changes: Vec<u32>,
}

/// A subscription of a session: the session's outbox and the subscription's slot there.
pub(super) struct GroupMember {
    pub(super) outbox: Arc<Outbox>,
    pub(super) slot: u16,
}

impl GroupMember {
    fn is_same(&self, other: &GroupMember) -> bool {
        self.slot == other.slot && Arc::ptr_eq(&self.outbox, &other.outbox)
    }
}

/// The changes of an update as JSON, each encoded once for each of the units that groups want.
#[derive(Default)]
struct EncodedChanges {
    text: Vec<u8>,
    changes: Vec<EncodedChange>,
    /// Indexes of the encodings of the current change, by units; `None` for a removal, which is the
    /// same in all units.
    current_encodings: Vec<(Option<OutputUnits>, u32)>,
}

struct EncodedChange {
    /// Its part of the text.
    range: Range<usize>,
    /// Whether it is an upsert; otherwise it is a removal.
    is_upsert: bool,
}

/// A change that concerns groups.
#[derive(Clone, Copy)]
enum ChangeToEncode<'a> {
    Latest(&'a CurrentRowChange),
    Window(&'a WatchedRow),
}

impl EncodedChanges {
    /// Adds an encoding, and returns its index.
    fn add_encoded(&mut self, is_upsert: bool, write: impl FnOnce(&mut Vec<u8>)) -> u32 {
        let start = self.text.len();
        write(&mut self.text);
        self.changes.push(EncodedChange { range: start..self.text.len(), is_upsert });
        self.changes.len() as u32 - 1
    }

    /// The index of the current change in some units, which is encoded if it is not yet.
    fn encoded_index(&mut self, change: ChangeToEncode<'_>, units: OutputUnits) -> Option<u32> {
        let is_for = |encoded: Option<OutputUnits>| encoded.is_none_or(|encoded| encoded == units);
        if let Some(&(_, index)) = self.current_encodings.iter().find(|(encoded, _)| is_for(*encoded)) {
            return Some(index);
        }
        let (encoded_units, index) = match change {
            ChangeToEncode::Latest(CurrentRowChange { city, current_row: Some(row), .. }) => {
                (Some(units), self.add_encoded(true, |out| codec::push_current_json(out, city, row, units)))
            }
            ChangeToEncode::Latest(CurrentRowChange { city, previous_reading_at, .. }) => {
                let reading_at = (*previous_reading_at)?;
                (None, self.add_encoded(false, |out| codec::push_key_json(out, city, reading_at)))
            }
            ChangeToEncode::Window(WatchedRow { city, reading_at, row: Some(row), .. }) => (
                Some(units),
                self.add_encoded(true, |out| codec::push_row_json(out, city, *reading_at, row, units)),
            ),
            ChangeToEncode::Window(WatchedRow { city, reading_at, .. }) => {
                (None, self.add_encoded(false, |out| codec::push_key_json(out, city, *reading_at)))
            }
        };
        self.current_encodings.push((encoded_units, index));
        Some(index)
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

    /// Adds a subscription to the group of its selection and id. Returns the selection as the group
    /// holds it, so that equal ones are in memory once; `None` if the names of a new group would
    /// take more than their share.
    pub(super) fn join_group(
        &mut self,
        selection: Selection,
        id: &Arc<str>,
        member: GroupMember,
        mut names_share: QuotaShare,
    ) -> Option<Arc<Selection>> {
        let bytes = names_bytes(&selection);
        let key = (Arc::new(selection), id.clone());
        let number = match self.group_indexes.get(&key) {
            Some(&number) => number,
            None if names_share.try_grow(bytes) => self.add_group(key, names_share),
            None => return None,
        };
        let group = self.groups[number as usize].as_mut()?;
        group.members.push(member);
        Some(group.selection.clone())
    }

    fn add_group(&mut self, key: (Arc<Selection>, Arc<str>), names_share: QuotaShare) -> u32 {
        let (selection, id) = key.clone();
        let group = Some(SubscriptionGroup {
            selection: selection.clone(),
            id,
            members: Vec::new(),
            _names_share: names_share,
            picked_changes: Vec::new(),
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
        if let CitySelection::Listed(keys) = &selection.cities {
            let by_city = self.groups_by_city(selection.kind);
            for key in keys {
                by_city.entry(key.clone()).or_default().push(number);
            }
        } else {
            self.unlisted_groups.push(number);
        }
        number
    }

    pub(super) fn leave_group(&mut self, selection: &Arc<Selection>, id: &Arc<str>, member: &GroupMember) {
        let key = (selection.clone(), id.clone());
        let Some(&number) = self.group_indexes.get(&key) else { return };
        let Some(group) = &mut self.groups[number as usize] else { return };
        if let Some(at) = group.members.iter().position(|other| other.is_same(member)) {
            group.members.swap_remove(at);
        }
        if !group.members.is_empty() {
            return;
        }
        self.groups[number as usize] = None;
        self.free_groups.push(number);
        self.group_indexes.remove(&key);
        if let CitySelection::Listed(keys) = &selection.cities {
            let by_city = self.groups_by_city(selection.kind);
            for key in keys {
                let Some(groups) = by_city.get_mut(key) else { continue };
                groups.retain(|group| *group != number);
                if groups.is_empty() {
                    by_city.remove(key);
                }
            }
        } else {
            self.unlisted_groups.retain(|group| *group != number);
        }
    }

    fn groups_by_city(&mut self, kind: SubscriptionKind) -> &mut FastMap<Arc<str>, Vec<u32>> {
        match kind {
            SubscriptionKind::Latest => &mut self.latest_by_city,
            SubscriptionKind::Window => &mut self.window_by_city,
        }
    }

    /// Queues the messages of an update; returns how many rows were dropped from queues that are
    /// full, to be merged later.
    pub(super) fn route_update(&mut self, applied: &AppliedUpdate) -> u64 {
        let mut picker = ChangePicker {
            groups: &mut self.groups,
            encoded: EncodedChanges::default(),
            concerned: Vec::new(),
        };
        for change in &applied.current {
            let listed = self.latest_by_city.get(&change.city).map_or(&[][..], |groups| groups);
            picker.pick_latest_change(change, listed, &self.unlisted_groups);
        }
        if !self.window_by_city.is_empty() {
            // Only the last change of a key counts.
            let mut keys = HashSet::new();
            for row in applied.rows.iter().rev() {
                let Some(groups) = self.window_by_city.get(&row.city) else { continue };
                if keys.insert((&row.city, row.reading_at)) {
                    picker.encoded.current_encodings.clear();
                    picker.pick_for_groups(groups, ChangeToEncode::Window(row));
                }
            }
        }
        let ChangePicker { encoded, concerned, .. } = picker;
        concerned.into_iter().map(|number| self.send_to_group(number, applied.as_of, &encoded)).sum()
    }

    fn send_to_group(&mut self, number: u32, as_of: u64, encoded: &EncodedChanges) -> u64 {
        let Some(group) = &mut self.groups[number as usize] else { return 0 };
        let picked = || group.picked_changes.iter().map(|&index| &encoded.changes[index as usize]);
        let bytes: usize = picked().map(|change| change.range.len() + 1).sum();
        let mut text = Vec::with_capacity(bytes + 256);
        wire::begin_changes(&mut text, &group.id, as_of, group.selection.units);
        self.tokens.push_token(&mut text, as_of, group.selection.digest());
        for (upserts, between) in [(true, &b"\",\"upserts\":["[..]), (false, b"],\"removals\":[")] {
            text.extend_from_slice(between);
            let mut is_first = true;
            for change in picked().filter(|change| change.is_upsert == upserts) {
                if !std::mem::take(&mut is_first) {
                    text.push(b',');
                }
                text.extend_from_slice(&encoded.text[change.range.clone()]);
            }
        }
        text.extend_from_slice(b"]}");
        let rows = group.picked_changes.len() as u32;
        group.picked_changes.clear();
        // Rows are written as UTF-8.
        let Ok(text) = Utf8Bytes::try_from(text) else { return 0 };
        let members = group.members.iter();
        members.map(|member| member.outbox.push_message(member.slot, as_of, rows, &text)).sum()
    }
}

/// Finds the groups that the changes of an update concern, and encodes the changes for them.
struct ChangePicker<'a> {
    groups: &'a mut [Option<SubscriptionGroup>],
    encoded: EncodedChanges,
    /// Numbers of the groups that have picked changes, each once.
    concerned: Vec<u32>,
}

impl ChangePicker<'_> {
    /// `listed` are the groups that list the city, `unlisted` those that list no cities.
    fn pick_latest_change(&mut self, change: &CurrentRowChange, listed: &[u32], unlisted: &[u32]) {
        let is_selected = |number: &&u32| {
            let group = self.groups[**number as usize].as_ref();
            group.is_some_and(|group| group.selection.city_filter().matches(&change.city, change.location))
        };
        let unlisted: Vec<u32> = unlisted.iter().filter(is_selected).copied().collect();
        if listed.is_empty() && unlisted.is_empty() {
            return;
        }
        self.encoded.current_encodings.clear();
        self.pick_for_groups(listed, ChangeToEncode::Latest(change));
        self.pick_for_groups(&unlisted, ChangeToEncode::Latest(change));
    }

    fn pick_for_groups(&mut self, numbers: &[u32], change: ChangeToEncode<'_>) {
        for &number in numbers {
            let Some(group) = &mut self.groups[number as usize] else { continue };
            let Some(picked) = self.encoded.encoded_index(change, group.selection.units) else { return };
            if group.picked_changes.is_empty() {
                self.concerned.push(number);
            }
            group.picked_changes.push(picked);
        }
    }
}
