//! A registry's response for a schema id, which is recorded before it is used.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// What a registry says of an id. It decides what the records of the id mean, so it is kept for
/// good: a replay must decide the same, whatever the registry says by then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegistryResponse {
    #[serde(rename = "avro")]
    Avro {
        schema: Arc<str>,
        /// The schemas of the types that it names but does not define.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        references: Vec<Arc<str>>,
    },
    /// A schema of another type than Avro.
    #[serde(rename = "other")]
    Other { schema_type: Arc<str> },
    /// No schema has the id.
    #[serde(rename = "unknown")]
    Unknown,
    /// A schema that cannot be used.
    #[serde(rename = "unusable")]
    Unusable { problem: Arc<str> },
}
