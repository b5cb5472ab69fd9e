//! The built program as a child process.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::http::{self, HttpResponse};
use crate::service_process::{WAIT_TIMEOUT, wait_for};

/// A service with a data directory of its own, both gone when it is dropped.
pub struct ServiceProcess {
    folder: TempDir,
    child: Child,
    pub address: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl ServiceProcess {
    /// `swelter run` with a configuration file, on any free port.
    pub fn start_run(config: &str) -> ServiceProcess {
        ServiceProcess::start_run_with(config, &[])
    }

    /// With further variables.
    pub fn start_run_with(config: &str, variables: &[(&str, &str)]) -> ServiceProcess {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("swelter.toml"), config).unwrap();
        let log = Arc::default();
        let mut command = run_command(&folder, "127.0.0.1:0");
        let (child, address) = start_and_wait_for_address(command.envs(variables.iter().copied()), &log);
        ServiceProcess { folder, child, address, log }
    }

    /// `swelter demo`, on any free port.
    pub fn start_demo(cities: u32) -> ServiceProcess {
        let folder = tempfile::tempdir().unwrap();
        let mut command = swelter_command();
        // The demo makes and removes a folder for temporary files.
        command.env("TMPDIR", folder.path());
        command.args(["demo", "--listen", "127.0.0.1:0", "--cities", &cities.to_string()]);
        let log = Arc::default();
        let (child, address) = start_and_wait_for_address(&mut command, &log);
        ServiceProcess { folder, child, address, log }
    }

    /// The same again after a `kill`, with its data and on its port.
    pub fn restart(&mut self) {
        let mut command = run_command(&self.folder, &self.address.to_string());
        (self.child, _) = start_and_wait_for_address(&mut command, &self.log);
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and how it ends.
    pub fn terminate(&mut self) -> ExitStatus {
        kill_process(self.pid(), Signal::TERM).unwrap();
        self.wait_for_exit()
    }

    /// How it ends.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        wait_for("the service ends", || self.child.try_wait().unwrap())
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn get(&self, path: &str) -> HttpResponse {
        http::get(self.address, path).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    pub fn wait_until_ready(&self) {
        wait_for("the service is ready", || {
            http::get(self.address, "/readyz").ok().filter(|answer| answer.status == 200)
        });
    }

    /// Posts readings that must all be accepted; the places that they have got in the log.
    pub fn post(&self, readings: &Value) -> Vec<Value> {
        let answer = http::post(self.address, "/v1/readings", readings).unwrap();
        let taken = answer.json();
        assert_eq!((answer.status, taken["refused_count"].as_u64()), (200, Some(0)), "{taken}");
        taken["positions"].as_array().unwrap().clone()
    }

    /// Waits until results include these places of the log; the epoch as of when they do.
    pub fn wait_until_applied(&self, positions: &[Value]) -> u64 {
        wait_for("what was posted is applied", || {
            let status = self.get("/v1/status").json();
            positions
                .iter()
                .all(|position| is_applied(&status, position))
                .then(|| status["as_of"].as_u64())?
        })
    }
}

fn is_applied(status: &Value, position: &Value) -> bool {
    let sources = status["sources"].as_array().into_iter().flatten();
    let partitions = sources
        .filter(|source| source["name"] == position["source"])
        .flat_map(|source| source["partitions"].as_array().into_iter().flatten());
    partitions
        .filter(|partition| partition["partition"] == position["partition"])
        .any(|partition| partition["applied"].as_u64() >= position["end"].as_u64())
}

impl Drop for ServiceProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- the log of the service\n{}---", self.log());
        }
    }
}

/// Without any variable of the tester's own configuration.
fn swelter_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swelter"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SWELTER_")) {
        command.env_remove(name);
    }
    command
}

fn run_command(folder: &TempDir, listen: &str) -> Command {
    let file = |name: &str| -> PathBuf { folder.path().join(name) };
    let mut command = swelter_command();
    command.args(["run", "--listen", listen, "--config"]).arg(file("swelter.toml"));
    command.arg("--data-dir").arg(file("data"));
    command
}

/// Starts it and waits for the line that says where it listens. What it logs is kept for failure messages.
fn start_and_wait_for_address(command: &mut Command, log: &Arc<Mutex<String>>) -> (Child, SocketAddr) {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (said, heard) = mpsc::channel();
    let out = BufReader::new(child.stdout.take().unwrap());
    thread::spawn(move || out.lines().map_while(Result::ok).for_each(|line| drop(said.send(line))));
    let err = BufReader::new(child.stderr.take().unwrap());
    let kept = log.clone();
    thread::spawn(move || {
        for line in err.lines().map_while(Result::ok) {
            let _ = writeln!(kept.lock().unwrap_or_else(PoisonError::into_inner), "{line}");
        }
    });
    let line = heard.recv_timeout(WAIT_TIMEOUT).unwrap_or_default();
    let Some(address) =
        line.strip_prefix("listening on http://").and_then(|address| address.trim().parse().ok())
    else {
        let _ = child.kill();
        let _ = child.wait();
        panic!(
            "the service does not listen: {line:?}\n{}",
            log.lock().unwrap_or_else(PoisonError::into_inner)
        );
    };
    (child, address)
}
