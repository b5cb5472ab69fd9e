//! Compiles a writer's schema into the types by which a datum is read.

use std::collections::HashMap;

use apache_avro::Schema;
use apache_avro::schema::{InnerDecimalSchema, Name, RecordSchema, UuidSchema};

use super::super::ReadOptions;
use super::super::field::Field;
use super::cursor::{DatumCursor, DatumFault};
use crate::model::refusal::quoted_excerpt;

/// The most levels of nested types, and of the values of a recursive type.
const MAX_DEPTH: usize = 64;

/// Why no datum of a schema can be read as a reading.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    #[error("it is not an Avro schema: {0}")]
    NotASchema(String),
    #[error("it is not a record: a reading is a record with the fields city, reading_at, ...")]
    NotARecord,
    #[error("its field {name} has the type {kind}, which is not {expected}")]
    WrongType { name: String, kind: String, expected: &'static str },
    #[error("it has more than one field for {0}: remove or rename all but one")]
    DuplicateField(&'static str),
    #[error("its types are nested more than {MAX_DEPTH} deep")]
    TooDeep,
    #[error("a bug of swelter: reading it panicked; please report it with the schema")]
    Panicked,
}

/// A type, by its index in [`AvroTypes`].
#[derive(Clone, Copy, Debug)]
pub(super) struct AvroTypeId(usize);

/// How the bytes of a type are read.
#[derive(Debug)]
pub(super) enum AvroType {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    /// A long of so many ticks a millisecond since 1970: of an instant, or of a clock with an
    /// unknown offset.
    Time {
        ticks: i64,
        local: bool,
    },
    Text,
    /// Bytes that are not text.
    Bytes,
    Fixed(usize),
    /// A big-endian integer in bytes, or in `size` bytes if that is given, with `scale` digits
    /// behind the point.
    Decimal {
        size: Option<usize>,
        scale: u32,
    },
    Enum(Box<[String]>),
    Array(AvroTypeId),
    Map(AvroTypeId),
    Union(Box<[AvroTypeId]>),
    Record(Box<[AvroTypeId]>),
}

impl AvroType {
    /// The name of the type in refusals.
    pub(super) fn refusal_name(&self) -> &'static str {
        match self {
            AvroType::Bytes | AvroType::Fixed(_) | AvroType::Decimal { .. } => "bytes",
            AvroType::Array(_) => "a list",
            AvroType::Map(_) | AvroType::Record(_) => "an object",
            _ => "another type",
        }
    }
}

/// A field of the writer's record, in the order of the datum.
#[derive(Debug)]
pub(super) struct WriterField {
    /// The field of a reading that it is, if any.
    pub(super) field: Option<Field>,
    pub(super) avro_type: AvroTypeId,
    pub(super) name: Box<str>,
}

/// All types of a schema; a recursive one refers back to itself.
#[derive(Debug)]
pub(super) struct AvroTypes(Vec<AvroType>);

impl AvroTypes {
    #[inline]
    pub(super) fn get(&self, id: AvroTypeId) -> &AvroType {
        &self.0[id.0]
    }

    /// Skips a value. `steps` limits the number of values in it: a list of values without bytes,
    /// such as nulls, would otherwise take any time.
    pub(super) fn skip_value(
        &self,
        id: AvroTypeId,
        cursor: &mut DatumCursor<'_>,
        steps: &mut u32,
    ) -> Result<(), DatumFault> {
        self.skip_nested(id, cursor, steps, MAX_DEPTH)
    }

    fn skip_nested(
        &self,
        id: AvroTypeId,
        cursor: &mut DatumCursor<'_>,
        steps: &mut u32,
        depth: usize,
    ) -> Result<(), DatumFault> {
        *steps = steps.checked_sub(1).ok_or("it is made of too many values")?;
        let below = depth.checked_sub(1).ok_or("its values are nested too deep")?;
        match self.get(id) {
            AvroType::Null => {}
            AvroType::Boolean => drop(cursor.boolean()?),
            AvroType::Int => drop(cursor.int()?),
            AvroType::Long | AvroType::Time { .. } => drop(cursor.long()?),
            AvroType::Float => drop(cursor.float()?),
            AvroType::Double => drop(cursor.double()?),
            AvroType::Text | AvroType::Bytes | AvroType::Decimal { size: None, .. } => drop(cursor.bytes()?),
            AvroType::Fixed(size) | AvroType::Decimal { size: Some(size), .. } => {
                cursor.take_bytes(*size)?;
            }
            AvroType::Enum(symbols) => drop(cursor.read_index(symbols.len())?),
            AvroType::Union(branches) => {
                let branch = branches[cursor.read_index(branches.len())?];
                self.skip_nested(branch, cursor, steps, below)?;
            }
            AvroType::Record(fields) => {
                for &field in fields {
                    self.skip_nested(field, cursor, steps, below)?;
                }
            }
            shape @ (AvroType::Array(item) | AvroType::Map(item)) => loop {
                match cursor.long()? {
                    0 => break,
                    // The size of the block in bytes follows.
                    ..0 => drop(cursor.bytes()?),
                    count @ 1.. => {
                        for _ in 0..count {
                            if matches!(shape, AvroType::Map(_)) {
                                cursor.bytes()?;
                            }
                            self.skip_nested(*item, cursor, steps, below)?;
                        }
                    }
                }
            },
        }
        Ok(())
    }
}

