//! Encodes changes as records: the shard and partition of a city, and the format of rows.

use std::sync::Arc;

use crate::codec::{
    current_to_avro, push_current_values, push_json_text, push_row_values, push_wire_header, row_to_avro,
};
use crate::kafka::partitioner::partition_for_key;
use crate::model::{
    BatchBuilder, CityId, CityNames, CurrentChange, CurrentRow, EventTime, OutputUnits, Render, RenderWants,
    Row, RowChange, Shard,
};

/// The index of the results topic among the topics of a sink.
pub const RESULTS_TOPIC_INDEX: u8 = 0;
/// The index of the topic of current rows.
pub const CURRENT_TOPIC_INDEX: u8 = 1;

/// How a sink's records are routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionLayout {
    /// The sink's first shard, and its number of shards.
    pub first_shard: Shard,
    pub shards: u16,
    /// Partitions of the results topic, and of the topic of current rows if there is one.
    pub partitions: u32,
    pub current_partitions: Option<u32>,
}

impl PartitionLayout {
    /// The shard that owns a partition.
    pub fn shard_of(&self, partition: u32) -> Shard {
        Shard(self.first_shard.0 + (partition % u32::from(self.shards)) as u16)
    }
}

/// Writes the value of a row after the prefix of its key.
pub trait RowWriter {
    fn row(&mut self, key: &RowKey<'_>, row: &Row, out: &mut Vec<u8>);
    fn current(&mut self, key: &RowKey<'_>, row: &CurrentRow, out: &mut Vec<u8>);
}

/// The key of a result: `{"city":"..","reading_at":".."}`, in exactly these bytes.
pub struct RowKey<'a> {
    pub city: &'a str,
    pub reading_at: EventTime,
    pub json: &'a [u8],
}

pub struct KafkaRenderer<W> {
    layout: PartitionLayout,
    writer: W,
    /// By [`CityId`].
    cities: Vec<CityPrefix>,
    key: Vec<u8>,
}

/// The common prefix of all records of a city.
struct CityPrefix {
    name: Arc<str>,
    partition: u32,
    current_partition: u32,
    /// `{"city":"..","reading_at":"`.
    start: Box<[u8]>,
}

impl<W: RowWriter> KafkaRenderer<W> {
    pub fn new(places: PartitionLayout, writer: W) -> KafkaRenderer<W> {
        KafkaRenderer { layout: places, writer, cities: Vec::new(), key: Vec::new() }
    }

    fn add_cities(&mut self, names: &CityNames) {
        for id in self.cities.len()..names.len() {
            let name = names.get(CityId(id as u32));
            let mut start = b"{\"city\":".to_vec();
            push_json_text(&name, &mut start);
            start.extend_from_slice(b",\"reading_at\":\"");
            let partition = partition_for_key(name.as_bytes(), self.layout.partitions);
            let current_partition =
                partition_for_key(name.as_bytes(), self.layout.current_partitions.unwrap_or(1));
            self.cities.push(CityPrefix { name, partition, current_partition, start: start.into() });
        }
    }

    #[inline]
    fn city(&mut self, city: CityId, names: &CityNames) -> usize {
        if city.0 as usize >= self.cities.len() {
            self.add_cities(names);
        }
        city.0 as usize
    }
}

fn row_key<'a>(city: &'a CityPrefix, reading_at: EventTime, json: &'a mut Vec<u8>) -> RowKey<'a> {
    json.clear();
    json.extend_from_slice(&city.start);
    reading_at.write_to(json);
    json.extend_from_slice(b"\"}");
    RowKey { city: &city.name, reading_at, json }
}

impl<W: RowWriter> Render for KafkaRenderer<W> {
    fn wants(&self) -> RenderWants {
        let current = self.layout.current_partitions.is_some();
        RenderWants { rows: true, current, ..RenderWants::default() }
    }

    fn render_row(&mut self, epoch: u64, names: &CityNames, change: &RowChange, out: &mut BatchBuilder) {
        let at = self.city(change.city, names);
        let city = &self.cities[at];
        let key = row_key(city, change.reading_at, &mut self.key);
        let mut draft = out.begin_record(
            epoch,
            self.layout.shard_of(city.partition),
            RESULTS_TOPIC_INDEX,
            city.partition,
        );
        draft.buffer().extend_from_slice(key.json);
        draft.end_key();
        if let Some(row) = &change.after {
            self.writer.row(&key, row, draft.buffer());
            draft.end_value();
        }
    }

    fn render_current(
        &mut self,
        epoch: u64,
        names: &CityNames,
        change: &CurrentChange<'_>,
        out: &mut BatchBuilder,
    ) {
        let at = self.city(change.city, names);
        let city = &self.cities[at];
        let partition = city.current_partition;
        let mut draft =
            out.begin_record(epoch, self.layout.shard_of(partition), CURRENT_TOPIC_INDEX, partition);
        draft.buffer().extend_from_slice(city.name.as_bytes());
        draft.end_key();
        if let Some(row) = change.after {
            let key = row_key(city, row.reading_at, &mut self.key);
            self.writer.current(&key, row, draft.buffer());
            draft.end_value();
        }
    }
}

/// Rows as JSON: the key's object, extended by the row's fields. Topics are in °F and mph, whatever
/// units a server uses.
pub struct JsonRows;

impl RowWriter for JsonRows {
    fn row(&mut self, key: &RowKey<'_>, row: &Row, out: &mut Vec<u8>) {
        out.extend_from_slice(&key.json[..key.json.len() - 1]);
        push_row_values(out, row, OutputUnits::STORED);
        out.push(b'}');
    }

    fn current(&mut self, key: &RowKey<'_>, row: &CurrentRow, out: &mut Vec<u8>) {
        out.extend_from_slice(&key.json[..key.json.len() - 1]);
        push_current_values(out, row, OutputUnits::STORED);
        out.push(b'}');
    }
}

/// Rows as Avro of the schemas in `schemas/`, after the header that names the schema if a registry
/// has ids for them.
pub struct AvroRows {
    /// The schema ids of results and of current rows.
    pub ids: Option<(u32, u32)>,
}

impl RowWriter for AvroRows {
    fn row(&mut self, key: &RowKey<'_>, row: &Row, out: &mut Vec<u8>) {
        if let Some((id, _)) = self.ids {
            push_wire_header(id, out);
        }
        row_to_avro(key.city, key.reading_at, row, out);
    }

    fn current(&mut self, key: &RowKey<'_>, row: &CurrentRow, out: &mut Vec<u8>) {
        if let Some((_, id)) = self.ids {
            push_wire_header(id, out);
        }
        current_to_avro(key.city, row, out);
    }
}
