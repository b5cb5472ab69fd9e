//! Decodes a log's Avro values into readings.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::{RegistryResponse, SchemaCache, SchemaLookup};
use crate::codec::{AvroDecoder, ReadOptions, SchemaError, split_wire_header};
use crate::model::refusal::quoted_excerpt;
use crate::model::{Reason, Refusal, Upsert};

/// The result of decoding one value.
#[derive(Debug)]
pub enum DecodeResult<'a> {
    Record(Result<Upsert<'a>, Refusal>),
    /// The schema has been requested: hold the partition at this record and retry.
    Pending,
    /// The schema cannot be had now, for this reason; it is requested again. Hold the partition, as
    /// for `Pending`.
    Unavailable(Arc<str>),
}

/// Decodes the values of one reader.
#[derive(Debug)]
pub struct AvroRecordDecoder {
    options: ReadOptions,
    writer_schemas: WriterSchemas,
}

#[derive(Debug)]
enum WriterSchemas {
    /// One schema for all values.
    Fixed(Box<AvroDecoder>),
    /// The schema of the id in each value's header.
    ByHeaderId { schemas: SchemaCache, decoders: HashMap<u32, Result<AvroDecoder, Refusal>, RandomState> },
}

impl AvroRecordDecoder {
    /// For values in the Confluent wire format.
    pub fn from_registry(schemas: SchemaCache, options: impl Into<ReadOptions>) -> AvroRecordDecoder {
        AvroRecordDecoder {
            options: options.into(),
            writer_schemas: WriterSchemas::ByHeaderId { schemas, decoders: HashMap::default() },
        }
    }

    /// For bare values without a header, all written with one schema.
    ///
    /// # Errors
    ///
    /// If no value of the schema could be a reading.
    pub fn from_schema(
        writer: &str,
        options: impl Into<ReadOptions>,
    ) -> Result<AvroRecordDecoder, SchemaError> {
        let options = options.into();
        let decoder = Box::new(AvroDecoder::new(writer, &options)?);
        Ok(AvroRecordDecoder { options, writer_schemas: WriterSchemas::Fixed(decoder) })
    }

    /// Decodes one value. It never waits: a value whose schema is not there yet is not decoded.
    #[inline]
    pub fn decode<'a>(&'a mut self, value: &'a [u8]) -> DecodeResult<'a> {
        let (schemas, decoders) = match &mut self.writer_schemas {
            WriterSchemas::Fixed(decoder) => return DecodeResult::Record(decoder.decode(value)),
            WriterSchemas::ByHeaderId { schemas, decoders } => (schemas, decoders),
        };
        let (id, datum) = match split_wire_header(value) {
            Ok(split) => split,
            Err(refusal) => return DecodeResult::Record(Err(refusal)),
        };
        let decoder = match decoders.entry(id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => match schemas.lookup(id) {
                SchemaLookup::Known(RegistryResponse::Avro { schema, references }) => {
                    let decoder = AvroDecoder::with_references(&schema, &references, &self.options);
                    entry.insert(decoder.map_err(|error| {
                        let detail = format!("schema {id} cannot be read as a reading: {error}");
                        Refusal::new(Reason::NotDecodable, detail)
                    }))
                }
                // Not cached: there may be many such ids.
                SchemaLookup::Known(RegistryResponse::Other { schema_type }) => {
                    let detail =
                        format!("schema {id} is of the type {}, not AVRO", quoted_excerpt(&schema_type));
                    return DecodeResult::Record(Err(Refusal::new(Reason::NotDecodable, detail)));
                }
                SchemaLookup::Known(RegistryResponse::Unknown) => {
                    let detail = format!("the schema registry has no schema {id}");
                    return DecodeResult::Record(Err(Refusal::new(Reason::UnknownSchema, detail)));
                }
                SchemaLookup::Known(RegistryResponse::Unusable { problem }) => {
                    let detail = format!("schema {id} cannot be used: {problem}");
                    return DecodeResult::Record(Err(Refusal::new(Reason::NotDecodable, detail)));
                }
                SchemaLookup::Pending => return DecodeResult::Pending,
                SchemaLookup::Unavailable(why) => return DecodeResult::Unavailable(why),
            },
        };
        DecodeResult::Record(match decoder {
            Ok(decoder) => decoder.decode(datum),
            Err(refusal) => Err(refusal.clone()),
        })
    }
}
