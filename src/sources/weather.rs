//! Generated weather: pure and deterministic, the same bytes on every host.

mod climate;

use std::str::FromStr;

use super::{mix64, unit_interval};
use crate::directory::{Directory, DirectoryCity};
use crate::model::{EventTime, Measurement};
use climate::Climate;

/// 2025-01-01T00:00:00Z in milliseconds: the start of `uniform` weather.
const UNIFORM_START_MS: i64 = 1_735_689_600_000;

/// The kind of weather.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeatherKind {
    /// Whole numbers, evenly distributed and independent from minute to minute: 40 to 90 °F, 0 to
    /// 100 %, 0 to 40 mph, of cities named `city_00000` and on. Other programs can generate this
    /// load easily, and it is hard for code that relies on similar neighbours.
    Uniform,
    /// Plausible measurements of a station in each of the largest cities of the shipped directory.
    Plausible,
}

impl WeatherKind {
    pub const ALL: [WeatherKind; 2] = [WeatherKind::Plausible, WeatherKind::Uniform];

    pub fn name(self) -> &'static str {
        match self {
            WeatherKind::Uniform => "uniform",
            WeatherKind::Plausible => "plausible",
        }
    }

    /// The first instant of this weather.
    pub fn first_instant(self) -> EventTime {
        match self {
            WeatherKind::Uniform => EventTime::from_millis(UNIFORM_START_MS).unwrap_or(EventTime::MIN),
            WeatherKind::Plausible => EventTime::MIN,
        }
    }
}

impl FromStr for WeatherKind {
    type Err = String;

    fn from_str(text: &str) -> Result<WeatherKind, String> {
        let kind = WeatherKind::ALL.into_iter().find(|kind| kind.name() == text);
        kind.ok_or_else(|| format!("{text:?} is not a kind of weather: write plausible or uniform"))
    }
}

/// The weather of a number of cities, at any time.
#[derive(Clone, Debug)]
pub struct Weather {
    keys: CityKeys,
    state: WeatherModel,
}

#[derive(Clone, Debug)]
enum WeatherModel {
    Uniform,
    Plausible { stations: Vec<Station>, seed: u64 },
}

impl Weather {
    /// The weather of the cities `0..cities`. `uniform` ignores the seed. `plausible` has as many
    /// cities as the shipped directory; more are an error.
    pub fn new(kind: WeatherKind, cities: u32, seed: u64) -> Result<Weather, String> {
        match kind {
            WeatherKind::Uniform => {
                let keys = CityKeys::new((0..cities).map(|city| format!("city_{city:05}")));
                Ok(Weather { keys, state: WeatherModel::Uniform })
            }
            WeatherKind::Plausible => {
                let all = Directory::shipped().cities();
                let chosen = all.get(..cities as usize).ok_or_else(|| {
                    format!(
                        "plausible weather has at most the {} cities of the directory, not {cities}: ask for fewer, or for uniform weather",
                        all.len()
                    )
                })?;
                let keys = CityKeys::new(chosen.iter().map(|city| city.id.to_string()));
                let stations = chosen.iter().map(Station::new).collect();
                Ok(Weather { keys, state: WeatherModel::Plausible { stations, seed: mix64(seed) } })
            }
        }
    }

    #[cfg(test)]
    fn cities(&self) -> u32 {
        self.keys.ends.len() as u32
    }

    /// The key of a city by its number, from 0: `city_00042`, or in `plausible` weather the city's
    /// `geonameid`, in decimal.
    pub fn city_key(&self, city: u32) -> &str {
        self.keys.get(city as usize)
    }

    /// The measurement of city `0..self.cities()`. `uniform` changes every minute, and is undefined
    /// before its [`WeatherKind::first_instant`].
    pub fn measure(&self, city: u32, at: EventTime) -> Measurement {
        let (temperature, humidity, wind_speed) = match &self.state {
            WeatherModel::Uniform => uniform_measurement(city, at),
            WeatherModel::Plausible { stations, seed } => stations[city as usize].measure(at, *seed),
        };
        Measurement::new(temperature, humidity, Some(wind_speed))
            .expect("generated weather stays within the accepted ranges")
    }
}

