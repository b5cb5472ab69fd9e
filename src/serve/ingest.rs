//! Readings that clients send over HTTP and WebSocket. Each is appended to the log with its exact
//! bytes, and acknowledged when it is durable. A reading that the response refuses is in no log.

mod body;
mod time_check;

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

use self::body::{BodyCoding, BodyFormat, DecompressionPermit};
pub(super) use self::time_check::TimeRules;
use super::new_cities::NewCityLimiter;
use super::plan::ServeLimits;
use super::problem::{Problem, ProblemCode};
use super::telemetry;
use crate::codec::{JsonRecordDecoder, ReadOptions};
use crate::model::{
    AppendError, AppendHold, AppendReport, AppendedRange, Appender, ClientId, HoldCheck, NewRecord, Reason,
    Refusal, Upsert,
};
use crate::panics::run_blocking;

/// Refusals that a response lists; further ones are only counted.
const MAX_LISTED_REFUSALS: usize = 100;
/// No reading or withdrawal is shorter, even if a source names its columns by a letter each:
/// `{"t":1,"x":9,"h":5}`.
const MIN_READING_BYTES: usize = 16;
/// Larger bodies are decoded on a thread for blocking work.
const BLOCKING_DECODE_BYTES: usize = 64 * 1024;
/// Time until the log has acknowledged an append.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(30);

/// Accepts readings for the log.
#[derive(Clone)]
pub(super) struct IngestHandler {
    appender: Option<Arc<dyn Appender>>,
    hold_check: Option<Arc<dyn HoldCheck>>,
    rules: Arc<IngestRules>,
    /// The client that sends, if it is known.
    client_id: Option<ClientId>,
    body_bytes: usize,
    body_time: Duration,
    /// Bytes that all bodies together may still take.
    body_budget: Arc<Semaphore>,
    /// Large bodies that are decoded at one time. Further ones wait, so that processors are left
    /// for small ones.
    decode_permits: Arc<Semaphore>,
}

/// Which readings are accepted.
pub(super) struct IngestRules {
    /// How the records of the log are read, which these will be.
    pub(super) read_options: ReadOptions,
    pub(super) new_cities: Option<NewCityLimiter>,
    pub(super) time_rules: TimeRules,
}

/// How many of a client's readings were accepted, and why others were not.
#[derive(Serialize)]
pub(super) struct IngestReport {
    accepted: usize,
    #[serde(flatten)]
    refusals: RefusalSummary,
    /// Accepted readings that may still become dead letters; the first ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<RefusedReading>,
    positions: Vec<AppendedRange>,
}

#[derive(Default, Serialize)]
struct RefusalSummary {
    /// The first ones.
    refused: Vec<RefusedReading>,
    refused_count: usize,
}

#[derive(Serialize)]
struct RefusedReading {
    /// Number in the body, from 0.
    index: u32,
    reason: Reason,
    detail: String,
}

/// Bytes of readings, with the permit for their memory.
struct ReceivedBody {
    bytes: Vec<u8>,
    permit: Option<OwnedSemaphorePermit>,
}

#[derive(Default)]
struct DecodedBody {
    records: Vec<NewRecord>,
    /// The number of each record in the body.
    body_indexes: Vec<u32>,
    refusals: RefusalSummary,
    warnings: Vec<RefusedReading>,
}

/// Readings that wait for the log.
pub(super) struct PendingAppend {
    /// The number of each appended record in the body.
    body_indexes: Vec<u32>,
    refusals: RefusalSummary,
    warnings: Vec<RefusedReading>,
    /// `None` if no reading was accepted.
    acknowledgement: Option<oneshot::Receiver<Result<AppendReport, AppendError>>>,
}

impl IngestHandler {
    pub(super) fn new(
        appender: Option<Arc<dyn Appender>>,
        hold_check: Option<Arc<dyn HoldCheck>>,
        rules: IngestRules,
        limits: &ServeLimits,
    ) -> IngestHandler {
        IngestHandler {
            appender,
            hold_check,
            rules: Arc::new(rules),
            client_id: None,
            body_bytes: limits.body_bytes,
            body_time: limits.body_time,
            body_budget: Arc::new(Semaphore::new(limits.bodies_bytes.min(Semaphore::MAX_PERMITS))),
            decode_permits: Arc::new(Semaphore::new(max_concurrent_decodes())),
        }
    }

    /// The same handler for the readings of one client.
    pub(super) fn for_client(&self, client: Option<ClientId>) -> IngestHandler {
        IngestHandler { client_id: client, ..self.clone() }
    }

    /// Why no client's readings are accepted for now.
    pub(super) fn current_hold(&self) -> Option<AppendHold> {
        self.hold_check.as_ref().and_then(|check| check.current_hold())
    }

