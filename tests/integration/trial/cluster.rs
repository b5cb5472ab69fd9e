//! The processes of a case: started, found, signalled, and never left behind.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use super::host::{
    StoppedProcess, child_processes, is_own_process, listening_sockets, send_signal, sockets_of,
};
use super::plan::TrialTopology;
use super::proxy::Proxy;
use crate::support::{ServiceStatus, remove_swelter_variables, wait_for};

/// Until all are ready after any fault: a start may have to wait for a broker, a lock or a
/// transaction first.
const READY_TIMEOUT: Duration = Duration::from_secs(90);
/// How long a process may outlive one of its peers.
const MAX_OUTLIVE_PEER: Duration = Duration::from_secs(12);
/// Of an answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(800);
/// How often processes may end by themselves between two times that all are ready.
const MAX_SELF_ENDS: usize = 15;

/// Where processes die.
#[derive(Clone)]
pub struct DeathPoint {
    /// The variable that the program reads, and its value.
    pub variable: &'static str,
    pub value: String,
    /// The process that dies, if each is started by itself; all may die otherwise.
    pub process: Option<u64>,
}

/// How processes are started.
#[derive(Clone)]
pub struct LaunchPlan {
    /// Of the case.
    pub folder: PathBuf,
    pub config: PathBuf,
    pub topology: TrialTopology,
    pub death_point: Option<DeathPoint>,
    /// What the clock of each process is off, ms.
    pub clock_offsets_ms: Vec<i64>,
    /// The most files that each process may have open.
    pub open_files: Option<u64>,
    /// `--takeover` or `--standby`, for successors of the running processes.
    pub successor_flag: Option<&'static str>,
}

pub struct TrialCluster {
    launch: LaunchPlan,
    /// Counts starts.
    starts: usize,
    /// The supervisor, or each process.
    members: Vec<ClusterMember>,
    /// Of each process to each other one: both, and the way.
    proxies: Vec<(usize, usize, Proxy)>,
    retiring: Option<RetiringCluster>,
    pub own_ends: usize,
    /// Unexpected events.
    pub complaints: Vec<String>,
}

/// Processes that have successors.
struct RetiringCluster {
    topology: TrialTopology,
    members: Vec<ClusterMember>,
    /// Their connections go through these.
    _proxies: Vec<(usize, usize, Proxy)>,
    /// No fault disturbs the takeover: they must end with exit code 3.
    undisturbed: bool,
}

struct ClusterMember {
    child: Child,
    out: PathBuf,
    log: PathBuf,
}

impl TrialCluster {
    pub fn start(launch: LaunchPlan) -> TrialCluster {
        let mut cluster = TrialCluster {
            launch,
            starts: 0,
            members: Vec::new(),
            proxies: Vec::new(),
            retiring: None,
            own_ends: 0,
            complaints: Vec::new(),
        };
        cluster.spawn();
        cluster
    }

    /// Starts all processes again after they have ended.
    pub fn restart(&mut self, launch: LaunchPlan) {
        self.kill_all();
        self.launch = launch;
        self.spawn();
    }

    /// Starts successors beside the running processes.
    pub fn start_successor(&mut self, launch: LaunchPlan, undisturbed: bool) {
        self.kill_retiring();
        let topology = self.launch.topology;
        let (members, proxies) = (std::mem::take(&mut self.members), std::mem::take(&mut self.proxies));
        self.retiring = Some(RetiringCluster { topology, members, _proxies: proxies, undisturbed });
        self.launch = launch;
        self.spawn();
    }

