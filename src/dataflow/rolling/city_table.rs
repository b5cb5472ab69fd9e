//! The cities of a worker: their names, and the numbers by which sources name them.

use std::collections::{HashMap, HashSet};
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
    /// Cities that more than one source has introduced, and how many were added since the last
    /// epoch.
    pub(super) multi_source_cities: HashSet<u32, foldhash::fast::RandomState>,
    pub(super) new_multi_source_cities: u64,
}

impl CityTable {
    /// Records the key of a city. Returns true if the name is new.
    pub fn introduce_key(&mut self, city: &CityIntroduction) -> bool {
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
        if self.sources[id as usize] != city.key.source && self.multi_source_cities.insert(id) {
            self.new_multi_source_cities += 1;
        }
        existing.is_none()
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
