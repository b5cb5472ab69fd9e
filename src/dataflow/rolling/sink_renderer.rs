//! An epoch's changes as records of durable sinks.

use super::epoch_changes::{EpochChanges, RollingOutputs, TouchedCity};
use crate::model::{BatchBuilder, CityNames, CurrentChange, Render, RenderWants};

/// Encodes a worker's results for one sink.
pub struct SinkRenderer {
    render: Box<dyn Render>,
    wants: RenderWants,
    /// Write the rows that an epoch has touched, changed or not.
    write_touched: bool,
}

impl SinkRenderer {
    pub fn new(render: Box<dyn Render>, write_touched: bool) -> SinkRenderer {
        SinkRenderer { wants: render.wants(), render, write_touched }
    }

    /// Writes the changes of an epoch.
    pub(super) fn render_epoch(
        &mut self,
        epoch: u64,
        names: &CityNames,
        changes: &EpochChanges,
        out: &mut BatchBuilder,
    ) {
        let SinkRenderer { render, wants, write_touched } = self;
        if wants.rows {
            for change in changes.rows.iter().flatten() {
                if *write_touched || change.before != change.after {
                    render.render_row(epoch, names, change, out);
                }
            }
        }
        if wants.current {
            self.render_current_rows(epoch, names, changes, out);
        }
        let SinkRenderer { render, wants, .. } = self;
        if wants.outcomes {
            changes.outcomes.iter().for_each(|outcome| render.render_outcome(epoch, names, outcome, out));
        }
        if wants.hours {
            changes.sink_hours.iter().for_each(|hour| render.render_hour(epoch, names, hour, out));
        }
        if wants.days {
            changes.sink_days.iter().for_each(|day| render.render_day(epoch, names, day, out));
        }
    }

    fn render_current_rows(
        &mut self,
        epoch: u64,
        names: &CityNames,
        changes: &EpochChanges,
        out: &mut BatchBuilder,
    ) {
        let SinkRenderer { render, wants, write_touched } = self;
        let mut render_change = |change: CurrentChange<'_>| {
            let has_new_high = wants.highs && change.high_before != change.high;
            if *write_touched || has_new_high || change.before != change.after {
                render.render_current(epoch, names, &change, out);
            }
        };
        if changes.touched_cities.is_empty() {
            changes.current_changes().for_each(&mut render_change);
            let without_row =
                |city| CurrentChange { city, before: None, after: None, high_before: None, high: None };
            changes.cities_without_row.iter().map(|city| without_row(*city)).for_each(render_change);
        } else {
            changes.touched_cities.iter().map(TouchedCity::current_change).for_each(render_change);
        }
    }
}

