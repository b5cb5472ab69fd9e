//! Names and coordinates of cities. A city that is not in the directory is served under its key
//! alone.

mod city;
mod city_directory;
mod csv_line;
mod places_file;
mod search;

pub use self::city::{CityInfo, Coordinates, DirectoryCity};
pub use self::city_directory::Directory;
pub use self::places_file::PlacesFile;
pub use self::search::CitySearch;
