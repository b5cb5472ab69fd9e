//! Schema registries: the schemas that Avro records were written with, and the names of those that we write with.
//!
//! [`Client`] speaks the registry's REST protocol, blocking. [`Schemas`] holds its answers, for all readers of a run, and
//! asks for those that are missing on a thread of its own. [`AvroRecords`], one a reader, turns a log's values into
//! readings.

mod client;
mod record_decoder;
mod response;
mod schema_cache;

pub use self::client::{RegistryClient, RegistryError, RegistrySettings};
pub use self::record_decoder::{AvroRecordDecoder, DecodeResult};
pub use self::response::RegistryResponse;
pub use self::schema_cache::{
    ResponseFetcher, ResponseRecorder, SchemaCache, SchemaLookup, fetch_and_record,
};
