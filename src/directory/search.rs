//! Searches of cities by what people call them: name, other and local names, country.

use std::collections::HashMap;
use std::sync::LazyLock;

use icu_normalizer::DecomposingNormalizerBorrowed;

use super::Directory;

/// Other names of the cities with 100,000 people and more, and English names of countries: see
/// `data/README.md`.
static OTHER_NAMES_ZSTD: &[u8] = include_bytes!("../../data/names.csv.zst");
static COUNTRIES_CSV: &str = include_str!("../../data/countries.csv");
/// More than the decompressed names take.
const MAX_NAMES_BYTES: usize = 8 << 20;
/// The fewest letters of a country's name that match it.
const MIN_COUNTRY_LETTERS: usize = 3;
/// The separator between the names of a city.
const NAME_SEPARATOR: char = ';';

/// The names of the shipped cities by id, folded. The first search builds them.
static FOLDED_NAMES: LazyLock<HashMap<u32, Box<str>>> = LazyLock::new(|| {
    let mut folded: HashMap<u32, String> = Directory::shipped()
        .cities()
        .iter()
        .map(|city| (city.id, fold_case_and_accents(&city.name)))
        .collect();
    let names =
        zstd::bulk::decompress(OTHER_NAMES_ZSTD, MAX_NAMES_BYTES).expect("the shipped names are whole");
    let names = String::from_utf8(names).expect("the shipped names are UTF-8");
    for (id, others) in names.lines().skip(1).filter_map(|line| line.split_once(',')) {
        if let Some(city) = id.parse().ok().and_then(|id: u32| folded.get_mut(&id)) {
            city.push(NAME_SEPARATOR);
            city.push_str(&fold_case_and_accents(others));
        }
    }
    folded.into_iter().map(|(id, names)| (id, names.into())).collect()
});

/// Codes and folded English names of countries.
static FOLDED_COUNTRIES: LazyLock<Vec<(&str, String)>> = LazyLock::new(|| {
    let pairs = COUNTRIES_CSV.lines().skip(1).filter_map(|line| line.split_once(','));
    pairs.map(|(code, name)| (code, fold_case_and_accents(name.trim_matches('"')))).collect()
});

/// Folds a text: without case and accents.
fn fold_case_and_accents(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    let decomposed = DecomposingNormalizerBorrowed::new_nfd().normalize(text);
    decomposed.chars().filter(|&c| !is_accent(c)).flat_map(char::to_lowercase).collect()
}

/// Whether a character is an accent or a vowel point, which people leave out.
fn is_accent(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36f}' | '\u{483}'..='\u{489}' | '\u{591}'..='\u{5bd}' | '\u{610}'..='\u{61a}'
        | '\u{64b}'..='\u{65f}' | '\u{1ab0}'..='\u{1aff}' | '\u{1dc0}'..='\u{1dff}' | '\u{20d0}'..='\u{20ff}')
}

/// A search for cities.
pub struct CitySearch<'a> {
    directory: &'a Directory<'a>,
    wanted: String,
    /// Codes of the countries whose code or name is the text.
    countries: Vec<&'static str>,
}

impl<'a> CitySearch<'a> {
    /// A search for a text; `None` if it is blank.
    pub fn new(directory: &'a Directory<'a>, text: &str) -> Option<CitySearch<'a>> {
        let wanted = fold_case_and_accents(text.trim());
        let is_country = |(code, name): &&(&str, String)| {
            code.eq_ignore_ascii_case(&wanted)
                || (wanted.chars().count() >= MIN_COUNTRY_LETTERS && name.starts_with(&*wanted))
        };
        let countries = FOLDED_COUNTRIES.iter().filter(is_country).map(|(code, _)| *code).collect();
        LazyLock::force(&FOLDED_NAMES);
        (!wanted.is_empty()).then_some(CitySearch { directory, wanted, countries })
    }

    /// Whether the city matches: by its key, by the beginning of a word of any of its names, or by
    /// its country.
    pub fn matches_city(&self, key: &str) -> bool {
        if self.is_word_prefix_in(&fold_case_and_accents(key)) {
            return true;
        }
        let shipped = self.directory.id_of_key(key).and_then(|id| FOLDED_NAMES.get(&id));
        if shipped.is_some_and(|names| self.is_word_prefix_in(names)) {
            return true;
        }
        let Some(entry) = self.directory.find_by_key(key) else { return false };
        let is_renamed = shipped.is_none() || self.directory.places.contains_key(key);
        entry.country.is_some_and(|country| self.countries.contains(&country))
            || (is_renamed && self.is_word_prefix_in(&fold_case_and_accents(entry.name)))
    }

    fn is_word_prefix_in(&self, folded: &str) -> bool {
        let begins = |at: usize| folded[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric());
        folded.match_indices(&*self.wanted).any(|(at, _)| begins(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::PlacesFile;

    #[test]
    fn search_finds_cities_by_local_name_and_country() {
        let directory = Directory::shipped();
        let finds = |text: &str, key: &str| CitySearch::new(directory, text).unwrap().matches_city(key);
        const MUNICH: &str = "2867714";
        for text in [
            "Munich",
            "munich",
            " muni",
            "München",
            "munchen",
            "MUENCHEN",
            "Мюнхен",
            "Monaco di Baviera",
            "Germany",
            "germany",
            "de",
            MUNICH,
        ] {
            assert!(finds(text, MUNICH), "{text}");
        }
        for text in ["unich", "Minga Dinga", "Austria", "at", "867714"] {
            assert!(!finds(text, MUNICH), "{text}");
        }
        assert!(finds("Wien", "2761369") && finds("東京", "1850147") && finds("القاهرة", "360630"));
        assert!(finds("york", "5128581") && finds("united states", "5128581") && finds("US", "5128581"));
        assert!(
            finds("a place", "a place that no directory has")
                && finds("directory", "a place that no directory has")
        );
        assert!(CitySearch::new(directory, " ").is_none());
    }

    #[test]
    fn search_finds_places_by_name_and_country() {
        let text = "id,name,country,latitude,longitude,time_zone\nroof,Café am Dach,AT,48.2,16.4,\n2867714,Office,CH,48,11,\n";
        let directory = Directory::shipped_with(PlacesFile::from_csv(text).unwrap());
        let finds = |text: &str, key: &str| CitySearch::new(directory, text).unwrap().matches_city(key);
        assert!(
            finds("cafe", "roof")
                && finds("dach", "roof")
                && finds("Austria", "roof")
                && finds("roof", "roof")
        );
        assert!(
            finds("office", "2867714") && finds("Switzerland", "2867714") && !finds("Germany", "2867714")
        );
    }
}
