//! Cities of the directory, and what is known of the city of a key.

use std::borrow::Cow;

/// A city of the directory.
#[derive(Clone, Debug, PartialEq)]
pub struct DirectoryCity<'a> {
    /// GeoNames' `geonameid` in the shipped directory.
    pub id: u32,
    /// For display; names are not unique.
    pub name: Cow<'a, str>,
    /// ISO 3166-1 alpha-2, two capital letters.
    pub country: &'a str,
    /// Degrees north, -90 to 90.
    pub latitude: f64,
    /// Degrees east, -180 to 180.
    pub longitude: f64,
    pub population: u32,
}

/// Coordinates in degrees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coordinates {
    /// North, -90 to 90.
    pub latitude: f64,
    /// East, -180 to 180.
    pub longitude: f64,
}

/// What is known of the city that a key names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CityInfo<'a> {
    pub name: &'a str,
    /// ISO 3166-1 alpha-2.
    pub country: Option<&'a str>,
    pub coordinates: Option<Coordinates>,
    /// An IANA time zone; the shipped directory has none.
    pub time_zone: Option<&'a str>,
    pub population: Option<u32>,
}
