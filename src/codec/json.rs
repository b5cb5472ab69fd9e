//! JSON: one object a record, one by one or in lines.

use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::field::{Field, FieldValue};
use super::field_values::FieldValues;
use super::options::RecordNormalizer;
use super::panic_guard::catch_decoder_panic;
use super::record_lines::{Advance, RecordLines, too_long_detail};
use super::unknown_fields::UnknownFields;
use super::{DecodeError, DecodeSettings, LocalTimeCounts, MAX_RECORD_BYTES, ReadOptions};
use crate::model::{Reason, Refusal, Upsert};

/// Decodes records that come one by one, each a JSON object.
#[derive(Debug)]
pub struct JsonRecordDecoder {
    settings: DecodeSettings,
    preparation: Option<Box<RecordNormalizer>>,
    ignored_fields: u64,
    /// Set if unknown fields are logged.
    unknown: Option<UnknownFields>,
    escaped: EscapedStrings,
}

/// Strings of a record that had escapes, unescaped; the others are slices of the record.
#[derive(Debug, Default)]
struct EscapedStrings {
    text: String,
    fields: Vec<(Field, Range<usize>)>,
}

impl JsonRecordDecoder {
    pub fn new(options: impl Into<ReadOptions>) -> JsonRecordDecoder {
        let options = options.into();
        let preparation = RecordNormalizer::if_needed(&options);
        JsonRecordDecoder {
            settings: options.settings,
            preparation,
            ignored_fields: 0,
            unknown: None,
            escaped: EscapedStrings::default(),
        }
    }

    /// Like [`JsonRecordDecoder::new`], for the records of a source: fields that a reading does not
    /// have are counted by the process, and the log names each once.
    pub fn for_source(options: impl Into<ReadOptions>) -> JsonRecordDecoder {
        JsonRecordDecoder { unknown: Some(UnknownFields::default()), ..JsonRecordDecoder::new(options) }
    }

    /// Decodes one object, which may span lines, of at most [`MAX_RECORD_BYTES`] bytes.
    #[inline]
    pub fn decode<'a>(&'a mut self, bytes: &'a [u8]) -> Result<Upsert<'a>, Refusal> {
        self.decode_with(bytes, None)
    }

    /// Decodes the key of a record without a value, `{"city", "reading_at"}`, as the withdrawal
    /// that it stands for.
    pub fn decode_tombstone_key<'a>(&'a mut self, key: &'a [u8]) -> Result<Upsert<'a>, Refusal> {
        self.decode_with(key, Some((Field::Deleted, FieldValue::Boolean(true))))
    }

    #[inline]
    fn decode_with<'a>(
        &'a mut self,
        bytes: &'a [u8],
        implied: Option<(Field, FieldValue<'a>)>,
    ) -> Result<Upsert<'a>, Refusal> {
        if bytes.len() > MAX_RECORD_BYTES {
            let detail =
                format!("the record is longer than {MAX_RECORD_BYTES} bytes, the longest that is read");
            return Err(Refusal::new(Reason::NotDecodable, detail));
        }
        let Ok(text) = std::str::from_utf8(bytes) else {
            return Err(Refusal::new(Reason::NotDecodable, "the record is not UTF-8"));
        };
        catch_decoder_panic(move || self.decode_text(text, implied))
    }

    #[inline]
    fn decode_text<'a>(
        &'a mut self,
        text: &'a str,
        implied: Option<(Field, FieldValue<'a>)>,
    ) -> Result<Upsert<'a>, Refusal> {
        self.escaped.text.clear();
        self.escaped.fields.clear();
        let mut record = FieldValues::new();
        let (preparation, unknown) = (self.preparation.as_deref(), self.unknown.as_mut());
        let names = KeyVisitor { settings: &self.settings, preparation, unknown };
        let object = ObjectVisitor { record: &mut record, names, escaped: &mut self.escaped };
        let mut json = serde_json::Deserializer::from_str(text);
        let parsed = object.deserialize(&mut json).and_then(|ignored| json.end().map(|()| ignored));
        let ignored_fields = parsed.map_err(|error| not_decodable(&error, text))?;
        for (field, range) in &self.escaped.fields {
            record.set(*field, FieldValue::Text(&self.escaped.text[range.clone()]));
        }
        if let Some((field, value)) = implied {
            record.set(field, value);
        }
        self.ignored_fields += ignored_fields;
        if let Some(preparation) = &mut self.preparation {
            preparation.normalize(&mut record)?;
        }
        record.to_upsert(&self.settings)
    }

    /// Local times so far that the zone's clocks showed twice or never.
    pub fn local_times(&self) -> LocalTimeCounts {
        self.preparation.as_ref().map(|preparation| preparation.local_times()).unwrap_or_default()
    }

    /// The number of fields so far that a reading does not have.
    pub fn ignored_fields(&self) -> u64 {
        self.ignored_fields
    }
}

/// Reads lines of one object each.
pub(super) struct JsonReader {
    lines: RecordLines,
    decoder: JsonRecordDecoder,
}

