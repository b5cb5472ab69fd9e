//! Which cities a client asks for.

use std::sync::Arc;

use crate::directory::Coordinates;

/// Which cities a client asks for.
pub enum CityFilter<'a> {
    All,
    /// Sorted keys.
    Listed(&'a [Arc<str>]),
    /// Cities whose coordinates the directory knows and which lie inside.
    Inside(GeoBounds),
}

impl CityFilter<'_> {
    pub fn matches(&self, key: &Arc<str>, location: Option<Coordinates>) -> bool {
        match self {
            CityFilter::All => true,
            CityFilter::Listed(keys) => keys.binary_search(key).is_ok(),
            CityFilter::Inside(bounds) => location.is_some_and(|location| bounds.contains(location)),
        }
    }
}

/// A box in degrees, its sides included; if west is greater than east it spans the antimeridian.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GeoBounds {
    pub west: f64,
    pub south: f64,
    pub east: f64,
    pub north: f64,
}

impl GeoBounds {
    pub fn contains(&self, location: Coordinates) -> bool {
        let east_of = location.longitude >= self.west;
        let west_of = location.longitude <= self.east;
        let between = if self.west <= self.east { east_of && west_of } else { east_of || west_of };
        between && (self.south..=self.north).contains(&location.latitude)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounding_boxes_are_inclusive_and_may_span_antimeridian() {
        let at = |longitude, latitude| Coordinates { latitude, longitude };
        let europe = GeoBounds { west: -10.0, south: 35.0, east: 30.0, north: 60.0 };
        assert!(europe.contains(at(-10.0, 35.0)) && europe.contains(at(30.0, 60.0)));
        assert!(!europe.contains(at(-10.1, 50.0)) && !europe.contains(at(0.0, 60.1)));
        let pacific = GeoBounds { west: 170.0, south: -50.0, east: -170.0, north: 0.0 };
        assert!(pacific.contains(at(175.0, -40.0)) && pacific.contains(at(-175.0, -10.0)));
        assert!(!pacific.contains(at(0.0, -10.0)));
    }
}
