//! Windows of a reading a second.

use swelter::internals::dataflow::heat_index::Formula;
use swelter::internals::dataflow::rolling::Retention;
use swelter::internals::dataflow::rolling::snapshot::InitialState;
use swelter::internals::dataflow::{self, GraphPlan};
use swelter::internals::model::{Arrival, Millis, Topology};
use timely::worker::Worker;

use crate::baselines::{MinuteFeed, bare_loop};
use crate::cities::{Cities, MINUTE};
use crate::graph::{RunningGraph, single_worker};
use crate::sensor::mix;
use crate::timing::{REPETITIONS, median, thread_cpu_time};

/// A reading a second of every city: windows of 86,400 readings, 675 blocks.
pub fn bench_every_second() {
    let cities = Cities::new(500);
    let small = Millis::from_millis(10 * MINUTE).unwrap();
    let retention = Retention { window: Millis::DAY, lateness: small, history: small };
    let in_order =
        MinuteFeed { cities: &cities, retention, filled: 90_000, arrivals: Cities::arrivals_of_second };
    let bare = bare_loop(&in_order, 60, true);
    println!("a reading a second of 500 cities, window 1 day and full, lateness and history 10 minutes:");
    println!("  bare loop, same store           {bare:7.1} ns a reading");
    let print = |what: &str, ns: f64| println!("  {what:32}{ns:7.1} ns   ratio {:.2}", ns / bare);
    let rows = GraphPlan::new(Formula::Rothfusz, retention);
    let told = GraphPlan::serving_only(Formula::Rothfusz, retention, Topology::single_process(1));
    for (plan, names) in [
        (told, ["told, as in `run`", "told, 5 % 1 to 10 s late"]),
        (rows, ["rows, in order", "rows, 5 % 1 to 10 s late"]),
    ] {
        let mut worker = single_worker();
        let graph = dataflow::build_graph(&mut worker, &plan, InitialState::default(), None);
        let mut flow = RunningGraph { graph, epoch: 0, seen: 0, rows: 0 };
        let mut introductions = cities.names.clone();
        let mut at = 0;
        while at < in_order.filled {
            let seconds = (at..at + 600).flat_map(|at| cities.arrivals_of_second(at));
            flow.send_epoch(&mut worker, &mut introductions, seconds.collect(), 0);
            at += 600;
        }
        for (late, name) in [false, true].into_iter().zip(names) {
            print(name, time_seconds(&cities, &mut flow, &mut worker, &mut at, late));
        }
    }
}

/// Nanoseconds a reading, in epochs of a second each.
pub fn time_seconds(
    cities: &Cities,
    flow: &mut RunningGraph,
    worker: &mut Worker,
    at: &mut i64,
    late: bool,
) -> f64 {
    let delay = |city: u32, at: i64| match mix(u64::from(city), at as u64 | 1 << 41) {
        h if late && h % 20 == 0 => 1 + (h >> 32) as i64 % 10,
        _ => 0,
    };
    let first = *at;
    let times = (0..REPETITIONS).map(|_| {
        let (mut busy, mut readings) = (0.0, 0);
        for _ in 0..120 {
            let now = *at;
            let due = (0..=10).flat_map(|d| (0..cities.count()).map(move |city| (city, now - d, d)));
            let due = due.filter(|&(city, at, d)| at >= first && delay(city, at) == d);
            let arrivals: Vec<Arrival> =
                due.map(|(city, at, _)| cities.arrival_at_second(city, at)).collect();
            readings += arrivals.len();
            let start = thread_cpu_time();
            flow.send_epoch(worker, &mut Vec::new(), arrivals, 0);
            busy += (thread_cpu_time() - start).as_secs_f64();
            *at += 1;
        }
        busy * 1e9 / readings as f64
    });
    median(times.collect())
}
