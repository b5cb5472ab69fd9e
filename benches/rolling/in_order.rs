//! Readings in order, corrections and late readings, in epochs of a minute.

use swelter::internals::model::Arrival;

use crate::baselines::{MinuteFeed, bare_loop, dense_ring};
use crate::cities::{Cities, WINDOW_MINUTES};
use crate::graph::filled_operator;
use crate::sensor::mix;
use crate::timing::{REPETITIONS, median, thread_cpu_time, time_epochs};

pub fn bench_in_order() {
    let cities = Cities::new(15_000);
    let mut operator = filled_operator(&cities);
    let ns = time_epochs(60, 2 * WINDOW_MINUTES, &cities, |arrivals| operator.run_epoch(arrivals));
    drop(operator);
    let minutes = MinuteFeed::a_day(&cities);
    let (with_formula, without) = (bare_loop(&minutes, 60, true), bare_loop(&minutes, 60, false));
    let ring = dense_ring(&cities, 60);
    println!("in order, 15,000 cities, one reading a minute, window 1 day and full:");
    println!("  operator                        {ns:6.1} ns a reading   {:5.1} M readings/s", 1e3 / ns);
    println!("  bare loop, same store           {with_formula:6.1} ns   ratio {:.2}", ns / with_formula);
    println!("  bare loop, heat index beforehand{without:6.1} ns   ratio {:.2}", ns / without);
    println!("  dense ring, one thread          {ring:6.1} ns   ratio {:.2}", ns / ring);
}

pub fn bench_by_cities() {
    println!("in order, by number of cities (epochs of one minute):");
    for count in [150, 1_500, 15_000, 150_000] {
        let cities = Cities::new(count);
        let mut operator = filled_operator(&cities);
        let epochs = (900_000 / i64::from(count)).clamp(4, 6000);
        let ns = time_epochs(epochs, 2 * WINDOW_MINUTES, &cities, |arrivals| operator.run_epoch(arrivals));
        println!("  {count:7} cities {ns:6.1} ns a reading");
    }
}

pub fn bench_corrections() {
    let cities = Cities::new(15_000);
    let mut operator = filled_operator(&cities);
    let mut rates = Vec::new();
    for repetition in 0..REPETITIONS as u64 {
        let (mut busy, rows) = (0.0, operator.rows);
        for epoch in 0..60 {
            let correction = |i: u64| {
                let h = mix(repetition << 16 | epoch, i);
                let minute = 2 * WINDOW_MINUTES - 1 - (h >> 32) as i64 % WINDOW_MINUTES;
                cities.arrival(h as u32 % cities.count(), minute, 1 + repetition, None)
            };
            let mut arrivals: Vec<Arrival> = (0..150).map(correction).collect();
            let start = thread_cpu_time();
            operator.run_epoch(&mut arrivals);
            busy += (thread_cpu_time() - start).as_secs_f64();
        }
        rates.push((operator.rows - rows) as f64 / busy);
    }
    println!(
        "corrections of a random age up to a day, 150 an epoch: {:.1} M changed rows/s",
        median(rates) / 1e6
    );
}

pub fn bench_late() {
    let cities = Cities::new(15_000);
    let mut operator = filled_operator(&cities);
    // 5 % come 1 to 10 minutes late.
    let delay = |city: u32, minute: i64| match mix(u64::from(city), minute as u64 | 1 << 40) {
        h if h % 20 == 0 => 1 + (h >> 32) as i64 % 10,
        _ => 0,
    };
    let first = 2 * WINDOW_MINUTES;
    let mut times = Vec::new();
    for repetition in 0..REPETITIONS as i64 {
        let (mut busy, mut readings) = (0.0, 0);
        for minute in first + repetition * 60..first + (repetition + 1) * 60 {
            let due = (0..=10).flat_map(|d| (0..cities.count()).map(move |city| (city, minute - d, d)));
            let due = due.filter(|&(city, at, d)| at >= first && delay(city, at) == d);
            let mut arrivals: Vec<Arrival> =
                due.map(|(city, at, _)| cities.arrival(city, at, 0, None)).collect();
            readings += arrivals.len();
            let start = thread_cpu_time();
            operator.run_epoch(&mut arrivals);
            busy += (thread_cpu_time() - start).as_secs_f64();
        }
        times.push(busy * 1e9 / readings as f64);
    }
    drop(operator);
    let (ns, bare) = (median(times), bare_loop(&MinuteFeed::a_day(&cities), 60, true));
    println!("5 % of readings 1 to 10 minutes late: {:.1} M readings/s", 1e3 / ns);
    println!("  {ns:.1} ns a reading; bare loop, all in order {bare:.1} ns   ratio {:.2}", ns / bare);
}
