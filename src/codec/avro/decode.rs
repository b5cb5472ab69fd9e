//! A datum to an [`Upsert`].

use arrow_array::ArrowPrimitiveType;
use arrow_array::types::Decimal256Type;

use super::super::decimal::{decimal, wide_decimal};
use super::super::fields::{Record, Value};
use super::super::guard::guarded;
use super::super::options::Preparation;
use super::super::unknown_fields::UnknownFields;
use super::super::{DecodeSettings, MAX_RECORD_BYTES, ReadOptions};
use super::cursor::{Cursor, Fault};
use super::shape::{Id, Part, SchemaError, Shape, Shapes, compile};
use crate::model::refusal::quoted;
use crate::model::{Reason, Refusal, Upsert};
use crate::panics::{self, Scope};

/// An integer of 256 bits.
type Unscaled = <Decimal256Type as ArrowPrimitiveType>::Native;

/// How many values a datum may be made of: four for each byte of the longest.
const MAX_STEPS: u32 = 4 * MAX_RECORD_BYTES as u32;

/// Decodes records that were written with one schema.
#[derive(Debug)]
pub struct AvroDecoder {
    settings: DecodeSettings,
    preparation: Option<Box<Preparation>>,
    parts: Vec<Part>,
    shapes: Shapes,
    /// In each record.
    unknown_fields: u64,
    ignored_fields: u64,
}

impl AvroDecoder {
    /// For records that were written with a schema, given as JSON.
    ///
    /// # Errors
    ///
    /// Where none of its records can be a reading. A field that a reading needs and that the schema lacks, or whose type
    /// is a union of what fits and what does not, is left to the records.
    pub fn new(writer: &str, options: impl Into<ReadOptions>) -> Result<AvroDecoder, SchemaError> {
        AvroDecoder::with_references::<&str>(writer, &[], options)
    }

    /// As [`AvroDecoder::new`], with the schemas of types that the writer's schema names but does not define.
    pub fn with_references<S: AsRef<str>>(
        writer: &str,
        references: &[S],
        options: impl Into<ReadOptions>,
    ) -> Result<AvroDecoder, SchemaError> {
        let options = &options.into();
        let compiled = panics::catch(Scope::Record, || compile(writer, references, options));
        let (parts, shapes) = compiled.unwrap_or(Err(SchemaError::Panicked))?;
        let unknown: Vec<_> = parts.iter().filter(|part| part.field.is_none()).collect();
        unknown.iter().for_each(|part| UnknownFields::default().meet(&part.name));
        let unknown_fields = unknown.len() as u64;
        let (settings, preparation) = (options.settings, Preparation::new(options));
        Ok(AvroDecoder { settings, preparation, parts, shapes, unknown_fields, ignored_fields: 0 })
    }

    /// Decodes one datum of at most [`MAX_RECORD_BYTES`] bytes.
    #[inline]
    pub fn decode<'a>(&'a mut self, datum: &'a [u8]) -> Result<Upsert<'a>, Refusal> {
        if datum.len() > MAX_RECORD_BYTES {
            let detail =
                format!("the record is longer than {MAX_RECORD_BYTES} bytes, the longest that is read");
            return Err(Refusal::new(Reason::NotDecodable, detail));
        }
        guarded(move || self.decode_datum(datum))
    }

    #[inline]
    fn decode_datum<'a>(&'a mut self, datum: &'a [u8]) -> Result<Upsert<'a>, Refusal> {
        let mut record = Record::new();
        let mut cursor = Cursor::new(datum);
        let mut steps = MAX_STEPS;
        for part in &self.parts {
            let read = match part.field {
                Some(field) => self
                    .shapes
                    .value(part.shape, &mut cursor, &mut steps)
                    .map(|value| record.set(field, value)),
                None => self.shapes.skip(part.shape, &mut cursor, &mut steps),
            };
            if let Err(fault) = read {
                return Err(not_decodable(fault, Some(part), datum.len() - cursor.left()));
            }
        }
        if cursor.left() > 0 {
            return Err(not_decodable("bytes are left over", None, datum.len() - cursor.left()));
        }
        self.ignored_fields += self.unknown_fields;
        if self.unknown_fields > 0 {
            UnknownFields::count(self.unknown_fields);
        }
        if let Some(preparation) = &mut self.preparation {
            preparation.apply(&mut record)?;
        }
        record.upsert(&self.settings)
    }

    /// How many fields were met that are none of a reading's, in the records so far.
    pub fn ignored_fields(&self) -> u64 {
        self.ignored_fields
    }
}

impl Shapes {
    #[inline]
    fn value<'a>(&'a self, id: Id, cursor: &mut Cursor<'a>, steps: &mut u32) -> Result<Value<'a>, Fault> {
        match self.get(id) {
            // Unions hold no unions.
            Shape::Union(branches) => self.scalar(branches[cursor.choice(branches.len())?], cursor, steps),
            _ => self.scalar(id, cursor, steps),
        }
    }

    #[inline]
    fn scalar<'a>(&'a self, id: Id, cursor: &mut Cursor<'a>, steps: &mut u32) -> Result<Value<'a>, Fault> {
        Ok(match self.get(id) {
            Shape::Null => Value::Missing,
            Shape::Boolean => Value::Boolean(cursor.boolean()?),
            Shape::Int => Value::Integer(cursor.int()?.into()),
            Shape::Long => Value::Integer(cursor.long()?),
            Shape::Float => Value::Number(cursor.float()?.into()),
            Shape::Double => Value::Number(cursor.double()?),
            Shape::Text => Value::Text(cursor.text()?),
            Shape::Enum(symbols) => Value::Text(&symbols[cursor.choice(symbols.len())?]),
            &Shape::Time { ticks, local } => {
                let ms = cursor.long()?.div_euclid(ticks);
                if local { Value::Local(ms) } else { Value::Instant(ms) }
            }
            &Shape::Decimal { size, scale } => {
                let bytes = match size {
                    Some(size) => cursor.take(size)?,
                    None => cursor.bytes()?,
                };
                decimal_of_bytes(bytes, scale)
            }
            other => {
                self.skip(id, cursor, steps)?;
                Value::Other(other.name())
            }
        })
    }
}

/// A two's complement integer of at most 256 bits, as long as a decimal of Parquet may be.
fn decimal_of_bytes(bytes: &[u8], scale: u32) -> Value<'static> {
    let Some(first) = bytes.first() else { return Value::Other("a decimal without digits") };
    let sign = if first & 0x80 == 0 { 0x00 } else { 0xFF };
    let (extra, digits) = bytes.split_at(bytes.len().saturating_sub(32));
    if extra.iter().any(|byte| *byte != sign) || (digits[0] ^ sign) & 0x80 != 0 {
        return Value::Other("a decimal of more than 256 bits");
    }
    let mut wide = [sign; 32];
    wide[32 - digits.len()..].copy_from_slice(digits);
    let unscaled = Unscaled::from_be_bytes(wide);
    match unscaled.to_i128() {
        Some(unscaled) => decimal(unscaled, scale),
        None => wide_decimal(&unscaled, scale),
    }
}

#[cold]
fn not_decodable(fault: Fault, part: Option<&Part>, at: usize) -> Refusal {
    let of = part.map(|part| format!(" in field {}", quoted(&part.name))).unwrap_or_default();
    Refusal::new(Reason::NotDecodable, format!("not a datum of its schema: {fault} at byte {at}{of}"))
}