/// Keys in one allocation: a million boxed strings would use three times as much memory.
#[derive(Clone, Debug)]
struct CityKeys {
    text: String,
    ends: Vec<u32>,
}

impl CityKeys {
    fn new(keys: impl Iterator<Item = String>) -> CityKeys {
        let mut all = CityKeys { text: String::new(), ends: Vec::new() };
        for key in keys {
            all.text.push_str(&key);
            all.ends.push(all.text.len() as u32);
        }
        all
    }

    fn get(&self, index: usize) -> &str {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.text[start as usize..self.ends[index] as usize]
    }
}

fn uniform_measurement(city: u32, at: EventTime) -> (f64, f64, f64) {
    let minute = (at.millis() - UNIFORM_START_MS).div_euclid(60_000) as u64;
    let hash = mix64((u64::from(city) << 32) | minute);
    let even = |shift: u32, values: u64| ((((hash >> shift) & 0xFFFF) * values) >> 16) as f64;
    (40.0 + even(0, 51), even(16, 101), even(32, 41))
}

/// A generated station in a real city: its constants.
#[derive(Clone, Debug)]
struct Station {
    id: u32,
    /// Revolutions east of Greenwich: local solar time ahead of UTC, in days.
    solar_offset_days: f64,
    /// Its position in the lattice of the passing weather, at the first instant.
    lattice_origin: (f64, f64),
    climate: Climate,
    /// How far passing weather moves the daily mean, °F, averaged over the year, and how much more
    /// in January.
    weather_swing: (f64, f64),
    /// How much smaller the daily range is in January than averaged over the year, as a share.
    january_range_loss: f64,
    /// Mean wind, mph: how sheltered the station is.
    mean_wind: f64,
}

/// Days.
const DAYS_PER_YEAR: f64 = 365.2425;
/// The coldest day of the northern winter, as a share of the year: January 20.
const COLDEST_YEAR_SHARE: f64 = 19.0 / DAYS_PER_YEAR;
/// The warmest time of the day, as a share of the local solar day: 15 h.
const WARMEST_DAY_SHARE: f64 = 15.0 / 24.0;

/// Cells of passing weather: 12° of longitude, 9° of latitude, 2.5 days; it moves 7° eastwards a
/// day.
const CELLS_AROUND: u64 = 30;
const CELL_LONGITUDE: f64 = 360.0 / CELLS_AROUND as f64;
const CELL_LATITUDE: f64 = 9.0;
const CELL_DAYS: f64 = 2.5;
const DRIFT_CELLS_PER_DAY: f64 = 7.0 / CELL_LONGITUDE;

impl Station {
    fn new(city: &DirectoryCity<'_>) -> Station {
        let north = libm::sin(city.latitude.to_radians());
        let place_hash = mix64(u64::from(city.id));
        let swing = 1.5 + 7.5 * north.abs();
        Station {
            id: city.id,
            solar_offset_days: city.longitude / 360.0,
            lattice_origin: (
                city.longitude.rem_euclid(360.0) / CELL_LONGITUDE,
                (city.latitude + 90.0) / CELL_LATITUDE,
            ),
            climate: Climate::at(city.latitude, city.longitude),
            weather_swing: (swing, 0.55 * swing * north),
            january_range_loss: 0.45 * north,
            mean_wind: (4.5 + 5.0 * north.abs()) * (0.7 + 0.6 * unit_interval(place_hash)),
        }
    }

