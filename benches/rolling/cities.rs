//! Cities and their readings, made up from hashes.

use swelter::internals::admission::{Admission, AdmissionRules};
use swelter::internals::dataflow::rolling::Retention;
use swelter::internals::model::{
    Arrival, CityIntroduction, EventTime, Measurement, Millis, ReadingEvent, Revision, Upsert,
};

use crate::sensor::mix;

pub const MINUTE: i64 = 60_000;
pub const WINDOW_MINUTES: i64 = 1440;

pub fn retention() -> Retention {
    Retention { window: Millis::DAY, lateness: Millis::DAY, history: Millis::DAY }
}

pub fn measurement(city: u32, minute: i64, salt: u64) -> Measurement {
    let h = mix(u64::from(city), minute as u64 ^ salt << 48);
    let (temperature, humidity) = (40 + (((h & 0xFFFF) * 51) >> 16), ((h >> 16 & 0xFFFF) * 101) >> 16);
    Measurement::new(temperature as f64, humidity as f64, None).unwrap()
}

pub fn time_of_minute(minute: i64) -> EventTime {
    EventTime::from_millis(minute * MINUTE).unwrap()
}

/// Cities by the keys that admission gave them.
pub struct Cities {
    pub names: Vec<CityIntroduction>,
}

impl Cities {
    pub fn new(count: u32) -> Cities {
        let rules = AdmissionRules::new(Millis::MAX);
        let mut admission = Admission::new(0, rules);
        let names = (0..count).map(|city| {
            let name = format!("city_{city:05}");
            let event = ReadingEvent::Reading(measurement(city, 0, 0));
            let upsert = Upsert { city: &name, reading_at: time_of_minute(0), event, revision: None };
            admission.admit(&upsert, None).unwrap().introduction(&name)
        });
        Cities { names: names.collect() }
    }

    pub fn count(&self) -> u32 {
        self.names.len() as u32
    }

    pub fn arrival(&self, city: u32, minute: i64, salt: u64, revision: Option<Revision>) -> Arrival {
        let event = ReadingEvent::Reading(measurement(city, minute, salt));
        Arrival::new(self.names[city as usize].key, time_of_minute(minute), event, revision, 0)
    }

    pub fn arrival_at_second(&self, city: u32, at: i64) -> Arrival {
        let event = ReadingEvent::Reading(measurement(city, at, 0));
        let key = self.names[city as usize].key;
        Arrival::new(key, time_of_second(at), event, None, 0)
    }

    pub fn arrivals_of_second(&self, at: i64) -> Vec<Arrival> {
        (0..self.count()).map(|city| self.arrival_at_second(city, at)).collect()
    }

    pub fn arrivals_of_minute(&self, minute: i64) -> Vec<Arrival> {
        (0..self.count()).map(|city| self.arrival(city, minute, 0, None)).collect()
    }
}

pub fn time_of_second(second: i64) -> EventTime {
    EventTime::from_millis(1_764_000_000_000 + second * 1000).unwrap()
}
