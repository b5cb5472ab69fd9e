//! The shipped cities by id, and the places file's cities beside them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::csv_line::CsvLineFields;
use super::places_file::PlacesEntry;
use super::{CityInfo, Coordinates, DirectoryCity, PlacesFile};

/// The text of the shipped directory: see `data/README.md`.
static SHIPPED_CITIES_CSV: &str = include_str!("../../data/cities.csv");

/// Cities in the order of their file, found by id, and those of a places file. It borrows from the
/// file's text.
#[derive(Clone, Debug)]
pub struct Directory<'a> {
    cities: Vec<DirectoryCity<'a>>,
    /// Ids, with the index of each city in `cities`, sorted by id.
    by_id: Vec<(u32, u32)>,
    /// The entries of the places file by key; they take precedence over `cities`.
    pub(super) places: BTreeMap<Box<str>, PlacesEntry>,
}

/// What is wrong with a directory file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct DirectoryError {
    /// From 1; the header is line 1.
    pub line: usize,
    pub problem: String,
}

const CITY_COLUMNS: [&str; 6] = ["id", "name", "country", "latitude", "longitude", "population"];

impl<'a> Directory<'a> {
    /// The shipped cities, greatest first. They are read by the first call.
    pub fn shipped() -> &'static Directory<'static> {
        static DIRECTORY: LazyLock<Directory<'static>> = LazyLock::new(|| {
            Directory::from_csv(SHIPPED_CITIES_CSV).expect("the shipped directory is well formed")
        });
        &DIRECTORY
    }

    /// The shipped cities and a places file, which adds to them or replaces them. It lasts as long
    /// as the process.
    pub fn shipped_with(places: PlacesFile) -> &'static Directory<'static> {
        Box::leak(Box::new(Directory { places: places.0, ..Directory::shipped().clone() }))
    }

    /// Reads a CSV file with a header that names at least the columns id, name, country, latitude,
    /// longitude and population, in any order. Further columns and empty lines are skipped.
    pub fn from_csv(text: &'a str) -> Result<Directory<'a>, DirectoryError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut lines =
            text.lines().enumerate().map(|(i, line)| (i + 1, line)).filter(|(_, l)| !l.is_empty());
        let (header_line, header) = lines.next().ok_or_else(|| DirectoryError {
            line: 1,
            problem: "the file is empty: it needs a header".into(),
        })?;
        let columns =
            ColumnIndexes::new(header).map_err(|problem| DirectoryError { line: header_line, problem })?;
        // Lines of the shipped file are 45 bytes long.
        let mut cities = Vec::with_capacity(text.len() / 40);
        let mut by_id = Vec::with_capacity(text.len() / 40);
        for (line, record) in lines {
            let city = columns.parse_city(record).map_err(|problem| DirectoryError { line, problem })?;
            by_id.push((city.id, cities.len() as u32));
            cities.push(city);
        }
        by_id.sort_unstable();
        if let Some(twice) = by_id.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let problem = format!("id {} occurs twice", twice[1].0);
            // Records count neither the header nor empty lines, so the line's number is found by
            // reading again.
            let mut records = text.lines().enumerate().filter(|(_, l)| !l.is_empty()).skip(1);
            let line = records.nth(twice[1].1 as usize).map_or(0, |(i, _)| i + 1);
            return Err(DirectoryError { line, problem });
        }
        Ok(Directory { cities, by_id, places: BTreeMap::new() })
    }

    /// The city of this id, if the directory has it.
    pub fn city_by_id(&self, id: u32) -> Option<&DirectoryCity<'a>> {
        let index = self.by_id.binary_search_by_key(&id, |&(id, _)| id).ok()?;
        self.cities.get(self.by_id[index].1 as usize)
    }

    /// What is known of the city of a key: from the places file, or else by the key as an id in its
    /// shortest form. "+5128581" and "005128581" are keys of other cities.
    pub fn find_by_key(&self, key: &str) -> Option<CityInfo<'_>> {
        let shipped = self.id_of_key(key).and_then(|id| self.city_by_id(id));
        let population = shipped.map(|city| city.population);
        if let Some(PlacesEntry { name, country, coordinates, time_zone }) = self.places.get(key) {
            let (country, time_zone) = (country.as_deref(), time_zone.as_deref());
            return Some(CityInfo { name, country, coordinates: *coordinates, time_zone, population });
        }
        shipped.map(|city| CityInfo {
            name: &city.name,
            country: Some(city.country),
            coordinates: Some(Coordinates { latitude: city.latitude, longitude: city.longitude }),
            time_zone: None,
            population,
        })
    }

    /// The id that a key is, in its shortest form.
    pub(super) fn id_of_key(&self, key: &str) -> Option<u32> {
        let is_written_so = key == "0" || !key.starts_with(['+', '0']);
        key.parse().ok().filter(|_| is_written_so)
    }

    /// All cities, in the order of the file.
    pub fn cities(&self) -> &[DirectoryCity<'a>] {
        &self.cities
    }
}

