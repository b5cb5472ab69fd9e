//! Readings that come in over HTTP and WebSocket: each goes to the log with its exact bytes, and is answered when it is durable.
//! What is refused in the answer is in no log.

mod body;
mod heard;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use serde::Serialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use warp::http::HeaderMap;
use warp::http::header::CONTENT_LENGTH;

use self::body::{BodyCoding, Form, Room};
pub(super) use self::heard::TimeRules;
use super::new_cities::NewCities;
use super::problem::{Code, Problem};
use super::{Limits, telemetry};
use crate::codec::{ReadOptions, RecordDecoder};
use crate::model::{
    AppendError, AppendReport, Appended, Appender, ClientId, Hold, Holds, NewRecord, Reason, Refusal, Upsert,
};
use crate::panics::run_blocking;

/// Refusals that are told one by one; of the rest, their number.
const TOLD: usize = 100;
/// No reading or withdrawal is shorter, also where a source names its columns by a letter each: `{"t":1,"x":9,"h":5}`.
const SHORTEST_READING: usize = 16;
/// Larger bodies are decoded on a thread that may take its time.
const BLOCKING_BYTES: usize = 64 * 1024;
/// Until the log has acknowledged an append.
const ACKNOWLEDGE_TIME: Duration = Duration::from_secs(30);

/// Takes readings for the log.
#[derive(Clone)]
pub(super) struct Ingest {
    appender: Option<Arc<dyn Appender>>,
    holds: Option<Arc<dyn Holds>>,
    new_cities: Option<Arc<NewCities>>,
    /// Who sends, where that is known.
    client: Option<ClientId>,
    /// How the log's records are read, which these will be.
    read: Arc<ReadOptions>,
    times: TimeRules,
    body_bytes: usize,
    body_time: Duration,
    /// Bytes that bodies may still take, all together.
    room: Arc<Semaphore>,
    /// Large bodies that are decoded at once: the others wait, so that they leave processors to what is small.
    decoding: Arc<Semaphore>,
}

/// What became of readings.
#[derive(Serialize)]
pub(super) struct Taken {
    accepted: usize,
    #[serde(flatten)]
    refusals: Refusals,
    /// Of what was taken, what may still become a dead letter; the first ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<Refused>,
    positions: Vec<Appended>,
}

#[derive(Default, Serialize)]
struct Refusals {
    /// The first ones.
    refused: Vec<Refused>,
    refused_count: usize,
}

#[derive(Serialize)]
struct Refused {
    index: u32,
    reason: Reason,
    detail: String,
}

/// Bytes of readings, with the room that they take.
struct Body {
    bytes: Vec<u8>,
    room: Option<OwnedSemaphorePermit>,
}

#[derive(Default)]
struct Decoded {
    records: Vec<NewRecord>,
    /// Of each record, its number in the body.
    numbers: Vec<u32>,
    refusals: Refusals,
    warnings: Vec<Refused>,
}

/// Readings that wait for the log.
pub(super) struct Pending {
    /// By number in the append, the number in the body.
    numbers: Vec<u32>,
    refusals: Refusals,
    warnings: Vec<Refused>,
    /// Nothing where none was accepted.
    heard: Option<oneshot::Receiver<Result<AppendReport, AppendError>>>,
}

impl Ingest {
    pub(super) fn new(
        appender: Option<Arc<dyn Appender>>,
        holds: Option<Arc<dyn Holds>>,
        new_cities: Option<Arc<NewCities>>,
        read: ReadOptions,
        times: TimeRules,
        limits: &Limits,
    ) -> Ingest {
        let room = Arc::new(Semaphore::new(limits.bodies_bytes.min(Semaphore::MAX_PERMITS)));
        Ingest {
            appender,
            holds,
            new_cities,
            client: None,
            read: Arc::new(read),
            times,
            body_bytes: limits.body_bytes,
            body_time: limits.body_time,
            room,
            decoding: Arc::new(Semaphore::new(decoded_at_once())),
        }
    }

    /// The same for what one client sends.
    pub(super) fn of(&self, client: Option<ClientId>) -> Ingest {
        Ingest { client, ..self.clone() }
    }

    /// Why nothing is taken for now, whoever sends it.
    pub(super) fn hold(&self) -> Option<Hold> {
        self.holds.as_ref().and_then(|holds| holds.hold())
    }