impl RollingOutputs {
    /// The outputs that sinks need.
    pub fn of_sinks(renderers: &[SinkRenderer]) -> RollingOutputs {
        let wants = renderers.iter().map(|sink| sink.wants);
        RollingOutputs {
            sinks: wants.fold(RenderWants::default(), RenderWants::union),
            touched_unchanged: renderers.iter().any(|sink| sink.write_touched),
            ..RollingOutputs::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataflow::heat_index::Formula;
    use crate::dataflow::rolling::{Retention, Rolling};
    use crate::model::{
        Arrival, ArrivalOutcome, CityIntroduction, CityKey, DayChange, EventTime, Measurement, Millis,
        ReadingEvent, RowChange, Shard,
    };

    const MINUTE: i64 = 60_000;

    /// Writes one letter of the alphabet for each change that it wants.
    struct Letters(RenderWants);

    impl Letters {
        fn write(epoch: u64, letter: u8, out: &mut BatchBuilder) {
            let mut record = out.begin_record(epoch, Shard(0), 0, 0);
            record.buffer().push(letter);
            record.end_value();
        }
    }

    impl Render for Letters {
        fn wants(&self) -> RenderWants {
            self.0
        }

        fn render_row(&mut self, epoch: u64, _: &CityNames, change: &RowChange, out: &mut BatchBuilder) {
            Letters::write(epoch, if change.before == change.after { b'=' } else { b'r' }, out);
        }

        fn render_current(
            &mut self,
            epoch: u64,
            _: &CityNames,
            change: &CurrentChange<'_>,
            out: &mut BatchBuilder,
        ) {
            Letters::write(epoch, if change.after.is_some() { b'c' } else { b'-' }, out);
        }

        fn render_outcome(&mut self, epoch: u64, _: &CityNames, _: &ArrivalOutcome, out: &mut BatchBuilder) {
            Letters::write(epoch, b'o', out);
        }

        fn render_day(&mut self, epoch: u64, _: &CityNames, _: &DayChange, out: &mut BatchBuilder) {
            Letters::write(epoch, b'd', out);
        }
    }

    /// The output of each sink in two epochs: a reading; its withdrawal and return.
    fn rendered(sinks: &[(RenderWants, bool)]) -> Vec<[String; 2]> {
        let mut sinks: Vec<SinkRenderer> = sinks
            .iter()
            .map(|(wants, touched)| SinkRenderer::new(Box::new(Letters(*wants)), *touched))
            .collect();
        let names = CityNames::default();
        let day = Millis::from_millis(24 * 60 * MINUTE).unwrap();
        let retention = Retention { window: day, lateness: day, history: day };
        let outputs = RollingOutputs::of_sinks(&sinks);
        let mut rolling = Rolling::new(Formula::default(), retention, outputs, names.clone());
        let key = CityKey { source: 0, number: 0, hash: 1 };
        rolling.introduce_city(&CityIntroduction { key, name: "Oslo".into() });
        let mut changes = EpochChanges::default();
        let mut all = vec![[String::new(), String::new()]; sinks.len()];
        for epoch in 0..2 {
            let reading = ReadingEvent::Reading(Measurement::new(80.0, 50.0, None).unwrap());
            let reading_at = EventTime::from_millis(1_764_000_000_000).unwrap();
            let arrival = |event| Arrival::new(key, reading_at, event, None, epoch);
            let arrivals = match epoch {
                0 => vec![arrival(reading)],
                _ => vec![arrival(ReadingEvent::Withdrawal), arrival(reading)],
            };
            rolling.apply_arrivals(&[arrivals], |_| true, &mut changes);
            for (sink, text) in sinks.iter_mut().zip(&mut all) {
                let mut out = BatchBuilder::default();
                sink.render_epoch(epoch, &names, &changes, &mut out);
                for batch in out.take_batches() {
                    let letters =
                        batch.records().flat_map(|record| record.value.unwrap_or_default().to_vec());
                    text[epoch as usize].extend(letters.map(char::from));
                }
            }
        }
        all
    }

    #[test]
    fn sink_gets_what_it_wants_and_nothing_else() {
        let rows = RenderWants { rows: true, ..RenderWants::default() };
        let all = RenderWants { current: true, outcomes: true, days: true, ..rows };
        let sinks = [(rows, false), (all, false)];
        assert_eq!(rendered(&sinks), [["r", ""], ["rcod", "oo"]].map(|sink| sink.map(String::from)));
    }

    /// Rows are not computed for sinks that do not want them.
    #[test]
    fn rows_are_computed_only_for_a_sink_that_wants_them() {
        let wants = RenderWants { outcomes: true, current: true, ..RenderWants::default() };
        let outputs = |wants| RollingOutputs::of_sinks(&[SinkRenderer::new(Box::new(Letters(wants)), false)]);
        assert!(outputs(wants).computes_outcomes() && outputs(wants).computes_current());
        assert!(!outputs(wants).computes_rows() && !outputs(wants).computes_sink_periods());
        assert!(outputs(RenderWants { rows: true, ..wants }).computes_rows());
        assert!(outputs(RenderWants { hours: true, ..wants }).computes_sink_periods());
    }

    #[test]
    fn only_a_sink_that_writes_at_least_once_gets_touched_rows() {
        let current = RenderWants { rows: true, current: true, ..RenderWants::default() };
        let sinks = [(current, false), (current, true)];
        assert_eq!(rendered(&sinks), [["rc", ""], ["rc", "=c"]].map(|sink| sink.map(String::from)));
    }
}