    /// °F to a tenth, % to one, mph to a tenth.
    fn measure(&self, at: EventTime, seed: u64) -> (f64, f64, f64) {
        let days = at.millis() as f64 / 86_400_000.0;
        let january = cosine_of_revolutions(days / DAYS_PER_YEAR - COLDEST_YEAR_SHARE);
        let afternoon = cosine_of_revolutions(days + self.solar_offset_days - WARMEST_DAY_SHARE);
        let [front, moisture, breeze] = self.passing_weather(days, seed);
        let noise = mix64(mix64(seed ^ u64::from(self.id)) ^ at.millis() as u64);
        let jitter = |shift: u32| ((noise >> shift) & 0xFFFF) as f64 / 32_768.0 - 1.0;

        let climate = &self.climate;
        let mean =
            climate.temperature.at(january) + front * (self.weather_swing.0 + self.weather_swing.1 * january);
        // Moist air forms clouds: days are cooler and nights warmer.
        let day =
            0.5 * climate.day_range * (1.0 - self.january_range_loss * january) * (1.0 - 0.35 * moisture);
        // The second harmonic: mornings warm up faster than evenings cool down, and nights are
        // flat.
        let temperature =
            mean + day * (0.92 * afternoon + 0.16 * afternoon * afternoon - 0.08) + 0.3 * jitter(0);

        let dew_point = climate.dew_point.at(january)
            + 0.8 * (mean - climate.temperature.at(january))
            + moisture * (3.0 + 0.5 * self.weather_swing.0)
            + 0.3 * jitter(16);
        let humidity = relative_humidity(temperature, dew_point) + 0.7 * jitter(32);

        let gust = 1.0 + breeze;
        let wind = self.mean_wind * gust * gust * (1.0 + 0.3 * afternoon) + 0.8 * jitter(48);
        (
            round_to_tenths(temperature.clamp(-115.0, 130.0)),
            humidity.clamp(1.0, 100.0).round_ties_even(),
            round_to_tenths(wind.clamp(0.0, 110.0)),
        )
    }

    /// Three independent fields of passing weather, each in -1..1, smooth in space and time:
    /// interpolated from the values at the corners of the lattice.
    fn passing_weather(&self, days: f64, seed: u64) -> [f64; 3] {
        let time = days / CELL_DAYS;
        // The lattice itself drifts: the weather here now was to the west before.
        let east = (self.lattice_origin.0 - days * DRIFT_CELLS_PER_DAY).rem_euclid(CELLS_AROUND as f64);
        let (x, fx) = smooth_cell(east);
        let (y, fy) = smooth_cell(self.lattice_origin.1);
        let (t, ft) = smooth_cell(time);
        let mut fields = [0.0; 3];
        for corner in 0..8u64 {
            let (dx, dy, dt) = (corner & 1, corner >> 1 & 1, corner >> 2);
            let weight =
                [1.0 - fx, fx][dx as usize] * [1.0 - fy, fy][dy as usize] * [1.0 - ft, ft][dt as usize];
            // The lattice wraps at 360°.
            let column = if x as u64 + dx >= CELLS_AROUND { 0 } else { x as u64 + dx };
            let row = y as u64 + dy;
            let hash = mix64(seed ^ (((t as u64).wrapping_add(dt) << 16) | (row << 8) | column));
            for (field, shift) in fields.iter_mut().zip([0, 21, 42]) {
                *field += weight * (((hash >> shift) & 0x1F_FFFF) as f64 / 1_048_576.0 - 1.0);
            }
        }
        fields
    }
}

/// The cosine of an angle in revolutions.
fn cosine_of_revolutions(revolutions: f64) -> f64 {
    libm::cos((revolutions - revolutions.floor()) * std::f64::consts::TAU)
}

/// The cell, and the offset in it, smoothed so that the slope is 0 at the corners.
fn smooth_cell(value: f64) -> (i64, f64) {
    let cell = value.floor();
    let part = value - cell;
    (cell as i64, part * part * (3.0 - 2.0 * part))
}

