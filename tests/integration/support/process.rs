//! The built program as a child process.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::http::{self, HttpResponse};
use super::log_lines::check_log_keys;
use super::wait::wait_for;

/// From SIGTERM to the end of a service without hostile clients.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// The built program, without any variable that configures the tests or the tester's own service.
pub fn swelter_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swelter"));
    remove_swelter_variables(&mut command);
    command
}

/// The built program behind a command of the shell, as in `ulimit -n 256`.
pub fn swelter_command_behind(shell: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{shell}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_swelter")]);
    remove_swelter_variables(&mut command);
    command
}

pub fn remove_swelter_variables(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("SWELTER_")) {
            command.env_remove(name);
        }
    }
}

pub fn send_signal(pid: Pid, signal: Signal) {
    kill_process(pid, signal).unwrap();
}

/// How a service is started: `swelter run` with a configuration, a folder for its data, and what a
/// test adds.
#[derive(Clone)]
pub struct ServiceBuilder {
    /// None: `swelter demo`.
    config: Option<String>,
    config_file: Option<PathBuf>,
    data: Option<PathBuf>,
    listen: String,
    shell: Option<String>,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    may_abort: bool,
}

impl ServiceBuilder {
    /// `swelter run` with a configuration in TOML, on a free port, with a data folder that is
    /// removed with the process.
    pub fn new(config: impl Into<String>) -> ServiceBuilder {
        ServiceBuilder {
            config: Some(config.into()),
            config_file: None,
            data: None,
            listen: "127.0.0.1:0".into(),
            shell: None,
            arguments: Vec::new(),
            variables: Vec::new(),
            may_abort: false,
        }
    }

    /// `swelter demo` on a free port.
    pub fn demo(cities: u32) -> ServiceBuilder {
        let demo = ServiceBuilder { config: None, ..ServiceBuilder::new("") };
        demo.args(&["--cities", &cities.to_string()])
    }

    /// A data folder that outlives the process.
    pub fn data(mut self, data: &Path) -> ServiceBuilder {
        self.data = Some(data.into());
        self
    }

    /// Where the configuration is written, for commands of the test that read it too.
    pub fn config_file(mut self, path: &Path) -> ServiceBuilder {
        self.config_file = Some(path.into());
        self
    }

    pub fn listen(mut self, address: &str) -> ServiceBuilder {
        self.listen = address.into();
        self
    }

