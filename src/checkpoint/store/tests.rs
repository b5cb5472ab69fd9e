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
    for text in ["", "s3://", "s3:///prefix", "s3://user@bucket", "http://host/bucket", "file://relative"] {
        assert!(text.parse::<Place>().is_err(), "{text}");
    }
}

/// A store whose first answers to puts do not come, though what is put is there; or to none.
#[derive(Debug)]
struct Silent {
    objects: InMemory,
    lost: AtomicUsize,
    hangs: bool,
}

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("silent")
    }
}

#[async_trait]
impl ObjectStore for Silent {
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

fn silent(lost: usize, hangs: bool) -> Store {
    let objects = Silent { objects: InMemory::new(), lost: AtomicUsize::new(lost), hangs };
    Store::of(&"s3://bucket".parse().unwrap(), Arc::new(objects)).unwrap()
}

#[test]
fn a_put_without_an_answer_is_tried_again() {
    let store = silent(2, false);
    store.put("one".into(), Bytes::from_static(b"content")).unwrap();
    assert_eq!(store.get("one", 100).unwrap(), Fetched::Content(Bytes::from_static(b"content")));
    let other = store.put("one".into(), Bytes::from_static(b"other"));
    assert!(matches!(other, Err(CheckpointError::Exists(_))), "{other:?}");
    let failed = silent(3, false).put("one".into(), Bytes::new());
    assert!(matches!(failed, Err(CheckpointError::Store { .. })), "{failed:?}");
}

#[test]
fn store_that_hangs_is_given_up_with_a_remedy() {
    let mut store = silent(0, true);
    store.access.operation_time = Duration::from_millis(50);
    let problem = store.put("one".into(), Bytes::new()).unwrap_err().to_string();
    for said in ["s3://bucket/one", "it took longer than", "endpoint", "AWS_ENDPOINT_URL"] {
        assert!(problem.contains(said), "{problem}");
    }
    let failed = silent(3, false).put("one".into(), Bytes::new()).unwrap_err().to_string();
    assert!(failed.contains("timed out") && failed.contains("AWS_ENDPOINT_URL"), "{failed}");
}

#[test]
fn a_put_that_hangs_is_given_up_when_it_is_not_wanted() {
    let given_up = silent(0, true).start_put("one".into(), Bytes::new()).wait(&|| true);
    assert!(matches!(given_up, Err(CheckpointError::GivenUp)), "{given_up:?}");
}

#[test]
fn the_last_of_a_store_may_end_on_its_own_thread() {
    let (store, (ended, heard)) = (silent(0, false), std::sync::mpsc::channel());
    let handle = store.handle.clone();
    handle.spawn(async move {
        drop(store);
        let _ = ended.send(());
    });
    heard.recv_timeout(Duration::from_secs(60)).unwrap();
}
