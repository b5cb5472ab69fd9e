//! The store itself, where it speaks S3.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};

use crate::checkpoint::store::{Fetched, Store};

use super::*;

const ENDPOINT: &str = "AWS_ENDPOINT_URL";

/// A process that is killed when this is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reached as the environment says, which is why it is a process of its own.
#[test]
#[ignore = "run by objects_in_parts_and_races_on_s3"]
fn s3_process() {
    if std::env::var_os(ENDPOINT).is_none() {
        return;
    }
    let open = || Store::open(&"s3://heat/of/cities".parse().unwrap()).unwrap();
    let store = open();
    // Three parts, the last one short.
    let large: Bytes = (0..36u32 << 20).map(|n| (n.wrapping_mul(0x9E37_79B9) >> 24) as u8).collect();
    store.put("data/large".into(), large.clone()).unwrap();
    assert!(store.get_sized("data/large", 36 << 20).unwrap() == Fetched::Content(large));
    assert_eq!(store.list("data").unwrap()["data/large"].bytes, 36 << 20);

    let won: Vec<bool> = std::thread::scope(|scope| {
        let race =
            |racer: u8| scope.spawn(move || open().put("manifests/one".into(), vec![racer; 100].into()));
        let racing: Vec<_> = (0..6).map(race).collect();
        racing.into_iter().map(|racer| racer.join().unwrap().is_ok()).collect()
    });
    assert_eq!(won.iter().filter(|won| **won).count(), 1, "{won:?}");
    let winner = won.iter().position(|won| *won).unwrap() as u8;
    assert_eq!(store.get("manifests/one", 1_000).unwrap(), Fetched::Content(vec![winner; 100].into()));
    store.rename("data/large", "data/large.damaged").unwrap();
    assert_eq!(store.get_sized("data/large", 36 << 20).unwrap(), Fetched::Missing);
    assert_eq!(store.get("data/large.damaged", 1_000).unwrap(), Fetched::OtherSize(36 << 20));
    // Again what is there: as after an answer that was lost.
    store.put("manifests/one".into(), vec![winner; 100].into()).unwrap();
    store.delete(vec!["data/large.damaged".into(), "manifests/one".into(), "none".into()]).unwrap();
    assert!(store.list("data").unwrap().is_empty());
}

#[test]
fn objects_in_parts_and_races_on_s3() {
    let Some(python) = std::env::var_os("TEST_PYTHON") else {
        // `eprintln!` would be captured.
        let _ = writeln!(
            std::io::stderr(),
            "NOT TESTED: a store that speaks S3 needs TEST_PYTHON: scripts/test sets it"
        );
        return;
    };
    let mut server = Command::new(&python)
        .args([concat!(env!("CARGO_MANIFEST_DIR"), "/tests/real/s3_store.py"), "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map(Server)
        .unwrap();
    let mut port = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut port).unwrap();
    let endpoint = format!("http://127.0.0.1:{}", port.trim());
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["checkpoint::tests::s3::s3_process", "--exact", "--ignored", "--nocapture"])
        .envs([("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_REGION", "us-east-1")])
        .envs([("AWS_ALLOW_HTTP", "true"), (ENDPOINT, &endpoint)])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
