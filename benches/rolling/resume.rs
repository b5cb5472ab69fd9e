//! A snapshot of all cities, and a graph that begins with it.

use swelter::internals::dataflow::heat_index::Formula;
use swelter::internals::dataflow::rolling::Retention;
use swelter::internals::dataflow::rolling::snapshot::InitialState;
use swelter::internals::dataflow::{self, GraphPlan};
use swelter::internals::model::{
    Arrival, CheckpointBarrier, CityIntroduction, CitySnapshot, Millis, ReadingEvent, SnapshotSink, Topology,
};
use timely::worker::Worker;

use crate::cities::{Cities, WINDOW_MINUTES, retention, time_of_minute};
use crate::graph::{RunningGraph, single_worker};
use crate::sensor::Sensor;
use crate::timing::thread_cpu_time;

/// Keeps the cities of a snapshot.
#[derive(Default)]
pub struct SnapshotCollector(std::rc::Rc<std::cell::RefCell<Vec<CitySnapshot>>>);

impl SnapshotSink for SnapshotCollector {
    fn begin_snapshot(&mut self, _: CheckpointBarrier, _: u64) {}

    fn write_city(&mut self, city: CitySnapshot) {
        self.0.borrow_mut().push(city);
    }

    fn finish_snapshot(&mut self) {}

    fn is_full(&self) -> bool {
        false
    }
}

/// 15,000 cities of 1,440 readings, of a sensor a city: given as a snapshot, and a graph that
/// begins with it.
pub fn bench_resume() {
    let cities = Cities::new(15_000);
    let keep = SnapshotCollector::default();
    let kept = std::rc::Rc::clone(&keep.0);
    let serving = GraphPlan::serving_only(
        Formula::Rothfusz,
        Retention { history: Millis::default(), ..retention() },
        Topology::single_process(1),
    );
    let mut worker = single_worker();
    let graph = dataflow::build_graph(&mut worker, &serving, InitialState::default(), Some(Box::new(keep)));
    let mut flow = RunningGraph { graph, epoch: 0, seen: 0, rows: 0 };
    let mut sensors: Vec<Sensor> = (0..cities.count()).map(Sensor::new).collect();
    let mut introductions = cities.names.clone();
    let run = |flow: &mut RunningGraph,
               worker: &mut Worker,
               introductions: &mut Vec<CityIntroduction>,
               arrivals| {
        let mut arrivals: Vec<Arrival> = arrivals;
        let start = thread_cpu_time();
        flow.graph.send_epoch(flow.epoch, introductions, &mut arrivals);
        flow.epoch += 1;
        while flow.graph.probe.less_than(&flow.epoch) {
            worker.step();
        }
        while flow.graph.serving_updates.as_ref().unwrap().next_batch().is_some() {}
        (thread_cpu_time() - start).as_secs_f64()
    };
    let mut arrivals = |minute: i64| -> Vec<Arrival> {
        let arrival = |city: u32, sensor: &mut Sensor| {
            let event = ReadingEvent::Reading(sensor.next(city, minute));
            let key = cities.names[city as usize].key;
            Arrival::new(key, time_of_minute(minute), event, None, 0)
        };
        (0..cities.count()).zip(&mut sensors).map(|(city, sensor)| arrival(city, sensor)).collect()
    };
    let mut busy = 0.0;
    for minute in 0..WINDOW_MINUTES {
        let arrivals = arrivals(minute);
        let elapsed = run(&mut flow, &mut worker, &mut introductions, arrivals);
        busy += if minute >= WINDOW_MINUTES / 2 { elapsed } else { 0.0 };
    }
    let told = busy * 1e9 / (WINDOW_MINUTES as f64 / 2.0 * f64::from(cities.count()));
    println!("serving, 15,000 cities, one reading a minute, window 1 day: {told:.1} ns a reading");
    let (start, epoch) = (thread_cpu_time(), flow.epoch);
    flow.graph.send_barrier(epoch, CheckpointBarrier { checkpoint: 0, full: true });
    run(&mut flow, &mut worker, &mut introductions, Vec::new());
    while kept.borrow().len() < cities.names.len() {
        worker.step();
    }
    println!("  a snapshot of all cities {:6.1} ms", (thread_cpu_time() - start).as_secs_f64() * 1e3);
    time_resumed_graph(&serving, kept.take(), f64::from(cities.count()));
}

fn time_resumed_graph(serving: &GraphPlan, cities: Vec<CitySnapshot>, count: f64) {
    let mut worker = single_worker();
    let (start, resumed) = (thread_cpu_time(), InitialState { epoch: 0, cities });
    let mut graph = dataflow::build_graph(&mut worker, serving, resumed, None);
    graph.advance_to(1);
    while graph.probe.less_than(&1) {
        worker.step();
    }
    let told: usize = graph
        .serving_updates
        .as_ref()
        .unwrap()
        .next_batch()
        .iter()
        .flat_map(|batch| &batch.changes)
        .map(|(_, told)| told.len())
        .sum();
    println!(
        "  resumed, {:.1} M readings {:6.1} ms, {told} current rows told",
        WINDOW_MINUTES as f64 * count / 1e6,
        (thread_cpu_time() - start).as_secs_f64() * 1e3
    );
}
