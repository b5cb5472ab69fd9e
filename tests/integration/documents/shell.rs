//! A shell that runs commands of the documents.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use super::markdown::repository;
use crate::support::remove_swelter_variables;

/// For all the commands of a page.
const PATIENCE: Duration = Duration::from_secs(300);

/// A shell and the processes that it has started: all of them end with this.
pub struct Shell {
    child: Child,
    folder: TempDir,
}

impl Shell {
    /// Runs commands in a folder that has the project's data, with the built program in the path.
    pub fn run(commands: &str, folder: TempDir, port: u16) -> Shell {
        std::os::unix::fs::symlink(repository().join("data"), folder.path().join("data")).unwrap();
        let program = PathBuf::from(env!("CARGO_BIN_EXE_swelter"));
        let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        remove_swelter_variables(&mut command);
        let file = |name: &str| {
            fs::File::options().append(true).create(true).open(folder.path().join(name)).unwrap()
        };
        let child = command
            .args(["-c", commands])
            .env("PATH", path)
            .env("SWELTER_SERVE__LISTEN", format!("127.0.0.1:{port}"))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("err"))
            .process_group(0)
            .spawn()
            .unwrap();
        Shell { child, folder }
    }

    /// Waits for the end of the commands; gives what they have written to standard output and standard error.
    pub fn finish(mut self) -> (String, String) {
        let deadline = Instant::now() + PATIENCE;
        let said = |name: &str| {
            let bytes = fs::read(self.folder.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it takes too long: {}{}", said("out"), said("err"));
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(status.success(), "{status}: {}{}", said("out"), said("err"));
        (said("out"), said("err"))
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}
