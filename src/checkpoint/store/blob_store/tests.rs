//! Places, and answers that do not come.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions,
    PutPayload, PutResult,
};

use super::*;
use crate::checkpoint::store::FetchResult;

#[test]
fn location_parses_folders_and_buckets() {
    let s3 =
        |bucket: &str, prefix: &str| CheckpointLocation::S3 { bucket: bucket.into(), prefix: prefix.into() };
    for (text, place, shown) in [
        ("data/checkpoints", CheckpointLocation::Folder("data/checkpoints".into()), "data/checkpoints"),
        ("file:///var/lib/x", CheckpointLocation::Folder("/var/lib/x".into()), "/var/lib/x"),
        ("s3://bucket", s3("bucket", ""), "s3://bucket"),
        ("s3://a-bucket/one/two/", s3("a-bucket", "one/two"), "s3://a-bucket/one/two"),
    ] {
        let parsed: CheckpointLocation = text.parse().unwrap();
        assert_eq!((&parsed, parsed.to_string().as_str()), (&place, shown));
    }
    for text in ["", "s3://", "s3:///prefix", "s3://user@bucket", "http://host/bucket", "file://relative"] {
        assert!(text.parse::<CheckpointLocation>().is_err(), "{text}");
    }
}

/// A store whose first answers to puts do not come, though what is put is there; or to none.
#[derive(Debug)]
struct UnansweringStore {
    objects: InMemory,
    lost: AtomicUsize,
    hangs: bool,
}

impl fmt::Display for UnansweringStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("silent")
    }
}

#[async_trait]
impl ObjectStore for UnansweringStore {
    async fn put_opts(&self, at: &Path, put: PutPayload, options: PutOptions) -> Result<PutResult, Error> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        let done = self.objects.put_opts(at, put, options).await;
        match self.lost.fetch_update(SeqCst, SeqCst, |lost| lost.checked_sub(1)) {
            Ok(_) => Err(Error::Generic { store: "S3", source: "timed out".into() }),
            Err(_) => done,
        }
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>, Error> {
        self.objects.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult, Error> {
        self.objects.get_opts(at, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path, Error>>,
    ) -> BoxStream<'static, Result<Path, Error>> {
        self.objects.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta, Error>> {
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult, Error> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<(), Error> {
        self.objects.copy_opts(from, to, options).await
    }
}

fn unanswering_store(lost: usize, hangs: bool) -> BlobStore {
    let objects = UnansweringStore { objects: InMemory::new(), lost: AtomicUsize::new(lost), hangs };
    BlobStore::with_objects(&"s3://bucket".parse().unwrap(), Arc::new(objects)).unwrap()
}

#[test]
fn put_without_response_is_retried() {
    let store = unanswering_store(2, false);
    store.put_object("one".into(), Bytes::from_static(b"content")).unwrap();
    assert_eq!(store.get_object("one", 100).unwrap(), FetchResult::Content(Bytes::from_static(b"content")));
    let other = store.put_object("one".into(), Bytes::from_static(b"other"));
    assert!(matches!(other, Err(CheckpointError::AlreadyPublished(_))), "{other:?}");
    let failed = unanswering_store(3, false).put_object("one".into(), Bytes::new());
    assert!(matches!(failed, Err(CheckpointError::StoreFailed { .. })), "{failed:?}");
}

#[test]
fn hanging_store_times_out_with_remedy() {
    let mut store = unanswering_store(0, true);
    store.client.operation_timeout = Duration::from_millis(50);
    let problem = store.put_object("one".into(), Bytes::new()).unwrap_err().to_string();
    for said in ["s3://bucket/one", "it took longer than", "endpoint", "AWS_ENDPOINT_URL"] {
        assert!(problem.contains(said), "{problem}");
    }
    let failed = unanswering_store(3, false).put_object("one".into(), Bytes::new()).unwrap_err().to_string();
    assert!(failed.contains("timed out") && failed.contains("AWS_ENDPOINT_URL"), "{failed}");
}

#[test]
fn hanging_put_is_cancelled_on_request() {
    let given_up = unanswering_store(0, true).start_put("one".into(), Bytes::new()).wait_durable(&|| true);
    assert!(matches!(given_up, Err(CheckpointError::Cancelled)), "{given_up:?}");
}

#[test]
fn store_may_be_dropped_on_its_own_runtime_thread() {
    let (store, (ended, heard)) = (unanswering_store(0, false), std::sync::mpsc::channel());
    let handle = store.handle.clone();
    handle.spawn(async move {
        drop(store);
        let _ = ended.send(());
    });
    heard.recv_timeout(Duration::from_secs(60)).unwrap();
}
