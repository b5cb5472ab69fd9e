//! The cities of a worker: their names, and the numbers by which sources name them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::{CityId, CityIntroduction, CityKey, CityNames};

/// The cities of a worker by name, and by the number that each source has for them.
#[derive(Debug, Default)]
pub struct CityTable {
    pub(super) names: CityNames,
    pub(super) by_name: HashMap<Arc<str>, u32, foldhash::fast::RandomState>,
    /// City ids by source and number.
    pub(super) by_key: Vec<Vec<u32>>,
    /// By city: the source that introduced it first, in this run or in the one it was restored
    /// from.
    pub(super) sources: Vec<u16>,
    /// How many cities were marked as split since the last epoch.
    pub(super) new_split_cities: u64,
}

/// What an introduction says of its city.
pub(super) enum IntroducedCity {
    /// The city has no state yet.
    New,
    /// The city was introduced by another source before, for the first time.
    NewlySplit(u32),
    Known,
}

impl CityTable {
    /// Records the key of a city, and whether it is split: introduced by more than one source.
    pub fn introduce_key(&mut self, city: &CityIntroduction) -> IntroducedCity {
        let existing = self.by_name.get(&*city.name).copied();
        let id = existing.unwrap_or_else(|| self.push_city(city.name.as_ref().into(), city.key.source));
        let source = usize::from(city.key.source);
        if self.by_key.len() <= source {
            self.by_key.resize_with(source + 1, Vec::new);
        }
        let numbers = &mut self.by_key[source];
        if numbers.len() <= city.key.number as usize {
            numbers.resize(city.key.number as usize + 1, u32::MAX);
        }
        numbers[city.key.number as usize] = id;
        if existing.is_none() {
            return IntroducedCity::New;
        }
        match self.sources[id as usize] != city.key.source && self.mark_split(id) {
            true => IntroducedCity::NewlySplit(id),
            false => IntroducedCity::Known,
        }
    }

    /// Marks a city as split. Returns false if it was marked before.
    pub(super) fn mark_split(&mut self, city: u32) -> bool {
        let is_new = self.names.mark_split(CityId(city));
        self.new_split_cities += u64::from(is_new);
        is_new
    }

    pub(super) fn push_city(&mut self, name: Arc<str>, source: u16) -> u32 {
        let CityId(id) = self.names.push(Arc::clone(&name));
        self.by_name.insert(name, id);
        self.sources.push(source);
        id
    }

    /// The city of a key. Every key of an arrival was introduced before.
    #[inline(always)]
    pub fn city_of_key(&self, key: CityKey) -> u32 {
        self.by_key[usize::from(key.source)][key.number as usize]
    }
}
