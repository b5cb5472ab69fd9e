//! Objects in a folder or in an S3 store.

mod blob_store;
mod diagnostics;
mod location;
mod read;

pub use self::blob_store::BlobStore;
pub(super) use self::blob_store::{PendingPut, StoredObject};
pub use self::location::CheckpointLocation;
pub use self::read::FetchResult;