    /// Whether there is a log at all.
    pub(super) fn check(&self) -> Result<&Arc<dyn Appender>, Problem> {
        let detail = "no log is configured that takes readings: this server only reads";
        self.appender.as_ref().ok_or_else(|| Problem::new(Code::NoIngest, detail))
    }

    /// Takes the body of a `POST`.
    pub(super) async fn post<B, E>(&self, headers: &HeaderMap, body: B) -> Result<Taken, Problem>
    where
        B: Stream<Item = Result<bytes::Bytes, E>> + Unpin,
    {
        self.check()?;
        let (form, coding) = body::form_of(headers)?;
        let body = self.decompress(coding, self.read(headers, body).await?).await?;
        let taken = self.submit(form, body).await?.taken().await?;
        if taken.accepted == 0 { Err(none_accepted(&taken.refusals)) } else { Ok(taken) }
    }

    /// Takes a WebSocket message, which is as a JSON body. What is returned waits for the log.
    pub(super) async fn message(&self, text: &[u8]) -> Result<Pending, Problem> {
        let mut body = Body { bytes: Vec::new(), room: None };
        self.extend(&mut body, text)?;
        self.submit(Form::Json, body).await
    }

    async fn read<B, E>(&self, headers: &HeaderMap, mut stream: B) -> Result<Body, Problem>
    where
        B: Stream<Item = Result<bytes::Bytes, E>> + Unpin,
    {
        let announced =
            headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|bytes| bytes > self.body_bytes as u64) {
            return Err(self.too_large());
        }
        let mut body = Body { bytes: Vec::new(), room: None };
        let read = async {
            while let Some(chunk) = stream.next().await {
                let cut_off = |_| Problem::new(Code::BadRequest, "the body was cut off or is badly framed");
                self.extend(&mut body, &chunk.map_err(cut_off)?)?;
            }
            Ok(())
        };
        match tokio::time::timeout(self.body_time, read).await {
            Ok(Ok(())) => Ok(body),
            Ok(Err(problem)) => Err(problem),
            Err(_) => {
                let detail = format!("the body must come within {} s", self.body_time.as_secs_f64());
                Err(Problem::new(Code::BodyTooSlow, detail))
            }
        }
    }

    fn extend(&self, body: &mut Body, bytes: &[u8]) -> Result<(), Problem> {
        if body.bytes.len() + bytes.len() > self.body_bytes {
            return Err(self.too_large());
        }
        body::take_room(&self.room, &mut body.room, bytes.len())?;
        body.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// What a body is once it is decompressed: not more than a plain one may be, and counted before it is made.
    async fn decompress(&self, coding: BodyCoding, body: Body) -> Result<Body, Problem> {
        if coding == BodyCoding::Identity {
            return Ok(body);
        }
        let mut room = Room::new(self.room.clone(), self.body_bytes);
        let failed = |_| Problem::new(Code::Stopping, "the service is stopping");
        // The packed bytes and their room go with the closure.
        let unpack = move || {
            let Body { bytes, room: _packed } = body;
            let bytes = coding.decompress(&bytes, &mut room)?;
            Ok(Body { bytes, room: room.into_permit() })
        };
        run_blocking(unpack).await.map_err(failed)?
    }

    fn too_large(&self) -> Problem {
        body::too_large(self.body_bytes)
    }

    /// Decodes a body and appends what it holds.
    async fn submit(&self, form: Form, body: Body) -> Result<Pending, Problem> {
        let appender = self.check()?;
        let Body { bytes, room } = body;
        let (read, len, times) = (Arc::clone(&self.read), bytes.len(), self.times.clone());
        let (new_cities, client) = (self.new_cities.clone(), self.client);
        let decode = move || {
            let newest = times.begin();
            let decoded = decode(form, &bytes, &read, &|upsert| newest.judge(upsert))?;
            let taken = new_cities.map(|new_cities| new_cities.take(client, &decoded.records));
            taken.unwrap_or(Ok(())).map(|()| decoded)
        };
        let decoded = if len < BLOCKING_BYTES {
            decode()?
        } else {
            let failed = |_| Problem::new(Code::Stopping, "the service is stopping");
            let _turn = self.decoding.acquire().await;
            run_blocking(decode).await.map_err(failed)??
        };
        let Decoded { mut records, numbers, refusals, warnings } = decoded;
        records.iter_mut().for_each(|record| record.client = self.client);
        telemetry::ingested(len, 0, refusals.refused_count);
        if records.is_empty() {
            return Ok(Pending { numbers, refusals, warnings, heard: None });
        }
        let (done, heard) = oneshot::channel();
        appender.append(
            records,
            Box::new(move |result| {
                drop(room);
                // Nobody listens where the client has gone.
                let _ = done.send(result);
            }),
        );
        Ok(Pending { numbers, refusals, warnings, heard: Some(heard) })
    }
}

