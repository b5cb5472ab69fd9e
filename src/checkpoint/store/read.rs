//! Reading objects: never more bytes of an object than the caller expects.

use std::ops::Range;
use std::path::Path as FilePath;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path;
use object_store::{Error, ObjectStoreExt as _};

use super::blob_store::{BlobStore, MAX_CONCURRENT_REQUESTS, StoreClient};
use crate::checkpoint::error::CheckpointError;
use crate::fault::{self, RetryBackoff};

/// Larger objects are read in pieces of this size, so that no request takes long.
pub(crate) const READ_PIECE_BYTES: u64 = 4 << 20;
/// Larger than any object that this program writes.
pub(crate) const MAX_OBJECT_BYTES: u64 = 8 << 30;

/// The result of reading an object.
#[derive(Debug, PartialEq, Eq)]
pub enum FetchResult {
    Missing,
    /// The object has this many bytes, not as many as asked for. Nothing was read.
    SizeMismatch(u64),
    Content(Bytes),
}

impl FetchResult {
    /// The content, or an error text that follows the object's path.
    pub fn into_content(self, wanted: &str) -> Result<Bytes, String> {
        match self {
            FetchResult::Content(content) => Ok(content),
            FetchResult::Missing => Err("is missing".into()),
            FetchResult::SizeMismatch(found) => Err(format!("has {found} bytes, not {wanted}")),
        }
    }
}

impl BlobStore {
    /// Reads an object of at most `most` bytes.
    pub fn get_object(&self, path: &str, most: u64) -> Result<FetchResult, CheckpointError> {
        self.handle.block_on(self.client.fetch_object(path, 0..most + 1))
    }

    /// Reads an object of exactly `bytes` bytes.
    pub fn get_object_of_size(&self, path: &str, bytes: u64) -> Result<FetchResult, CheckpointError> {
        if bytes > MAX_OBJECT_BYTES {
            return Ok(FetchResult::SizeMismatch(bytes));
        }
        self.handle.block_on(self.client.fetch_object(path, bytes..bytes + 1))
    }

    /// Reads many small objects at once; the results are in the order of `paths`.
    pub(crate) fn get_objects(
        &self,
        paths: &[String],
        most: u64,
    ) -> Result<Vec<FetchResult>, CheckpointError> {
        self.handle.block_on(async {
            let fetches = stream::iter(paths).map(|path| self.client.fetch_object(path, 0..most + 1));
            fetches.buffered(MAX_CONCURRENT_REQUESTS).try_collect().await
        })
    }

    /// Calls `each` with the pieces of an object of exactly `bytes` bytes, in order, one at a time.
    /// Returns `None` if all was read, else what the store has instead.
    pub(crate) fn read_pieces(
        &self,
        path: &str,
        bytes: u64,
        each: &mut dyn FnMut(&[u8]) -> Result<(), CheckpointError>,
    ) -> Result<Option<FetchResult>, CheckpointError> {
        if bytes <= READ_PIECE_BYTES {
            return match self.get_object_of_size(path, bytes)? {
                FetchResult::Content(content) => each(&content).map(|()| None),
                other => Ok(Some(other)),
            };
        }
        match self.handle.block_on(self.client.object_size(path))? {
            Some(size) if size == bytes => {}
            Some(size) => return Ok(Some(FetchResult::SizeMismatch(size))),
            None => return Ok(Some(FetchResult::Missing)),
        }
        for range in piece_ranges(bytes) {
            each(&self.handle.block_on(self.client.fetch_range(path, range))?)?;
        }
        Ok(None)
    }
}

fn piece_ranges(bytes: u64) -> impl Iterator<Item = Range<u64>> {
    (0..bytes).step_by(READ_PIECE_BYTES as usize).map(move |from| from..bytes.min(from + READ_PIECE_BYTES))
}

impl StoreClient {
    async fn object_size(&self, path: &str) -> Result<Option<u64>, CheckpointError> {
        let size = async || match self.objects.head(&Path::from(path)).await {
            Err(Error::NotFound { .. }) => Ok(None),
            found => Ok(Some(found?.size)),
        };
        self.with_operation_timeout(path, self.retry_transient(path, size)).await
    }

    /// Retries while an error of the host may be temporary, such as too many open files. Requests
    /// to an S3 store are retried by its client.
    async fn retry_transient<T>(
        &self,
        path: &str,
        attempt: impl AsyncFn() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let (doing, effect) = ("read a file of a checkpoint", "what needs the checkpoint waits");
        let mut retries = RetryBackoff::new("checkpoint_read", doing, effect);
        loop {
            match attempt().await {
                Err(error) if fault::is_transient(&error) && !self.is_remote() => {
                    let remedy = fault::remedy_suffix(&error, FilePath::new(path));
                    retries.record_failure(&format_args!("{error}{remedy}"));
                    tokio::time::sleep(retries.remaining_delay()).await;
                }
                done => {
                    retries.record_success();
                    return done;
                }
            }
        }
    }

    async fn fetch_range(&self, path: &str, range: Range<u64>) -> Result<Bytes, CheckpointError> {
        let at = Path::from(path);
        let piece = async || self.objects.get_range(&at, range.clone()).await;
        self.with_operation_timeout(path, self.retry_transient(path, piece)).await
    }

    /// Reads an object if its size is in `sizes`. The size is known before anything is read.
    async fn fetch_object(&self, path: &str, sizes: Range<u64>) -> Result<FetchResult, CheckpointError> {
        let fetch = async || {
            let response = match self.objects.get(&Path::from(path)).await {
                Err(Error::NotFound { .. }) => return Ok(Err(FetchResult::Missing)),
                response => response?,
            };
            match response.meta.size {
                size if !sizes.contains(&size) => Ok(Err(FetchResult::SizeMismatch(size))),
                size if size > READ_PIECE_BYTES => Ok(Ok(size)),
                _ => response.bytes().await.map(|content| Err(FetchResult::Content(content))),
            }
        };
        match self.with_operation_timeout(path, self.retry_transient(path, fetch)).await? {
            Err(fetched) => Ok(fetched),
            Ok(size) => self.fetch_in_ranges(path, size).await.map(FetchResult::Content),
        }
    }

    async fn fetch_in_ranges(&self, path: &str, size: u64) -> Result<Bytes, CheckpointError> {
        let mut content = Vec::new();
        let reserved = usize::try_from(size).map(|size| content.try_reserve_exact(size));
        if !matches!(reserved, Ok(Ok(()))) {
            return Err(self.store_error(path, format!("there is no memory for its {size} bytes")));
        }
        for range in piece_ranges(size) {
            content.extend_from_slice(&self.fetch_range(path, range).await?);
        }
        Ok(content.into())
    }
}
