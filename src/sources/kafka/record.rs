//! What a message of a topic says.

use rdkafka::message::{Headers, Message};

use super::{RecordFormat, Shared};
use crate::codec::RecordDecoder;
use crate::kafka::letter;
use crate::model::{Event, EventTime, Raw, Reason, Refusal, Retried, Upsert};
use crate::sources::{Place, SourceError, Take};

/// Gives messages as arrivals.
pub(super) struct Records {
    json: RecordDecoder,
}

/// What became of a message.
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
        match &shared.plan.format {
            RecordFormat::Json => Ok(Records { json: RecordDecoder::new(shared.decode) }),
            RecordFormat::AvroRegistry(_) | RecordFormat::AvroFile(_) => {
                Err(SourceError::Fatal(format!("topic {}: Avro cannot be read yet", shared.plan.topic)))
            }
        }
    }

    #[inline]
    pub(super) fn give(&mut self, message: &impl Message, place: Place, take: &mut dyn Take) -> Content {
        let (key, value) = (message.key(), message.payload());
        let retried = message.headers().and_then(retried);
        let decoded = match value {
            Some(value) => self.json.decode(value),
            None => self.withdrawn(key),
        };
        let taken = decoded
            .and_then(|upsert| if retried.is_some() { again(upsert) } else { Ok(upsert) })
            .and_then(|upsert| take.upsert(place, &upsert));
        if let Err(refusal) = taken {
            take.refused(place, &refusal, &Raw { key, value, retried: retried.as_ref() });
        }
        Content::Given
    }

    #[cold]
    fn withdrawn<'a>(&'a mut self, key: Option<&'a [u8]>) -> Result<Upsert<'a>, Refusal> {
        const RULE: &str =
            "a record without a value is a withdrawal, whose key must be {\"city\":..,\"reading_at\":..}";
        let Some(key) = key else {
            return Err(Refusal::new(Reason::NotDecodable, format!("{RULE}: it has none")));
        };
        let upsert = self.json.decode_withdrawn(key);
        upsert.map_err(|refusal| Refusal::new(refusal.reason, format!("{RULE}: {}", refusal.detail)))
    }
}

/// A dead letter that comes again.
#[cold]
fn again(upsert: Upsert<'_>) -> Result<Upsert<'_>, Refusal> {
    match upsert.event {
        Event::Reading(measurement) | Event::Retried(measurement) => {
            Ok(Upsert { event: Event::Retried(measurement), ..upsert })
        }
        Event::Withdrawal => {
            Err(Refusal::new(Reason::BadOperation, "a withdrawal is not retried: withdraw the reading again"))
        }
    }
}

/// What the headers of a dead letter that was sent again say. Others have no such headers, or not of this form.
fn retried(headers: &impl Headers) -> Option<Retried> {
    let text = |name: &str| {
        let header = headers.iter().find(|header| header.key == name)?;
        std::str::from_utf8(header.value?).ok()
    };
    let attempt = text(letter::ATTEMPT)?.parse().ok().filter(|attempt| *attempt > 0)?;
    let origin = text(letter::ORIGIN)?.into();
    let first_seen = text(letter::FIRST_SEEN).and_then(|text| EventTime::parse(text, None).ok());
    Some(Retried { origin, attempt, first_seen })
}
