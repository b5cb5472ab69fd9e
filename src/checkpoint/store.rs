//! Objects in a folder or in a store that speaks S3, for callers that are plain threads.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path as FilePath, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    BackoffConfig, ClientConfigKey, Error, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions,
    RetryConfig, WriteMultipart,
};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::CheckpointError;

/// What is larger goes in parts of so many bytes, so that no request takes long.
const PART_BYTES: usize = 16 << 20;
/// Parts of one object that are on their way at a time.
const PARTS_AT_ONCE: usize = 4;
const REQUESTS_AT_ONCE: usize = 16;
const RETRIES: usize = 5;
/// From the first try of a request to the last.
const RETRY_TIME: Duration = Duration::from_secs(60);
/// Of all that is done to one object, retries included.
const OPERATION_TIME: Duration = Duration::from_secs(300);
/// As the client reads them.
const REQUEST_TIMEOUT: &str = "30 seconds";
const CONNECT_TIMEOUT: &str = "5 seconds";

/// Where checkpoints are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Folder(PathBuf),
    /// `s3://bucket/prefix`. How to reach it, and who asks, is in the standard variables: `AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_ALLOW_HTTP` and others.
    S3 {
        bucket: String,
        prefix: String,
    },
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Some(Place::Folder(text.into()))
                .filter(|_| !text.is_empty())
                .ok_or_else(|| "it is empty".into());
        };
        match scheme {
            "file" if rest.starts_with('/') => Ok(Place::Folder(rest.into())),
            "s3" => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
                if bucket.is_empty() || !bucket.bytes().all(allowed) || rest.contains(['?', '#', '@']) {
                    return Err(format!(
                        "{text:?} does not name a bucket: write it as in s3://bucket/prefix"
                    ));
                }
                Ok(Place::S3 { bucket: bucket.into(), prefix: prefix.trim_matches('/').into() })
            }
            _ => Err(format!("{text:?} is neither a folder nor of the form s3://bucket/prefix")),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Folder(folder) => folder.display().fmt(f),
            Place::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Place::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

/// An object of the store.
pub(super) struct Object {
    pub bytes: u64,
    pub modified_ms: i64,
}

/// How a store is reached. Cloned by reference.
#[derive(Clone)]
pub(super) struct Store {
    place: Arc<Place>,
    objects: Arc<dyn ObjectStore>,
    runtime: Arc<Runtime>,
}