impl Pending {
    /// Waits until the readings are durable.
    pub(super) async fn taken(self) -> Result<Taken, Problem> {
        let Pending { numbers, mut refusals, warnings, heard } = self;
        let Some(heard) = heard else {
            return Ok(Taken { accepted: 0, refusals, warnings, positions: Vec::new() });
        };
        let Ok(Ok(result)) = tokio::time::timeout(ACKNOWLEDGE_TIME, heard).await else {
            let detail = "the log did not answer: whether the readings are in it is not known";
            return Err(Problem::new(Code::LogFailed, detail));
        };
        match result {
            Ok(AppendReport { positions, refused }) => {
                let accepted = numbers.len().saturating_sub(refused.len());
                telemetry::ingested(0, accepted, refused.len());
                refusals.refused_count += refused.len();
                refusals.refused.extend(refused.into_iter().map(|(at, Refusal { reason, detail })| {
                    let index = numbers.get(at as usize).copied().unwrap_or(at);
                    Refused { index, reason, detail }
                }));
                refusals.refused.sort_by_key(|refused| refused.index);
                refusals.refused.truncate(TOLD);
                Ok(Taken { accepted, refusals, warnings, positions })
            }
            Err(error @ AppendError::Busy) => Err(Problem::new(Code::Busy, error.to_string())),
            Err(AppendError::Held(hold)) => Err(Problem::held(&hold)),
            Err(error @ AppendError::Stopping) => Err(Problem::new(Code::Stopping, error.to_string())),
            Err(error @ AppendError::Failed(_)) => {
                tracing::error!("{error}");
                let detail = format!("{error}; whether the readings are in it is not known");
                Err(Problem::new(Code::LogFailed, detail))
            }
        }
    }
}

/// Half of the processors.
fn decoded_at_once() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().div_ceil(2))
}

fn none_accepted(refusals: &Refusals) -> Problem {
    let detail = match refusals.refused_count {
        0 => "there is no reading in the body",
        _ => "none of the readings can be taken: see refused",
    };
    let refused = serde_json::to_value(&refusals.refused).unwrap_or_default();
    Problem::new(Code::NoneAccepted, detail)
        .member("accepted", json!(0))
        .member("refused", refused)
        .member("refused_count", json!(refusals.refused_count))
}

/// What is known of a reading's time: a refusal, or what is warned of.
type Judge<'a> = &'a dyn Fn(&Upsert<'_>) -> Result<Option<Refusal>, Refusal>;

fn decode(form: Form, bytes: &[u8], read: &ReadOptions, judge: Judge<'_>) -> Result<Decoded, Problem> {
    let mut taking = Taking { decoder: RecordDecoder::new(read), judge, decoded: Decoded::default() };
    if form == Form::Lines {
        let lines = bytes.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
        lines.filter(|line| !line.is_empty()).for_each(|line| taking.take(line));
        return Ok(taking.decoded);
    }
    let not_json = |error: serde_json::Error| Problem::new(Code::NotJson, format!("not JSON: {error}"));
    let bytes = bytes.trim_ascii();
    if bytes.first() == Some(&b'[') {
        let mut json = serde_json::Deserializer::from_slice(bytes);
        json.deserialize_seq(Records(&mut taking)).and_then(|()| json.end()).map_err(not_json)?;
    } else {
        serde_json::from_slice::<&RawValue>(bytes).map_err(not_json)?;
        taking.take(bytes);
    }
    Ok(taking.decoded)
}

/// The records of a body on their way.
struct Taking<'a> {
    decoder: RecordDecoder,
    judge: Judge<'a>,
    decoded: Decoded,
}

