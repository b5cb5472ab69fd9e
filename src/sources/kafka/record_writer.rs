//! The encoder of readings as values of a topic.

use std::time::Duration;

use super::plan::{KafkaSourcePlan, RecordFormat, RegistryPlan};
use crate::codec::{
    DecodeSettings, JsonRecordDecoder, READING_SCHEMA, ReadOptions, RecordFields, push_wire_header,
    reading_to_avro,
};
use crate::model::LocalTimePolicy;
use crate::registry::{RegistryClient, RegistryError, RegistrySettings};
use crate::sources::SourceError;

/// How long a registry may take to respond.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(10);

/// Converts JSON records to the format of a topic.
pub struct RecordWriter(RecordEncoding);

enum RecordEncoding {
    /// JSON values are not converted.
    Json,
    Avro(Box<AvroEncoder>),
}

struct AvroEncoder {
    decoder: JsonRecordDecoder,
    /// The id of the schema, for Confluent's wire format.
    schema: Option<u32>,
    value: Vec<u8>,
}

impl RecordWriter {
    pub fn json() -> RecordWriter {
        RecordWriter(RecordEncoding::Json)
    }

    /// Encodes with our own schema, after it is registered for the topic's values.
    pub fn registered(
        topic: &str,
        registry: &RegistryPlan,
        read: &ReadOptions,
    ) -> Result<RecordWriter, SourceError> {
        let settings = RegistrySettings {
            urls: registry.urls.clone(),
            user: registry.user.clone(),
            timeout: REGISTRY_TIMEOUT,
        };
        let id = RegistryClient::new(&settings)
            .and_then(|client| client.register_schema(&format!("{topic}-value"), READING_SCHEMA))
            .map_err(|error| match error {
                RegistryError::Unavailable(_) => SourceError::Transient(error.to_string()),
                RegistryError::Unknown | RegistryError::Unusable(_) | RegistryError::Refused(_) => {
                    SourceError::Fatal(error.to_string())
                }
            })?;
        Ok(RecordWriter::avro(Some(id), read))
    }

    pub(super) fn for_source(
        plan: &KafkaSourcePlan,
        read: &ReadOptions,
    ) -> Result<RecordWriter, SourceError> {
        let topic = &plan.topic;
        // Times must have an offset, so they mean the same in any time zone.
        let settings = DecodeSettings { local_time: LocalTimePolicy::Refuse, ..read.settings };
        let with_offsets = ReadOptions { settings, ..read.clone() };
        if plan.format != RecordFormat::Json && !with_offsets.is_default() {
            return Err(SourceError::Fatal(format!(
                "records appended to topic {topic} as Avro have °F, % humidity and the field names of readings, but the source reads other units or names: append to a topic of JSON, or set the source to these"
            )));
        }
        match &plan.format {
            RecordFormat::Json => Ok(RecordWriter::json()),
            RecordFormat::AvroRegistry(registry) => RecordWriter::registered(topic, registry, read),
            RecordFormat::AvroFile(path) => {
                let file = std::fs::read_to_string(path).map_err(|error| {
                    SourceError::Fatal(format!("the schema of topic {topic}, {}: {error}", path.display()))
                })?;
                let parsed = |schema: &str| serde_json::from_str::<serde_json::Value>(schema).ok();
                if parsed(&file) != parsed(READING_SCHEMA) {
                    return Err(SourceError::Fatal(format!(
                        "records appended to topic {topic} are written with schemas/reading.avsc, and {} is another schema: use that file, or append to a topic of JSON",
                        path.display()
                    )));
                }
                Ok(RecordWriter::avro(None, read))
            }
        }
    }

    fn avro(schema: Option<u32>, read: &ReadOptions) -> RecordWriter {
        let decoder = JsonRecordDecoder::new(read);
        RecordWriter(RecordEncoding::Avro(Box::new(AvroEncoder { decoder, schema, value: Vec::new() })))
    }

    /// The value of a JSON record. An invalid reading is written unchanged, and is refused when it
    /// is read.
    pub fn encode_value<'a>(&'a mut self, json: &'a [u8]) -> &'a [u8] {
        let RecordEncoding::Avro(avro) = &mut self.0 else { return json };
        let Ok(upsert) = avro.decoder.decode(json) else { return json };
        avro.value.clear();
        if let Some(schema) = avro.schema {
            push_wire_header(schema, &mut avro.value);
        }
        reading_to_avro(&RecordFields::from_upsert(&upsert), &mut avro.value);
        &avro.value
    }
}
