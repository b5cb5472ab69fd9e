//! What the operator is compared with: the same store without a dataflow, and a ring of values.

use swelter::internals::dataflow::heat_index::Formula;
use swelter::internals::dataflow::rolling::Retention;
use swelter::internals::dataflow::rolling::chunk::PackedHeat;
use swelter::internals::dataflow::rolling::store::ReadingStore;
use swelter::internals::model::{Arrival, CityId, Row, RowChange};

use crate::cities::{Cities, MINUTE, WINDOW_MINUTES, retention};
use crate::timing::{REPETITIONS, median, thread_cpu_time, time_epochs};

/// Readings in order: the arrivals of each epoch, and how many epochs fill windows and state.
pub struct MinuteFeed<'a> {
    pub cities: &'a Cities,
    pub retention: Retention,
    pub filled: i64,
    pub arrivals: fn(&Cities, i64) -> Vec<Arrival>,
}

impl MinuteFeed<'_> {
    /// A reading a minute, with windows of a day.
    pub fn a_day(cities: &Cities) -> MinuteFeed<'_> {
        MinuteFeed {
            cities,
            retention: retention(),
            filled: 2 * WINDOW_MINUTES,
            arrivals: Cities::arrivals_of_minute,
        }
    }
}

/// The same store in a plain loop. `formula`: whether the heat index is computed in the loop, as
/// the operator does.
pub fn bare_loop(in_order: &MinuteFeed<'_>, epochs: i64, formula: bool) -> f64 {
    let MinuteFeed { cities, retention, filled, arrivals } = *in_order;
    let mut store = ReadingStore::new(retention, false);
    for _ in &cities.names {
        store.add_city();
    }
    let evaluate = |arrival: &Arrival| {
        let Some(measurement) = arrival.measurement() else { unreachable!("all arrivals are readings") };
        let (heat_index, category) = Formula::Rothfusz.evaluate(measurement);
        PackedHeat::new(heat_index, category)
    };
    let mut changes: Vec<RowChange> = Vec::new();
    let mut seen = 0;
    let mut run = |arrivals: &[Arrival], held: Option<&[PackedHeat]>| {
        changes.clear();
        for (i, arrival) in arrivals.iter().enumerate() {
            let held = held.map_or_else(|| evaluate(arrival), |held| held[i]);
            let (city, reading_at) = (arrival.city.number, arrival.reading_at);
            store.heads[city as usize].high = reading_at.millis();
            let (sum, count) = store.append_reading(city, reading_at.millis(), held, None);
            let after = Row::new(held.heat_index(), held.category(), sum, count);
            changes.push(RowChange { city: CityId(city), reading_at, before: None, after: Some(after) });
        }
        changes.iter().for_each(|change| seen ^= change.after.map_or(0, |row| row.sum()));
    };
    for epoch in 0..filled {
        run(&arrivals(cities, epoch), None);
    }
    let mut busy = Vec::new();
    for repetition in 0..REPETITIONS as i64 {
        let mut elapsed = 0.0;
        for epoch in 0..epochs {
            let arrivals = arrivals(cities, filled + repetition * epochs + epoch);
            let held: Option<Vec<PackedHeat>> = (!formula).then(|| arrivals.iter().map(evaluate).collect());
            let start = thread_cpu_time();
            run(&arrivals, held.as_deref());
            elapsed += (thread_cpu_time() - start).as_secs_f64();
        }
        busy.push(elapsed * 1e9 / (epochs as f64 * f64::from(cities.count())));
    }
    std::hint::black_box(seen);
    median(busy)
}

/// What a single thread could do that knows that readings come once a minute, in order, and never
/// change: a ring of values.
pub fn dense_ring(cities: &Cities, epochs: i64) -> f64 {
    let span = WINDOW_MINUTES as usize + 1;
    let mut ring = vec![0i64; span * cities.count() as usize];
    let mut sums = vec![0i64; cities.count() as usize];
    let mut seen = 0;
    let ns = time_epochs(epochs, 0, cities, |arrivals| {
        for arrival in arrivals.iter() {
            let Some(measurement) = arrival.measurement() else { continue };
            let (heat_index, category) = Formula::Rothfusz.evaluate(measurement);
            let city = arrival.city.number as usize;
            let slot = &mut ring[city * span + (arrival.reading_at.millis() / MINUTE) as usize % span];
            sums[city] += heat_index.micros() - *slot;
            *slot = heat_index.micros();
            seen ^= sums[city] ^ category as i64;
        }
    });
    std::hint::black_box(seen);
    ns
}