    pub fn args(mut self, arguments: &[&str]) -> ServiceBuilder {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    pub fn env(mut self, name: &str, value: impl Into<String>) -> ServiceBuilder {
        self.variables.push((name.into(), value.into()));
        self
    }

    pub fn envs(self, variables: &[(&str, String)]) -> ServiceBuilder {
        variables.iter().fold(self, |builder, (name, value)| builder.env(name, value))
    }

    /// Starts it behind a command of the shell, as in `ulimit -n 256`.
    pub fn behind(mut self, shell: &str) -> ServiceBuilder {
        self.shell = Some(shell.into());
        self
    }

    /// It aborts by itself after so many transactions, when the next is flushed and not committed.
    pub fn die_before_commit(mut self, transactions: u64) -> ServiceBuilder {
        self.may_abort = true;
        self.env("SWELTER_TEST_DIE_BEFORE_COMMIT", transactions.to_string())
    }

    /// Starts it and waits for nothing.
    pub fn spawn(self) -> ServiceProcess {
        let folder = tempfile::tempdir().unwrap();
        let child = self.spawn_child(folder.path());
        ServiceProcess { builder: self, folder, child, lines_read: 0, address: String::new() }
    }

    /// Starts it and waits until it listens.
    pub fn start(self) -> ServiceProcess {
        let mut service = self.spawn();
        service.wait_for_address();
        service
    }

    /// Starts it, waits until it has ended by itself, and gives its exit code and log.
    pub fn run_to_end(self) -> (Option<i32>, String) {
        let mut service = self.spawn();
        let status = service.wait_for_exit();
        (status.code(), service.log())
    }

    fn spawn_child(&self, folder: &Path) -> Child {
        let mut command = self.shell.as_deref().map_or_else(swelter_command, swelter_command_behind);
        match &self.config {
            Some(config) => {
                let file = self.config_file.clone().unwrap_or_else(|| folder.join("swelter.toml"));
                fs::write(&file, config).unwrap();
                command.args(["run", "--listen", &self.listen, "--config"]).arg(file);
                // Not by its flag, which is refused without a journal.
                command.env("SWELTER_DATA_DIR", self.data.as_deref().unwrap_or(&folder.join("data")));
            }
            // The demo makes and removes a folder for temporary files.
            None => drop(command.args(["demo", "--listen", &self.listen]).env("TMPDIR", folder)),
        }
        command.args(&self.arguments).envs(self.variables.iter().map(|(name, value)| (name, value)));
        let file = |name: &str| File::options().create(true).append(true).open(folder.join(name)).unwrap();
        command.stdin(Stdio::null()).stdout(file("out")).stderr(file("log")).spawn().unwrap()
    }
}

/// A service that runs. It is killed when this is dropped, and if the test has failed, its log is
/// shown.
pub struct ServiceProcess {
    builder: ServiceBuilder,
    /// With the configuration, `out`, `log`, and the data if no other folder is named.
    folder: TempDir,
    child: Child,
    /// Lines of standard output that [`ServiceProcess::next_addresses`] has returned.
    lines_read: usize,
    /// `127.0.0.1:port` of the first process, once it listens.
    pub address: String,
}

impl ServiceProcess {
    /// The service that most tests need: on a data folder, with a configuration that is written
    /// beside it, with the extension `toml`, for commands of the test that read it too. It listens
    /// on return.
    pub fn start(data: &Path, config: &str) -> ServiceProcess {
        ServiceBuilder::new(config).data(data).config_file(&data.with_extension("toml")).start()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn data_dir(&self) -> PathBuf {
        self.builder.data.clone().unwrap_or_else(|| self.folder.path().join("data"))
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its whole log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Whether it has printed where it listens.
    pub fn is_listening(&self) -> bool {
        self.printed_lines(1).is_some()
    }

    /// The last so many new lines of standard output, once they are whole.
    fn printed_lines(&self, count: usize) -> Option<Vec<String>> {
        let out = fs::read_to_string(self.folder.path().join("out")).unwrap();
        let whole = out.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        let new: Vec<String> = whole.skip(self.lines_read).take(count).map(str::to_owned).collect();
        (new.len() == count).then_some(new)
    }

    /// Waits until the first process listens, and returns its address.
    pub fn wait_for_address(&mut self) -> String {
        if self.address.is_empty() {
            self.address = self.next_addresses(1).remove(0);
        }
        self.address.clone()
    }

    /// The addresses that the next lines print: of each process, in their order.
    pub fn next_addresses(&mut self, processes: usize) -> Vec<String> {
        let addresses = self.next_addresses_unless_ended(processes);
        addresses.unwrap_or_else(|status| panic!("it has ended with {status}: {}", self.log()))
    }

    /// The same for a start that may fail: how it has ended instead.
    pub fn next_addresses_unless_ended(&mut self, processes: usize) -> Result<Vec<String>, ExitStatus> {
        let lines = wait_for("that it listens", || {
            let ended = self.has_ended();
            self.printed_lines(processes).map(Ok).or(ended.map(Err))
        })?;
        self.lines_read += processes;
        let address = |line: &String| line.strip_prefix("listening on http://").map(str::to_owned);
        let address = |line| address(line).unwrap_or_else(|| panic!("it has printed {line:?}"));
        Ok(lines.iter().map(address).collect())
    }

    /// Waits until it has caught up.
    pub fn wait_until_ready(mut self) -> ServiceProcess {
        self.wait_for_ready();
        self
    }

    pub fn wait_for_ready(&mut self) {
        let address = self.wait_for_address();
        wait_for("that it is ready", || {
            assert!(self.has_ended().is_none(), "it has ended: {}", self.log());
            is_ready(&address).then_some(())
        });
    }

    pub fn get(&self, path: &str) -> HttpResponse {
        http::get(&self.address, path).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    pub fn get_json(&self, path: &str) -> Value {
        let response = self.get(path);
        assert_eq!(response.status, 200, "{path}: {}", response.body);
        response.json()
    }

    /// Posts readings that must all be accepted; returns their positions in the log.
    pub fn post(&self, readings: &Value) -> Vec<Value> {
        let response = http::post(&self.address, "application/json", &readings.to_string()).unwrap();
        let accepted = response.json();
        assert_eq!((response.status, accepted["refused_count"].as_u64()), (200, Some(0)), "{accepted}");
        accepted["positions"].as_array().unwrap().clone()
    }

    /// Waits until results include these positions of the log; returns the epoch as of which they
    /// do.
    pub fn wait_until_applied(&self, positions: &[Value]) -> u64 {
        wait_for("that what was posted is applied", || {
            let status = self.get_json("/v1/status");
            let all = positions.iter().all(|position| is_applied(&status, position));
            all.then(|| status["as_of"].as_u64())?
        })
    }

    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until it has ended by itself.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        wait_for("that it ends", || self.has_ended())
    }

    /// Kills it, which must not have ended by itself. The kernel keeps what it has written, so this
    /// is no test of power cuts.
    pub fn kill(mut self) {
        self.kill_in_place();
    }

    /// Kills it so that it can be started again.
    pub fn kill_in_place(&mut self) {
        if let Some(status) = self.has_ended() {
            let was_killed =
                status.signal() == Some(9) || self.builder.may_abort && status.signal() == Some(6);
            assert!(was_killed, "it has ended by itself with {status}: {}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        assert!(!self.log().contains("panicked"), "{}", self.log());
    }

    /// Starts it again after a kill, with its data and on its port.
    pub fn restart(&mut self) {
        self.builder.listen = std::mem::take(&mut self.address);
        File::create(self.folder.path().join("out")).unwrap();
        self.lines_read = 0;
        self.child = self.builder.spawn_child(self.folder.path());
        self.wait_for_address();
    }

    /// Kills it from another thread, for as long as this is not dropped.
    pub fn kill_handle(&self) -> impl FnOnce() + Send + 'static {
        let pid = self.pid();
        // The child is not waited for before this has run, so the number is still its own.
        move || {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Stops it for so long, without ending it.
    pub fn pause(&self, time: Duration) {
        pause_process(self.pid(), time);
    }

    pub fn send_terminate(&self) {
        send_signal(self.pid(), Signal::TERM);
    }

    /// Sends SIGTERM; it must end with 0 within seconds.
    pub fn terminate(mut self) {
        self.terminate_in_place();
    }

    /// The same for a process whose log is still to be read.
    pub fn terminate_in_place(&mut self) {
        self.send_terminate();
        let began = Instant::now();
        let status = self.wait_for_exit();
        assert_eq!(status.code(), Some(0), "{}", self.log());
        assert!(began.elapsed() < STOP_TIMEOUT, "it took {:?} to end", began.elapsed());
        assert!(!self.log().contains("panicked"), "{}", self.log());
    }

    /// Waits until another process has taken over from it.
    pub fn wait_until_taken_over(mut self) {
        let status = self.wait_for_exit();
        assert_eq!(status.code(), Some(3), "{}", self.log());
        assert!(!self.log().contains("panicked"), "{}", self.log());
    }

    /// Waits until it has ended with an error, and returns the last line of its log.
    pub fn wait_for_failure(mut self) -> String {
        let status = self.wait_for_exit();
        let log = self.log();
        assert!(status.code().is_some_and(|code| code != 0), "{status}: {log}");
        assert!(!log.contains("panicked"), "{log}");
        log.lines().last().unwrap_or_default().to_string()
    }

    /// The processes that it has started and that run.
    pub fn child_processes(&self) -> Vec<Pid> {
        let path = format!("/proc/{0}/task/{0}/children", self.child.id());
        let children = fs::read_to_string(path).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
    }
}

impl Drop for ServiceProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        if std::thread::panicking() {
            eprintln!("--- the log of the service\n{log}---");
        } else {
            check_log_keys(&log);
        }
    }
}

/// Whether the service at an address has caught up.
pub fn is_ready(address: &str) -> bool {
    http::get(address, "/readyz").is_ok_and(|response| response.status == 200)
}

/// Stops a process for so long, without ending it.
pub fn pause_process(pid: Pid, time: Duration) {
    send_signal(pid, Signal::STOP);
    std::thread::sleep(time);
    send_signal(pid, Signal::CONT);
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
