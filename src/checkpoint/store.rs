//! Objects in a folder or in a store that speaks S3, for callers that are plain threads.

mod read;
mod remote;
#[cfg(test)]
mod tests;

pub use self::read::Fetched;

use std::collections::{BTreeMap, BTreeSet};
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
    BackoffConfig, ClientConfigKey, Error, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, RetryConfig,
};
use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinHandle;

use super::CheckpointError;
use crate::fault;

/// What is larger goes in parts of so many bytes, so that no request takes long.
const PART_BYTES: usize = 16 << 20;
/// Parts of one object that are on their way at a time.
const PARTS_AT_ONCE: usize = 4;
const REQUESTS_AT_ONCE: usize = 16;
/// Threads that read and write the files of a folder.
const BLOCKING_THREADS: usize = 8;
const RETRIES: usize = 5;
/// From the first try of a request to the last.
const RETRY_TIME: Duration = Duration::from_secs(60);
/// Of all that is done to one object, retries included.
const OPERATION_TIME: Duration = Duration::from_secs(300);
/// Of giving up an object that went in parts.
const ABORT_TIME: Duration = Duration::from_secs(30);
/// The client does not try a put of a new object again whose answer did not come: it cannot know what became of it. We compare.
const PUT_TRIES: u32 = 3;
const PUT_PAUSE: Duration = Duration::from_millis(500);
/// How often a wait looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(100);
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

