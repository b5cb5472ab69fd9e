//! Values of the rows of statements.

use std::error::Error;
use std::sync::Arc;

use tokio_postgres::Row as SqlRow;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use crate::model::history_store::{FinalReading, StoredArrival};
use crate::model::{Category, EventTime, HeatIndex, Measurement, Row};

type SqlError = tokio_postgres::Error;

/// 2000-01-01T00:00:00Z, from which PostgreSQL counts microseconds.
const POSTGRES_EPOCH_MS: i64 = 946_684_800_000;

/// An instant as a `timestamptz`. Infinite ones are the first and the last that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instant(pub EventTime);

impl ToSql for Instant {
    fn to_sql(&self, ty: &Type, out: &mut bytes::BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        ((self.0.millis() - POSTGRES_EPOCH_MS) * 1_000).to_sql(ty, out)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Instant {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Instant, Box<dyn Error + Sync + Send>> {
        let micros = i64::from_sql(ty, raw)?;
        let millis = micros.div_euclid(1_000).saturating_add(POSTGRES_EPOCH_MS);
        let millis = millis.clamp(EventTime::MIN.millis(), EventTime::MAX.millis());
        EventTime::from_millis(millis).map(Instant).ok_or_else(|| "a time that is out of range".into())
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }
}

/// An epoch; `None` if the column is null.
pub fn epoch(row: &SqlRow, at: usize) -> Result<Option<u64>, SqlError> {
    let epoch: Option<i64> = row.try_get(at)?;
    Ok(epoch.and_then(|epoch| u64::try_from(epoch).ok()))
}

/// Heat index, category, sum and count, from column `at` on; `None` if they are null.
pub fn decode_heat_row(row: &SqlRow, at: usize) -> Result<Option<Row>, SqlError> {
    let Some(micros) = row.try_get::<_, Option<i64>>(at)? else { return Ok(None) };
    let (sum, count): (i64, i64) = (row.try_get(at + 2)?, row.try_get(at + 3)?);
    let (heat_index, category) = (HeatIndex::from_micros(micros), category(row, at + 1)?);
    Ok(Some(Row::new(heat_index, category, sum, u32::try_from(count).unwrap_or(u32::MAX))))
}

fn category(row: &SqlRow, at: usize) -> Result<Category, SqlError> {
    let code: i16 = row.try_get(at)?;
    let known = usize::try_from(code).ok().and_then(|code| Category::ALL.get(code));
    Ok(known.copied().unwrap_or(Category::None))
}

/// Time, heat index, category and measurement, from column `at` on; `None` if they are null.
pub fn decode_reading(row: &SqlRow, at: usize) -> Result<Option<FinalReading>, SqlError> {
    let Some(Instant(reading_at)) = row.try_get(at)? else { return Ok(None) };
    let micros: i64 = row.try_get(at + 1)?;
    let alone = Row::new(HeatIndex::from_micros(micros), category(row, at + 2)?, micros, 1);
    Ok(Some(FinalReading { reading_at, row: alone, measurement: measurement(row, at + 3)? }))
}

/// Temperature, humidity and wind speed, from column `at` on; `None` if they are null.
pub fn measurement(row: &SqlRow, at: usize) -> Result<Option<Measurement>, SqlError> {
    let temperature: Option<f64> = row.try_get(at)?;
    let humidity: Option<f64> = row.try_get(at + 1)?;
    let wind_speed: Option<f64> = row.try_get(at + 2)?;
    Ok(temperature
        .zip(humidity)
        .and_then(|(temperature, humidity)| Measurement::new(temperature, humidity, wind_speed).ok()))
}

/// An arrival, from column `at` on; `None` if they are null.
pub fn decode_arrival(row: &SqlRow, at: usize) -> Result<Option<StoredArrival>, SqlError> {
    let Some(Instant(reading_at)) = row.try_get(at)? else { return Ok(None) };
    let arrived_at: Option<Instant> = row.try_get(at + 5)?;
    let heat_index: Option<i64> = row.try_get(at + 11)?;
    let source: &str = row.try_get(at + 2)?;
    let outcome: Option<&str> = row.try_get(at + 10)?;
    Ok(Some(StoredArrival {
        reading_at,
        as_of: epoch(row, at + 1)?.unwrap_or_default(),
        source: source.into(),
        partition: u32::try_from(row.try_get::<_, i32>(at + 3)?).unwrap_or_default(),
        position: u64::try_from(row.try_get::<_, i64>(at + 4)?).unwrap_or_default(),
        arrived_at: arrived_at.map(|Instant(at)| at),
        measurement: measurement(row, at + 6)?,
        revision: row.try_get(at + 9)?,
        outcome: Arc::from(outcome.unwrap_or("unknown")),
        heat_index_after: heat_index.map(HeatIndex::from_micros),
        omitted_before: u64::try_from(row.try_get::<_, i64>(at + 12)?).unwrap_or_default(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_microseconds_from_2000_and_infinite_ones_the_ends() {
        for (text, micros) in [
            ("2000-01-01T00:00:00Z", 0),
            ("2000-01-01T00:00:00.001Z", 1_000),
            ("1999-12-31T23:59:59.999Z", -1_000),
            ("1600-01-01T00:00:00Z", -146_097 * 86_400_000_000),
        ] {
            let at = Instant(text.parse().unwrap());
            let mut bytes = bytes::BytesMut::new();
            assert!(matches!(at.to_sql(&Type::TIMESTAMPTZ, &mut bytes), Ok(IsNull::No)));
            assert_eq!(bytes.as_ref(), i64::to_be_bytes(micros), "{text}");
            assert_eq!(Instant::from_sql(&Type::TIMESTAMPTZ, &bytes).unwrap(), at);
        }
        let infinite = |micros: i64| Instant::from_sql(&Type::TIMESTAMPTZ, &micros.to_be_bytes()).unwrap();
        assert_eq!(infinite(i64::MIN), Instant(EventTime::MIN));
        assert_eq!(infinite(i64::MAX), Instant(EventTime::MAX));
    }
}