impl Store {
    pub(super) fn open(place: &Place) -> Result<Store, CheckpointError> {
        let refused = |problem: String| CheckpointError::Place { place: place.to_string(), problem };
        let objects: Arc<dyn ObjectStore> = match place {
            Place::Folder(folder) => Arc::new(folder_store(folder).map_err(refused)?),
            Place::S3 { bucket, prefix } => {
                let store = s3_store(bucket).map_err(|error| refused(error.to_string()))?;
                let prefix = Path::parse(prefix).map_err(|error| refused(error.to_string()))?;
                Arc::new(PrefixStore::new(store, prefix))
            }
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(8)
            .thread_name("checkpoint-store")
            .enable_all()
            .build();
        let runtime = Arc::new(runtime.map_err(|error| refused(error.to_string()))?);
        Ok(Store { place: Arc::new(place.clone()), objects, runtime })
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Begins to put an object that is not to be there yet.
    pub(super) fn start_put(&self, path: String, content: Bytes) -> Putting {
        let store = self.clone();
        let task = self.runtime.spawn(async move {
            let put = put(&*store.objects, &path, content);
            store.in_time(&path, put).await?.then_some(()).ok_or(CheckpointError::Exists(path))
        });
        Putting { store: self.clone(), task }
    }

    pub(super) fn put(&self, path: String, content: Bytes) -> Result<(), CheckpointError> {
        self.start_put(path, content).wait()
    }

    /// The content, or nothing where there is no such object; an error where it is larger than `most`.
    pub(super) fn get(&self, path: &str, most: u64) -> Result<Option<Bytes>, CheckpointError> {
        self.runtime.block_on(self.fetch(path, most))
    }

    /// Many small objects at once, in their order.
    pub(super) fn get_all(&self, paths: &[String], most: u64) -> Result<Vec<Option<Bytes>>, CheckpointError> {
        self.runtime.block_on(async {
            let fetches = stream::iter(paths).map(|path| self.fetch(path, most));
            fetches.buffered(REQUESTS_AT_ONCE).try_collect().await
        })
    }

    async fn fetch(&self, path: &str, most: u64) -> Result<Option<Bytes>, CheckpointError> {
        let fetch = async {
            let found = match self.objects.get(&Path::from(path)).await {
                Err(Error::NotFound { .. }) => return Ok(None),
                found => found?,
            };
            match found.meta.size > most {
                true => Ok(Some(Err(found.meta.size))),
                false => found.bytes().await.map(|content| Some(Ok(content))),
            }
        };
        let too_large =
            |size| self.failed(path, format!("it has {size} bytes, more than the {most} that it may have"));
        self.in_time(path, fetch).await?.map(|found| found.map_err(too_large)).transpose()
    }

    /// The objects below a folder, by their paths.
    pub(super) fn list(&self, folder: &str) -> Result<BTreeMap<String, Object>, CheckpointError> {
        let list = async {
            let mut found = BTreeMap::new();
            let prefix = Path::from(folder);
            let mut listed = self.objects.list(Some(&prefix));
            while let Some(object) = listed.next().await {
                let object = object?;
                let (bytes, modified_ms) = (object.size, object.last_modified.timestamp_millis());
                found.insert(object.location.to_string(), Object { bytes, modified_ms });
            }
            Ok(found)
        };
        self.runtime.block_on(self.in_time(folder, list))
    }

    /// Deletes objects. One that is not there is deleted already.
    pub(super) fn delete(&self, paths: Vec<String>) -> Result<(), CheckpointError> {
        let deletes = paths.into_iter().map(|path| async move {
            let delete = async {
                match self.objects.delete(&Path::from(path.as_str())).await {
                    Err(Error::NotFound { .. }) => Ok(()),
                    deleted => deleted,
                }
            };
            self.in_time(&path, delete).await
        });
        self.runtime.block_on(async {
            let mut deletes = stream::iter(deletes).buffer_unordered(REQUESTS_AT_ONCE);
            while let Some(deleted) = deletes.next().await {
                deleted?;
            }
            Ok(())
        })
    }

    /// Removes the folder of objects that are gone. Only folders leave something behind.
    pub(super) fn remove_folder(&self, folder: &str) {
        if let Place::Folder(root) = &*self.place {
            // Where it is not empty it is still used.
            let _ = std::fs::remove_dir(root.join(folder));
        }
    }

    async fn in_time<T>(
        &self,
        path: &str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, CheckpointError> {
        match tokio::time::timeout(OPERATION_TIME, work).await {
            Ok(done) => done.map_err(|error| self.failed(path, error.to_string())),
            Err(_) => Err(self.failed(path, format!("it took longer than {} s", OPERATION_TIME.as_secs()))),
        }
    }

    fn failed(&self, path: &str, problem: String) -> CheckpointError {
        CheckpointError::Store { path: format!("{}/{path}", self.place), problem }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.place)
    }
}

/// An object that is on its way.
pub(super) struct Putting {
    store: Store,
    task: JoinHandle<Result<(), CheckpointError>>,
}

impl Putting {
    pub(super) fn wait(self) -> Result<(), CheckpointError> {
        match self.store.runtime.block_on(self.task) {
            Ok(done) => done,
            Err(error) => Err(self.store.failed("", error.to_string())),
        }
    }
}

/// Whether the object is there now, with this content. An object that goes in parts replaces one that is there: its name has the nonce
/// of who writes it.
async fn put(objects: &dyn ObjectStore, path: &str, content: Bytes) -> Result<bool, Error> {
    let path = Path::from(path);
    if content.len() > PART_BYTES {
        let mut upload = WriteMultipart::new_with_chunk_size(objects.put_multipart(&path).await?, PART_BYTES);
        for from in (0..content.len()).step_by(PART_BYTES) {
            if let Err(error) = upload.wait_for_capacity(PARTS_AT_ONCE).await {
                let _ = upload.abort().await;
                return Err(error);
            }
            upload.put(content.slice(from..content.len().min(from + PART_BYTES)));
        }
        return upload.finish().await.map(|_| true);
    }
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    match objects.put_opts(&path, content.clone().into(), options).await {
        // The answer to an earlier try may have been lost.
        Err(Error::AlreadyExists { .. }) => Ok(objects.get(&path).await?.bytes().await? == content),
        done => done.map(|_| true),
    }
}

fn folder_store(folder: &FilePath) -> Result<LocalFileSystem, String> {
    std::fs::create_dir_all(folder)
        .map_err(|error| format!("{error}: make it readable and writable, or choose another place"))?;
    let store = LocalFileSystem::new_with_prefix(folder).map_err(|error| error.to_string())?;
    Ok(store.with_fsync(true))
}

fn s3_store(bucket: &str) -> Result<impl ObjectStore + use<>, Error> {
    // One that is there already will do.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let client = AmazonS3ConfigKey::Client;
    AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_config(client(ClientConfigKey::Timeout), REQUEST_TIMEOUT)
        .with_config(client(ClientConfigKey::ConnectTimeout), CONNECT_TIMEOUT)
        .with_retry(RetryConfig {
            backoff: BackoffConfig { max_backoff: Duration::from_secs(5), ..BackoffConfig::default() },
            max_retries: RETRIES,
            retry_timeout: RETRY_TIME,
        })
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_folders_or_buckets() {
        let s3 = |bucket: &str, prefix: &str| Place::S3 { bucket: bucket.into(), prefix: prefix.into() };
        for (text, place, shown) in [
            ("data/checkpoints", Place::Folder("data/checkpoints".into()), "data/checkpoints"),
            ("file:///var/lib/x", Place::Folder("/var/lib/x".into()), "/var/lib/x"),
            ("s3://bucket", s3("bucket", ""), "s3://bucket"),
            ("s3://a-bucket/one/two/", s3("a-bucket", "one/two"), "s3://a-bucket/one/two"),
        ] {
            let parsed: Place = text.parse().unwrap();
            assert_eq!((&parsed, parsed.to_string().as_str()), (&place, shown));
        }
        for text in ["", "s3://", "s3:///prefix", "s3://user@bucket", "http://host/bucket", "file://relative"]
        {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }
}