impl Place {
    /// What is below this under a name.
    pub fn join(&self, name: &str) -> Place {
        match self {
            Place::Folder(folder) => Place::Folder(folder.join(name)),
            Place::S3 { bucket, prefix } if prefix.is_empty() => {
                Place::S3 { bucket: bucket.clone(), prefix: name.into() }
            }
            Place::S3 { bucket, prefix } => {
                Place::S3 { bucket: bucket.clone(), prefix: format!("{prefix}/{name}") }
            }
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
pub struct Object {
    pub bytes: u64,
    pub modified_ms: i64,
}

/// How a store is reached. Cloned by reference.
#[derive(Clone)]
pub struct Store {
    access: Access,
    handle: Handle,
    _threads: Arc<Threads>,
}

/// What tasks have of a store: not its threads, which the last one of them would wait for.
#[derive(Clone)]
struct Access {
    place: Arc<Place>,
    objects: Arc<dyn ObjectStore>,
    /// Of all that is done to one object, retries included.
    operation_time: Duration,
}

/// They end with the store, and nobody waits for them.
struct Threads(Option<Runtime>);

impl Drop for Threads {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

impl Store {
    pub fn open(place: &Place) -> Result<Store, CheckpointError> {
        let refused = |problem: String| CheckpointError::Place { place: place.to_string(), problem };
        let objects: Arc<dyn ObjectStore> = match place {
            Place::Folder(folder) => Arc::new(folder_store(folder).map_err(refused)?),
            Place::S3 { bucket, prefix } => {
                let store = s3_store(bucket).map_err(|error| refused(error.to_string()))?;
                let prefix = Path::parse(prefix).map_err(|error| refused(error.to_string()))?;
                Arc::new(PrefixStore::new(store, prefix))
            }
        };
        Store::of(place, objects).map_err(|error| refused(fault::cannot_start(&error)))
    }

    fn of(place: &Place, objects: Arc<dyn ObjectStore>) -> std::io::Result<Store> {
        let mut threads = tokio::runtime::Builder::new_multi_thread();
        let runtime = fault::build_runtime(threads.thread_name("checkpoint-store"), 1, BLOCKING_THREADS)?;
        let access = Access { place: Arc::new(place.clone()), objects, operation_time: OPERATION_TIME };
        Ok(Store { access, handle: runtime.handle().clone(), _threads: Arc::new(Threads(Some(runtime))) })
    }

    pub fn place(&self) -> &Place {
        &self.access.place
    }

    /// Begins to put an object that is not to be there yet.
    pub(super) fn start_put(&self, path: String, content: Bytes) -> Putting {
        let access = self.access.clone();
        let task = self.handle.spawn(async move {
            access.put(&path, content).await?.then_some(()).ok_or(CheckpointError::Exists(path))
        });
        Putting { store: self.clone(), task }
    }

    pub fn put(&self, path: String, content: Bytes) -> Result<(), CheckpointError> {
        self.start_put(path, content).wait(&|| false)
    }

    /// The objects below a folder, by their paths.
    pub fn list(&self, folder: &str) -> Result<BTreeMap<String, Object>, CheckpointError> {
        let list = async {
            let mut found = BTreeMap::new();
            let prefix = Path::from(folder);
            let mut listed = self.access.objects.list(Some(&prefix));
            while let Some(object) = listed.next().await {
                let object = object?;
                let (bytes, modified_ms) = (object.size, object.last_modified.timestamp_millis());
                found.insert(object.location.to_string(), Object { bytes, modified_ms });
            }
            Ok(found)
        };
        self.handle.block_on(self.access.in_time(folder, list))
    }

    /// Gives an object another name; one that has it is replaced. An object that is not there stays so.
    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), CheckpointError> {
        let rename = async {
            match self.access.objects.rename(&Path::from(from), &Path::from(to)).await {
                Err(Error::NotFound { .. }) => Ok(()),
                renamed => renamed,
            }
        };
        self.handle.block_on(self.access.in_time(from, rename))
    }

    /// Deletes objects, and folders that become empty. One that is not there is deleted already.
    pub fn delete(&self, paths: Vec<String>) -> Result<(), CheckpointError> {
        self.handle.block_on(self.access.delete(paths))
    }

    /// Deletes objects that nobody waits for to be gone.
    pub(super) fn start_delete(&self, paths: Vec<String>) {
        if paths.is_empty() {
            return;
        }
        let access = self.access.clone();
        self.handle.spawn(async move {
            if let Err(error) = access.delete(paths).await {
                tracing::warn!("files of a checkpoint that is none cannot be removed yet: {error}");
            }
        });
    }

    /// Removes what killed processes have left in a folder of what they were writing, where its path is `left`: lists do not show it.
    pub(super) fn remove_unfinished(&self, left: impl Fn(&str) -> bool) -> std::io::Result<()> {
        let Place::Folder(root) = self.place() else { return Ok(()) };
        for folder in folders(root)? {
            for entry in std::fs::read_dir(&folder)? {
                let path = entry?.path();
                let Some(whole) =
                    path.strip_prefix(root).ok().and_then(|path| path.to_str()).and_then(unfinished)
                else {
                    continue;
                };
                if left(whole) {
                    std::fs::remove_file(&path)?;
                }
            }
            // Where it is not empty it is still used.
            let _ = std::fs::remove_dir(&folder);
        }
        Ok(())
    }
}

/// Where a folder has its objects.
fn folders(root: &FilePath) -> std::io::Result<Vec<PathBuf>> {
    let mut folders = vec![root.join("manifests")];
    let data = root.join("data");
    for entry in if data.is_dir() { Some(std::fs::read_dir(&data)?) } else { None }.into_iter().flatten() {
        folders.push(entry?.path());
    }
    folders.retain(|folder| folder.is_dir());
    Ok(folders)
}

/// What an object was to be called whose file is being written.
fn unfinished(path: &str) -> Option<&str> {
    let (whole, number) = path.rsplit_once('#')?;
    (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(whole)
}

impl Access {
    async fn delete(&self, paths: Vec<String>) -> Result<(), CheckpointError> {
        let folder = |path: &String| Some(path.rsplit_once('/')?.0.to_owned());
        let folders: BTreeSet<String> = paths.iter().filter_map(folder).collect();
        let deletes = paths.into_iter().map(|path| async move {
            let delete = async {
                match self.objects.delete(&Path::from(path.as_str())).await {
                    Err(Error::NotFound { .. }) => Ok(()),
                    deleted => deleted,
                }
            };
            self.in_time(&path, delete).await
        });
        let mut deletes = stream::iter(deletes).buffer_unordered(REQUESTS_AT_ONCE);
        while let Some(deleted) = deletes.next().await {
            deleted?;
        }
        if let Place::Folder(root) = &*self.place {
            // Where it is not empty it is still used.
            folders.iter().for_each(|folder| drop(std::fs::remove_dir(root.join(folder))));
        }
        Ok(())
    }

    /// Whether the object is there now, with this content. An object that goes in parts replaces one that is there: its name has the nonce
    /// of who writes it.
    async fn put(&self, path: &str, content: Bytes) -> Result<bool, CheckpointError> {
        let at = Path::from(path);
        if content.len() > PART_BYTES {
            return self.put_in_parts(path, &at, content).await.map(|()| true);
        }
        let put = async {
            for wait in (0..PUT_TRIES - 1).map(|tries| PUT_PAUSE * 2u32.pow(tries)) {
                match put_new(&*self.objects, &at, content.clone()).await {
                    Err(Error::Generic { .. }) if self.is_remote() => tokio::time::sleep(wait).await,
                    done => return done,
                }
            }
            put_new(&*self.objects, &at, content).await
        };
        self.in_time(path, put).await
    }

    async fn put_in_parts(&self, path: &str, at: &Path, content: Bytes) -> Result<(), CheckpointError> {
        let mut upload = self.in_time(path, self.objects.put_multipart(at)).await?;
        let parts: Vec<_> = (0..content.len())
            .step_by(PART_BYTES)
            .map(|from| upload.put_part(content.slice(from..content.len().min(from + PART_BYTES)).into()))
            .collect();
        let put = async {
            stream::iter(parts).buffer_unordered(PARTS_AT_ONCE).try_collect::<()>().await?;
            upload.complete().await
        };
        let done = self.in_time(path, put).await;
        if done.is_err() {
            // Its parts would be kept, and paid for.
            let _ = tokio::time::timeout(ABORT_TIME, upload.abort()).await;
        }
        done.map(drop)
    }

    fn is_remote(&self) -> bool {
        matches!(&*self.place, Place::S3 { .. })
    }

    async fn in_time<T>(
        &self,
        path: &str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, CheckpointError> {
        let most = self.operation_time;
        let told = async {
            let mut work = std::pin::pin!(work);
            match tokio::time::timeout(remote::NOTICE_TIME, &mut work).await {
                Ok(done) => done,
                Err(_) => {
                    if self.is_remote() {
                        remote::tell_wait(&self.place, path, most);
                    }
                    work.await
                }
            }
        };
        match tokio::time::timeout(most, told).await {
            Ok(done) => done.map_err(|error| {
                let remedy = match &*self.place {
                    Place::Folder(folder) => fault::remedy_suffix(&error, &folder.join(path)),
                    Place::S3 { .. } => remote::remedy(&error),
                };
                self.failed(path, format!("{error}{remedy}"))
            }),
            Err(_) => {
                let remedy = if self.is_remote() { remote::silence_remedy() } else { String::new() };
                Err(self.failed(path, format!("it took longer than {} s{remedy}", most.as_secs())))
            }
        }
    }

    fn failed(&self, path: &str, problem: String) -> CheckpointError {
        CheckpointError::Store { path: format!("{}/{path}", self.place), problem }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.place())
    }
}

/// An object that is on its way; it is given up when this is dropped.
pub(super) struct Putting {
    store: Store,
    task: JoinHandle<Result<(), CheckpointError>>,
}

impl Putting {
    /// Waits until it is there, or until nobody wants it any more.
    pub(super) fn wait(mut self, is_given_up: &dyn Fn() -> bool) -> Result<(), CheckpointError> {
        let handle = self.store.handle.clone();
        loop {
            match handle.block_on(async { tokio::time::timeout(LOOK, &mut self.task).await }) {
                Ok(Ok(done)) => return done,
                Ok(Err(error)) => return Err(self.store.access.failed("", error.to_string())),
                Err(_) if is_given_up() => return Err(CheckpointError::GivenUp),
                Err(_) => {}
            }
        }
    }
}

impl Drop for Putting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn put_new(objects: &dyn ObjectStore, path: &Path, content: Bytes) -> Result<bool, Error> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    match objects.put_opts(path, content.clone().into(), options).await {
        // The answer to an earlier try may have been lost.
        Err(Error::AlreadyExists { .. }) => {
            let found = objects.get(path).await?;
            Ok(found.meta.size == content.len() as u64 && found.bytes().await? == content)
        }
        done => done.map(|_| true),
    }
}

fn folder_store(folder: &FilePath) -> Result<LocalFileSystem, String> {
    std::fs::create_dir_all(folder)
        .map_err(|error| format!("{error}: {}, or choose another place", fault::remedy(&error, folder)))?;
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
