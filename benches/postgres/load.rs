//! Readings of 15,000 cities as the dataflow would send them to a sink.

use swelter::internals::model::{
    ArrivalOutcome, BatchBuilder, Category, CityId, CityNames, CurrentChange, CurrentRow, EncodedBatch,
    EventTime, HeatIndex, HeldHeat, Measurement, OutcomeKind, PartitionIndex, PartitionName, PartitionTable,
    ReadingEvent, Render, Row, Shard,
};
use swelter::internals::sinks::postgres::render::PostgresRenderer;
use swelter::internals::sinks::postgres::{PostgresTable, TableSet};

pub const CITIES: u64 = 15_000;
/// One reading in so many corrects the one before of its city.
const CORRECTION_INTERVAL: u64 = 100;

/// Renders readings of all cities in turn.
pub struct Load {
    renderer: PostgresRenderer,
    names: CityNames,
    out: BatchBuilder,
    /// Of each city: the newest time, and the row of it.
    newest: Vec<Option<CurrentRow>>,
    number: u64,
}

impl Load {
    pub fn new() -> Load {
        let names = CityNames::default();
        for city in 0..CITIES {
            names.push(format!("{}", 1_000_000 + city * 37).into());
        }
        let tables: TableSet =
            [PostgresTable::Now, PostgresTable::Reading, PostgresTable::Arrival].into_iter().collect();
        let partitions = PartitionTable::new(vec![PartitionName { source: "readings".into(), partition: 0 }]);
        Load {
            renderer: PostgresRenderer::new(Shard(0), 1, tables, &partitions),
            names,
            out: BatchBuilder::default(),
            newest: vec![None; CITIES as usize],
            number: 0,
        }
    }

    /// Renders the next reading, and one more if it is due to be corrected.
    pub fn push_reading(&mut self, epoch: u64, reading_at: EventTime) {
        let city = (self.number % CITIES) as usize;
        let before = self.newest[city];
        if let Some(before) = before.filter(|_| self.number.is_multiple_of(CORRECTION_INTERVAL)) {
            self.push_outcome(epoch, city, before.reading_at, Some(before), 0);
        }
        let seq = u32::from(before.is_some() && self.number.is_multiple_of(CORRECTION_INTERVAL));
        self.push_outcome(epoch, city, reading_at, None, seq);
        let row = self.row(reading_at);
        let change = CurrentChange {
            city: CityId(city as u32),
            before: before.as_ref(),
            after: Some(&row),
            high_before: before.map(|before| before.reading_at),
            high: Some(reading_at),
        };
        self.renderer.render_current(epoch, &self.names, &change, &mut self.out);
        self.newest[city] = Some(row);
        self.number += 1;
    }

    fn push_outcome(
        &mut self,
        epoch: u64,
        city: usize,
        reading_at: EventTime,
        corrected: Option<CurrentRow>,
        seq: u32,
    ) {
        let row = self.row(reading_at).row;
        let heat = |row: Row| HeldHeat::new(row.heat_index(), row.category());
        let outcome = ArrivalOutcome {
            city: CityId(city as u32),
            reading_at,
            partition: PartitionIndex(0),
            position: self.number,
            arrived_at: Some(reading_at),
            event: ReadingEvent::Reading(self.measurement()),
            revision: None,
            kind: if corrected.is_some() { OutcomeKind::Corrected } else { OutcomeKind::Inserted },
            seq,
            before: corrected.map(|current| heat(current.row)),
            after: Some(heat(row)),
            is_first_of_city: self.newest[city].is_none(),
            is_split: false,
            high: Some(reading_at),
        };
        self.renderer.render_outcome(epoch, &self.names, &outcome, &mut self.out);
    }

    fn measurement(&self) -> Measurement {
        let (temperature, humidity, wind) = (
            60.0 + (self.number * 7 % 400) as f64 / 10.0,
            30.0 + (self.number * 11 % 600) as f64 / 10.0,
            (self.number * 13 % 200) as f64 / 10.0,
        );
        Measurement::new(temperature, humidity, Some(wind)).unwrap()
    }

    fn row(&self, reading_at: EventTime) -> CurrentRow {
        let heat_index = HeatIndex::from_micros(70_000_000 + (self.number * 104_729 % 40_000_000) as i64);
        let row = Row::new(heat_index, Category::of(heat_index), heat_index.micros() * 1_440, 1_440);
        CurrentRow { reading_at, row, hour_ago: None, measurement: Some(self.measurement()) }
    }

    pub fn take_batches(&mut self) -> Vec<EncodedBatch> {
        self.out.take_batches()
    }
}
