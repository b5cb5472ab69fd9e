//! What a writer's schema makes of bytes.

use std::collections::HashMap;

use apache_avro::Schema;
use apache_avro::schema::{InnerDecimalSchema, Name, RecordSchema, UuidSchema};

use super::super::ReadOptions;
use super::super::fields::Field;
use super::cursor::{Cursor, Fault};
use crate::model::refusal::quoted;

/// Types in types; also what a datum of a recursive type may have.
const MAX_DEPTH: usize = 64;

/// Why nothing that was written with a schema can be read as a reading.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    #[error("it is not an Avro schema: {0}")]
    NotASchema(String),
    #[error("it is not a record: a reading is a record with the fields city, reading_at, ...")]
    NotARecord,
    #[error("its field {name} has the type {kind}, which is not {expected}")]
    WrongType { name: String, kind: String, expected: &'static str },
    #[error("it has more than one field for {0}: remove or rename all but one")]
    Twice(&'static str),
    #[error("its types are nested more than {MAX_DEPTH} deep")]
    TooDeep,
    #[error("a bug of swelter: reading it panicked; please report it with the schema")]
    Panicked,
}

/// A type, by its place in [`Shapes`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Id(usize);

/// How the bytes of a type lie.
#[derive(Debug)]
pub(super) enum Shape {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    /// A long of so many ticks a millisecond since 1970: an instant, or by a clock of unknown offset.
    Time {
        ticks: i64,
        local: bool,
    },
    Text,
    /// Bytes that are not text.
    Bytes,
    Fixed(usize),
    /// A big-endian integer in bytes or, where a size is given, so many of them, with `scale` digits behind the point.
    Decimal {
        size: Option<usize>,
        scale: u32,
    },
    Enum(Box<[String]>),
    Array(Id),
    Map(Id),
    Union(Box<[Id]>),
    Record(Box<[Id]>),
}

impl Shape {
    /// As a refusal calls it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Shape::Bytes | Shape::Fixed(_) | Shape::Decimal { .. } => "bytes",
            Shape::Array(_) => "a list",
            Shape::Map(_) | Shape::Record(_) => "an object",
            _ => "another type",
        }
    }
}

/// A field of the writer's record, in the order of the datum.
#[derive(Debug)]
pub(super) struct Part {
    /// The reading's field that it is, if any.
    pub(super) field: Option<Field>,
    pub(super) shape: Id,
    pub(super) name: Box<str>,
}

/// All types of a schema; a recursive one refers back to itself.
#[derive(Debug)]
pub(super) struct Shapes(Vec<Shape>);

impl Shapes {
    #[inline]
    pub(super) fn get(&self, id: Id) -> &Shape {
        &self.0[id.0]
    }

    /// Goes past a value. `steps` is how many values it may be made of: a list of values without bytes, such as nulls, or
    /// of records of them, takes any time otherwise.
    pub(super) fn skip(&self, id: Id, cursor: &mut Cursor<'_>, steps: &mut u32) -> Result<(), Fault> {
        self.skip_at(id, cursor, steps, MAX_DEPTH)
    }

    fn skip_at(&self, id: Id, cursor: &mut Cursor<'_>, steps: &mut u32, depth: usize) -> Result<(), Fault> {
        *steps = steps.checked_sub(1).ok_or("it is made of too many values")?;
        let below = depth.checked_sub(1).ok_or("its values are nested too deep")?;
        match self.get(id) {
            Shape::Null => {}
            Shape::Boolean => drop(cursor.boolean()?),
            Shape::Int => drop(cursor.int()?),
            Shape::Long | Shape::Time { .. } => drop(cursor.long()?),
            Shape::Float => drop(cursor.float()?),
            Shape::Double => drop(cursor.double()?),
            Shape::Text | Shape::Bytes | Shape::Decimal { size: None, .. } => drop(cursor.bytes()?),
            Shape::Fixed(size) | Shape::Decimal { size: Some(size), .. } => drop(cursor.take(*size)?),
            Shape::Enum(symbols) => drop(cursor.choice(symbols.len())?),
            Shape::Union(branches) => {
                let branch = branches[cursor.choice(branches.len())?];
                self.skip_at(branch, cursor, steps, below)?;
            }
            Shape::Record(fields) => {
                for &field in fields {
                    self.skip_at(field, cursor, steps, below)?;
                }
            }
            shape @ (Shape::Array(item) | Shape::Map(item)) => loop {
                match cursor.long()? {
                    0 => break,
                    // Then the size of the block in bytes is said too.
                    ..0 => drop(cursor.bytes()?),
                    count @ 1.. => {
                        for _ in 0..count {
                            if matches!(shape, Shape::Map(_)) {
                                cursor.bytes()?;
                            }
                            self.skip_at(*item, cursor, steps, below)?;
                        }
                    }
                }
            },
        }
        Ok(())
    }
}