/// The index of each column in a line.
struct ColumnIndexes([usize; CITY_COLUMNS.len()]);

impl ColumnIndexes {
    fn new(header: &str) -> Result<ColumnIndexes, String> {
        let mut found = [None; CITY_COLUMNS.len()];
        let mut fields = CsvLineFields(Some(header));
        let mut index = 0;
        while let Some(name) = fields.next()? {
            if let Some(column) = CITY_COLUMNS.iter().position(|column| *column == name)
                && found[column].replace(index).is_some()
            {
                return Err(format!("column {name} occurs twice"));
            }
            index += 1;
        }
        let mut columns = [0; CITY_COLUMNS.len()];
        for ((place, found), name) in columns.iter_mut().zip(found).zip(CITY_COLUMNS) {
            *place = found.ok_or_else(|| {
                format!("there is no column {name}: the header must name {}", CITY_COLUMNS.join(", "))
            })?;
        }
        Ok(ColumnIndexes(columns))
    }

    fn parse_city<'a>(&self, record: &'a str) -> Result<DirectoryCity<'a>, String> {
        let mut values = [const { None }; CITY_COLUMNS.len()];
        let mut fields = CsvLineFields(Some(record));
        let mut index = 0;
        while let Some(field) = fields.next()? {
            if let Some(column) = self.0.iter().position(|&column_index| column_index == index) {
                values[column] = Some(field);
            }
            index += 1;
        }
        let mut take = |column: usize| {
            values[column]
                .take()
                .ok_or_else(|| format!("the line ends before column {}", CITY_COLUMNS[column]))
        };
        let id = parse_whole_number(&take(0)?, "id")?;
        let name = take(1)?;
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(format!("name {name:?} is empty or holds a control character"));
        }
        let country = match take(2)? {
            Cow::Borrowed(code) if code.len() == 2 && code.bytes().all(|b| b.is_ascii_uppercase()) => code,
            other => {
                return Err(format!("country {other:?} is not two capital letters (ISO 3166-1 alpha-2)"));
            }
        };
        let latitude = parse_degrees(&take(3)?, "latitude", 90.0)?;
        let longitude = parse_degrees(&take(4)?, "longitude", 180.0)?;
        let population = parse_whole_number(&take(5)?, "population")?;
        Ok(DirectoryCity { id, name, country, latitude, longitude, population })
    }
}

fn parse_whole_number(text: &str, name: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{name} {text:?} is not a whole number from 0 to {}", u32::MAX))
}

