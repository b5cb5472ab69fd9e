//! Schema registries: the schemas that Avro records were written with, and the names of those that we write with.
//!
//! [`Client`] speaks the registry's REST protocol, blocking. [`Schemas`] holds its answers, for all readers of a run, and
//! asks for those that are missing on a thread of its own. [`AvroRecords`], one a reader, turns a log's values into
//! readings.

mod client;
mod records;
mod schemas;

pub use self::client::{Client, ClientSettings, RegistryError};
pub use self::records::{AvroRecords, Decoded};
pub use self::schemas::{Answer, FindAnswer, Lookup, RecordAnswer, Schemas, ask_and_record};