/// The parts of a datum that is written with a schema; `references` are schemas of the types that it names but does not
/// define.
pub(super) fn compile(
    schema: &str,
    references: &[impl AsRef<str>],
    options: &ReadOptions,
) -> Result<(Vec<Part>, Shapes), SchemaError> {
    let not_a_schema = |error: apache_avro::Error| SchemaError::NotASchema(error.to_string());
    let (schema, references) = if references.is_empty() {
        (Schema::parse_str(schema).map_err(not_a_schema)?, Vec::new())
    } else {
        Schema::parse_str_with_list(schema, references).map_err(not_a_schema)?
    };
    let named = references.iter().filter_map(|schema| Some((schema.name()?.fullname(None), schema)));
    let mut compiler = Compiler { shapes: Vec::new(), done: HashMap::new(), named: named.collect() };
    let record = match &schema {
        Schema::Record(record) => record,
        Schema::Ref { name } => match compiler.named.get(&name.fullname(None)) {
            Some(Schema::Record(record)) => record,
            _ => return Err(SchemaError::NotARecord),
        },
        _ => return Err(SchemaError::NotARecord),
    };
    let parts = compiler.parts(record, options)?;
    Ok((parts, Shapes(compiler.shapes)))
}

struct Compiler<'s> {
    shapes: Vec<Shape>,
    /// Named types, by full name.
    done: HashMap<String, Id>,
    named: HashMap<String, &'s Schema>,
}

impl<'s> Compiler<'s> {
    fn parts(&mut self, record: &'s RecordSchema, options: &ReadOptions) -> Result<Vec<Part>, SchemaError> {
        let settings = &options.settings;
        let ids = self.record(record, None, MAX_DEPTH)?;
        let mut parts: Vec<Part> = Vec::with_capacity(ids.len());
        for (written, &shape) in record.fields.iter().zip(&ids) {
            let field = options.record.columns.field(&written.name, settings);
            if let Some(field) = field {
                if parts.iter().any(|part| part.field == Some(field)) {
                    return Err(SchemaError::Twice(field.name(settings)));
                }
                if !self.fits(field, shape, options) {
                    let kind = serde_json::to_string(&written.schema).unwrap_or_default();
                    let (name, kind) = (written.name.clone(), quoted(&kind));
                    return Err(SchemaError::WrongType { name, kind, expected: expected(field) });
                }
            }
            parts.push(Part { field, shape, name: written.name.as_str().into() });
        }
        Ok(parts)
    }

    /// Whether at least some values of a type can be those of a field.
    fn fits(&self, field: Field, id: Id, options: &ReadOptions) -> bool {
        match (&self.shapes[id.0], field) {
            (Shape::Union(branches), _) => branches.iter().any(|&branch| {
                !matches!(self.shapes[branch.0], Shape::Null) && self.fits(field, branch, options)
            }),
            (Shape::Null, _) => true,
            (Shape::Text | Shape::Enum(_), Field::City | Field::Op) => true,
            (Shape::Text | Shape::Time { .. }, Field::ReadingAt) => true,
            (Shape::Int | Shape::Long | Shape::Float | Shape::Double, Field::ReadingAt) => {
                options.record.time_format.is_number()
            }
            (
                Shape::Text | Shape::Int | Shape::Long,
                Field::TimePart2 | Field::TimePart3 | Field::TimePart4,
            ) => true,
            (
                Shape::Int | Shape::Long | Shape::Float | Shape::Double | Shape::Decimal { .. },
                Field::Temperature | Field::Moisture | Field::WindSpeed,
            ) => true,
            (Shape::Int | Shape::Long | Shape::Decimal { scale: 0, .. }, Field::Revision) => true,
            (Shape::Boolean, Field::Deleted) => true,
            _ => false,
        }
    }

