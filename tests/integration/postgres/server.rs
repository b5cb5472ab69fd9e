//! The server that tests share, and private servers, which a test can kill.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::prepared::prepared_variable;
use crate::support::wait_for;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/postgres");

/// The URL of the server that all tests share, as its superuser. A test that calls this has
/// `#[ignore = "needs PostgreSQL: scripts/test"]`.
pub fn shared_server() -> String {
    prepared_variable("SWELTER_POSTGRES").into_string().unwrap()
}

/// A server for one test, which may kill it. It ends with the test.
pub struct PrivateServer {
    folder: TempDir,
    child: Option<Child>,
    pub url: String,
}

impl PrivateServer {
    pub fn start(options: &[&str]) -> PrivateServer {
        let folder = tempfile::tempdir().unwrap();
        let child = spawn_script("run", folder.path(), options);
        let mut server = PrivateServer { folder, child: Some(child), url: String::new() };
        server.wait_until_ready();
        server.url = server.file("address").trim().to_owned();
        server
    }

    /// A streaming replica of this server.
    pub fn start_replica(&self) -> PrivateServer {
        PrivateServer::start(&["--replica-of", self.folder.path().to_str().unwrap()])
    }

    /// Starts it again, on the same port and data.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs");
        // The log of the last start would be taken for this one's.
        fs::remove_file(self.path("log")).unwrap();
        self.child = Some(spawn_script("run", self.folder.path(), &[]));
        self.wait_until_ready();
    }

    pub fn kill(&mut self) {
        self.stop_with(Signal::KILL);
    }

    /// An immediate shutdown: sessions are cut off, and the next start recovers.
    pub fn shut_down_immediately(&mut self) {
        self.stop_with(Signal::QUIT);
    }

    fn stop_with(&mut self, signal: Signal) {
        let mut child = self.child.take().unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        child.wait().unwrap();
    }

    fn wait_until_ready(&mut self) {
        let log = self.path("log");
        wait_for("that the server has started", || {
            let said = fs::read_to_string(&log).unwrap_or_default();
            if let Some(status) = self.child.as_mut()?.try_wait().unwrap() {
                // Sessions of a server that was killed hold its memory for a moment.
                assert!(said.contains("shared memory"), "the server has ended with {status}: {said}");
                self.child = Some(spawn_script("run", self.folder.path(), &[]));
            }
            said.contains("ready to accept").then_some(())
        });
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = kill_process(Pid::from_child(child), Signal::QUIT);
            let _ = child.wait();
        }
        // libtest shows it if the test fails.
        eprintln!("the server:\n{}", fs::read_to_string(self.path("log")).unwrap_or_default());
    }
}

/// PgBouncer before a server, with transactions of any session on any connection. It ends with the
/// test.
pub struct Pooler {
    folder: TempDir,
    child: Child,
    pub url: String,
}

impl Pooler {
    pub fn start(server: &str) -> Pooler {
        let folder = tempfile::tempdir().unwrap();
        let child = spawn_script("pool", folder.path(), &[server]);
        let mut pooler = Pooler { folder, child, url: String::new() };
        let log = pooler.folder.path().join("log");
        wait_for("that the pooler has started", || {
            let said = fs::read_to_string(&log).unwrap_or_default();
            assert!(pooler.child.try_wait().unwrap().is_none(), "the pooler has ended: {said}");
            said.contains("process up").then_some(())
        });
        pooler.url = fs::read_to_string(pooler.folder.path().join("address")).unwrap().trim().to_owned();
        pooler
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        eprintln!("the pooler:\n{}", fs::read_to_string(self.folder.path().join("log")).unwrap_or_default());
    }
}

/// The script becomes the server, so the child is the server.
fn spawn_script(command: &str, folder: &Path, options: &[&str]) -> Child {
    Command::new(SCRIPT)
        .arg(command)
        .arg(folder)
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}
