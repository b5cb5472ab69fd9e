//! The decoder of a topic's records.

use super::plan::RecordFormat;
use super::shared::KafkaSourceShared;
use crate::codec::JsonRecordDecoder;
use crate::kafka::dead_letter_headers;
use crate::kafka::native::FetchedRecord;
use crate::model::{EventTime, RawRecord, Reason, Refusal, RetryInfo, Upsert};
use crate::registry::{AvroRecordDecoder, DecodeResult};
use crate::sources::{RecordHandler, RecordPosition, SourceError};

/// Decodes records and passes them to the handler.
pub(super) struct TopicDecoder {
    /// Decodes JSON values, and the keys of tombstones.
    json: JsonRecordDecoder,
    /// Decodes values, if they are Avro.
    avro: Option<AvroRecordDecoder>,
}

/// The result of decoding a record.
pub(super) enum DecodeOutcome {
    /// It was accepted or refused.
    Handled,
    /// Its schema is not available yet.
    SchemaPending,
    /// Its schema cannot be obtained.
    Failed(SourceError),
}

impl TopicDecoder {
    pub(super) fn new(shared: &KafkaSourceShared) -> Result<TopicDecoder, SourceError> {
        let (topic, read) = (&shared.plan.topic, &shared.read_options);
        let avro = match &shared.plan.format {
            RecordFormat::Json => None,
            RecordFormat::AvroRegistry(_) => {
                let schemas = shared.schema_cache.get().cloned();
                let schemas = schemas.ok_or_else(|| {
                    SourceError::Fatal(format!("topic {topic}: no schema registry is configured for it"))
                })?;
                Some(AvroRecordDecoder::from_registry(schemas, read))
            }
            RecordFormat::AvroFile(path) => {
                let failed = |error: &dyn std::fmt::Display| {
                    SourceError::Fatal(format!("the schema of topic {topic}, {}: {error}", path.display()))
                };
                let schema = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
                Some(AvroRecordDecoder::from_schema(&schema, read).map_err(|error| failed(&error))?)
            }
        };
        Ok(TopicDecoder { json: JsonRecordDecoder::for_source(read), avro })
    }

    #[inline]
    pub(super) fn handle_record(
        &mut self,
        record: FetchedRecord<'_>,
        position: RecordPosition,
        handler: &mut dyn RecordHandler,
    ) -> DecodeOutcome {
        let (key, value) = (record.key(), record.value());
        let retried = parse_retry_headers(record);
        let decoded = match (value, &mut self.avro) {
            (None, _) => decode_tombstone(&mut self.json, key),
            (Some(value), None) => self.json.decode(value),
            (Some(value), Some(avro)) => match avro.decode(value) {
                DecodeResult::Record(decoded) => decoded,
                DecodeResult::Pending => return DecodeOutcome::SchemaPending,
                DecodeResult::Unavailable(why) => {
                    return DecodeOutcome::Failed(SourceError::Transient(why.to_string()));
                }
            },
        };
        let outcome = decoded
            .and_then(|upsert| if retried.is_some() { upsert.into_retried() } else { Ok(upsert) })
            .and_then(|upsert| handler.handle_upsert(position, &upsert));
        if let Err(refusal) = outcome {
            handler.handle_refusal(
                position,
                &refusal,
                &RawRecord { key, value, retry: retried.as_ref(), client: None },
            );
        }
        DecodeOutcome::Handled
    }
}

#[cold]
fn decode_tombstone<'a>(
    decoder: &'a mut JsonRecordDecoder,
    key: Option<&'a [u8]>,
) -> Result<Upsert<'a>, Refusal> {
    const RULE: &str =
        "a record without a value is a withdrawal, whose key must be {\"city\":..,\"reading_at\":..}";
    let Some(key) = key else {
        return Err(Refusal::new(Reason::NotDecodable, format!("{RULE}: it has none")));
    };
    let upsert = decoder.decode_tombstone_key(key);
    upsert.map_err(|refusal| Refusal::new(refusal.reason, format!("{RULE}: {}", refusal.detail)))
}

/// Parses the headers of a retried dead letter. Other records have none of them, or not in this
/// form.
fn parse_retry_headers(record: FetchedRecord<'_>) -> Option<RetryInfo> {
    let text = |name: &str| {
        let (_, value) = record.headers().find(|(header_name, _)| *header_name == name)?;
        std::str::from_utf8(value?).ok()
    };
    let attempt = text(dead_letter_headers::ATTEMPT)?.parse().ok().filter(|attempt| *attempt > 0)?;
    let origin = text(dead_letter_headers::ORIGIN)?.into();
    let first_seen = text(dead_letter_headers::FIRST_SEEN).and_then(|text| text.parse::<EventTime>().ok());
    Some(RetryInfo { origin, attempt, first_seen })
}