    fn record(
        &mut self,
        record: &'s RecordSchema,
        space: Option<&'s str>,
        depth: usize,
    ) -> Result<Vec<Id>, SchemaError> {
        let id = self.push(Shape::Null);
        self.done.insert(record.name.fullname(space), id);
        let space = record.name.namespace().or(space);
        let fields = record.fields.iter().map(|field| self.shape(&field.schema, space, depth));
        let fields: Vec<Id> = fields.collect::<Result<_, _>>()?;
        self.shapes[id.0] = Shape::Record(fields.as_slice().into());
        Ok(fields)
    }

    fn shape(&mut self, schema: &'s Schema, space: Option<&'s str>, depth: usize) -> Result<Id, SchemaError> {
        let depth = depth.checked_sub(1).ok_or(SchemaError::TooDeep)?;
        let time = |ticks, local| Shape::Time { ticks, local };
        let shape = match schema {
            Schema::Null => Shape::Null,
            Schema::Boolean => Shape::Boolean,
            Schema::Int | Schema::Date | Schema::TimeMillis => Shape::Int,
            Schema::Long | Schema::TimeMicros => Shape::Long,
            Schema::Float => Shape::Float,
            Schema::Double => Shape::Double,
            Schema::TimestampMillis => time(1, false),
            Schema::TimestampMicros => time(1_000, false),
            Schema::TimestampNanos => time(1_000_000, false),
            Schema::LocalTimestampMillis => time(1, true),
            Schema::LocalTimestampMicros => time(1_000, true),
            Schema::LocalTimestampNanos => time(1_000_000, true),
            // Bytes are read as text where text is needed, as the specification has it.
            Schema::Bytes | Schema::String | Schema::Uuid(UuidSchema::String) => Shape::Text,
            Schema::BigDecimal | Schema::Uuid(UuidSchema::Bytes) => Shape::Bytes,
            Schema::Decimal(decimal) => {
                // The library takes no other scale than one that is not negative.
                let scale = u32::try_from(decimal.scale).unwrap_or(u32::MAX);
                match &decimal.inner {
                    InnerDecimalSchema::Bytes => Shape::Decimal { size: None, scale },
                    InnerDecimalSchema::Fixed(fixed) => {
                        let shape = Shape::Decimal { size: Some(fixed.size), scale };
                        return Ok(self.named(&fixed.name, space, shape));
                    }
                }
            }
            Schema::Uuid(UuidSchema::Fixed(fixed)) | Schema::Fixed(fixed) | Schema::Duration(fixed) => {
                return Ok(self.named(&fixed.name, space, Shape::Fixed(fixed.size)));
            }
            Schema::Enum(symbols) => {
                let shape = Shape::Enum(symbols.symbols.as_slice().into());
                return Ok(self.named(&symbols.name, space, shape));
            }
            Schema::Array(array) => Shape::Array(self.shape(&array.items, space, depth)?),
            Schema::Map(map) => Shape::Map(self.shape(&map.types, space, depth)?),
            Schema::Union(union) => {
                let branches = union.variants().iter().map(|branch| self.shape(branch, space, depth));
                Shape::Union(branches.collect::<Result<_, _>>()?)
            }
            Schema::Record(record) => {
                self.record(record, space, depth)?;
                return self.reference(&record.name, space, depth);
            }
            Schema::Ref { name } => return self.reference(name, space, depth),
        };
        Ok(self.push(shape))
    }

    fn push(&mut self, shape: Shape) -> Id {
        self.shapes.push(shape);
        Id(self.shapes.len() - 1)
    }

    fn named(&mut self, name: &Name, space: Option<&str>, shape: Shape) -> Id {
        let id = self.push(shape);
        self.done.insert(name.fullname(space), id);
        id
    }

    fn reference(&mut self, name: &Name, space: Option<&str>, depth: usize) -> Result<Id, SchemaError> {
        let name = name.fullname(space);
        match (self.done.get(&name), self.named.get(&name)) {
            (Some(&id), _) => Ok(id),
            (None, Some(schema)) => self.shape(schema, None, depth),
            (None, None) => {
                Err(SchemaError::NotASchema(format!("nothing defines its type {}", quoted(&name))))
            }
        }
    }
}

fn expected(field: Field) -> &'static str {
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
