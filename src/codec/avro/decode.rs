//! Decodes a datum into an [`Upsert`].

use arrow_array::ArrowPrimitiveType;
use arrow_array::types::Decimal256Type;

use super::super::decimal::{decimal_value, wide_decimal_value};
use super::super::field::FieldValue;
use super::super::field_values::FieldValues;
use super::super::options::RecordNormalizer;
use super::super::panic_guard::catch_decoder_panic;
use super::super::unknown_fields::UnknownFields;
use super::super::{DecodeSettings, MAX_RECORD_BYTES, ReadOptions};
use super::compiled_schema::{AvroType, AvroTypeId, AvroTypes, SchemaError, WriterField, compile_schema};
use super::cursor::{DatumCursor, DatumFault};
use crate::model::refusal::quoted_excerpt;
use crate::model::{Reason, Refusal, Upsert};
use crate::panics::{self, PanicScope};

/// An integer of 256 bits.
type Decimal256Value = <Decimal256Type as ArrowPrimitiveType>::Native;

/// The most values in a datum: four for each byte of the longest one.
const MAX_DATUM_VALUES: u32 = 4 * MAX_RECORD_BYTES as u32;

/// Decodes records that were written with one schema.
#[derive(Debug)]
pub struct AvroDecoder {
    settings: DecodeSettings,
    preparation: Option<Box<RecordNormalizer>>,
    fields: Vec<WriterField>,
    types: AvroTypes,
    /// The number of unknown fields in each record.
    unknown_fields_per_record: u64,
}

impl AvroDecoder {
    /// A decoder of records that were written with this schema, in JSON.
    ///
    /// # Errors
    ///
    /// If none of its records can be a reading. A schema that lacks a required field, or has a
    /// union of types that fit and types that do not, is accepted: the records decide.
    pub fn new(writer: &str, options: impl Into<ReadOptions>) -> Result<AvroDecoder, SchemaError> {
        AvroDecoder::with_references::<&str>(writer, &[], options)
    }

    /// Like [`AvroDecoder::new`], with the schemas of types that the writer's schema names but does
    /// not define.
    pub fn with_references<S: AsRef<str>>(
        writer: &str,
        references: &[S],
        options: impl Into<ReadOptions>,
    ) -> Result<AvroDecoder, SchemaError> {
        let options = &options.into();
        let compiled =
            panics::catch_panic(PanicScope::Record, || compile_schema(writer, references, options));
        let (parts, shapes) = compiled.unwrap_or(Err(SchemaError::Panicked))?;
        let unknown: Vec<_> = parts.iter().filter(|part| part.field.is_none()).collect();
        unknown.iter().for_each(|part| UnknownFields::default().count_and_log(&part.name));
        let unknown_fields = unknown.len() as u64;
        let (settings, preparation) = (options.settings, RecordNormalizer::if_needed(options));
        Ok(AvroDecoder {
            settings,
            preparation,
            fields: parts,
            types: shapes,
            unknown_fields_per_record: unknown_fields,
        })
    }

    /// Decodes one datum of at most [`MAX_RECORD_BYTES`] bytes.
    #[inline]
    pub fn decode<'a>(&'a mut self, datum: &'a [u8]) -> Result<Upsert<'a>, Refusal> {
        if datum.len() > MAX_RECORD_BYTES {
            let detail =
                format!("the record is longer than {MAX_RECORD_BYTES} bytes, the longest that is read");
            return Err(Refusal::new(Reason::NotDecodable, detail));
        }
        catch_decoder_panic(move || self.decode_datum(datum))
    }

