//! A log's Avro values as readings.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::schemas::{Answer, Lookup, Schemas};
use crate::codec::{AvroDecoder, ReadOptions, SchemaError, split_wire_header};
use crate::model::refusal::quoted;
use crate::model::{Reason, Refusal, Upsert};

/// What became of a value.
#[derive(Debug)]
pub enum Decoded<'a> {
    Record(Result<Upsert<'a>, Refusal>),
    /// Its schema has been asked for: hold the partition back at this record and try again.
    Pending,
    /// Its schema cannot be had at present, for this reason. It is asked for again by and by: hold back, as when pending.
    Unavailable(Arc<str>),
}

/// Decodes the values of one reader.
#[derive(Debug)]
pub struct AvroRecords {
    options: ReadOptions,
    written: Written,
}

#[derive(Debug)]
enum Written {
    /// All with one schema.
    Bare(Box<AvroDecoder>),
    /// Each with the schema whose id is in its header.
    Named { schemas: Schemas, decoders: HashMap<u32, Result<AvroDecoder, Refusal>, RandomState> },
}

impl AvroRecords {
    /// For values in the Confluent wire format.
    pub fn from_registry(schemas: Schemas, options: impl Into<ReadOptions>) -> AvroRecords {
        AvroRecords {
            options: options.into(),
            written: Written::Named { schemas, decoders: HashMap::default() },
        }
    }

    /// For values that are bare data, without a header, all written with one schema.
    ///
    /// # Errors
    ///
    /// Where none of them could be a reading.
    pub fn from_schema(writer: &str, options: impl Into<ReadOptions>) -> Result<AvroRecords, SchemaError> {
        let options = options.into();
        let decoder = Box::new(AvroDecoder::new(writer, &options)?);
        Ok(AvroRecords { options, written: Written::Bare(decoder) })
    }

    /// Decodes one value. Never waits: what needs a schema that is not there yet is not decoded.
    #[inline]
    pub fn decode<'a>(&'a mut self, value: &'a [u8]) -> Decoded<'a> {
        let (schemas, decoders) = match &mut self.written {
            Written::Bare(decoder) => return Decoded::Record(decoder.decode(value)),
            Written::Named { schemas, decoders } => (schemas, decoders),
        };
        let (id, datum) = match split_wire_header(value) {
            Ok(split) => split,
            Err(refusal) => return Decoded::Record(Err(refusal)),
        };
        let decoder = match decoders.entry(id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => match schemas.lookup(id) {
                Lookup::Known(Answer::Avro { schema, references }) => {
                    let decoder = AvroDecoder::with_references(&schema, &references, &self.options);
                    entry.insert(decoder.map_err(|error| {
                        let detail = format!("schema {id} cannot be read as a reading: {error}");
                        Refusal::new(Reason::NotDecodable, detail)
                    }))
                }
                // Not kept here: there may be many.
                Lookup::Known(Answer::Other { schema_type }) => {
                    let detail = format!("schema {id} is of the type {}, not AVRO", quoted(&schema_type));
                    return Decoded::Record(Err(Refusal::new(Reason::NotDecodable, detail)));
                }
                Lookup::Known(Answer::Unknown) => {
                    let detail = format!("the schema registry has no schema {id}");
                    return Decoded::Record(Err(Refusal::new(Reason::UnknownSchema, detail)));
                }
                Lookup::Known(Answer::Unusable { problem }) => {
                    let detail = format!("schema {id} cannot be used: {problem}");
                    return Decoded::Record(Err(Refusal::new(Reason::NotDecodable, detail)));
                }
                Lookup::Pending => return Decoded::Pending,
                Lookup::Unavailable(why) => return Decoded::Unavailable(why),
            },
        };
        Decoded::Record(match decoder {
            Ok(decoder) => decoder.decode(datum),
            Err(refusal) => Err(refusal.clone()),
        })
    }

    /// How many fields were met that are none of a reading's, in the records so far.
    pub fn ignored_fields(&self) -> u64 {
        match &self.written {
            Written::Bare(decoder) => decoder.ignored_fields(),
            Written::Named { decoders, .. } => {
                decoders.values().flatten().map(AvroDecoder::ignored_fields).sum()
            }
        }
    }
}