    /// Waits until the processes that were started last follow others; false after `within`.
    pub fn wait_until_following(&mut self, within: Duration) -> bool {
        let (until, mut left) = (Instant::now() + within, MAX_SELF_ENDS);
        while Instant::now() < until {
            self.restart_ended(&mut left);
            if self.has_logged("the run follows the generation") {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// Whether a process that was started last has logged this.
    pub fn has_logged(&self, text: &str) -> bool {
        let has =
            |member: &ClusterMember| fs::read_to_string(&member.log).is_ok_and(|log| log.contains(text));
        self.members.iter().any(has)
    }

    /// Checks that processes that were taken over have ended with exit code 3.
    pub fn check_retired(&mut self) {
        let Some(RetiringCluster { members, undisturbed, .. }) = &mut self.retiring else { return };
        let until = Instant::now() + MAX_OUTLIVE_PEER;
        let has_ended = |member: &mut ClusterMember| member.child.try_wait().unwrap().is_some();
        while !members.iter_mut().all(has_ended) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        for member in members {
            let status = member.child.try_wait().unwrap();
            if status.is_none() || *undisturbed && status.is_some_and(|status| status.code() != Some(3)) {
                let line = last_line(&member.log);
                self.complaints
                    .push(format!("taken over from, and {status:?} {MAX_OUTLIVE_PEER:?} later: {line}"));
            }
        }
        self.kill_retiring();
    }

    pub fn kill_retiring(&mut self) {
        if let Some(RetiringCluster { topology, mut members, .. }) = self.retiring.take() {
            kill_members(&mut members, topology);
        }
    }

    /// Whether processes that have successors were not killed.
    pub fn has_retiring(&self) -> bool {
        self.retiring.is_some()
    }

    pub fn process_count(&self) -> u64 {
        self.launch.topology.processes
    }

    /// How often processes were started.
    pub fn start_count(&self) -> usize {
        self.starts
    }

    fn spawn(&mut self) {
        self.starts += 1;
        self.proxies.clear();
        let TrialTopology { processes, separate, .. } = self.launch.topology;
        if separate {
            let hosts = self.write_hosts_files(processes as usize);
            self.members = (0..processes as usize)
                .map(|process| {
                    self.spawn_member(&format!("{}-{process}", self.starts), Some((process, &hosts[process])))
                })
                .collect();
        } else {
            self.members = vec![self.spawn_member(&self.starts.to_string(), None)];
        }
    }

    /// Writes the hosts file of each process: its own port, and the others behind proxies of its
    /// own.
    fn write_hosts_files(&mut self, processes: usize) -> Vec<PathBuf> {
        let listeners: Vec<_> = (0..processes).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<u16> = listeners.iter().map(|l| l.local_addr().unwrap().port()).collect();
        let mut files = Vec::new();
        for from in 0..processes {
            let mut text = String::new();
            for (to, &port) in ports.iter().enumerate() {
                let proxy = (from != to).then(|| Proxy::to(port));
                text += &format!("127.0.0.1:{}\n", proxy.as_ref().map_or(port, |proxy| proxy.port));
                self.proxies.extend(proxy.map(|proxy| (from, to, proxy)));
            }
            let file = self.launch.folder.join(format!("hosts-{}-{from}", self.starts));
            fs::write(&file, text).unwrap();
            files.push(file);
        }
        files
    }

    fn spawn_member(&self, name: &str, process: Option<(usize, &PathBuf)>) -> ClusterMember {
        let LaunchPlan {
            folder,
            config,
            topology,
            death_point: dies,
            clock_offsets_ms: clocks,
            open_files,
            successor_flag: succeeds,
        } = &self.launch;
        let (out, log) = (folder.join(format!("{name}.out")), folder.join(format!("{name}.log")));
        // It ends with the trial. A full disk is an error, no signal.
        let mut command = Command::new("setpriv");
        let limit = open_files.map(|files| format!("ulimit -n {files}; ")).unwrap_or_default();
        let exec = format!("trap '' XFSZ; {limit}exec \"$0\" \"$@\"");
        command.args(["--pdeathsig", "KILL", "sh", "-c", &exec]);
        command.arg(env!("CARGO_BIN_EXE_swelter"));
        remove_swelter_variables(&mut command);
        command.args(["run", "--listen", "127.0.0.1:0", "--workers", &topology.workers.to_string()]);
        command.arg("--config").arg(config).env("SWELTER_DATA_DIR", folder.join("data"));
        command.args(succeeds);
        if topology.processes > 1 {
            command.args(["--processes", &topology.processes.to_string()]);
        }
        if let Some((process, hosts)) = process {
            command.args(["--process", &process.to_string(), "--hosts"]).arg(hosts);
            if let Some(clock) = clocks.get(process) {
                command.env("SWELTER_TEST_CLOCK_OFFSET_MS", clock.to_string());
            }
        }
        if let Some(DeathPoint { variable, value, process: dying }) = dies
            && dying.zip(process).is_none_or(|(dying, (process, _))| dying == process as u64)
        {
            command.env(variable, value);
        }
        command.current_dir(folder).stdin(Stdio::null());
        command.stdout(File::create(&out).unwrap()).stderr(File::create(&log).unwrap());
        ClusterMember { child: command.spawn().unwrap(), out, log }
    }

    /// Where processes serve, in their order; fewer than there are while they start.
    fn addresses(&self) -> Vec<String> {
        let processes = self.launch.topology.processes as usize;
        let said = |member: &ClusterMember| fs::read_to_string(&member.out).unwrap_or_default();
        let text: String = self.members.iter().map(said).collect();
        let whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        // A supervisor prints the addresses again after a restart.
        whole
            .filter_map(|line| line.strip_prefix("listening on http://"))
            .take(processes)
            .map(String::from)
            .collect()
    }

    /// The processes that serve, in their order; fewer than there are while some start.
    pub fn processes(&self) -> Vec<u32> {
        processes_of(&self.members, self.launch.topology)
    }

    /// One of the processes, once there is one.
    pub fn pick_process(&self, lot: u64) -> u32 {
        wait_for("a process", || {
            let processes = self.processes();
            processes.get(lot as usize % processes.len().max(1)).copied()
        })
    }

    /// Stops all processes and their supervisor; they go on when the result is dropped.
    pub fn stop_all(&self) -> Vec<StoppedProcess> {
        let supervisors = self.members.iter().map(|member| member.child.id());
        let pids: BTreeSet<u32> = supervisors.chain(self.processes()).collect();
        pids.into_iter().map(StoppedProcess::new).collect()
    }

    /// The ports that processes listen at.
    pub fn ports(&self) -> Vec<u16> {
        let listening = listening_sockets();
        let sockets = self.processes().into_iter().flat_map(sockets_of);
        sockets.filter_map(|socket| listening.get(&socket).copied()).collect()
    }

    /// Of the process that `lot` means, in both directions.
    pub fn links_of_process(&self, lot: u64) -> impl Iterator<Item = &Proxy> {
        let process = (lot % self.launch.topology.processes) as usize;
        let of_it = move |(from, to, _): &&(usize, usize, Proxy)| *from == process || *to == process;
        self.proxies.iter().filter(of_it).map(|(_, _, proxy)| proxy)
    }

    /// Limits how long files may become that any of them writes to.
    pub fn limit_file_size(&self, bytes: Option<u64>) {
        for pid in self.members.iter().map(|member| member.child.id()).chain(self.processes()) {
            let limit = Rlimit { current: bytes, maximum: None };
            // It may have ended.
            let _ = prlimit(Pid::from_raw(pid as i32), Resource::Fsize, limit);
        }
    }

    /// Waits until every process serves, of one generation, other than `not`; gives their addresses
    /// and that generation. Processes that end meanwhile are started again if they have no
    /// supervisor.
    pub fn wait_ready(&mut self, not: Option<&str>) -> (Vec<String>, String) {
        let ready = self.wait_until_serving(not);
        self.check_retired();
        ready
    }

    /// The same, while processes that were taken over may still be there.
    pub fn wait_until_serving(&mut self, not: Option<&str>) -> (Vec<String>, String) {
        let deadline = Instant::now() + READY_TIMEOUT;
        let mut left = MAX_SELF_ENDS;
        loop {
            self.restart_ended(&mut left);
            let addresses = self.addresses();
            let statuses: Option<Vec<ServiceStatus>> = addresses
                .iter()
                .map(|address| ServiceStatus::fetch_status(address, RESPONSE_TIMEOUT))
                .collect();
            if addresses.len() == self.launch.topology.processes as usize
                && let Some(statuses) = &statuses
                && statuses.iter().all(|status| status.ready)
                && statuses.iter().all(|status| status.generation == statuses[0].generation)
                && Some(&*statuses[0].generation) != not
            {
                return (addresses, statuses[0].generation.clone());
            }
            assert!(Instant::now() < deadline, "not ready: {statuses:?}; {}", self.last_lines());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// If a process has ended, all must end, and are started again.
    fn restart_ended(&mut self, left: &mut usize) {
        if self.members.iter_mut().all(|member| member.child.try_wait().unwrap().is_none()) {
            return;
        }
        let lines = self.last_lines();
        let deadline = Instant::now() + MAX_OUTLIVE_PEER;
        while !self.all_have_ended() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        if !self.all_have_ended() {
            self.complaints
                .push(format!("a process lives {MAX_OUTLIVE_PEER:?} after its peer has ended: {lines}"));
        }
        self.own_ends += 1;
        *left = left.checked_sub(1).unwrap_or_else(|| panic!("it ends again and again: {lines}"));
        self.kill_all();
        self.launch.death_point = None;
        self.spawn();
    }

    fn all_have_ended(&mut self) -> bool {
        self.members.iter_mut().all(|member| member.child.try_wait().unwrap().is_some())
    }

    /// Waits until a process has died as planned; false after `within`.
    pub fn wait_for_death(&mut self, within: Duration) -> bool {
        // A supervisor has not started all of them yet.
        let (until, mut before) = (Instant::now() + within, Vec::new());
        while Instant::now() < until {
            let now = self.processes();
            let all_were_there = before.len() as u64 == self.launch.topology.processes;
            if self.members.iter_mut().any(|member| member.child.try_wait().unwrap().is_some())
                || all_were_there && now != before
            {
                return true;
            }
            before = now;
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    pub fn kill_all(&mut self) {
        self.kill_retiring();
        kill_members(&mut self.members, self.launch.topology);
    }

    /// Kills the supervisor alone. Its processes must end by themselves.
    pub fn kill_supervisor(&mut self) {
        let processes = self.processes();
        for member in &mut self.members {
            let _ = member.child.kill();
            let _ = member.child.wait();
        }
        let until = Instant::now() + Duration::from_secs(5);
        while processes.iter().any(|pid| is_own_process(*pid)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        let left: Vec<_> = processes.into_iter().filter(|pid| is_own_process(*pid)).collect();
        if !left.is_empty() {
            self.complaints.push(format!("{left:?} live 5 s after their supervisor was killed"));
            left.into_iter().for_each(|pid| send_signal(pid, Signal::KILL));
        }
    }

    /// Sends SIGTERM; all must end with 0 within seconds, unless one of them was killed just
    /// before.
    pub fn terminate(&mut self) {
        self.members.iter().for_each(|member| send_signal(member.child.id(), Signal::TERM));
        let began = Instant::now();
        while !self.all_have_ended() && began.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let was_killed = |member: &mut ClusterMember| {
            let status = member.child.try_wait().unwrap();
            status.is_some_and(|status| status.signal() == Some(9))
        };
        if self.members.iter_mut().any(was_killed) {
            return self.kill_all();
        }
        for member in &mut self.members {
            let status = member.child.try_wait().unwrap();
            if status.is_none_or(|status| !status.success()) {
                let log = last_line(&member.log);
                self.complaints.push(format!("SIGTERM: {status:?} after {:?}: {log}", began.elapsed()));
            }
        }
        self.kill_all();
    }

    fn last_lines(&self) -> String {
        self.members.iter().map(|member| last_line(&member.log)).collect::<Vec<_>>().join(" | ")
    }
}

impl Drop for TrialCluster {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// The processes that serve, in their order.
fn processes_of(members: &[ClusterMember], topology: TrialTopology) -> Vec<u32> {
    let of_members = members.iter().map(|member| member.child.id());
    if !topology.is_supervised() {
        return of_members.collect();
    }
    let mut found: Vec<(u32, u32)> = of_members.flat_map(child_processes).collect();
    found.sort_unstable();
    found.into_iter().map(|(_, pid)| pid).collect()
}

fn kill_members(members: &mut [ClusterMember], topology: TrialTopology) {
    let processes = processes_of(members, topology);
    for member in members {
        let _ = member.child.kill();
        let _ = member.child.wait();
    }
    if topology.is_supervised() {
        processes
            .into_iter()
            .filter(|pid| is_own_process(*pid))
            .for_each(|pid| send_signal(pid, Signal::KILL));
    }
}

fn last_line(log: &Path) -> String {
    fs::read_to_string(log).unwrap_or_default().lines().last().unwrap_or_default().to_string()
}
