//! An epoch's changes as records of durable sinks.

use super::epoch_changes::{CurrentChange, EpochChanges, RollingOutputs};
use crate::model::{BatchBuilder, CityNames, Render, RenderWants};

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
        for change in changes.rows.iter().flatten() {
            if *write_touched || change.before != change.after {
                render.render_row(epoch, names, change, out);
            }
        }
        if wants.current {
            for CurrentChange { city, before, after } in changes.current_changes() {
                if *write_touched || before != after {
                    render.render_current(epoch, names, city, after, out);
                }
            }
            for city in changes.cities_without_row.iter().filter(|_| *write_touched) {
                render.render_current(epoch, names, *city, None, out);
            }
        }
        if wants.outcomes {
            changes.outcomes.iter().for_each(|outcome| render.render_outcome(epoch, names, outcome, out));
        }
        if wants.days {
            changes.days.iter().for_each(|day| render.render_day(epoch, names, day, out));
        }
    }
}

impl RollingOutputs {
    /// The outputs that sinks need in addition to the rows, which all sinks get.
    pub fn of_sinks(renderers: &[SinkRenderer]) -> RollingOutputs {
        let any = |wants: fn(&SinkRenderer) -> bool| renderers.iter().any(wants);
        RollingOutputs {
            current: any(|sink| sink.wants.current),
            days: any(|sink| sink.wants.days),
            outcomes: any(|sink| sink.wants.outcomes),
            touched_unchanged: any(|sink| sink.write_touched),
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
        Arrival, ArrivalOutcome, CityId, CityIntroduction, CityKey, CurrentRow, DayChange, EventTime,
        Measurement, Millis, ReadingEvent, RowChange, Shard,
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
            _: CityId,
            row: Option<&CurrentRow>,
            out: &mut BatchBuilder,
        ) {
            Letters::write(epoch, if row.is_some() { b'c' } else { b'-' }, out);
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
            let arrival = |event| Arrival { city: key, reading_at, event, revision: None, position: epoch };
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
        let all = RenderWants { current: true, outcomes: true, days: true };
        let sinks = [(RenderWants::default(), false), (all, false)];
        assert_eq!(rendered(&sinks), [["r", ""], ["rcod", "oo"]].map(|sink| sink.map(String::from)));
    }

    #[test]
    fn only_a_sink_that_writes_at_least_once_gets_touched_rows() {
        let current = RenderWants { current: true, ..RenderWants::default() };
        let sinks = [(current, false), (current, true)];
        assert_eq!(rendered(&sinks), [["rc", ""], ["rc", "=c"]].map(|sink| sink.map(String::from)));
    }
}