    /// The log's appender; a problem if no log accepts readings.
    pub(super) fn require_appender(&self) -> Result<&Arc<dyn Appender>, Problem> {
        let detail = "no log is configured that takes readings: this server only reads";
        self.appender.as_ref().ok_or_else(|| Problem::new(ProblemCode::NoIngest, detail))
    }

    /// Accepts the body of a `POST`.
    pub(super) async fn ingest_body<B, E>(
        &self,
        headers: &HeaderMap,
        body: B,
    ) -> Result<IngestReport, Problem>
    where
        B: Stream<Item = Result<bytes::Bytes, E>> + Unpin,
    {
        self.require_appender()?;
        let (format, coding) = body::body_format(headers)?;
        let body = self.decompress_body(coding, self.read_body(headers, body).await?).await?;
        let report = self.append_body(format, body).await?.wait_durable().await?;
        if report.accepted == 0 { Err(none_accepted(&report.refusals)) } else { Ok(report) }
    }

    /// Accepts a WebSocket message, which is as a JSON body; returns before its readings are
    /// durable.
    pub(super) async fn ingest_message(&self, text: &[u8]) -> Result<PendingAppend, Problem> {
        let mut body = ReceivedBody { bytes: Vec::new(), permit: None };
        self.extend_body(&mut body, text)?;
        self.append_body(BodyFormat::Json, body).await
    }

    async fn read_body<B, E>(&self, headers: &HeaderMap, mut stream: B) -> Result<ReceivedBody, Problem>
    where
        B: Stream<Item = Result<bytes::Bytes, E>> + Unpin,
    {
        let content_length =
            headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if content_length.is_some_and(|bytes| bytes > self.body_bytes as u64) {
            return Err(self.body_too_large());
        }
        let mut body = ReceivedBody { bytes: Vec::new(), permit: None };
        let read = async {
            while let Some(chunk) = stream.next().await {
                let cut_off =
                    |_| Problem::new(ProblemCode::BadRequest, "the body was cut off or is badly framed");
                self.extend_body(&mut body, &chunk.map_err(cut_off)?)?;
            }
            Ok(())
        };
        match tokio::time::timeout(self.body_time, read).await {
            Ok(Ok(())) => Ok(body),
            Ok(Err(problem)) => Err(problem),
            Err(_) => {
                let detail = format!("the body must come within {} s", self.body_time.as_secs_f64());
                Err(Problem::new(ProblemCode::BodyTooSlow, detail))
            }
        }
    }