    #[inline]
    fn decode_datum<'a>(&'a mut self, datum: &'a [u8]) -> Result<Upsert<'a>, Refusal> {
        let mut record = FieldValues::new();
        let mut cursor = DatumCursor::new(datum);
        let mut steps = MAX_DATUM_VALUES;
        for part in &self.fields {
            let read = match part.field {
                Some(field) => self
                    .types
                    .read_value(part.avro_type, &mut cursor, &mut steps)
                    .map(|value| record.set(field, value)),
                None => self.types.skip_value(part.avro_type, &mut cursor, &mut steps),
            };
            if let Err(fault) = read {
                return Err(not_decodable(fault, Some(part), datum.len() - cursor.remaining_bytes()));
            }
        }
        if cursor.remaining_bytes() > 0 {
            return Err(not_decodable("bytes are left over", None, datum.len() - cursor.remaining_bytes()));
        }
        if self.unknown_fields_per_record > 0 {
            UnknownFields::count_known(self.unknown_fields_per_record);
        }
        if let Some(preparation) = &mut self.preparation {
            preparation.normalize(&mut record)?;
        }
        record.decode_upsert(&self.settings)
    }

    /// The number of fields of each record that a reading does not have.
    #[cfg(test)]
    pub fn unknown_fields_per_record(&self) -> u64 {
        self.unknown_fields_per_record
    }
}

impl AvroTypes {
    #[inline]
    fn read_value<'a>(
        &'a self,
        id: AvroTypeId,
        cursor: &mut DatumCursor<'a>,
        steps: &mut u32,
    ) -> Result<FieldValue<'a>, DatumFault> {
        match self.get(id) {
            // A union contains no unions.
            AvroType::Union(branches) => {
                self.read_scalar(branches[cursor.read_index(branches.len())?], cursor, steps)
            }
            _ => self.read_scalar(id, cursor, steps),
        }
    }

    #[inline]
    fn read_scalar<'a>(
        &'a self,
        id: AvroTypeId,
        cursor: &mut DatumCursor<'a>,
        steps: &mut u32,
    ) -> Result<FieldValue<'a>, DatumFault> {
        Ok(match self.get(id) {
            AvroType::Null => FieldValue::Missing,
            AvroType::Boolean => FieldValue::Boolean(cursor.boolean()?),
            AvroType::Int => FieldValue::Integer(cursor.int()?.into()),
            AvroType::Long => FieldValue::Integer(cursor.long()?),
            AvroType::Float => FieldValue::Number(cursor.float()?.into()),
            AvroType::Double => FieldValue::Number(cursor.double()?),
            AvroType::Text => FieldValue::Text(cursor.text()?),
            AvroType::Enum(symbols) => FieldValue::Text(&symbols[cursor.read_index(symbols.len())?]),
            &AvroType::Time { ticks, local } => {
                let ms = cursor.long()?.div_euclid(ticks);
                if local { FieldValue::Local(ms) } else { FieldValue::Instant(ms) }
            }
            &AvroType::Decimal { size, scale } => {
                let bytes = match size {
                    Some(size) => cursor.take_bytes(size)?,
                    None => cursor.bytes()?,
                };
                decimal_of_bytes(bytes, scale)
            }
            other => {
                self.skip_value(id, cursor, steps)?;
                FieldValue::Other(other.refusal_name())
            }
        })
    }
}

/// A two's complement integer of at most 256 bits, the longest decimal of Parquet.
fn decimal_of_bytes(bytes: &[u8], scale: u32) -> FieldValue<'static> {
    let Some(first) = bytes.first() else { return FieldValue::Other("a decimal without digits") };
    let sign = if first & 0x80 == 0 { 0x00 } else { 0xFF };
    let (extra, digits) = bytes.split_at(bytes.len().saturating_sub(32));
    if extra.iter().any(|byte| *byte != sign) || (digits[0] ^ sign) & 0x80 != 0 {
        return FieldValue::Other("a decimal of more than 256 bits");
    }
    let mut wide = [sign; 32];
    wide[32 - digits.len()..].copy_from_slice(digits);
    let unscaled = Decimal256Value::from_be_bytes(wide);
    match unscaled.to_i128() {
        Some(unscaled) => decimal_value(unscaled, scale),
        None => wide_decimal_value(&unscaled, scale),
    }
}

#[cold]
fn not_decodable(fault: DatumFault, part: Option<&WriterField>, at: usize) -> Refusal {
    let of = part.map(|part| format!(" in field {}", quoted_excerpt(&part.name))).unwrap_or_default();
    Refusal::new(Reason::NotDecodable, format!("not a datum of its schema: {fault} at byte {at}{of}"))
}