impl JsonReader {
    pub(super) fn new(lines: RecordLines, options: &ReadOptions) -> JsonReader {
        JsonReader { lines, decoder: JsonRecordDecoder::for_source(options) }
    }

    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<Result<Upsert<'_>, Refusal>>, DecodeError> {
        match self.lines.advance()? {
            Advance::Line => Ok(Some(self.decoder.decode(self.lines.record()))),
            Advance::End => Ok(None),
            Advance::Truncated => Ok(Some(Err(Refusal::new(Reason::NotDecodable, too_long_detail())))),
        }
    }

    pub(super) fn lines(&mut self) -> &mut RecordLines {
        &mut self.lines
    }

    pub(super) fn skip(&mut self) -> Result<bool, DecodeError> {
        Ok(self.lines.advance()? != Advance::End)
    }

    pub(super) fn digest(&mut self) -> Option<u64> {
        self.lines.digest()
    }

    pub(super) fn line(&self) -> u64 {
        self.lines.line()
    }

    pub(super) fn raw(&self) -> &[u8] {
        self.lines.record()
    }

    pub(super) fn local_times(&self) -> LocalTimeCounts {
        self.decoder.local_times()
    }

    pub(super) fn ignored_fields(&self) -> u64 {
        self.decoder.ignored_fields()
    }
}

#[cold]
fn not_decodable(error: &serde_json::Error, text: &str) -> Refusal {
    let mut why = error.to_string();
    // The position as a byte of the record: a record mostly is one line.
    if let Some(at) = why.rfind(" at line ") {
        why.truncate(at);
    }
    let lines_before = error.line().saturating_sub(1);
    let byte = text.split_inclusive('\n').take(lines_before).map(str::len).sum::<usize>() + error.column();
    Refusal::new(Reason::NotDecodable, format!("not a JSON object of a reading: {why} at byte {byte}"))
}

/// Visits an object and sets the record's fields; returns the number of ignored fields.
struct ObjectVisitor<'a, 'de> {
    record: &'a mut FieldValues<'de>,
    names: KeyVisitor<'a>,
    escaped: &'a mut EscapedStrings,
}

impl<'de> DeserializeSeed<'de> for ObjectVisitor<'_, 'de> {
    type Value = u64;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<u64, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ObjectVisitor<'_, 'de> {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<u64, A::Error> {
        let mut met = 0u16;
        let mut ignored = 0;
        while let Some(field) = map.next_key_seed(self.names.reborrow())? {
            let Some(field) = field else {
                map.next_value::<IgnoredAny>()?;
                ignored += 1;
                continue;
            };
            if met & 1 << field as u16 != 0 {
                let name = field.name(self.names.settings);
                return Err(A::Error::custom(format_args!("{name} is there twice")));
            }
            met |= 1 << field as u16;
            self.record
                .set(field, map.next_value_seed(ScalarVisitor { field, escaped: &mut *self.escaped })?);
        }
        Ok(ignored)
    }
}

/// Visits a key and returns its field; an unknown key may be counted and logged.
struct KeyVisitor<'a> {
    settings: &'a DecodeSettings,
    preparation: Option<&'a RecordNormalizer>,
    unknown: Option<&'a mut UnknownFields>,
}

impl KeyVisitor<'_> {
    /// A copy of the borrows, for the next key.
    fn reborrow(&mut self) -> KeyVisitor<'_> {
        let KeyVisitor { settings, preparation, unknown } = self;
        KeyVisitor { settings, preparation: *preparation, unknown: unknown.as_deref_mut() }
    }
}

impl<'de> DeserializeSeed<'de> for KeyVisitor<'_> {
    type Value = Option<Field>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyVisitor<'_> {
    type Value = Option<Field>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        let field = match self.preparation {
            None => Field::from_name(name, self.settings),
            Some(preparation) => preparation.field(name),
        };
        if field.is_none()
            && let Some(unknown) = self.unknown
        {
            unknown.count_and_log(name);
        }
        Ok(field)
    }
}

struct ScalarVisitor<'a> {
    field: Field,
    escaped: &'a mut EscapedStrings,
}

impl<'de> DeserializeSeed<'de> for ScalarVisitor<'_> {
    type Value = FieldValue<'de>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ScalarVisitor<'_> {
    type Value = FieldValue<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<FieldValue<'de>, E> {
        Ok(FieldValue::Text(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<FieldValue<'de>, E> {
        let start = self.escaped.text.len();
        self.escaped.text.push_str(text);
        self.escaped.fields.push((self.field, start..self.escaped.text.len()));
        Ok(FieldValue::Missing)
    }

    fn visit_f64<E>(self, number: f64) -> Result<FieldValue<'de>, E> {
        Ok(FieldValue::Number(number))
    }

    fn visit_i64<E>(self, number: i64) -> Result<FieldValue<'de>, E> {
        Ok(FieldValue::Integer(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<FieldValue<'de>, E> {
        Ok(i64::try_from(number).map_or(FieldValue::Number(number as f64), FieldValue::Integer))
    }

    fn visit_bool<E>(self, boolean: bool) -> Result<FieldValue<'de>, E> {
        Ok(FieldValue::Boolean(boolean))
    }

    fn visit_unit<E>(self) -> Result<FieldValue<'de>, E> {
        Ok(FieldValue::Missing)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<FieldValue<'de>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(FieldValue::Other("a list"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FieldValue<'de>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(FieldValue::Other("an object"))
    }
}
