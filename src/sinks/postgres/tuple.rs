//! Tuples of a binary COPY: the number of fields, then each field as its length and its bytes. A
//! null field has length -1 and no bytes.
//!
//! Elements of an array that is sent as a parameter have the same form, so the columns of tuples
//! become arrays by copying fields.

use crate::model::EventTime;

/// What a COPY begins with: a signature, no flags and no extension of the header.
pub(super) const COPY_HEADER: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What a COPY ends with.
pub(super) const COPY_TRAILER: &[u8; 2] = &[0xff; 2];

/// 2000-01-01T00:00:00Z, from which PostgreSQL counts.
const POSTGRES_EPOCH_MS: i64 = 946_684_800_000;
pub(super) const POSTGRES_EPOCH_DAY: i32 = 10_957;

const LENGTH_BYTES: usize = 4;
const NULL_LENGTH: i32 = -1;

/// Microseconds since 2000-01-01, as a `timestamptz` counts, of an instant in ms since 1970-01-01.
/// All times that RFC 3339 can write fit.
pub(super) fn postgres_micros(ms: i64) -> i64 {
    (ms - POSTGRES_EPOCH_MS) * 1_000
}

/// The time of [`postgres_micros`].
pub(super) fn time_of_micros(micros: i64) -> Option<EventTime> {
    EventTime::from_millis(micros.div_euclid(1_000) + POSTGRES_EPOCH_MS)
}

/// Days since 2000-01-01 of a number of days since 1970-01-01, as a `date` counts.
pub(super) fn postgres_day(day: i32) -> i32 {
    day.saturating_sub(POSTGRES_EPOCH_DAY)
}

/// Appends the fields of a tuple.
#[derive(Debug)]
pub(super) struct TupleWriter<'a>(&'a mut Vec<u8>);