    fn extend_body(&self, body: &mut ReceivedBody, bytes: &[u8]) -> Result<(), Problem> {
        if body.bytes.len() + bytes.len() > self.body_bytes {
            return Err(self.body_too_large());
        }
        body::extend_permit(&self.body_budget, &mut body.permit, bytes.len())?;
        body.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Decompresses a body. The result may be as long as a plain body, and its memory is counted
    /// before it is used.
    async fn decompress_body(&self, coding: BodyCoding, body: ReceivedBody) -> Result<ReceivedBody, Problem> {
        if coding == BodyCoding::Identity {
            return Ok(body);
        }
        let mut permit = DecompressionPermit::new(self.body_budget.clone(), self.body_bytes);
        let failed = |_| Problem::new(ProblemCode::Stopping, "the service is stopping");
        // The closure owns the compressed bytes and their permit, also if the client disconnects.
        let decompress = move || {
            let ReceivedBody { bytes, permit: _compressed_permit } = body;
            let bytes = coding.decompress_body(&bytes, &mut permit)?;
            Ok(ReceivedBody { bytes, permit: permit.into_permit() })
        };
        run_blocking(decompress).await.map_err(failed)?
    }

    fn body_too_large(&self) -> Problem {
        body::body_too_large(self.body_bytes)
    }

    /// Decodes a body and appends its readings to the log.
    async fn append_body(&self, format: BodyFormat, body: ReceivedBody) -> Result<PendingAppend, Problem> {
        let appender = self.require_appender()?;
        let ReceivedBody { bytes, permit } = body;
        let (rules, client, length) = (Arc::clone(&self.rules), self.client_id, bytes.len());
        let decode = move || rules.decode_body(format, &bytes, client);
        let decoded = if length < BLOCKING_DECODE_BYTES {
            decode()?
        } else {
            let failed = |_| Problem::new(ProblemCode::Stopping, "the service is stopping");
            let _decode_permit = self.decode_permits.acquire().await;
            run_blocking(decode).await.map_err(failed)??
        };
        let DecodedBody { mut records, body_indexes, refusals, warnings } = decoded;
        records.iter_mut().for_each(|record| record.client = self.client_id);
        telemetry::record_ingest(length, 0, refusals.refused_count);
        if records.is_empty() {
            return Ok(PendingAppend { body_indexes, refusals, warnings, acknowledgement: None });
        }
        let (result_sender, acknowledgement) = oneshot::channel();
        appender.append(
            records,
            Box::new(move |result| {
                drop(permit);
                // The receiver is dropped if the client has disconnected.
                let _ = result_sender.send(result);
            }),
        );
        Ok(PendingAppend { body_indexes, refusals, warnings, acknowledgement: Some(acknowledgement) })
    }
}

impl IngestRules {
    fn decode_body(
        &self,
        format: BodyFormat,
        bytes: &[u8],
        client: Option<ClientId>,
    ) -> Result<DecodedBody, Problem> {
        let time_check = self.time_rules.start_check();
        let check_time = |upsert: &Upsert<'_>| time_check.check_reading_time(upsert);
        let decoded = decode_body(format, bytes, &self.read_options, &check_time)?;
        if let Some(new_cities) = &self.new_cities {
            new_cities.charge_new_cities(client, &decoded.records)?;
        }
        Ok(decoded)
    }
}

impl PendingAppend {
    /// Waits until the readings are durable.
    pub(super) async fn wait_durable(self) -> Result<IngestReport, Problem> {
        let PendingAppend { body_indexes, mut refusals, warnings, acknowledgement } = self;
        let Some(acknowledgement) = acknowledgement else {
            return Ok(IngestReport { accepted: 0, refusals, warnings, positions: Vec::new() });
        };
        let Ok(Ok(result)) = tokio::time::timeout(ACKNOWLEDGE_TIMEOUT, acknowledgement).await else {
            let detail = "the log did not answer: whether the readings are in it is not known";
            return Err(Problem::new(ProblemCode::LogFailed, detail));
        };
        match result {
            Ok(AppendReport { ranges: positions, refusals: refused }) => {
                let accepted = body_indexes.len().saturating_sub(refused.len());
                telemetry::record_ingest(0, accepted, refused.len());
                refusals.refused_count += refused.len();
                refusals.refused.extend(refused.into_iter().map(|(at, Refusal { reason, detail })| {
                    let index = body_indexes.get(at as usize).copied().unwrap_or(at);
                    RefusedReading { index, reason, detail }
                }));
                refusals.refused.sort_by_key(|refused| refused.index);
                refusals.refused.truncate(MAX_LISTED_REFUSALS);
                Ok(IngestReport { accepted, refusals, warnings, positions })
            }
            Err(error @ AppendError::Busy) => Err(Problem::new(ProblemCode::Busy, error.to_string())),
            Err(AppendError::OnHold(hold)) => Err(Problem::on_hold(&hold)),
            Err(error @ AppendError::Stopping) => Err(Problem::new(ProblemCode::Stopping, error.to_string())),
            Err(error @ AppendError::Failed(_)) => {
                tracing::error!(%error, "posted readings could not be appended to the log: the client is told so");
                let detail = format!("{error}; whether the readings are in it is not known");
                Err(Problem::new(ProblemCode::LogFailed, detail))
            }
        }
    }
}

/// Half of the processors.
fn max_concurrent_decodes() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().div_ceil(2))
}

fn none_accepted(refusals: &RefusalSummary) -> Problem {
    let detail = match refusals.refused_count {
        0 => "there is no reading in the body",
        _ => "none of the readings can be taken: see refused",
    };
    let refused = serde_json::to_value(&refusals.refused).unwrap_or_default();
    Problem::new(ProblemCode::NoneAccepted, detail)
        .with_member("accepted", json!(0))
        .with_member("refused", refused)
        .with_member("refused_count", json!(refusals.refused_count))
}

/// Checks the time of a reading: an error refuses the reading, a value warns that the log may
/// refuse it.
type TimeCheck<'a> = &'a dyn Fn(&Upsert<'_>) -> Result<Option<Refusal>, Refusal>;

fn decode_body(
    format: BodyFormat,
    bytes: &[u8],
    read_options: &ReadOptions,
    check_time: TimeCheck<'_>,
) -> Result<DecodedBody, Problem> {
    let decoder = JsonRecordDecoder::new(read_options);
    let mut body = BodyDecoder { decoder, check_time, decoded: DecodedBody::default() };
    if format == BodyFormat::Lines {
        let lines = bytes.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
        lines.filter(|line| !line.is_empty()).for_each(|line| body.decode_record(line));
        return Ok(body.decoded);
    }
    let not_json =
        |error: serde_json::Error| Problem::new(ProblemCode::NotJson, format!("not JSON: {error}"));
    let bytes = bytes.trim_ascii();
    if bytes.first() == Some(&b'[') {
        let mut json = serde_json::Deserializer::from_slice(bytes);
        json.deserialize_seq(RecordArrayVisitor(&mut body)).and_then(|()| json.end()).map_err(not_json)?;
    } else {
        serde_json::from_slice::<&RawValue>(bytes).map_err(not_json)?;
        body.decode_record(bytes);
    }
    Ok(body.decoded)
}

/// Decodes the records of a body one by one.
struct BodyDecoder<'a> {
    decoder: JsonRecordDecoder,
    check_time: TimeCheck<'a>,
    decoded: DecodedBody,
}

