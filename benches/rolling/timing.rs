//! CPU times of the thread.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use swelter::internals::model::Arrival;

use crate::cities::Cities;

pub const REPETITIONS: usize = 5;

/// The CPU time of this thread.
pub fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Nanoseconds a reading of `epochs` epochs, the arrivals made before the clock starts.
pub fn time_epochs(epochs: i64, first: i64, cities: &Cities, mut run: impl FnMut(&mut Vec<Arrival>)) -> f64 {
    let times = (0..REPETITIONS as i64).map(|repetition| {
        let mut busy = 0.0;
        for epoch in 0..epochs {
            let mut arrivals = cities.arrivals_of_minute(first + repetition * epochs + epoch);
            let start = thread_cpu_time();
            run(&mut arrivals);
            busy += (thread_cpu_time() - start).as_secs_f64();
        }
        busy * 1e9 / (epochs as f64 * f64::from(cities.count()))
    });
    median(times.collect())
}
