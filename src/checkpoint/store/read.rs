//! Objects read back: never more of one than whoever asks expects.

use std::ops::Range;
use std::path::Path as FilePath;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path;
use object_store::{Error, ObjectStoreExt as _};

use super::{Access, REQUESTS_AT_ONCE, Store};
use crate::checkpoint::CheckpointError;
use crate::fault::{self, Retries};

/// What is read at a time of an object that is larger, so that no request takes long.
pub(in crate::checkpoint) const PIECE_BYTES: u64 = 4 << 20;
/// Larger than any object that this program writes.
pub(in crate::checkpoint) const MOST_OBJECT_BYTES: u64 = 8 << 30;

/// What there is under a name.
#[derive(Debug, PartialEq, Eq)]
pub enum Fetched {
    Missing,
    /// It has so many bytes, which is not what was asked for: none of them was read.
    OtherSize(u64),
    Content(Bytes),
}

impl Fetched {
    /// The content, or in words why there is none.
    pub fn content(self, wanted: &str) -> Result<Bytes, String> {
        match self {
            Fetched::Content(content) => Ok(content),
            Fetched::Missing => Err("is missing".into()),
            Fetched::OtherSize(found) => Err(format!("has {found} bytes, not {wanted}")),
        }
    }
}

impl Store {
    /// The content of an object of at most so many bytes.
    pub fn get(&self, path: &str, most: u64) -> Result<Fetched, CheckpointError> {
        self.handle.block_on(self.access.fetch(path, 0..most + 1))
    }

    /// The content of an object of just so many bytes.
    pub fn get_sized(&self, path: &str, bytes: u64) -> Result<Fetched, CheckpointError> {
        if bytes > MOST_OBJECT_BYTES {
            return Ok(Fetched::OtherSize(bytes));
        }
        self.handle.block_on(self.access.fetch(path, bytes..bytes + 1))
    }

    /// Many small objects at once, in their order.
    pub(in crate::checkpoint) fn get_all(
        &self,
        paths: &[String],
        most: u64,
    ) -> Result<Vec<Fetched>, CheckpointError> {
        self.handle.block_on(async {
            let fetches = stream::iter(paths).map(|path| self.access.fetch(path, 0..most + 1));
            fetches.buffered(REQUESTS_AT_ONCE).try_collect().await
        })
    }

    /// Gives an object of just so many bytes in pieces, in their order, without holding more than one. Says what there is instead;
    /// nothing where all was given.
    pub(in crate::checkpoint) fn read_pieces(
        &self,
        path: &str,
        bytes: u64,
        each: &mut dyn FnMut(&[u8]) -> Result<(), CheckpointError>,
    ) -> Result<Option<Fetched>, CheckpointError> {
        if bytes <= PIECE_BYTES {
            return match self.get_sized(path, bytes)? {
                Fetched::Content(content) => each(&content).map(|()| None),
                other => Ok(Some(other)),
            };
        }
        match self.handle.block_on(self.access.size(path))? {
            Some(found) if found == bytes => {}
            Some(found) => return Ok(Some(Fetched::OtherSize(found))),
            None => return Ok(Some(Fetched::Missing)),
        }
        for range in pieces(bytes) {
            each(&self.handle.block_on(self.access.piece(path, range))?)?;
        }
        Ok(None)
    }
}

fn pieces(bytes: u64) -> impl Iterator<Item = Range<u64>> {
    (0..bytes).step_by(PIECE_BYTES as usize).map(move |from| from..bytes.min(from + PIECE_BYTES))
}

impl Access {
    async fn size(&self, path: &str) -> Result<Option<u64>, CheckpointError> {
        let size = async || match self.objects.head(&Path::from(path)).await {
            Err(Error::NotFound { .. }) => Ok(None),
            found => Ok(Some(found?.size)),
        };
        self.in_time(path, self.retry_passing(path, size)).await
    }

    /// Tries again while a fault of the host may pass, such as too many open files. A store that speaks S3 is asked again by its
    /// client.
    async fn retry_passing<T>(
        &self,
        path: &str,
        attempt: impl AsyncFn() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let (doing, waits) = ("read a file of a checkpoint", "what needs the checkpoint waits");
        let mut retries = Retries::new("checkpoint_read", doing, waits);
        loop {
            match attempt().await {
                Err(error) if fault::is_passing(&error) && !self.is_remote() => {
                    let remedy = fault::remedy_suffix(&error, FilePath::new(path));
                    retries.failed(&format_args!("{error}{remedy}"));
                    tokio::time::sleep(retries.delay()).await;
                }
                done => {
                    retries.succeeded();
                    return done;
                }
            }
        }
    }

    async fn piece(&self, path: &str, range: Range<u64>) -> Result<Bytes, CheckpointError> {
        let at = Path::from(path);
        let piece = async || self.objects.get_range(&at, range.clone()).await;
        self.in_time(path, self.retry_passing(path, piece)).await
    }

    /// The content, where its size is one of these; the size is known before anything is read.
    async fn fetch(&self, path: &str, sizes: Range<u64>) -> Result<Fetched, CheckpointError> {
        let fetch = async || {
            let found = match self.objects.get(&Path::from(path)).await {
                Err(Error::NotFound { .. }) => return Ok(Err(Fetched::Missing)),
                found => found?,
            };
            match found.meta.size {
                size if !sizes.contains(&size) => Ok(Err(Fetched::OtherSize(size))),
                size if size > PIECE_BYTES => Ok(Ok(size)),
                _ => found.bytes().await.map(|content| Err(Fetched::Content(content))),
            }
        };
        match self.in_time(path, self.retry_passing(path, fetch)).await? {
            Err(fetched) => Ok(fetched),
            Ok(size) => self.fetch_large(path, size).await.map(Fetched::Content),
        }
    }

    async fn fetch_large(&self, path: &str, size: u64) -> Result<Bytes, CheckpointError> {
        let mut content = Vec::new();
        let room = usize::try_from(size).map(|size| content.try_reserve_exact(size));
        if !matches!(room, Ok(Ok(()))) {
            return Err(self.failed(path, format!("there is no memory for its {size} bytes")));
        }
        for range in pieces(size) {
            content.extend_from_slice(&self.piece(path, range).await?);
        }
        Ok(content.into())
    }
}
