//! A cluster of processes on this host: started, restarted together, and stopped together.
//!
//! A child says on its standard output where it listens for the others (`cluster ADDRESS`), is told all addresses on its standard
//! input (`hosts A B ..`), and says later where it serves (`listening on URL`). `stop` on its input asks it to stop. The input's end
//! means that the supervisor is gone: the child ends at once, so that none is left behind.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration as Wait, Instant};

use tokio::signal::unix::{SignalKind, signal};

/// Between two looks at the children.
const LOOK: Wait = Wait::from_millis(20);
/// Once one has ended, the others end by themselves; after this long they are made to.
const END_TOGETHER: Wait = Wait::from_secs(5);
/// What comes so soon after a signal is the same one, sent to the process and to its group.
const SAME_SIGNAL: Wait = Wait::from_millis(300);
/// How long an orderly stop may take.
const STOP: Wait = Wait::from_secs(60);
const FIRST_BACKOFF: Wait = Wait::from_millis(100);
const LAST_BACKOFF: Wait = Wait::from_secs(10);
/// A cluster that has run for so long begins with the first backoff again.
const STEADY: Wait = Wait::from_secs(60);
/// Starts in a row of which none came to listen.
const MAX_FAILED_STARTS: u32 = 5;

/// Which children there are.
pub struct SupervisorPlan {
    pub processes: usize,
    /// The program's own arguments; each child gets some more behind them.
    pub arguments: Vec<OsString>,
    /// Of process 0; the others take the next ports, or free ones where this is 0.
    pub listen: SocketAddr,
    pub secret: String,
}

/// How a cluster has ended, other than by request.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    #[error("processes cannot be started: {0}")]
    Start(#[from] io::Error),
    #[error("the cluster has failed {MAX_FAILED_STARTS} times in a row before it listened: its log says why")]
    FailedStarts,
    #[error("process {0} of the cluster does not take its configuration: its log says why")]
    Refused(usize),
    #[error("process {0} has ended with {1} while the cluster was stopped")]
    BadEnd(usize, ExitStatus),
    #[error("the cluster was asked to stop twice")]
    Asked,
}

enum Event {
    Line { start: u32, process: usize, line: String },
    Signal,
}

struct Running {
    child: Child,
    input: ChildStdin,
    cluster: Option<String>,
    ended: Option<ExitStatus>,
}

struct Supervisor {
    plan: SupervisorPlan,
    events: Sender<Event>,
    children: Vec<Running>,
    /// Counts the starts.
    start: u32,
    /// Where each child serves, once it has said so; kept over restarts.
    listens: Vec<Option<String>>,
    said: usize,
    stopping: Option<Instant>,
}

/// Runs the cluster until it is asked to stop. `announce` hears the lines for the standard output.
pub fn run(plan: SupervisorPlan, mut announce: impl FnMut(&str)) -> Result<(), SupervisorError> {
    let (events, happened) = mpsc::channel();
    listen_for_signals(events.clone())?;
    let listens = vec![None; plan.processes];
    let mut supervisor =
        Supervisor { plan, events, children: Vec::new(), start: 0, listens, said: 0, stopping: None };
    let (mut backoff, mut failed_starts) = (FIRST_BACKOFF, 0);
    loop {
        let began = Instant::now();
        supervisor.spawn()?;
        let (process, status) = match supervisor.watch(&happened, &mut announce)? {
            Some(ended) => ended,
            None => return Ok(()),
        };
        supervisor.end_all();
        if status.code() == Some(2) {
            return Err(SupervisorError::Refused(process));
        }
        failed_starts = if supervisor.said == supervisor.plan.processes { 0 } else { failed_starts + 1 };
        if failed_starts == MAX_FAILED_STARTS {
            return Err(SupervisorError::FailedStarts);
        }
        backoff = if began.elapsed() > STEADY { FIRST_BACKOFF } else { backoff };
        tracing::warn!(process, %status, "a process of the cluster has ended: all start again in {} ms", backoff.as_millis());
        if supervisor.pause(&happened, backoff) {
            return Ok(());
        }
        backoff = (backoff * 2).min(LAST_BACKOFF);
    }
}