/// Compiles a schema; `references` are schemas of the types that it names but does not define.
pub(super) fn compile_schema(
    schema: &str,
    references: &[impl AsRef<str>],
    options: &ReadOptions,
) -> Result<(Vec<WriterField>, AvroTypes), SchemaError> {
    let not_a_schema = |error: apache_avro::Error| SchemaError::NotASchema(error.to_string());
    let (schema, references) = if references.is_empty() {
        (Schema::parse_str(schema).map_err(not_a_schema)?, Vec::new())
    } else {
        Schema::parse_str_with_list(schema, references).map_err(not_a_schema)?
    };
    let named = references.iter().filter_map(|schema| Some((schema.name()?.fullname(None), schema)));
    let mut compiler = SchemaCompiler { types: Vec::new(), compiled: HashMap::new(), named: named.collect() };
    let record = match &schema {
        Schema::Record(record) => record,
        Schema::Ref { name } => match compiler.named.get(&name.fullname(None)) {
            Some(Schema::Record(record)) => record,
            _ => return Err(SchemaError::NotARecord),
        },
        _ => return Err(SchemaError::NotARecord),
    };
    let parts = compiler.writer_fields(record, options)?;
    Ok((parts, AvroTypes(compiler.types)))
}

struct SchemaCompiler<'s> {
    types: Vec<AvroType>,
    /// Named types, by full name.
    compiled: HashMap<String, AvroTypeId>,
    named: HashMap<String, &'s Schema>,
}

impl<'s> SchemaCompiler<'s> {
    fn writer_fields(
        &mut self,
        record: &'s RecordSchema,
        options: &ReadOptions,
    ) -> Result<Vec<WriterField>, SchemaError> {
        let settings = &options.settings;
        let ids = self.compile_record(record, None, MAX_DEPTH)?;
        let mut parts: Vec<WriterField> = Vec::with_capacity(ids.len());
        for (written, &shape) in record.fields.iter().zip(&ids) {
            let field = options.record.columns.field(&written.name, settings);
            if let Some(field) = field {
                if parts.iter().any(|part| part.field == Some(field)) {
                    return Err(SchemaError::DuplicateField(field.name(settings)));
                }
                if !self.can_hold_field(field, shape, options) {
                    let kind = serde_json::to_string(&written.schema).unwrap_or_default();
                    let (name, kind) = (written.name.clone(), quoted_excerpt(&kind));
                    return Err(SchemaError::WrongType { name, kind, expected: expected_type(field) });
                }
            }
            parts.push(WriterField { field, avro_type: shape, name: written.name.as_str().into() });
        }
        Ok(parts)
    }

    /// Whether some values of a type could be those of a field.
    fn can_hold_field(&self, field: Field, id: AvroTypeId, options: &ReadOptions) -> bool {
        match (&self.types[id.0], field) {
            (AvroType::Union(branches), _) => branches.iter().any(|&branch| {
                !matches!(self.types[branch.0], AvroType::Null) && self.can_hold_field(field, branch, options)
            }),
            (AvroType::Null, _) => true,
            (AvroType::Text | AvroType::Enum(_), Field::City | Field::Op) => true,
            (AvroType::Text | AvroType::Time { .. }, Field::ReadingAt) => true,
            (AvroType::Int | AvroType::Long | AvroType::Float | AvroType::Double, Field::ReadingAt) => {
                options.record.time_format.is_number()
            }
            (
                AvroType::Text | AvroType::Int | AvroType::Long,
                Field::TimePart2 | Field::TimePart3 | Field::TimePart4,
            ) => true,
            (
                AvroType::Int
                | AvroType::Long
                | AvroType::Float
                | AvroType::Double
                | AvroType::Decimal { .. },
                Field::Temperature | Field::Moisture | Field::WindSpeed,
            ) => true,
            (AvroType::Int | AvroType::Long | AvroType::Decimal { scale: 0, .. }, Field::Revision) => true,
            (AvroType::Boolean, Field::Deleted) => true,
            _ => false,
        }
    }

