//! The built program as a child process, and what its clients do.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Nothing takes longer than this.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Waits until `done` gives something.
pub fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what} does not happen");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The built program, behind a command of the shell where there is one.
pub fn swelter_command(limit: Option<&str>) -> Command {
    let built = env!("CARGO_BIN_EXE_swelter");
    let Some(limit) = limit else { return Command::new(built) };
    let mut program = Command::new("sh");
    program.args(["-c", &format!("{limit}; exec \"$0\" \"$@\""), built]);
    program
}

/// A service that runs; it is killed when this is dropped.
pub struct ServiceProcess {
    child: Child,
    /// `127.0.0.1:port`.
    pub address: String,
    log: PathBuf,
}

impl ServiceProcess {
    /// Starts `swelter run` with a folder for its data, and a configuration in TOML; its log goes to a file beside the data.
    pub fn start(data: &Path, config: &str) -> ServiceProcess {
        ServiceProcess::start_listening_on(data, config, "127.0.0.1:0")
    }

    pub fn start_listening_on(data: &Path, config: &str, listen: &str) -> ServiceProcess {
        ServiceProcess::launch(swelter_command(None), data, config, listen, &[])
    }

    /// Behind a command of the shell, as in `ulimit -n 256`.
    pub fn start_limited(data: &Path, config: &str, limit: &str) -> ServiceProcess {
        ServiceProcess::launch(swelter_command(Some(limit)), data, config, "127.0.0.1:0", &[])
    }

    /// With further variables.
    pub fn start_with(data: &Path, config: &str, variables: &[(&str, String)]) -> ServiceProcess {
        ServiceProcess::launch(swelter_command(None), data, config, "127.0.0.1:0", variables)
    }

    fn launch(
        mut program: Command,
        data: &Path,
        config: &str,
        listen: &str,
        variables: &[(&str, String)],
    ) -> ServiceProcess {
        let (config_file, log) = (data.with_extension("toml"), data.with_extension("log"));
        std::fs::write(&config_file, config).unwrap();
        let stderr = File::options().create(true).append(true).open(&log).unwrap();
        let mut child = program
            .args(["run", "--listen", listen, "--config"])
            .arg(&config_file)
            // Not by its flag, which is refused where there is no journal.
            .env("SWELTER_DATA_DIR", data)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, line) = mpsc::channel();
        thread::spawn(move || {
            let mut text = String::new();
            let _ = stdout.read_line(&mut text);
            let _ = sender.send(text);
        });
        let line = line.recv_timeout(WAIT_TIMEOUT).unwrap_or_default();
        let address = line.trim_end().strip_prefix("listening on http://").map(str::to_string);
        let mut service = ServiceProcess { child, address: String::new(), log };
        service.address = address.unwrap_or_else(|| panic!("it says {line:?}\n{}", service.log()));
        service
    }

    /// Starts a service that must refuse to, and returns its exit code and what it says.
    pub fn run_refused(data: &Path, config: &str, listen: &str) -> (Option<i32>, String) {
        ServiceProcess::run_refused_by(swelter_command(None), data, config, listen)
    }

    /// Behind a command of the shell.
    pub fn run_refused_limited(data: &Path, config: &str, limit: &str) -> (Option<i32>, String) {
        ServiceProcess::run_refused_by(swelter_command(Some(limit)), data, config, "127.0.0.1:0")
    }

    fn run_refused_by(
        mut program: Command,
        data: &Path,
        config: &str,
        listen: &str,
    ) -> (Option<i32>, String) {
        let config_file = data.with_extension("toml");
        std::fs::write(&config_file, config).unwrap();
        let mut child = program
            .args(["run", "--listen", listen, "--config"])
            .arg(&config_file)
            .env("SWELTER_DATA_DIR", data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(data.with_extension("refused")).unwrap())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + WAIT_TIMEOUT;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                child.kill().unwrap();
                panic!("it starts, or does not end");
            }
            thread::sleep(Duration::from_millis(5));
        };
        (status.code(), std::fs::read_to_string(data.with_extension("refused")).unwrap())
    }

    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// The exit code, once it has ended by itself.
    pub fn wait_for_end(&mut self) -> Option<i32> {
        wait_for("the end", || self.child.try_wait().unwrap()).code()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it serves.
    pub fn wait_until_ready(self) -> ServiceProcess {
        wait_for("readiness", || (get(&self.address, "/readyz").ok()?.status == 200).then_some(()));
        self
    }

    pub fn get_json(&self, path: &str) -> Value {
        let answer = get(&self.address, path).unwrap();
        assert_eq!(answer.status, 200, "{path}: {}\n{}", answer.body, self.log());
        serde_json::from_str(&answer.body).unwrap()
    }

    /// Ends it at once. What it has written is in the hands of the kernel then, so this says nothing about power cuts.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn kill_handle(&self) -> impl FnOnce() + Send + 'static {
        let pid = self.child.id();
        move || {
            // The child is not waited for before this has run, so the number is still its own.
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        }
    }

    /// Asks it to end, which it must do with 0 within seconds.
    pub fn terminate(mut self) {
        let asked = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        assert!(asked.unwrap().success());
        let began = Instant::now();
        let status = wait_for("the end", || self.child.try_wait().unwrap());
        assert_eq!(status.code(), Some(0), "{}", self.log());
        assert!(began.elapsed() < Duration::from_secs(10), "it took {:?} to end", began.elapsed());
    }
}

impl Drop for ServiceProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub struct HttpResponse {
    pub status: u16,
    pub body: String,
}

pub fn get(address: &str, path: &str) -> std::io::Result<HttpResponse> {
    get_with_timeout(address, path, WAIT_TIMEOUT)
}

pub fn get_with_timeout(address: &str, path: &str, patience: Duration) -> std::io::Result<HttpResponse> {
    let text = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    request(address, &text, patience)
}

pub fn post(address: &str, content_type: &str, body: &str) -> std::io::Result<HttpResponse> {
    let head = format!(
        "POST /v1/readings HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: {content_type}\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    request(address, &(head + body), WAIT_TIMEOUT)
}

fn request(address: &str, text: &str, patience: Duration) -> std::io::Result<HttpResponse> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(text.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let cut_off = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(cut_off)?;
    let length = head.to_ascii_lowercase();
    let length = length.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    if length != Some(body.len()) {
        return Err(cut_off());
    }
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(cut_off)?;
    Ok(HttpResponse { status, body: body.to_string() })
}
