//! The rules of decoding, and round trips through every format.

mod content;
mod digest;
mod foreign;
mod framing;
mod reports;
mod rules;
mod trips;
mod units;

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::model::{EventTime, LocalTimePolicy, Measurement, ReadingEvent, Reason, Refusal, Revision};

/// An upsert that outlives its decoder.
type OwnedUpsert = (String, EventTime, ReadingEvent, Option<Revision>);

/// A record: its line, its bytes, and the result of decoding it.
type DecodedRecord = (u64, Vec<u8>, Result<OwnedUpsert, Refusal>);

fn decode_with(
    bytes: &[u8],
    format: Format,
    compression: Compression,
    settings: DecodeSettings,
) -> Result<(Vec<DecodedRecord>, u64), (Vec<DecodedRecord>, DecodeError)> {
    let reader = Box::new(io::Cursor::new(bytes.to_vec()));
    let mut decoder = FileDecoder::from_reader(reader, format, compression, settings)
        .map_err(|error| (Vec::new(), error))?;
    let mut records = Vec::new();
    loop {
        let result = match decoder.next() {
            Ok(None) => return Ok((records, decoder.ignored_fields())),
            Ok(Some(result)) => {
                result.map(|upsert| (upsert.city.into(), upsert.reading_at, upsert.event, upsert.revision))
            }
            Err(error) => {
                assert!(decoder.next().is_ok_and(|next| next.is_none()), "nothing comes after an error");
                return Err((records, error));
            }
        };
        records.push((decoder.line(), decoder.raw().into_owned(), result));
    }
}

fn decode(text: &str, format: Format) -> Vec<DecodedRecord> {
    decode_with(text.as_bytes(), format, Compression::None, DecodeSettings::default()).unwrap().0
}

fn reading(temperature: f64, humidity: f64, wind_speed: Option<f64>) -> ReadingEvent {
    ReadingEvent::Reading(Measurement::new(temperature, humidity, wind_speed).unwrap())
}

/// A writer whose bytes can be read after it is gone.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().clone()
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A disk that is full after some bytes.
struct FullDisk(usize);

impl Write for FullDisk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.0);
        self.0 -= taken;
        if taken == 0 && !bytes.is_empty() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(taken) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
