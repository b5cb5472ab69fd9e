//! Encodes changes of rows as lines of a folder's files.
//!
//! A line is a change: the epoch in which it became visible, the key, and the row or the
//! withdrawal. Values are in °F, as in topics.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::plan::FolderFormat;
use crate::codec::{push_csv_text, push_integer, push_json_text, push_row_csv, push_row_values};
use crate::model::{BatchBuilder, CityId, CityNames, OutputUnits, Render, RowChange, Shard};

/// Encodes each change of a row as a line.
pub struct FolderRenderer {
    format: FolderFormat,
    first_shard: Shard,
    shards: u16,
    /// By [`CityId`].
    cities: Vec<CityLine>,
}

/// The common part of the lines of a city.
struct CityLine {
    shard: Shard,
    /// The name, encoded for the format.
    name: Box<[u8]>,
}

impl FolderRenderer {
    pub fn new(format: FolderFormat, first_shard: Shard, shards: u16) -> FolderRenderer {
        FolderRenderer { format, first_shard, shards, cities: Vec::new() }
    }

    fn add_cities(&mut self, names: &CityNames) {
        for id in self.cities.len()..names.len() {
            let name: Arc<str> = names.get(CityId(id as u32));
            let mut text = Vec::new();
            match self.format {
                FolderFormat::Json => push_json_text(&name, &mut text),
                FolderFormat::Csv => push_csv_text(&name, &mut text),
            }
            let shard = Shard(self.first_shard.0 + shard_of_city(&name, self.shards));
            self.cities.push(CityLine { shard, name: text.into() });
        }
    }
}

/// The shard of a city. It stays the same as long as the folder exists.
fn shard_of_city(city: &str, shards: u16) -> u16 {
    (xxh3_64(city.as_bytes()) % u64::from(shards)) as u16
}

impl Render for FolderRenderer {
    fn render_row(&mut self, epoch: u64, names: &CityNames, change: &RowChange, out: &mut BatchBuilder) {
        if change.city.0 as usize >= self.cities.len() {
            self.add_cities(names);
        }
        let city = &self.cities[change.city.0 as usize];
        let mut record = out.begin_record(epoch, city.shard, 0, 0);
        let line = record.buffer();
        match self.format {
            FolderFormat::Json => push_json_line(epoch, &city.name, change, line),
            FolderFormat::Csv => push_csv_line(epoch, &city.name, change, line),
        }
        line.push(b'\n');
        record.end_value();
    }
}

fn push_json_line(epoch: u64, city: &[u8], change: &RowChange, line: &mut Vec<u8>) {
    line.extend_from_slice(b"{\"as_of\":");
    push_integer(epoch as i64, line);
    line.extend_from_slice(b",\"city\":");
    line.extend_from_slice(city);
    line.extend_from_slice(b",\"reading_at\":\"");
    change.reading_at.write_to(line);
    line.push(b'"');
    match &change.after {
        Some(row) => push_row_values(line, row, OutputUnits::STORED),
        None => line.extend_from_slice(b",\"deleted\":true"),
    }
    line.push(b'}');
}

fn push_csv_line(epoch: u64, city: &[u8], change: &RowChange, line: &mut Vec<u8>) {
    push_integer(epoch as i64, line);
    line.push(b',');
    line.extend_from_slice(city);
    line.push(b',');
    change.reading_at.write_to(line);
    match &change.after {
        Some(row) => push_row_csv(line, row, OutputUnits::STORED),
        None => line.extend_from_slice(b",,,,"),
    }
    line.extend_from_slice(if change.after.is_some() { b",false" } else { b",true" });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Category, EventTime, HeatIndex, Row};

    fn lines(format: FolderFormat, city: &str, after: Option<Row>) -> String {
        let names = CityNames::default();
        names.push(city.into());
        let reading_at = EventTime::from_millis(1_764_000_000_000).unwrap();
        let change = RowChange { city: CityId(0), reading_at, before: None, after };
        let mut out = BatchBuilder::default();
        FolderRenderer::new(format, Shard(0), 1).render_row(1_764_000_000_123, &names, &change, &mut out);
        let batches = out.take_batches();
        let values =
            batches.iter().flat_map(|batch| batch.records().map(|record| record.value.unwrap().to_vec()));
        String::from_utf8(values.collect::<Vec<_>>().concat()).unwrap()
    }

    #[test]
    fn lines_have_the_epoch_the_key_and_the_row_or_its_end() {
        let row = Row::new(HeatIndex::from_micros(81_250_000), Category::Caution, 162_000_000, 2);
        let city = "San \"X\", CA";
        let json = "{\"as_of\":1764000000123,\"city\":\"San \\\"X\\\", CA\",\"reading_at\":\"2025-11-24T16:00:00Z\",\
                    \"heat_index\":81.25,\"rolling_heat_index\":81,\"count\":2,\"category\":\"caution\"}\n";
        assert_eq!(lines(FolderFormat::Json, city, Some(row)), json);
        let json = "{\"as_of\":1764000000123,\"city\":\"Oslo\",\"reading_at\":\"2025-11-24T16:00:00Z\",\"deleted\":true}\n";
        assert_eq!(lines(FolderFormat::Json, "Oslo", None), json);
        let csv = "1764000000123,\"San \"\"X\"\", CA\",2025-11-24T16:00:00Z,81.25,81,2,caution,false\n";
        assert_eq!(lines(FolderFormat::Csv, city, Some(row)), csv);
        let csv = "1764000000123,Oslo,2025-11-24T16:00:00Z,,,,,true\n";
        assert_eq!(lines(FolderFormat::Csv, "Oslo", None), csv);
        let fields = |line: &str| line.split(',').count();
        assert_eq!(fields(csv), fields(FolderFormat::Csv.header()));
    }

    #[test]
    fn shard_of_a_city_never_changes() {
        assert_eq!(["Oslo", "Lima", "Perth"].map(|city| shard_of_city(city, 8)), [3, 1, 0]);
    }
}