impl<'a> TupleWriter<'a> {
    /// Begins a tuple of this many fields.
    pub fn begin(fields: usize, out: &'a mut Vec<u8>) -> TupleWriter<'a> {
        out.extend_from_slice(&(fields as i16).to_be_bytes());
        TupleWriter(out)
    }

    /// Appends to a tuple that was begun before.
    pub fn resume(out: &'a mut Vec<u8>) -> TupleWriter<'a> {
        TupleWriter(out)
    }

    #[inline]
    fn fixed<const N: usize>(&mut self, value: Option<[u8; N]>) -> &mut Self {
        match value {
            Some(bytes) => {
                self.0.extend_from_slice(&(N as i32).to_be_bytes());
                self.0.extend_from_slice(&bytes);
            }
            None => self.0.extend_from_slice(&NULL_LENGTH.to_be_bytes()),
        }
        self
    }

    fn sized(&mut self, value: Option<&[u8]>) -> &mut Self {
        match value {
            Some(bytes) => {
                self.0.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
                self.0.extend_from_slice(bytes);
            }
            None => self.0.extend_from_slice(&NULL_LENGTH.to_be_bytes()),
        }
        self
    }

    pub fn bigint(&mut self, value: impl Into<Option<i64>>) -> &mut Self {
        self.fixed(value.into().map(i64::to_be_bytes))
    }

    pub fn int(&mut self, value: impl Into<Option<i32>>) -> &mut Self {
        self.fixed(value.into().map(i32::to_be_bytes))
    }

    pub fn smallint(&mut self, value: impl Into<Option<i16>>) -> &mut Self {
        self.fixed(value.into().map(i16::to_be_bytes))
    }

    pub fn double(&mut self, value: impl Into<Option<f64>>) -> &mut Self {
        self.fixed(value.into().map(f64::to_be_bytes))
    }

    pub fn timestamptz(&mut self, value: impl Into<Option<EventTime>>) -> &mut Self {
        self.bigint(value.into().map(|time| postgres_micros(time.millis())))
    }

    /// A `timestamptz` of an instant in ms since 1970-01-01.
    pub fn instant(&mut self, ms: i64) -> &mut Self {
        self.bigint(postgres_micros(ms))
    }

    /// `value` is in days since 1970-01-01.
    pub fn date(&mut self, value: impl Into<Option<i32>>) -> &mut Self {
        self.int(value.into().map(postgres_day))
    }

    pub fn boolean(&mut self, value: bool) -> &mut Self {
        self.fixed(Some([u8::from(value)]))
    }

    /// A text holds no NUL, because PostgreSQL refuses it.
    pub fn text(&mut self, value: Option<&str>) -> &mut Self {
        self.sized(value.map(str::as_bytes))
    }

    pub fn bytea(&mut self, value: Option<&[u8]>) -> &mut Self {
        self.sized(value)
    }
}

/// The fields of a tuple, each with its length before its bytes.
pub(super) fn sized_fields(tuple: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = tuple.get(2..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = i32::from_be_bytes(*rest.first_chunk::<LENGTH_BYTES>()?);
        let (field, after) = rest.split_at_checked(LENGTH_BYTES + length.max(0) as usize)?;
        rest = after;
        Some(field)
    })
}

/// The bytes of a field of [`sized_fields`]; `None` if it is null.
pub(super) fn field_value(field: &[u8]) -> Option<&[u8]> {
    let (length, value) = field.split_first_chunk::<LENGTH_BYTES>()?;
    (i32::from_be_bytes(*length) != NULL_LENGTH).then_some(value)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use proptest::prelude::*;
    use tokio_postgres::types::{FromSql, Type};

    use super::*;

    /// The value of a field as the client library decodes it.
    fn decoded<'a, T: FromSql<'a>>(field: &'a [u8], kind: &Type) -> Option<T> {
        field_value(field).map(|value| T::from_sql(kind, value).unwrap())
    }

    fn system_time(time: EventTime) -> SystemTime {
        let millis = Duration::from_millis(time.millis().unsigned_abs());
        match time.millis() < 0 {
            true => SystemTime::UNIX_EPOCH - millis,
            false => SystemTime::UNIX_EPOCH + millis,
        }
    }

    proptest! {
        #[test]
        fn fields_are_decoded_by_client_library(
            (bigint, int, smallint) in any::<(Option<i64>, Option<i32>, Option<i16>)>(),
            double in prop::option::of(prop::num::f64::ANY),
            time in prop::option::of(EventTime::MIN.millis()..=EventTime::MAX.millis()),
            boolean in any::<bool>(),
            text in prop::option::of("[^\0]{0,40}"),
            bytes in prop::option::of(prop::collection::vec(any::<u8>(), 0..40)),
        ) {
            let time = time.and_then(EventTime::from_millis);
            let mut tuple = Vec::new();
            TupleWriter::begin(8, &mut tuple)
                .bigint(bigint)
                .int(int)
                .smallint(smallint)
                .double(double)
                .timestamptz(time)
                .boolean(boolean)
                .text(text.as_deref())
                .bytea(bytes.as_deref());
            prop_assert_eq!(&tuple[..2], &[0, 8]);
            let fields: Vec<&[u8]> = sized_fields(&tuple).collect();
            prop_assert_eq!(fields.len(), 8);
            prop_assert_eq!(2 + fields.iter().map(|field| field.len()).sum::<usize>(), tuple.len());
            prop_assert_eq!(decoded::<i64>(fields[0], &Type::INT8), bigint);
            prop_assert_eq!(decoded::<i32>(fields[1], &Type::INT4), int);
            prop_assert_eq!(decoded::<i16>(fields[2], &Type::INT2), smallint);
            let bits = decoded::<f64>(fields[3], &Type::FLOAT8).map(f64::to_bits);
            prop_assert_eq!(bits, double.map(f64::to_bits));
            prop_assert_eq!(decoded::<SystemTime>(fields[4], &Type::TIMESTAMPTZ), time.map(system_time));
            prop_assert_eq!(decoded::<bool>(fields[5], &Type::BOOL), Some(boolean));
            prop_assert_eq!(decoded::<&str>(fields[6], &Type::TEXT), text.as_deref());
            prop_assert_eq!(decoded::<&[u8]>(fields[7], &Type::BYTEA), bytes.as_deref());
            prop_assert_eq!(time.map(|time| postgres_micros(time.millis())).and_then(time_of_micros), time);
        }
    }

    #[test]
    fn dates_count_from_2000() {
        let mut tuple = Vec::new();
        TupleWriter::begin(2, &mut tuple).date(POSTGRES_EPOCH_DAY + 1).date(None);
        assert_eq!(tuple, [0, 2, 0, 0, 0, 4, 0, 0, 0, 1, 255, 255, 255, 255]);
    }
}
