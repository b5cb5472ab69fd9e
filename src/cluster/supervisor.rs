//! Starts, restarts and stops a cluster of processes on this host.
//!
//! A child writes to its standard output where it listens for the others (`cluster ADDRESS`), and
//! later where it serves (`listening on URL`). The supervisor writes all addresses to the child's
//! standard input (`hosts A B ..`). `stop` on the input asks the child to stop, at any time. End of
//! input means that the supervisor is gone or does not need the child: the child exits at once, so
//! no process is left behind.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::{StopFlag, signals};
use crate::fault::exit::{ExitReason, end_process};
use crate::fault::start_failure_text;

/// The exit code of a process whose results another generation has taken over.
pub const TAKEN_OVER_EXIT_CODE: u8 = ExitReason::TakenOver.code();

/// Interval between two checks of the children.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// After one child exits, connected children exit by themselves at once. After this delay the
/// supervisor closes the input of the others, which makes them exit.
const OTHERS_EXIT_DELAY: Duration = Duration::from_secs(1);
const GROUP_EXIT_TIMEOUT: Duration = Duration::from_secs(5);
/// A second signal within this window is the same one, sent to the process and to its group.
const REPEATED_SIGNAL_WINDOW: Duration = Duration::from_millis(300);
/// How long a graceful stop may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// A cluster that has run for this long starts with the first backoff again.
const STABLE_AFTER: Duration = Duration::from_secs(60);
/// Consecutive starts in which no child came to listen, before the supervisor gives up.
const MAX_FAILED_STARTS: u32 = 5;

/// The children to start.
pub struct SupervisorPlan {
    pub processes: usize,
    pub program: PathBuf,
    /// The program's own arguments; each child gets more behind them.
    pub arguments: Vec<OsString>,
    /// The address of process 0. The others use the next ports, or free ones if the port is 0.
    pub listen: SocketAddr,
    pub secret: String,
}

/// Why a cluster has ended without a request.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    #[error("processes of the cluster: {}", start_failure_text(.0))]
    Start(#[from] io::Error),
    #[error(
        "the cluster has failed {MAX_FAILED_STARTS} times in a row before it listened: see the errors above"
    )]
    FailedStarts,
    #[error("process {0} of the cluster refuses its configuration: see its error above")]
    Refused(usize),
    #[error("another generation has taken over: the cluster ends, and is not started again")]
    TakenOver,
    #[error("process {0} has ended with {1} while the cluster was stopped")]
    BadEnd(usize, ExitStatus),
    #[error("processes of the cluster had not stopped after {} s and were killed", .0.as_secs())]
    Killed(Duration),
    #[error("a second stop was requested, so the processes of the cluster were killed")]
    Asked,
}

enum SupervisorEvent {
    Line { start: u32, process: usize, line: String },
    Signal,
}

struct ChildProcess {
    child: Child,
    /// None once the input was closed.
    input: Option<ChildStdin>,
    cluster: Option<String>,
    ended: Option<ExitStatus>,
}

impl ChildProcess {
    /// Writes a line to the child. A child that has exited does not receive it.
    fn print_line(&mut self, line: &str) {
        if let Some(input) = &mut self.input {
            let _ = input.write_all(line.as_bytes());
        }
    }

    /// The exit status, unless it is the requested one.
    fn failed_exit(&self, is_stopping: bool) -> Option<ExitStatus> {
        let status = self.ended.filter(|status| !status.success())?;
        // A signal to the process group may arrive before the child has installed its handlers.
        let early = is_stopping && self.cluster.is_none() && status.signal().is_some_and(is_stop_signal);
        (!early).then_some(status)
    }
}

/// Whether the signal is SIGHUP, SIGINT or SIGTERM.
fn is_stop_signal(signal: i32) -> bool {
    [1, 2, 15].contains(&signal)
}

struct Supervisor {
    plan: SupervisorPlan,
    events: Sender<SupervisorEvent>,
    children: Vec<ChildProcess>,
    /// Number of starts.
    start: u32,
    /// Where each child serves, once it has reported that; kept over restarts.
    listens: Vec<Option<String>>,
    announced: usize,
    stopping: Option<Instant>,
    /// How long a graceful stop may take.
    patience: Duration,
}

/// The path of this running program. All children run this version, even if the file on disk is
/// replaced.
pub fn this_program() -> io::Result<PathBuf> {
    if cfg!(target_os = "linux") { Ok("/proc/self/exe".into()) } else { std::env::current_exe() }
}

