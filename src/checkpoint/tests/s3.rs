//! The store itself, where it speaks S3.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use crate::checkpoint::store::{BlobStore, FetchResult};
use crate::child_tests::{assert_ran_one_test, child_test};

use super::*;

const ENDPOINT: &str = "AWS_ENDPOINT_URL";

/// A process that is killed when this is dropped.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reached as the environment says, which is why it is a process of its own.
#[test]
#[ignore = "child process of `s3_store_uploads_multipart_and_resolves_races`"]
fn child_process_tests_s3_store() {
    assert!(std::env::var_os(ENDPOINT).is_some());
    let open = || BlobStore::open(&"s3://heat/of/cities".parse().unwrap()).unwrap();
    let store = open();
    // Three parts, the last one short.
    let large: Bytes = (0..36u32 << 20).map(|n| (n.wrapping_mul(0x9E37_79B9) >> 24) as u8).collect();
    store.put_object("data/large".into(), large.clone()).unwrap();
    assert!(store.get_object_of_size("data/large", 36 << 20).unwrap() == FetchResult::Content(large));
    assert_eq!(store.list_objects("data").unwrap()["data/large"].bytes, 36 << 20);

    let won: Vec<bool> = std::thread::scope(|scope| {
        let race = |racer: u8| {
            scope.spawn(move || open().put_object("manifests/one".into(), vec![racer; 100].into()))
        };
        let racing: Vec<_> = (0..6).map(race).collect();
        racing.into_iter().map(|racer| racer.join().unwrap().is_ok()).collect()
    });
    assert_eq!(won.iter().filter(|won| **won).count(), 1, "{won:?}");
    let winner = won.iter().position(|won| *won).unwrap() as u8;
    assert_eq!(
        store.get_object("manifests/one", 1_000).unwrap(),
        FetchResult::Content(vec![winner; 100].into())
    );
    store.rename_object("data/large", "data/large.damaged").unwrap();
    assert_eq!(store.get_object_of_size("data/large", 36 << 20).unwrap(), FetchResult::Missing);
    assert_eq!(store.get_object("data/large.damaged", 1_000).unwrap(), FetchResult::SizeMismatch(36 << 20));
    // Again what is there: as after an answer that was lost.
    store.put_object("manifests/one".into(), vec![winner; 100].into()).unwrap();
    store.delete_objects(vec!["data/large.damaged".into(), "manifests/one".into(), "none".into()]).unwrap();
    assert!(store.list_objects("data").unwrap().is_empty());
}

#[test]
#[ignore = "needs Python: scripts/test"]
fn s3_store_uploads_multipart_and_resolves_races() {
    let python = std::env::var_os("TEST_PYTHON").expect("scripts/test sets TEST_PYTHON");
    let mut server = Command::new(&python)
        .args([concat!(env!("CARGO_MANIFEST_DIR"), "/tests/real/s3_store.py"), "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map(KillOnDrop)
        .unwrap();
    let mut port = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut port).unwrap();
    let endpoint = format!("http://127.0.0.1:{}", port.trim());
    let output = child_test("checkpoint::tests::s3::child_process_tests_s3_store")
        .envs([("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_REGION", "us-east-1")])
        .envs([("AWS_ALLOW_HTTP", "true"), (ENDPOINT, &endpoint)])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_ran_one_test(&output.stdout);
}