    fn compile_record(
        &mut self,
        record: &'s RecordSchema,
        space: Option<&'s str>,
        depth: usize,
    ) -> Result<Vec<AvroTypeId>, SchemaError> {
        let id = self.push_type(AvroType::Null);
        self.compiled.insert(record.name.fullname(space), id);
        let space = record.name.namespace().or(space);
        let fields = record.fields.iter().map(|field| self.compile_type(&field.schema, space, depth));
        let fields: Vec<AvroTypeId> = fields.collect::<Result<_, _>>()?;
        self.types[id.0] = AvroType::Record(fields.as_slice().into());
        Ok(fields)
    }

    fn compile_type(
        &mut self,
        schema: &'s Schema,
        space: Option<&'s str>,
        depth: usize,
    ) -> Result<AvroTypeId, SchemaError> {
        let depth = depth.checked_sub(1).ok_or(SchemaError::TooDeep)?;
        let time = |ticks, local| AvroType::Time { ticks, local };
        let shape = match schema {
            Schema::Null => AvroType::Null,
            Schema::Boolean => AvroType::Boolean,
            Schema::Int | Schema::Date | Schema::TimeMillis => AvroType::Int,
            Schema::Long | Schema::TimeMicros => AvroType::Long,
            Schema::Float => AvroType::Float,
            Schema::Double => AvroType::Double,
            Schema::TimestampMillis => time(1, false),
            Schema::TimestampMicros => time(1_000, false),
            Schema::TimestampNanos => time(1_000_000, false),
            Schema::LocalTimestampMillis => time(1, true),
            Schema::LocalTimestampMicros => time(1_000, true),
            Schema::LocalTimestampNanos => time(1_000_000, true),
            // Bytes are read as text if text is needed, as the specification has it.
            Schema::Bytes | Schema::String | Schema::Uuid(UuidSchema::String) => AvroType::Text,
            Schema::BigDecimal | Schema::Uuid(UuidSchema::Bytes) => AvroType::Bytes,
            Schema::Decimal(decimal) => {
                // The library accepts only scales that are not negative.
                let scale = u32::try_from(decimal.scale).unwrap_or(u32::MAX);
                match &decimal.inner {
                    InnerDecimalSchema::Bytes => AvroType::Decimal { size: None, scale },
                    InnerDecimalSchema::Fixed(fixed) => {
                        let shape = AvroType::Decimal { size: Some(fixed.size), scale };
                        return Ok(self.push_named(&fixed.name, space, shape));
                    }
                }
            }
            Schema::Uuid(UuidSchema::Fixed(fixed)) | Schema::Fixed(fixed) | Schema::Duration(fixed) => {
                return Ok(self.push_named(&fixed.name, space, AvroType::Fixed(fixed.size)));
            }
            Schema::Enum(symbols) => {
                let shape = AvroType::Enum(symbols.symbols.as_slice().into());
                return Ok(self.push_named(&symbols.name, space, shape));
            }
            Schema::Array(array) => AvroType::Array(self.compile_type(&array.items, space, depth)?),
            Schema::Map(map) => AvroType::Map(self.compile_type(&map.types, space, depth)?),
            Schema::Union(union) => {
                let branches = union.variants().iter().map(|branch| self.compile_type(branch, space, depth));
                AvroType::Union(branches.collect::<Result<_, _>>()?)
            }
            Schema::Record(record) => {
                self.compile_record(record, space, depth)?;
                return self.resolve_reference(&record.name, space, depth);
            }
            Schema::Ref { name } => return self.resolve_reference(name, space, depth),
        };
        Ok(self.push_type(shape))
    }

    fn push_type(&mut self, shape: AvroType) -> AvroTypeId {
        self.types.push(shape);
        AvroTypeId(self.types.len() - 1)
    }

    fn push_named(&mut self, name: &Name, space: Option<&str>, shape: AvroType) -> AvroTypeId {
        let id = self.push_type(shape);
        self.compiled.insert(name.fullname(space), id);
        id
    }

    fn resolve_reference(
        &mut self,
        name: &Name,
        space: Option<&str>,
        depth: usize,
    ) -> Result<AvroTypeId, SchemaError> {
        let name = name.fullname(space);
        match (self.compiled.get(&name), self.named.get(&name)) {
            (Some(&id), _) => Ok(id),
            (None, Some(schema)) => self.compile_type(schema, None, depth),
            (None, None) => {
                Err(SchemaError::NotASchema(format!("nothing defines its type {}", quoted_excerpt(&name))))
            }
        }
    }
}

fn expected_type(field: Field) -> &'static str {
    match field {
        Field::City | Field::Op => "text",
        Field::ReadingAt => {
            "a long of the logical type timestamp-millis, -micros or -nanos, nor text of an RFC 3339 time"
        }
        Field::Temperature | Field::Moisture | Field::WindSpeed => "a number",
        Field::Revision => "an integer",
        Field::Deleted => "a boolean",
        // Only text has times in parts.
        Field::TimePart2 | Field::TimePart3 | Field::TimePart4 => "text",
    }
}
