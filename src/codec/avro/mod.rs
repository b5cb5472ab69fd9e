//! Avro: one datum a record, without the container of a file.
//!
//! A datum can only be read with the schema that it was written with. An [`AvroDecoder`] compiles
//! one: it maps the schema's fields by name once, so added, missing and reordered fields cost
//! nothing, and reads each datum without looking at a name. The values go through the same rules as
//! those of JSON.

mod compiled_schema;
mod cursor;
mod decode;
mod encode;

#[cfg(test)]
mod tests;

pub use self::compiled_schema::SchemaError;
pub use self::decode::AvroDecoder;
pub use self::encode::{current_to_avro, reading_to_avro, row_to_avro};
use crate::model::{Reason, Refusal};

/// The schema of [`reading_to_avro`].
pub const READING_SCHEMA: &str = include_str!("../../../schemas/reading.avsc");
/// The schema of [`row_to_avro`].
pub const ROW_SCHEMA: &str = include_str!("../../../schemas/row.avsc");
/// The schema of [`current_to_avro`].
pub const CURRENT_SCHEMA: &str = include_str!("../../../schemas/current.avsc");

/// The first byte of the header that Confluent's serializers write.
const WIRE_FORMAT_MAGIC: u8 = 0;

/// Splits a value in the Confluent wire format into its schema id and datum: a zero byte, the id in
/// four bytes, the most significant first, and the datum.
#[inline]
pub fn split_wire_header(value: &[u8]) -> Result<(u32, &[u8]), Refusal> {
    match value {
        [WIRE_FORMAT_MAGIC, a, b, c, d, datum @ ..] => Ok((u32::from_be_bytes([*a, *b, *c, *d]), datum)),
        _ => Err(missing_wire_header(value)),
    }
}

#[cold]
fn missing_wire_header(value: &[u8]) -> Refusal {
    let detail = match value.first() {
        Some(&WIRE_FORMAT_MAGIC) => {
            format!("{} bytes are too few for the header of a schema id, which has 5", value.len())
        }
        Some(first) => format!("no header of a schema id: it begins with byte {first}, not 0"),
        None => "it is empty".into(),
    };
    Refusal::new(Reason::NotDecodable, detail)
}

/// Appends the header of the Confluent wire format; the datum follows.
pub fn push_wire_header(id: u32, out: &mut Vec<u8>) {
    out.push(WIRE_FORMAT_MAGIC);
    out.extend_from_slice(&id.to_be_bytes());
}