/// Decodes the records of an array as they are parsed: a list of short ones would be many times as
/// long as the body.
struct RecordArrayVisitor<'a, 'b>(&'a mut BodyDecoder<'b>);

impl<'de> Visitor<'de> for RecordArrayVisitor<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of readings")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut records: A) -> Result<(), A::Error> {
        while let Some(record) = records.next_element::<&RawValue>()? {
            self.0.decode_record(record.get().as_bytes());
        }
        Ok(())
    }
}

impl BodyDecoder<'_> {
    fn decode_record(&mut self, bytes: &[u8]) {
        let BodyDecoder { decoder, check_time, decoded } = self;
        // A body may have millions of records that are too short. Once the list of refusals is
        // full, they are only counted, which costs little.
        if decoded.refusals.refused_count >= MAX_LISTED_REFUSALS && bytes.len() < MIN_READING_BYTES {
            decoded.refusals.refused_count += 1;
            return;
        }
        let index = (decoded.records.len() + decoded.refusals.refused_count) as u32;
        let checked =
            decoder.decode(bytes).and_then(|upsert| check_time(&upsert).map(|warning| (upsert, warning)));
        match checked {
            Ok((Upsert { city, reading_at, .. }, warning)) => {
                let reading_at = Some(reading_at);
                decoded.records.push(NewRecord { reading_at, ..NewRecord::new(Some(city), bytes) });
                decoded.body_indexes.push(index);
                if let Some(Refusal { reason, detail }) =
                    warning.filter(|_| decoded.warnings.len() < MAX_LISTED_REFUSALS)
                {
                    decoded.warnings.push(RefusedReading { index, reason, detail });
                }
            }
            Err(refusal) => decoded.refusals.add_refusal(index, refusal),
        }
    }
}

impl RefusalSummary {
    fn add_refusal(&mut self, index: u32, refusal: Refusal) {
        self.refused_count += 1;
        if self.refused.len() < MAX_LISTED_REFUSALS {
            self.refused.push(RefusedReading { index, reason: refusal.reason, detail: refusal.detail });
        }
    }
}

/// The answer to a message of the WebSocket ingest, once its readings are durable or refused.
pub(super) async fn reply_json(seq: u64, pending: Result<PendingAppend, Problem>) -> String {
    let result = match pending {
        Ok(pending) => pending.wait_durable().await,
        Err(problem) => Err(problem),
    };
    let mut object = match result {
        Ok(report) => {
            let mut object = serde_json::to_value(report).unwrap_or_default();
            object["type"] = "accepted".into();
            object
        }
        Err(problem) => {
            let code = match problem.code {
                ProblemCode::NotJson => "bad_message",
                code => code.status_code_title().1,
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

    /// How long it takes to refuse `count` records.
    fn refuse(record: &str, count: usize) -> Duration {
        let (lines, array) = (format!("{record}\n").repeat(count), vec![record; count].join(","));
        let started = Instant::now();
        for (format, body) in [(BodyFormat::Lines, lines), (BodyFormat::Json, format!("[{array}]"))] {
            let decoded =
                decode_body(format, body.as_bytes(), &ReadOptions::default(), &|_| Ok(None)).unwrap();
            assert_eq!((decoded.records.len(), decoded.refusals.refused_count), (0, count));
            assert_eq!(decoded.refusals.refused.len(), MAX_LISTED_REFUSALS);
        }
        started.elapsed()
    }

    #[test]
    fn records_too_short_for_a_reading_are_cheap() {
        let (short, long) =
            (refuse("1", 200_000), refuse(r#"{"city":"x","reading_at":"never at all!"}"#, 200_000));
        assert!(short * 3 < long, "{short:?} and {long:?}");
    }

    #[test]
    fn shortest_readings_are_accepted_after_many_refusals() {
        let columns = ColumnNames::parse("city=@a,reading_at=t,temperature=x,humidity=h").unwrap();
        let time_format = "seconds".parse().unwrap();
        let record = RecordOptions { columns, time_format, ..RecordOptions::default() };
        let read = ReadOptions { record, ..ReadOptions::default() };
        let body = "1\n".repeat(1_000) + r#"{"t":1,"x":9,"h":5}"#;
        let decoded = decode_body(BodyFormat::Lines, body.as_bytes(), &read, &|_| Ok(None)).unwrap();
        assert_eq!(decoded.records.len(), 1);
    }
}
