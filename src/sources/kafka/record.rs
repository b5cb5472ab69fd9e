//! What a record of a topic says.

use super::{RecordFormat, Shared};
use crate::codec::RecordDecoder;
use crate::kafka::letter;
use crate::kafka::native::Record;
use crate::model::{EventTime, Raw, Reason, Refusal, Retried, Upsert};
use crate::registry::{AvroRecords, Decoded};
use crate::sources::{Place, SourceError, Take};

/// Gives records as arrivals.
pub(super) struct Records {
    /// Of values, and of the keys of tombstones.
    json: RecordDecoder,
    /// Of values, where they are Avro.
    avro: Option<AvroRecords>,
}

/// What became of a record.
pub(super) enum Content {
    /// Taken or refused.
    Given,
    /// Its schema is not there yet.
    Pending,
    /// Its schema cannot be had.
    Failed(SourceError),
}

impl Records {
    pub(super) fn new(shared: &Shared) -> Result<Records, SourceError> {
        let (topic, read) = (&shared.plan.topic, &shared.read);
        let avro = match &shared.plan.format {
            RecordFormat::Json => None,
            RecordFormat::AvroRegistry(_) => {
                let schemas = shared.schemas.get().cloned();
                let schemas = schemas.ok_or_else(|| {
                    SourceError::Fatal(format!("topic {topic}: there is no client of its schema registry"))
                })?;
                Some(AvroRecords::from_registry(schemas, read))
            }
            RecordFormat::AvroFile(path) => {
                let failed = |error: &dyn std::fmt::Display| {
                    SourceError::Fatal(format!("the schema of topic {topic}, {}: {error}", path.display()))
                };
                let schema = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
                Some(AvroRecords::from_schema(&schema, read).map_err(|error| failed(&error))?)
            }
        };
        Ok(Records { json: RecordDecoder::of_source(read), avro })
    }

    #[inline]
    pub(super) fn give(&mut self, record: Record<'_>, place: Place, take: &mut dyn Take) -> Content {
        let (key, value) = (record.key(), record.value());
        let retried = retried(record);
        let decoded = match (value, &mut self.avro) {
            (None, _) => withdrawn(&mut self.json, key),
            (Some(value), None) => self.json.decode(value),
            (Some(value), Some(avro)) => match avro.decode(value) {
                Decoded::Record(decoded) => decoded,
                Decoded::Pending => return Content::Pending,
                Decoded::Unavailable(why) => return Content::Failed(SourceError::Transient(why.to_string())),
            },
        };
        let taken = decoded
            .and_then(|upsert| if retried.is_some() { upsert.retried() } else { Ok(upsert) })
            .and_then(|upsert| take.upsert(place, &upsert));
        if let Err(refusal) = taken {
            take.refused(place, &refusal, &Raw { key, value, retried: retried.as_ref(), client: None });
        }
        Content::Given
    }
}

#[cold]
fn withdrawn<'a>(decoder: &'a mut RecordDecoder, key: Option<&'a [u8]>) -> Result<Upsert<'a>, Refusal> {
    const RULE: &str =
        "a record without a value is a withdrawal, whose key must be {\"city\":..,\"reading_at\":..}";
    let Some(key) = key else {
        return Err(Refusal::new(Reason::NotDecodable, format!("{RULE}: it has none")));
    };
    let upsert = decoder.decode_withdrawn(key);
    upsert.map_err(|refusal| Refusal::new(refusal.reason, format!("{RULE}: {}", refusal.detail)))
}

/// What the headers of a dead letter that was sent again say. Others have no such headers, or not of this form.
fn retried(record: Record<'_>) -> Option<Retried> {
    let text = |name: &str| {
        let (_, value) = record.headers().find(|(found, _)| *found == name)?;
        std::str::from_utf8(value?).ok()
    };
    let attempt = text(letter::ATTEMPT)?.parse().ok().filter(|attempt| *attempt > 0)?;
    let origin = text(letter::ORIGIN)?.into();
    let first_seen = text(letter::FIRST_SEEN).and_then(|text| text.parse::<EventTime>().ok());
    Some(Retried { origin, attempt, first_seen })
}