/// The records of an array, taken as they come: a list of them would be many times as long as the shortest.
struct Records<'a, 'b>(&'a mut Taking<'b>);

impl<'de> Visitor<'de> for Records<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of readings")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut records: A) -> Result<(), A::Error> {
        while let Some(record) = records.next_element::<&RawValue>()? {
            self.0.take(record.get().as_bytes());
        }
        Ok(())
    }
}

impl Taking<'_> {
    fn take(&mut self, bytes: &[u8]) {
        let Taking { decoder, judge, decoded } = self;
        // A body may have millions of them. What is wrong with each is not told any more, so it costs no more than to count it.
        if decoded.refusals.refused_count >= TOLD && bytes.len() < SHORTEST_READING {
            decoded.refusals.refused_count += 1;
            return;
        }
        let number = (decoded.records.len() + decoded.refusals.refused_count) as u32;
        let judged = decoder.decode(bytes).and_then(|upsert| judge(&upsert).map(|warning| (upsert, warning)));
        match judged {
            Ok((Upsert { city, reading_at, .. }, warning)) => {
                let reading_at = Some(reading_at);
                decoded.records.push(NewRecord { reading_at, ..NewRecord::new(Some(city), bytes) });
                decoded.numbers.push(number);
                if let Some(Refusal { reason, detail }) = warning.filter(|_| decoded.warnings.len() < TOLD) {
                    decoded.warnings.push(Refused { index: number, reason, detail });
                }
            }
            Err(refusal) => decoded.refusals.add(number, refusal),
        }
    }
}

impl Refusals {
    fn add(&mut self, index: u32, refusal: Refusal) {
        self.refused_count += 1;
        if self.refused.len() < TOLD {
            self.refused.push(Refused { index, reason: refusal.reason, detail: refusal.detail });
        }
    }
}

/// The answer to a message of the WebSocket ingest, once there is one.
pub(super) async fn answer(seq: u64, pending: Result<Pending, Problem>) -> String {
    let taken = match pending {
        Ok(pending) => pending.taken().await,
        Err(problem) => Err(problem),
    };
    let mut object = match taken {
        Ok(taken) => {
            let mut object = serde_json::to_value(taken).unwrap_or_default();
            object["type"] = "accepted".into();
            object
        }
        Err(problem) => {
            let code = match problem.code {
                Code::NotJson => "bad_message",
                code => code.parts().1,
            };
            json!({"type": "error", "code": code, "detail": problem.detail()})
        }
    };
    object["seq"] = seq.into();
    object.to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::codec::{ColumnNames, RecordOptions};

    /// How long it takes to refuse so many records.
    fn refuse(record: &str, count: usize) -> Duration {
        let (lines, array) = (format!("{record}\n").repeat(count), vec![record; count].join(","));
        let started = Instant::now();
        for (form, body) in [(Form::Lines, lines), (Form::Json, format!("[{array}]"))] {
            let decoded = decode(form, body.as_bytes(), &ReadOptions::default(), &|_| Ok(None)).unwrap();
            assert_eq!((decoded.records.len(), decoded.refusals.refused_count), (0, count));
            assert_eq!(decoded.refusals.refused.len(), TOLD);
        }
        started.elapsed()
    }

    #[test]
    fn records_too_short_for_a_reading_cost_little() {
        let (short, long) =
            (refuse("1", 200_000), refuse(r#"{"city":"x","reading_at":"never at all!"}"#, 200_000));
        assert!(short * 3 < long, "{short:?} and {long:?}");
    }

    #[test]
    fn shortest_readings_are_taken_behind_many_refused_records() {
        let columns = ColumnNames::parse("city=@a,reading_at=t,temperature=x,humidity=h").unwrap();
        let time_format = "seconds".parse().unwrap();
        let record = RecordOptions { columns, time_format, ..RecordOptions::default() };
        let read = ReadOptions { record, ..ReadOptions::default() };
        let body = "1\n".repeat(1_000) + r#"{"t":1,"x":9,"h":5}"#;
        let decoded = decode(Form::Lines, body.as_bytes(), &read, &|_| Ok(None)).unwrap();
        assert_eq!(decoded.records.len(), 1);
    }
}
