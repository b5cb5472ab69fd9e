//! Collections derived from the current rows: the hottest cities, and the number of cities in each
//! category.

use std::cmp::Reverse;

use differential_dataflow::VecCollection;
use serde::{Deserialize, Serialize};

use crate::directory::Directory;
use crate::model::{Category, CityId, CityNames, CurrentRow, EventTime, HeatIndex};

/// A ranked city. The order is hottest first; of equally hot cities, the first by key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RankedCity {
    heat_index: Reverse<HeatIndex>,
    /// The key of the city.
    pub city: String,
    /// When its newest servable reading was taken.
    pub reading_at: EventTime,
}

impl RankedCity {
    /// The heat index of that reading.
    pub fn heat_index(&self) -> HeatIndex {
        self.heat_index.0
    }
}

/// How many cities of a country are in a category.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CountryCategory {
    /// ISO 3166 code of two letters; empty if the directory has no country for the city.
    pub country: String,
    /// The category of the current heat index.
    pub category: Category,
    /// How many cities of the country are in this category; at least 1.
    pub cities: isize,
}

/// The number of parts that are ranked on their own, before the best of each are ranked together: a
/// change costs the ranking of one part, not of all cities.
const RANKING_PARTS: u64 = 64;

type CurrentRowsByKey<'scope> = VecCollection<'scope, u64, (String, CurrentRow), isize>;

/// The current rows by city key, which means the same to every worker.
pub fn current_rows_by_key<'scope>(
    current: VecCollection<'scope, u64, (CityId, CurrentRow), isize>,
    names: CityNames,
) -> CurrentRowsByKey<'scope> {
    current.map(move |(city, row)| (names.get(city).to_string(), row))
}

/// The `count` cities whose current heat index is the highest.
pub fn hottest_cities<'scope>(
    current: CurrentRowsByKey<'scope>,
    count: usize,
) -> VecCollection<'scope, u64, RankedCity, isize> {
    let best = move |_: &u64, ranked: &[(&RankedCity, isize)], best: &mut Vec<(RankedCity, isize)>| {
        best.extend(ranked.iter().take(count).map(|(ranked, _)| ((*ranked).clone(), 1)));
    };
    current
        .map(|(city, CurrentRow { row, reading_at, .. })| {
            let part = foldhash::fast::FixedState::default();
            let part = std::hash::BuildHasher::hash_one(&part, &city) % RANKING_PARTS;
            (part, RankedCity { heat_index: Reverse(row.heat_index()), city, reading_at })
        })
        .reduce(best)
        .map(|(_, ranked)| (0, ranked))
        .reduce(best)
        .map(|(_, ranked)| ranked)
}

/// How many cities of each country are in each category.
pub fn count_by_country<'scope>(
    current: CurrentRowsByKey<'scope>,
    directory: &'static Directory<'static>,
) -> VecCollection<'scope, u64, CountryCategory, isize> {
    current
        .map(move |(city, current)| {
            let country =
                directory.find_by_key(&city).and_then(|entry| entry.country).unwrap_or_default().to_owned();
            (country, current.row.category())
        })
        .count()
        .map(|((country, category), cities)| CountryCategory { country, category, cities })
}
