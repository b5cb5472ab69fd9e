//! Schema registries: the schemas that Avro records were written with, and the ids of the schemas
//! that swelter writes with.
//!
//! [`RegistryClient`] speaks the registry's REST protocol and blocks. [`SchemaCache`] holds its
//! responses for all readers of a run, and requests missing ones on a thread of its own.
//! [`AvroRecordDecoder`], one a reader, turns a log's values into readings.

mod client;
mod record_decoder;
mod response;
mod schema_cache;

pub use self::client::{RegistryClient, RegistryError, RegistrySettings, host_roots};
pub use self::record_decoder::{AvroRecordDecoder, DecodeResult};
pub use self::response::RegistryResponse;
pub use self::schema_cache::{
    ResponseFetcher, ResponseRecorder, SchemaCache, SchemaLookup, fetch_and_record,
};
