//! Sensors for benches, and what a process holds.

use swelter::internals::model::Measurement;

/// A well-mixed function of the arguments (splitmix64's).
pub fn mix(a: u64, b: u64) -> u64 {
    let mut z = (a << 32 ^ b).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

pub fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

/// A sensor that reports tenths of a degree and of a percent, and mostly the same as before.
pub struct Sensor {
    temperature: i32,
    humidity: i32,
}

impl Sensor {
    pub fn new(city: u32) -> Sensor {
        let h = mix(u64::from(city), 1 << 50);
        Sensor { temperature: 600 + (h % 400) as i32, humidity: 300 + (h >> 32 & 511) as i32 }
    }

    /// The next measurement, `sensor` by `sensor` and `n` after `n`.
    pub fn next(&mut self, sensor: u32, n: i64) -> Measurement {
        let h = mix(u64::from(sensor), n as u64 | 1 << 49);
        let step = |bit: u64| if h >> bit & 1 == 0 { 1 } else { -1 };
        if h.is_multiple_of(10) {
            self.temperature = (self.temperature + step(40)).clamp(400, 1150);
        }
        if h >> 8 & 3 == 0 {
            self.humidity = (self.humidity + step(41)).clamp(50, 990);
        }
        Measurement::new(f64::from(self.temperature) / 10.0, f64::from(self.humidity) / 10.0, None).unwrap()
    }
}
