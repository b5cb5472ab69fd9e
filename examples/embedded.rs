//! Feeds readings to the dataflow, and prints what each of them changes.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use swelter::timely;
use swelter::{
    Admission, AdmissionRules, Formula, Graph, GraphPlan, Measurement, Millis, ReadingEvent, Retention,
    Upsert,
};

fn main() {
    let readings = [
        ("2013-07-18T12:00:00Z", 88.0),
        ("2013-07-18T13:00:00Z", 91.0),
        // A correction of the first: it changes the rows of both.
        ("2013-07-18T12:00:00Z", 89.5),
    ];
    let retention = Retention { window: Millis::DAY, lateness: Millis::DAY, history: Millis::DAY };
    let changes = timely::execute_directly(move |worker| {
        let mut graph = Graph::build(worker, &GraphPlan::new(Formula::Nws, retention));
        let mut admission = Admission::new(0, AdmissionRules::new(retention.lateness));
        for (epoch, (time, temperature)) in (0..).zip(readings) {
            let event = ReadingEvent::Reading(Measurement::new(temperature, 60.0, None).unwrap());
            let upsert = Upsert { city: "JFK", reading_at: time.parse().unwrap(), event, revision: None };
            let admitted = admission.admit(&upsert, None).unwrap();
            let mut cities = Vec::from_iter(admitted.is_new.then(|| admitted.introduction(upsert.city)));
            graph.send_epoch(epoch, &mut cities, &mut vec![admitted.arrival(&upsert, 0)]);
        }
        graph.close_inputs();
        worker.step_while(|| !graph.probe.done());

        let batches = std::iter::from_fn(|| graph.rows.as_ref()?.next_batch());
        let changes = batches.flat_map(|batch| batch.changes).flat_map(|(epoch, changes)| {
            changes.into_iter().map(move |change| (epoch, change.reading_at, change.after))
        });
        changes.collect::<Vec<_>>()
    });
    for (epoch, reading_at, row) in &changes {
        let mean = row.map(|row| format!("{:.2} °F", row.rolling_heat_index()));
        println!("reading {epoch}: the day up to {reading_at} has a mean of {}", mean.unwrap_or_default());
    }
    assert_eq!(changes.len(), 4);
}
