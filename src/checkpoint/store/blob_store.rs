//! Objects in a folder or in an S3 store: listing, writing and deleting, for callers that are plain
//! threads.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    BackoffConfig, ClientConfigKey, Error, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, RetryConfig,
};
use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinHandle;

use super::diagnostics;
use super::location::CheckpointLocation;
use crate::checkpoint::error::CheckpointError;
use crate::fault;

/// Larger objects are written in parts of this size, so that no request takes long.
const MULTIPART_BYTES: usize = 16 << 20;
/// Parts of one object that are written at a time.
const MAX_CONCURRENT_PARTS: usize = 4;
pub(super) const MAX_CONCURRENT_REQUESTS: usize = 16;
/// Threads that read and write the files of a folder.
const BLOCKING_THREADS: usize = 8;
const MAX_RETRIES: usize = 5;
/// From the first attempt of a request to the last.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);
/// Of all that is done to one object, retries included.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(300);
/// For aborting an upload in parts.
const ABORT_TIMEOUT: Duration = Duration::from_secs(30);
/// Attempts of a put whose response is lost. The client does not retry it, because the object may
/// exist; this store compares the content.
const MAX_PUT_ATTEMPTS: u32 = 3;
const PUT_RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How often a wait checks whether it was cancelled.
const CANCEL_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// In the syntax of the client's options.
const REQUEST_TIMEOUT: &str = "30 seconds";
const CONNECT_TIMEOUT: &str = "5 seconds";

/// An object of the store.
pub struct StoredObject {
    pub bytes: u64,
    pub modified_ms: i64,
}

/// A connection to a store. A clone refers to the same connection.
#[derive(Clone)]
pub struct BlobStore {
    pub(super) client: StoreClient,
    pub(super) handle: Handle,
    _runtime: Arc<StoreRuntime>,
}

/// The part of a store that tasks hold. It excludes the runtime, because a task that dropped the
/// runtime would wait for itself.
#[derive(Clone)]
pub(super) struct StoreClient {
    location: Arc<CheckpointLocation>,
    pub(super) objects: Arc<dyn ObjectStore>,
    /// Of all that is done to one object, retries included.
    operation_timeout: Duration,
}

/// Ends with the store, without waiting for its tasks.
struct StoreRuntime(Option<Runtime>);

impl Drop for StoreRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl BlobStore {
    pub fn open(location: &CheckpointLocation) -> Result<BlobStore, CheckpointError> {
        let refused = |problem: String| CheckpointError::Location { place: location.to_string(), problem };
        let objects: Arc<dyn ObjectStore> = match location {
            CheckpointLocation::Folder(folder) => Arc::new(folder_store(folder).map_err(refused)?),
            CheckpointLocation::S3 { bucket, prefix } => {
                let store = s3_store(bucket).map_err(|error| refused(error.to_string()))?;
                let prefix = Path::parse(prefix).map_err(|error| refused(error.to_string()))?;
                Arc::new(PrefixStore::new(store, prefix))
            }
        };
        BlobStore::with_objects(location, objects).map_err(|error| refused(fault::start_failure_text(&error)))
    }

    fn with_objects(
        location: &CheckpointLocation,
        objects: Arc<dyn ObjectStore>,
    ) -> std::io::Result<BlobStore> {
        let mut threads = tokio::runtime::Builder::new_multi_thread();
        let runtime = fault::build_runtime(threads.thread_name("checkpoint-store"), 1, BLOCKING_THREADS)?;
        let access = StoreClient {
            location: Arc::new(location.clone()),
            objects,
            operation_timeout: OPERATION_TIMEOUT,
        };
        Ok(BlobStore {
            client: access,
            handle: runtime.handle().clone(),
            _runtime: Arc::new(StoreRuntime(Some(runtime))),
        })
    }

    pub fn location(&self) -> &CheckpointLocation {
        &self.client.location
    }

    /// Starts to put an object that must not exist yet.
    pub(crate) fn start_put(&self, path: String, content: Bytes) -> PendingPut {
        let access = self.client.clone();
        let task = self.handle.spawn(async move {
            access
                .put_object(&path, content)
                .await?
                .then_some(())
                .ok_or(CheckpointError::AlreadyPublished(path))
        });
        PendingPut { store: self.clone(), task }
    }

    pub fn put_object(&self, path: String, content: Bytes) -> Result<(), CheckpointError> {
        self.start_put(path, content).wait_durable(&|| false)
    }

    /// The objects below a folder, by their paths.
    pub fn list_objects(&self, folder: &str) -> Result<BTreeMap<String, StoredObject>, CheckpointError> {
        let list = async {
            let mut objects = BTreeMap::new();
            let prefix = Path::from(folder);
            let mut listed = self.client.objects.list(Some(&prefix));
            while let Some(object) = listed.next().await {
                let object = object?;
                let (bytes, modified_ms) = (object.size, object.last_modified.timestamp_millis());
                objects.insert(object.location.to_string(), StoredObject { bytes, modified_ms });
            }
            Ok(objects)
        };
        self.handle.block_on(self.client.with_operation_timeout(folder, list))
    }