/// Runs the cluster until a stop is requested. `announce` receives the lines for the standard
/// output.
pub fn run_supervisor(plan: SupervisorPlan, announce: impl FnMut(&str)) -> Result<(), SupervisorError> {
    let (events, received_events) = mpsc::channel();
    let signal_events = events.clone();
    signals::handle_signals(move || signal_events.send(SupervisorEvent::Signal).is_ok())?;
    Supervisor::new(plan, events).run(&received_events, announce)
}

impl Supervisor {
    fn new(plan: SupervisorPlan, events: Sender<SupervisorEvent>) -> Supervisor {
        let listens = vec![None; plan.processes];
        let (children, start, announced, stopping) = (Vec::new(), 0, 0, None);
        Supervisor { plan, events, children, start, listens, announced, stopping, patience: STOP_TIMEOUT }
    }

    fn run(
        mut self,
        events: &Receiver<SupervisorEvent>,
        mut announce: impl FnMut(&str),
    ) -> Result<(), SupervisorError> {
        let (mut backoff, mut failed_starts) = (FIRST_BACKOFF, 0);
        loop {
            let began = Instant::now();
            self.spawn()?;
            let (process, status) = match self.watch(events, &mut announce)? {
                Some(ended) => ended,
                None => return Ok(()),
            };
            let taken_over = self.end_all();
            if taken_over || status.code() == Some(i32::from(TAKEN_OVER_EXIT_CODE)) {
                return Err(SupervisorError::TakenOver);
            }
            if status.code() == Some(2) {
                return Err(SupervisorError::Refused(process));
            }
            failed_starts = if self.announced == self.plan.processes { 0 } else { failed_starts + 1 };
            if failed_starts == MAX_FAILED_STARTS {
                return Err(SupervisorError::FailedStarts);
            }
            backoff = if began.elapsed() > STABLE_AFTER { FIRST_BACKOFF } else { backoff };
            tracing::warn!(peer = process, %status, "a process of the cluster has ended: all processes start again in {} ms", backoff.as_millis());
            if self.pause(events, backoff) {
                return Ok(());
            }
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    fn spawn(&mut self) -> Result<(), SupervisorError> {
        self.start += 1;
        self.announced = 0;
        for process in 0..self.plan.processes {
            let listen = self.listen(process);
            let mut child = Command::new(&self.plan.program)
                .arg0(std::env::args_os().next().unwrap_or_else(|| "swelter".into()))
                .args(&self.plan.arguments)
                .args(["--process", &process.to_string(), "--supervised", "--listen", &listen])
                .env("SWELTER_CLUSTER__SECRET", &self.plan.secret)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                // The supervisor receives the signals that a terminal sends to the group, and
                // passes them on.
                .process_group(0)
                .spawn()?;
            let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
                return Err(SupervisorError::Start(io::ErrorKind::BrokenPipe.into()));
            };
            tracing::info!(peer = process, pid = child.id(), "a process of the cluster was started");
            let (events, start) = (self.events.clone(), self.start);
            thread::Builder::new().name(format!("output {process}")).spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let _ = events.send(SupervisorEvent::Line { start, process, line });
                }
            })?;
            self.children.push(ChildProcess { child, input: Some(input), cluster: None, ended: None });
        }
        Ok(())
    }

    /// The address that a process serves at; the same one after a restart.
    fn listen(&self, process: usize) -> String {
        let known = self.listens[process].as_deref().and_then(|url| url.split_once("://"));
        let listen = self.plan.listen;
        let port = if listen.port() == 0 { 0 } else { listen.port().saturating_add(process as u16) };
        known
            .map_or_else(|| SocketAddr::new(listen.ip(), port).to_string(), |(_, address)| address.to_owned())
    }

    /// Watches the children. Returns the first that should not have exited, or none if all have
    /// exited as requested.
    fn watch(
        &mut self,
        events: &Receiver<SupervisorEvent>,
        announce: &mut impl FnMut(&str),
    ) -> Result<Option<(usize, ExitStatus)>, SupervisorError> {
        loop {
            match events.recv_timeout(POLL_INTERVAL) {
                Ok(SupervisorEvent::Line { start, process, line }) if start == self.start => {
                    self.on_line(process, &line, announce)
                }
                Ok(SupervisorEvent::Signal) => match self.stopping {
                    None => self.stop(),
                    Some(since) if since.elapsed() < REPEATED_SIGNAL_WINDOW => {}
                    Some(_) => {
                        self.kill_all();
                        return Err(SupervisorError::Asked);
                    }
                },
                Ok(SupervisorEvent::Line { .. })
                | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            for child in &mut self.children {
                child.ended = child.child.try_wait()?;
            }
            let is_stopping = self.stopping.is_some();
            let failed_children = self.children.iter().enumerate();
            let failed_children = failed_children
                .filter_map(|(process, child)| Some((process, child.failed_exit(is_stopping)?)));
            // A killed child is the cause of the other exits.
            if let Some((process, status)) = failed_children.min_by_key(|(_, status)| status.code().is_some())
            {
                if is_stopping {
                    self.end_all();
                    return Err(SupervisorError::BadEnd(process, status));
                }
                return Ok(Some((process, status)));
            }
            let ended = self.children.iter().filter(|child| child.ended.is_some()).count();
            if ended == self.children.len() {
                return Ok(None);
            }
            // A child that is asked to stop stops all children.
            if ended > 0 && !is_stopping {
                self.stop();
            }
            if self.stopping.is_some_and(|since| since.elapsed() > self.patience) {
                self.kill_all();
                return Err(SupervisorError::Killed(self.patience));
            }
        }
    }

    fn on_line(&mut self, process: usize, line: &str, announce: &mut impl FnMut(&str)) {
        if let Some(address) = line.strip_prefix("cluster ") {
            self.children[process].cluster = Some(address.to_owned());
            let all: Option<Vec<&str>> = self.children.iter().map(|child| child.cluster.as_deref()).collect();
            if let Some(all) = all {
                let line = format!("hosts {}\n", all.join(" "));
                self.children.iter_mut().for_each(|child| child.print_line(&line));
            }
        } else if let Some(url) = line.strip_prefix("listening on ") {
            self.listens[process] = Some(url.to_owned());
            self.announced += 1;
            if self.announced == self.plan.processes {
                self.listens.iter().flatten().for_each(|url| announce(&format!("listening on {url}")));
            }
        }
    }

    fn stop(&mut self) {
        self.stopping = Some(Instant::now());
        self.children.iter_mut().for_each(|child| child.print_line("stop\n"));
    }

    /// Waits before the next start. Returns true if a stop is requested meanwhile.
    fn pause(&self, events: &Receiver<SupervisorEvent>, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            match events.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(SupervisorEvent::Signal) => return true,
                Ok(SupervisorEvent::Line { .. }) => {}
                Err(_) => return false,
            }
        }
    }

    /// Ends all children: they exit by themselves, after their input is closed, or are killed.
    /// Returns whether one of them reported a takeover.
    fn end_all(&mut self) -> bool {
        let began = Instant::now();
        while began.elapsed() < GROUP_EXIT_TIMEOUT
            && self.children.iter_mut().any(|child| matches!(child.child.try_wait(), Ok(None)))
        {
            if began.elapsed() > OTHERS_EXIT_DELAY {
                self.children.iter_mut().for_each(|child| child.input = None);
            }
            thread::sleep(POLL_INTERVAL);
        }
        let taken_over = |child: &mut ChildProcess| {
            let ended = child.child.try_wait().ok().flatten();
            ended.is_some_and(|status| status.code() == Some(i32::from(TAKEN_OVER_EXIT_CODE)))
        };
        let taken_over = self.children.iter_mut().any(taken_over);
        self.kill_all();
        taken_over
    }

    fn kill_all(&mut self) {
        for mut child in self.children.drain(..) {
            let _ = child.child.kill();
            let _ = child.child.wait();
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// What the supervisor gives a child at its start.
pub struct SupervisorLink {
    pub listener: TcpListener,
    pub hosts: Vec<String>,
}

/// The child's side of the start: exchanges addresses with the supervisor and then follows its
/// input. `stop` is called when the child must stop. Returns none if a stop was requested already.
pub fn follow_supervisor(
    stop: Arc<dyn Fn() + Send + Sync>,
    stop_request: &StopFlag,
) -> io::Result<Option<SupervisorLink>> {
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    let mut output = io::stdout();
    writeln!(output, "cluster {}", listener.local_addr()?)?;
    output.flush()?;
    let (hosts_sender, hosts) = mpsc::channel();
    thread::Builder::new().name("supervised".into()).spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            match line.strip_prefix("hosts ") {
                Some(hosts) => drop(hosts_sender.send(hosts.split(' ').map(str::to_owned).collect())),
                None if line == "stop" => stop(),
                None => tracing::warn!("the supervisor sent an unknown line: {line:?}"),
            }
        }
        tracing::error!("the supervisor has ended or has cancelled this start: the process ends");
        end_process(ExitReason::Failed);
    })?;
    while !stop_request.is_raised() {
        if let Ok(hosts) = hosts.recv_timeout(POLL_INTERVAL) {
            return Ok(Some(SupervisorLink { listener, hosts }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
