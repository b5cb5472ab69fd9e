//! The service as a child process.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use memchr::memmem;
use tempfile::TempDir;

use crate::http;

/// The program beside this bench, which `cargo build --release` makes. One with the hooks of the tests is not measured.
pub static BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let bench = env::current_exe().unwrap();
    let binary = bench.parent().and_then(Path::parent).unwrap().join("swelter");
    let bytes = fs::read(&binary)
        .unwrap_or_else(|error| panic!("{}: {error}: run `cargo build --release` first", binary.display()));
    let has_hooks = memmem::find(&bytes, b"SWELTER_TEST_").is_some();
    assert!(!has_hooks, "{} has test hooks: run `cargo build --release` again", binary.display());
    binary
});
/// A day of history of 15,000 cities takes a while, above all through the journal.
const READY_TIMEOUT: Duration = Duration::from_secs(300);

/// Ends with the scenario, its data too.
pub struct Server {
    child: Child,
    // A line that is not read must not end it.
    _stdout: BufReader<ChildStdout>,
    pub address: SocketAddr,
    // On a disk: the journal's fsync is measured as well.
    _dir: TempDir,
}

impl Server {
    /// Starts with this configuration; returns when it listens.
    pub fn start_listening(config: &str) -> Server {
        Server::start_binary(&BINARY, config)
    }

    /// The same with another build of the program.
    pub fn start_binary(binary: &Path, config: &str) -> Server {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let file = dir.path().join("swelter.toml");
        let data = dir.path().join("data");
        let common = format!("data_dir = {:?}\n", data.to_str().unwrap());
        fs::write(&file, format!("{common}{config}\n[log]\nlevel = \"warn\"\n")).unwrap();
        let mut child = command(binary, &file).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").expect("the service has not started");
        let address = address.parse().unwrap();
        Server { child, _stdout: stdout, address, _dir: dir }
    }

    /// Starts with this configuration; returns when it serves.
    pub fn start_ready(config: &str) -> Server {
        let server = Server::start_listening(config);
        server.wait_until_ready();
        server
    }

    /// Waits until it serves.
    pub fn wait_until_ready(&self) {
        let deadline = Instant::now() + READY_TIMEOUT;
        while http::get(self.address, "/readyz").is_none_or(|(status, _)| status != 200) {
            assert!(Instant::now() < deadline, "the service does not get ready");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the results hold so many readings.
    pub fn wait_for_readings(&self, count: u64) {
        let deadline = Instant::now() + READY_TIMEOUT;
        while self.metric("swelter_readings_total") < count as f64 {
            assert!(Instant::now() < deadline, "the results do not come to hold {count} readings");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The sum of a metric over its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, text) = http::get(self.address, "/metrics").expect("metrics");
        let lines = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ') || rest.starts_with('{'))
        });
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Bytes in memory.
    pub fn resident_bytes(&self) -> u64 {
        let text = fs::read_to_string(self.proc_file("statm")).unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    /// The same at most, since it started.
    pub fn peak_resident_bytes(&self) -> u64 {
        let text = fs::read_to_string(self.proc_file("status")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    pub fn cpu_time(&self) -> Duration {
        cpu_time_of(self.proc_file("stat"))
    }

    fn proc_file(&self, file: &str) -> PathBuf {
        format!("/proc/{}/{file}", self.child.id()).into()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(binary: &Path, config: &Path) -> Command {
    let mut command = Command::new(binary);
    command.args(["run", "--listen", "127.0.0.1:0", "--config"]).arg(config);
    command
}

/// CPU time that this process has taken.
pub fn own_cpu_time() -> Duration {
    cpu_time_of("/proc/self/stat".into())
}

fn cpu_time_of(stat: PathBuf) -> Duration {
    let text = fs::read_to_string(stat).unwrap();
    // The name, in parentheses, may hold spaces.
    let fields: Vec<&str> = text[text.rfind(')').unwrap() + 2..].split(' ').collect();
    let ticks = |at: usize| fields[at].parse::<u64>().unwrap();
    // In hundredths of a second, everywhere on Linux.
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}
