//! The rolling heat index inside a program of its own: readings in, every changed row out.
//!
//! Run it with `cargo run --example embedded`.

use std::error::Error;

use swelter::{
    Arrival, CityIntroduction, CityKey, Formula, Graph, GraphPlan, Measurement, ReadingEvent, Retention,
    timely,
};

/// Time, °F, % relative humidity. The third reading is late, the fourth corrects the first.
const READINGS: [(&str, f64, f64); 4] = [
    ("2026-07-01T12:00:00Z", 90.0, 50.0),
    ("2026-07-01T14:00:00Z", 94.0, 45.0),
    ("2026-07-01T13:00:00Z", 92.0, 48.0),
    ("2026-07-01T12:00:00Z", 88.0, 50.0),
];

/// A line for each row that an epoch changed: its time, and the rolling mean before and after.
pub fn changed_rows() -> Result<Vec<String>, Box<dyn Error + Send + Sync>> {
    let retention = Retention { window: "24h".parse()?, lateness: "48h".parse()?, history: "48h".parse()? };
    timely::execute_directly(move |worker| {
        let plan = GraphPlan::new(Formula::Nws, retention);
        let mut graph = Graph::build(worker, &plan);
        let city = CityKey { source: 0, number: 0, hash: CityKey::hash("new-york") };
        let mut introductions = vec![CityIntroduction { key: city, name: "new-york".into() }];
        for (epoch, (at, temperature, humidity)) in (0..).zip(READINGS) {
            let measurement = Measurement::new(temperature, humidity, None)
                .map_err(|refusal| format!("{at} is refused: {refusal:?}"))?;
            let event = ReadingEvent::Reading(measurement);
            let arrival = Arrival::new(city, at.parse()?, event, None, epoch);
            graph.send_epoch(epoch, &mut introductions, &mut vec![arrival]);
        }
        graph.close_inputs();
        while worker.has_dataflows() {
            worker.step();
        }
        let mut lines = Vec::new();
        while let Some(batch) = graph.rows.as_ref().and_then(|rows| rows.next_batch()) {
            for (epoch, change) in
                batch.changes.iter().flat_map(|(e, rows)| rows.iter().map(move |row| (e, row)))
            {
                let [before, after] = [change.before, change.after].map(|row| {
                    row.map_or_else(
                        || "none".to_string(),
                        |row| format!("{:.2} °F", row.rolling_heat_index()),
                    )
                });
                lines.push(format!("epoch {epoch}: {} {before} -> {after}", change.reading_at));
            }
        }
        Ok(lines)
    })
}

#[allow(clippy::print_stdout)]
fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    for line in changed_rows()? {
        println!("{line}");
    }
    Ok(())
}