impl Supervisor {
    fn spawn(&mut self) -> Result<(), SupervisorError> {
        self.start += 1;
        self.said = 0;
        for process in 0..self.plan.processes {
            let listen = self.listen(process);
            let mut child = Command::new(std::env::current_exe()?)
                .args(&self.plan.arguments)
                .args(["--process", &process.to_string(), "--supervised", "--listen", &listen])
                .env("SWELTER_CLUSTER__SECRET", &self.plan.secret)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
                return Err(SupervisorError::Start(io::ErrorKind::BrokenPipe.into()));
            };
            tracing::info!(process, pid = child.id(), "started");
            let (events, start) = (self.events.clone(), self.start);
            thread::Builder::new().name(format!("output {process}")).spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let _ = events.send(Event::Line { start, process, line });
                }
            })?;
            self.children.push(Running { child, input, cluster: None, ended: None });
        }
        Ok(())
    }

    /// The address that a process serves at: the same one after a restart.
    fn listen(&self, process: usize) -> String {
        let known = self.listens[process].as_deref().and_then(|url| url.split_once("://"));
        let listen = self.plan.listen;
        let port = if listen.port() == 0 { 0 } else { listen.port().saturating_add(process as u16) };
        known
            .map_or_else(|| SocketAddr::new(listen.ip(), port).to_string(), |(_, address)| address.to_owned())
    }

    /// Until one has ended that should not have; nothing where all have ended as they were asked to.
    fn watch(
        &mut self,
        happened: &Receiver<Event>,
        announce: &mut impl FnMut(&str),
    ) -> Result<Option<(usize, ExitStatus)>, SupervisorError> {
        loop {
            match happened.recv_timeout(LOOK) {
                Ok(Event::Line { start, process, line }) if start == self.start => {
                    self.hear(process, &line, announce)
                }
                Ok(Event::Signal) => match self.stopping {
                    None => self.stop(),
                    Some(since) if since.elapsed() < SAME_SIGNAL => {}
                    Some(_) => {
                        self.kill_all();
                        return Err(SupervisorError::Asked);
                    }
                },
                Ok(Event::Line { .. }) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            for child in &mut self.children {
                child.ended = child.child.try_wait()?;
            }
            let mut ended = self.children.iter().enumerate().filter_map(|(i, child)| Some((i, child.ended?)));
            let bad = ended.clone().find(|(_, status)| !status.success());
            if let Some((process, status)) = bad {
                return match self.stopping {
                    Some(_) => {
                        self.end_all();
                        Err(SupervisorError::BadEnd(process, status))
                    }
                    None => Ok(Some((process, status))),
                };
            }
            // Whoever is asked to stop stops all.
            if ended.by_ref().count() == self.children.len() {
                return Ok(None);
            }
            if self.stopping.is_some_and(|since| since.elapsed() > STOP) {
                self.kill_all();
            }
        }
    }

    fn hear(&mut self, process: usize, line: &str, announce: &mut impl FnMut(&str)) {
        if let Some(address) = line.strip_prefix("cluster ") {
            self.children[process].cluster = Some(address.to_owned());
            let all: Option<Vec<&str>> = self.children.iter().map(|child| child.cluster.as_deref()).collect();
            if let Some(all) = all {
                let line = format!("hosts {}\n", all.join(" "));
                self.children.iter_mut().for_each(|child| drop(child.input.write_all(line.as_bytes())));
            }
        } else if let Some(url) = line.strip_prefix("listening on ") {
            self.listens[process] = Some(url.to_owned());
            self.said += 1;
            if self.said == self.plan.processes {
                self.listens.iter().flatten().for_each(|url| announce(&format!("listening on {url}")));
            }
        }
    }

    fn stop(&mut self) {
        self.stopping = Some(Instant::now());
        self.children.iter_mut().for_each(|child| drop(child.input.write_all(b"stop\n")));
    }

    /// Waits before the next start; true where it is asked to stop meanwhile.
    fn pause(&self, happened: &Receiver<Event>, pause: Wait) -> bool {
        let until = Instant::now() + pause;
        loop {
            match happened.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Event::Signal) => return true,
                Ok(Event::Line { .. }) => {}
                Err(_) => return false,
            }
        }
    }

    /// The children have no reason to live on: they notice by themselves, or are killed.
    fn end_all(&mut self) {
        let deadline = Instant::now() + END_TOGETHER;
        while Instant::now() < deadline
            && self.children.iter_mut().any(|child| matches!(child.child.try_wait(), Ok(None)))
        {
            thread::sleep(LOOK);
        }
        self.kill_all();
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

fn listen_for_signals(events: Sender<Event>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut signals = {
        let _inside = runtime.enter();
        [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal)
    };
    for signal in &signals {
        if let Err(error) = signal {
            return Err(error.kind().into());
        }
    }
    thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            let [Ok(terminate), Ok(interrupt), Ok(hangup)] = &mut signals else { return };
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    _ = hangup.recv() => {}
                }
                if events.send(Event::Signal).is_err() {
                    return;
                }
            }
        });
    })?;
    Ok(())
}

/// What a child begins with.
pub struct Supervised {
    pub listener: TcpListener,
    pub hosts: Vec<String>,
}

/// The child's side of the start: meets the supervisor, which is followed from then on; `stop` hears that it is time to.
pub fn follow(stop: Arc<dyn Fn() + Send + Sync>) -> io::Result<Supervised> {
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    let mut output = io::stdout();
    writeln!(output, "cluster {}", listener.local_addr()?)?;
    output.flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let hosts = line.trim_end().strip_prefix("hosts ").ok_or(io::ErrorKind::UnexpectedEof)?;
    let hosts = hosts.split(' ').map(str::to_owned).collect();
    thread::Builder::new().name("supervised".into()).spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            if line == "stop" {
                stop();
            }
        }
        tracing::error!("the supervisor is gone: ending");
        std::process::exit(1);
    })?;
    Ok(Supervised { listener, hosts })
}