    /// Renames an object, and replaces an object of that name. A missing object is no error.
    pub(crate) fn rename_object(&self, from: &str, to: &str) -> Result<(), CheckpointError> {
        let rename = async {
            match self.client.objects.rename(&Path::from(from), &Path::from(to)).await {
                Err(Error::NotFound { .. }) => Ok(()),
                renamed => renamed,
            }
        };
        self.handle.block_on(self.client.with_operation_timeout(from, rename))
    }

    /// Deletes objects, and folders that become empty. A missing object is no error.
    pub fn delete_objects(&self, paths: Vec<String>) -> Result<(), CheckpointError> {
        self.handle.block_on(self.client.delete_objects(paths))
    }

    /// Starts to delete objects, without waiting.
    pub(crate) fn start_delete_objects(&self, paths: Vec<String>) {
        if paths.is_empty() {
            return;
        }
        let access = self.client.clone();
        self.handle.spawn(async move {
            if let Err(error) = access.delete_objects(paths).await {
                tracing::warn!("files of a cancelled checkpoint cannot be removed now; the next start tries again: {error}");
            }
        });
    }

    /// Removes the unfinished files that killed processes have left in a folder, if `left` accepts
    /// their path. Listing does not show them.
    pub(crate) fn remove_unfinished(&self, is_removable: impl Fn(&str) -> bool) -> std::io::Result<()> {
        let CheckpointLocation::Folder(root) = self.location() else { return Ok(()) };
        for folder in object_folders(root)? {
            for entry in std::fs::read_dir(&folder)? {
                let path = entry?.path();
                let Some(target) =
                    path.strip_prefix(root).ok().and_then(|path| path.to_str()).and_then(unfinished_target)
                else {
                    continue;
                };
                if is_removable(target) {
                    std::fs::remove_file(&path)?;
                }
            }
            // A folder that is not empty is still in use, and stays.
            let _ = std::fs::remove_dir(&folder);
        }
        Ok(())
    }
}

/// The folders that hold objects.
fn object_folders(root: &FilePath) -> std::io::Result<Vec<PathBuf>> {
    let mut folders = vec![root.join("manifests")];
    let data = root.join("data");
    for entry in if data.is_dir() { Some(std::fs::read_dir(&data)?) } else { None }.into_iter().flatten() {
        folders.push(entry?.path());
    }
    folders.retain(|folder| folder.is_dir());
    Ok(folders)
}