/// % at a temperature and dew point in °F, by the Magnus form with Alduchov and Eskridge's
/// constants (1996). Above 100 if the dew point is the greater.
fn relative_humidity(temperature: f64, dew_point: f64) -> f64 {
    let magnus = |fahrenheit: f64| {
        let celsius = (fahrenheit - 32.0) / 1.8;
        17.625 * celsius / (243.04 + celsius)
    };
    100.0 * libm::exp(magnus(dew_point) - magnus(temperature))
}

fn round_to_tenths(value: f64) -> f64 {
    // Adding 0 turns -0 into 0, which is written without a sign.
    (value * 10.0).round_ties_even() / 10.0 + 0.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> EventTime {
        text.parse::<EventTime>().unwrap()
    }

    /// The city of a geonameid.
    fn station(weather: &Weather, id: &str) -> u32 {
        (0..weather.cities()).find(|&city| weather.city_key(city) == id).unwrap()
    }

    fn plausible(seed: u64) -> Weather {
        Weather::new(WeatherKind::Plausible, 2_600, seed).unwrap()
    }

    /// Measurements of a month, from `hour` on every `step` hours.
    fn month(weather: &Weather, id: &str, start: &str, hour: i64, step: usize) -> Vec<Measurement> {
        let city = station(weather, id);
        let first = at(start).millis();
        (hour..31 * 24)
            .step_by(step)
            .map(|h| weather.measure(city, EventTime::from_millis(first + h * 3_600_000).unwrap()))
            .collect()
    }

    fn mean(of: &[Measurement], value: impl Fn(&Measurement) -> f64) -> f64 {
        of.iter().map(value).sum::<f64>() / of.len() as f64
    }

    #[test]
    fn uniform_weather_matches_definition() {
        // Computed by another program, from the definition.
        for (city, minute, expected) in [
            (0, 0, (80.0, 48.0, 26.0)),
            (1, 0, (40.0, 64.0, 14.0)),
            (0, 1, (58.0, 54.0, 7.0)),
            (42, 1_439, (63.0, 50.0, 4.0)),
            (9_999, 525_599, (44.0, 49.0, 16.0)),
            (123_456, 7, (87.0, 85.0, 17.0)),
            (u32::MAX, 0, (75.0, 42.0, 30.0)),
        ] {
            let time = EventTime::from_millis(at("2025-01-01T00:00:00Z").millis() + minute * 60_000).unwrap();
            assert_eq!(uniform_measurement(city, time), expected, "{city} {minute}");
        }
        let weather = Weather::new(WeatherKind::Uniform, 100_001, 1).unwrap();
        assert_eq!((weather.city_key(0), weather.city_key(100_000)), ("city_00000", "city_100000"));
        let first = weather.measure(1, WeatherKind::Uniform.first_instant());
        assert_eq!(first, Measurement::new(40.0, 64.0, Some(14.0)).unwrap());
    }

    #[test]
    fn plausible_weather_uses_directory_cities() {
        let weather = plausible(1);
        assert_eq!((weather.cities(), weather.city_key(0)), (2_600, "1796236"));
        assert!(Weather::new(WeatherKind::Plausible, 34_006, 1).is_ok());
        assert!(Weather::new(WeatherKind::Plausible, 34_007, 1).unwrap_err().contains("34006 cities"));
    }

    #[test]
    fn plausible_weather_is_deterministic() {
        let weather = plausible(1);
        let measured: Vec<_> = ["5308655", "1880252", "2013159"]
            .iter()
            .map(|id| {
                let m = weather.measure(station(&weather, id), at("2025-07-15T22:30:00Z"));
                (m.temperature(), m.humidity(), m.wind_speed().unwrap())
            })
            .collect();
        assert_eq!(measured, [(112.4, 14.0, 7.1), (78.7, 94.0, 0.2), (62.8, 58.0, 5.6)]);
    }

    #[test]
    fn city_temperatures_match_climate() {
        for seed in 1..=5 {
            let weather = plausible(seed);
            // Phoenix at three in the afternoon.
            let phoenix = month(&weather, "5308655", "2025-07-01T00:00:00Z", 22, 24);
            assert!(phoenix.iter().all(|m| m.temperature() > 95.0), "{phoenix:?}");
            assert!((101.0..110.0).contains(&mean(&phoenix, Measurement::temperature)));
            assert!(mean(&phoenix, Measurement::humidity) < 30.0);
            let yakutsk = month(&weather, "2013159", "2025-01-01T00:00:00Z", 0, 1);
            assert!(yakutsk.iter().all(|m| m.temperature() < -10.0));
            let moscow = month(&weather, "524901", "2025-01-01T00:00:00Z", 0, 1);
            assert!((8.0..28.0).contains(&mean(&moscow, Measurement::temperature)));
            for start in ["2025-01-01T00:00:00Z", "2025-04-01T00:00:00Z", "2025-07-01T00:00:00Z"] {
                let singapore = month(&weather, "1880252", start, 0, 1);
                assert!(singapore.iter().all(|m| (70.0..=100.0).contains(&m.temperature())));
                assert!((70.0..92.0).contains(&mean(&singapore, Measurement::humidity)));
            }
            let north = month(&weather, "2643743", "2025-07-01T00:00:00Z", 0, 1);
            let south = month(&weather, "2147714", "2025-07-01T00:00:00Z", 0, 1);
            assert!(mean(&north, Measurement::temperature) > 59.0, "London's summer");
            assert!(mean(&south, Measurement::temperature) < 60.0, "Sydney's winter");
        }
    }

    #[test]
    fn days_are_warmer_and_drier_than_nights() {
        let weather = plausible(1);
        let (night, day) = (
            month(&weather, "5128581", "2025-05-01T00:00:00Z", 9, 24),
            month(&weather, "5128581", "2025-05-01T00:00:00Z", 20, 24),
        );
        assert!(mean(&day, Measurement::temperature) > mean(&night, Measurement::temperature) + 8.0);
        assert!(mean(&day, Measurement::humidity) < mean(&night, Measurement::humidity) - 12.0);
    }

    #[test]
    fn nearby_cities_share_weather_fronts() {
        let weather = plausible(1);
        let days = |id| {
            let hours = month(&weather, id, "2025-11-01T00:00:00Z", 18, 24);
            let usual = mean(&hours, Measurement::temperature);
            hours.iter().map(|m| m.temperature() - usual).collect::<Vec<_>>()
        };
        let correlation = |a: &[f64], b: &[f64]| {
            let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            product(a, b) / (product(a, a) * product(b, b)).sqrt()
        };
        let (new_york, philadelphia, tokyo) = (days("5128581"), days("4560349"), days("1850147"));
        assert!(correlation(&new_york, &philadelphia) > 0.9);
        assert!(correlation(&new_york, &tokyo) < 0.7);
        let changes = new_york.windows(2).map(|pair| (pair[1] - pair[0]).abs()).fold(0.0, f64::max);
        assert!(changes > 3.0, "fronts pass: {changes}");
    }

    proptest! {
        #[test]
        fn generated_weather_is_always_valid(city in 0u32..2_000, ms in EventTime::MIN.millis()..=EventTime::MAX.millis(), seed: u64) {
            let time = EventTime::from_millis(ms).unwrap();
            let weather = Weather::new(WeatherKind::Plausible, city + 1, seed).unwrap();
            let measured = weather.measure(city, time);
            prop_assert!((-100.0..=125.0).contains(&measured.temperature()));
            prop_assert!((1.0..=100.0).contains(&measured.humidity()));
            prop_assert_eq!(measured.humidity().fract(), 0.0);
            prop_assert!((0.0..=70.0).contains(&measured.wind_speed().unwrap()));
            let uniform = Weather::new(WeatherKind::Uniform, city + 1, seed).unwrap();
            prop_assert!((40.0..=90.0).contains(&uniform.measure(city, time).temperature()));
        }
    }
}