fn parse_degrees(text: &str, name: &str, limit: f64) -> Result<f64, String> {
    let parsed = text.parse().ok().filter(|degrees: &f64| degrees.abs() <= limit);
    parsed.ok_or_else(|| format!("{name} {text:?} is not a number from -{limit} to {limit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "id,name,country,latitude,longitude,population\n";

    fn error(record: &str) -> String {
        Directory::from_csv(&format!("{HEADER}{record}\n")).unwrap_err().to_string()
    }

    #[test]
    fn shipped_directory_is_complete() {
        let directory = Directory::shipped();
        assert_eq!(directory.cities().len(), 34_006);
        assert_eq!(directory.cities()[0].name, "Shanghai");
        assert!(directory.cities().is_sorted_by(|a, b| a.population >= b.population));
        let new_york = directory.city_by_id(5_128_581).unwrap();
        assert_eq!((new_york.name.as_ref(), new_york.country), ("New York City", "US"));
        assert_eq!((new_york.latitude, new_york.longitude), (40.71427, -74.00597));
        assert_eq!(directory.city_by_id(6_822_137).unwrap().name, "Misato, Saitama");
        assert!(directory.city_by_id(0).is_none());
        let found = directory.find_by_key("5128581").unwrap();
        assert_eq!((found.name, found.country), ("New York City", Some("US")));
        let Coordinates { latitude, longitude } = found.coordinates.unwrap();
        assert_eq!(
            (latitude, longitude, found.population),
            (new_york.latitude, new_york.longitude, Some(new_york.population))
        );
        assert!(
            ["+5128581", "005128581", "0", "", " 5128581"]
                .iter()
                .all(|key| directory.find_by_key(key).is_none())
        );
        assert!(directory.cities().iter().all(|city| directory.city_by_id(city.id) == Some(city)));
    }

    #[test]
    fn csv_accepts_any_column_order_and_quotes() {
        let text = "\u{feff}population,zone,country,id,longitude,latitude,name\r\n\
                    \r\n\
                    5,\"a,b\",AQ,7,-180,90,\"The \"\"Pole\"\", South\"\r\n\
                    6,,AQ,8,180,-90.0,plain";
        let directory = Directory::from_csv(text).unwrap();
        let pole = DirectoryCity {
            id: 7,
            name: "The \"Pole\", South".into(),
            country: "AQ",
            latitude: 90.0,
            longitude: -180.0,
            population: 5,
        };
        assert_eq!(directory.cities()[0], pole);
        assert!(matches!(directory.city_by_id(8).unwrap().name, Cow::Borrowed("plain")));
    }

    #[test]
    fn csv_errors_name_problem_and_position() {
        for (record, said) in [
            ("x,a,DE,1,2,3", "line 2: id \"x\" is not a whole number from 0 to 4294967295"),
            ("1,,DE,1,2,3", "line 2: name \"\" is empty or holds a control character"),
            ("1,a,de,1,2,3", "line 2: country \"de\" is not two capital letters (ISO 3166-1 alpha-2)"),
            ("1,a,DE,91,2,3", "line 2: latitude \"91\" is not a number from -90 to 90"),
            ("1,a,DE,1,NaN,3", "line 2: longitude \"NaN\" is not a number from -180 to 180"),
            ("1,a,DE,1,2", "line 2: the line ends before column population"),
            ("1,\"a,DE,1,2,3", "line 2: a quoted field does not end on its line"),
            ("1,\"a\"b,DE,1,2,3", "line 2: a comma is missing after the quoted field \"a\""),
            ("1,a,DE,1,2,3\n\n2,b,DE,1,2,3\n1,c,DE,1,2,3", "line 5: id 1 occurs twice"),
        ] {
            assert_eq!(error(record), said);
        }
        assert_eq!(
            Directory::from_csv("").unwrap_err().to_string(),
            "line 1: the file is empty: it needs a header"
        );
        let missing = Directory::from_csv("id,name,latitude,longitude,population\n").unwrap_err().to_string();
        assert!(
            missing.starts_with("line 1: there is no column country: the header must name id, "),
            "{missing}"
        );
        let twice = Directory::from_csv(&format!("id,{HEADER}")).unwrap_err().to_string();
        assert_eq!(twice, "line 1: column id occurs twice");
    }
}