/// The path that an unfinished file would have got.
fn unfinished_target(path: &str) -> Option<&str> {
    let (whole, number) = path.rsplit_once('#')?;
    (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(whole)
}

impl StoreClient {
    async fn delete_objects(&self, paths: Vec<String>) -> Result<(), CheckpointError> {
        let folder = |path: &String| Some(path.rsplit_once('/')?.0.to_owned());
        let folders: BTreeSet<String> = paths.iter().filter_map(folder).collect();
        let deletes = paths.into_iter().map(|path| async move {
            let delete = async {
                match self.objects.delete(&Path::from(path.as_str())).await {
                    Err(Error::NotFound { .. }) => Ok(()),
                    deleted => deleted,
                }
            };
            self.with_operation_timeout(&path, delete).await
        });
        let mut deletes = stream::iter(deletes).buffer_unordered(MAX_CONCURRENT_REQUESTS);
        while let Some(deleted) = deletes.next().await {
            deleted?;
        }
        if let CheckpointLocation::Folder(root) = &*self.location {
            // A folder that is not empty is still in use, and stays.
            folders.iter().for_each(|folder| drop(std::fs::remove_dir(root.join(folder))));
        }
        Ok(())
    }

    /// Puts an object. Returns whether it exists now, with this content. An object in parts
    /// replaces an existing one: its name has the writer's nonce.
    async fn put_object(&self, path: &str, content: Bytes) -> Result<bool, CheckpointError> {
        let at = Path::from(path);
        if content.len() > MULTIPART_BYTES {
            return self.put_in_parts(path, &at, content).await.map(|()| true);
        }
        let write = async {
            for wait in (0..MAX_PUT_ATTEMPTS - 1).map(|tries| PUT_RETRY_INTERVAL * 2u32.pow(tries)) {
                match put_if_absent(&*self.objects, &at, content.clone()).await {
                    Err(Error::Generic { .. }) if self.is_remote() => tokio::time::sleep(wait).await,
                    result => return result,
                }
            }
            put_if_absent(&*self.objects, &at, content).await
        };
        self.with_operation_timeout(path, write).await
    }

    async fn put_in_parts(&self, path: &str, at: &Path, content: Bytes) -> Result<(), CheckpointError> {
        let mut upload = self.with_operation_timeout(path, self.objects.put_multipart(at)).await?;
        let parts: Vec<_> = (0..content.len())
            .step_by(MULTIPART_BYTES)
            .map(|from| {
                upload.put_part(content.slice(from..content.len().min(from + MULTIPART_BYTES)).into())
            })
            .collect();
        let upload_parts = async {
            stream::iter(parts).buffer_unordered(MAX_CONCURRENT_PARTS).try_collect::<()>().await?;
            upload.complete().await
        };
        let result = self.with_operation_timeout(path, upload_parts).await;
        if result.is_err() {
            // Otherwise the store would keep the parts, and charge for them.
            let _ = tokio::time::timeout(ABORT_TIMEOUT, upload.abort()).await;
        }
        result.map(drop)
    }

    pub(super) fn is_remote(&self) -> bool {
        matches!(&*self.location, CheckpointLocation::S3 { .. })
    }

    pub(super) async fn with_operation_timeout<T>(
        &self,
        path: &str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, CheckpointError> {
        let timeout = self.operation_timeout;
        let logged_work = async {
            let mut work = std::pin::pin!(work);
            match tokio::time::timeout(diagnostics::SLOW_REQUEST_THRESHOLD, &mut work).await {
                Ok(result) => result,
                Err(_) => {
                    if self.is_remote() {
                        diagnostics::log_slow_request(&self.location, path, timeout);
                    }
                    work.await
                }
            }
        };
        match tokio::time::timeout(timeout, logged_work).await {
            Ok(result) => result.map_err(|error| {
                let remedy = match &*self.location {
                    CheckpointLocation::Folder(folder) => fault::remedy_suffix(&error, &folder.join(path)),
                    CheckpointLocation::S3 { .. } => diagnostics::remedy_of_error(&error),
                };
                self.store_error(path, format!("{error}{remedy}"))
            }),
            Err(_) => {
                let remedy =
                    if self.is_remote() { diagnostics::remedy_of_no_answer() } else { String::new() };
                Err(self.store_error(path, format!("it took longer than {} s{remedy}", timeout.as_secs())))
            }
        }
    }

    pub(super) fn store_error(&self, path: &str, problem: String) -> CheckpointError {
        CheckpointError::StoreFailed { path: format!("{}/{path}", self.location), problem }
    }
}

impl fmt::Debug for BlobStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.location())
    }
}

/// A put in progress. It is cancelled if this is dropped.
pub(crate) struct PendingPut {
    store: BlobStore,
    task: JoinHandle<Result<(), CheckpointError>>,
}

impl PendingPut {
    /// Waits until the object exists, or until `is_given_up`.
    pub(crate) fn wait_durable(mut self, is_given_up: &dyn Fn() -> bool) -> Result<(), CheckpointError> {
        let handle = self.store.handle.clone();
        loop {
            match handle.block_on(async { tokio::time::timeout(CANCEL_POLL_INTERVAL, &mut self.task).await })
            {
                Ok(Ok(done)) => return done,
                Ok(Err(error)) => return Err(self.store.client.store_error("", error.to_string())),
                Err(_) if is_given_up() => return Err(CheckpointError::Cancelled),
                Err(_) => {}
            }
        }
    }
}

impl Drop for PendingPut {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn put_if_absent(objects: &dyn ObjectStore, path: &Path, content: Bytes) -> Result<bool, Error> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    match objects.put_opts(path, content.clone().into(), options).await {
        // The response to an earlier attempt may have been lost.
        Err(Error::AlreadyExists { .. }) => {
            let result = objects.get(path).await?;
            Ok(result.meta.size == content.len() as u64 && result.bytes().await? == content)
        }
        result => result.map(|_| true),
    }
}

fn folder_store(folder: &FilePath) -> Result<LocalFileSystem, String> {
    std::fs::create_dir_all(folder).map_err(|error| {
        format!("{error}: {}, or choose another location", fault::remedy_for(&error, folder))
    })?;
    let store = LocalFileSystem::new_with_prefix(folder).map_err(|error| error.to_string())?;
    Ok(store.with_fsync(true))
}

fn s3_store(bucket: &str) -> Result<impl ObjectStore + use<>, Error> {
    // A provider that is installed already will do.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let client = AmazonS3ConfigKey::Client;
    AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_config(client(ClientConfigKey::Timeout), REQUEST_TIMEOUT)
        .with_config(client(ClientConfigKey::ConnectTimeout), CONNECT_TIMEOUT)
        .with_retry(RetryConfig {
            backoff: BackoffConfig { max_backoff: Duration::from_secs(5), ..BackoffConfig::default() },
            max_retries: MAX_RETRIES,
            retry_timeout: RETRY_TIMEOUT,
        })
        .build()
}
