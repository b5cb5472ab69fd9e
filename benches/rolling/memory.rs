//! Bytes a reading.

use swelter::internals::dataflow::heat_index::Formula;
use swelter::internals::dataflow::rolling::{EpochChanges, Rolling, RollingOutputs};
use swelter::internals::model::{Arrival, CityNames, ReadingEvent, Revision};

use crate::cities::{Cities, MINUTE, WINDOW_MINUTES, retention};
use crate::sensor::{Sensor, resident_bytes};

pub type RevisionNumbering = fn(i64) -> Option<Revision>;
/// Of readings that are random, or of sensors.
pub const REVISION_NUMBERINGS: [(&str, bool, RevisionNumbering); 4] = [
    ("sensors, no revisions", true, |_| None),
    ("random, no revisions", false, |_| None),
    ("random, revisions 0 to 9", false, |minute| Revision::new(minute % 10)),
    ("random, revisions that are stamps", false, |minute| Revision::new(1_764_000_000_000 + minute * MINUTE)),
];

/// Each kind in a process of its own, so that resident memory is its own.
pub fn bench_memory() {
    println!("memory, 15,000 cities, window 1 day, history 1 day (2,880 readings a city held):");
    for kind in 0..REVISION_NUMBERINGS.len() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.env("ROLLING_MEMORY_OF", kind.to_string()).status().unwrap();
    }
}

pub fn memory_of(kind: usize) {
    let cities = Cities::new(15_000);
    let (name, sensible, revision) = REVISION_NUMBERINGS[kind];
    let mut sensors: Vec<Sensor> = (0..cities.count()).map(Sensor::new).collect();
    let before = resident_bytes();
    let mut rolling =
        Rolling::new(Formula::Rothfusz, retention(), RollingOutputs::default(), CityNames::default());
    cities.names.iter().for_each(|name| rolling.introduce_city(name));
    let mut changed = EpochChanges::default();
    for minute in 0..3 * WINDOW_MINUTES {
        let arrivals = (0..cities.count()).zip(&mut sensors).map(|(city, sensor)| {
            let random = cities.arrival(city, minute, 0, revision(minute));
            let event =
                if sensible { ReadingEvent::Reading(sensor.next(city, minute)) } else { random.event() };
            Arrival::new(random.city, random.reading_at, event, random.revision, 0)
        });
        rolling.apply_arrivals(&[arrivals.collect()], |_| true, &mut changed);
    }
    drop(changed);
    let held = 2.0 * WINDOW_MINUTES as f64 * f64::from(cities.count());
    let (resident, counted) = (resident_bytes().saturating_sub(before) as f64, rolling.memory_bytes() as f64);
    println!(
        "  {name:38} {:5.2} bytes a reading resident, {:5.2} in blocks, chunks and heads",
        resident / held,
        counted / held
    );
}
