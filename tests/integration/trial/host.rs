//! Processes of this host as the kernel has them: signals, limits, children, sockets.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

pub fn send_signal(pid: u32, signal: Signal) {
    // It may have ended.
    let _ = kill_process(Pid::from_raw(pid as i32).unwrap(), signal);
}

/// Stops a process; it goes on when this is dropped.
pub struct StoppedProcess(u32);

impl StoppedProcess {
    pub fn new(pid: u32) -> StoppedProcess {
        send_signal(pid, Signal::STOP);
        StoppedProcess(pid)
    }
}

impl Drop for StoppedProcess {
    fn drop(&mut self) {
        send_signal(self.0, Signal::CONT);
    }
}

/// A process that can open no more files, until this is dropped.
pub struct OpenFileBlock(u32, Rlimit);

impl OpenFileBlock {
    pub fn of(pid: u32) -> OpenFileBlock {
        let before = limit_open_files(pid, Rlimit { current: Some(0), maximum: None });
        OpenFileBlock(pid, before.unwrap_or(Rlimit { current: None, maximum: None }))
    }
}

impl Drop for OpenFileBlock {
    fn drop(&mut self) {
        limit_open_files(self.0, Rlimit { current: self.1.current, maximum: self.1.maximum });
    }
}

/// Gives the limit before, unless the process has ended.
fn limit_open_files(pid: u32, limit: Rlimit) -> Option<Rlimit> {
    prlimit(Pid::from_raw(pid as i32), Resource::Nofile, limit).ok()
}

/// The numbers of the sockets that a process has open.
pub fn sockets_of(pid: u32) -> Vec<u64> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let targets = files.filter_map(|file| fs::read_link(file.path()).ok());
    let number = |target: PathBuf| target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok();
    targets.filter_map(number).collect()
}

/// The sockets of this host that listen, and their ports.
pub fn listening_sockets() -> HashMap<u64, u16> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let listening = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (address, state, socket) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let port = u16::from_str_radix(address.split_once(':')?.1, 16).ok()?;
        (*state == "0A").then_some((socket.parse().ok()?, port))
    };
    table.lines().skip(1).filter_map(listening).collect()
}

/// The arguments of a process that has not ended.
fn process_arguments(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok().filter(|text| !text.is_empty())?;
    Some(text.split('\0').map(String::from).collect())
}

/// Another process may have got the id of one that has ended.
pub fn is_own_process(pid: u32) -> bool {
    process_arguments(pid).is_some_and(|arguments| arguments[0].ends_with("swelter"))
}

/// The processes that a supervisor has started, with their numbers.
pub fn child_processes(supervisor: u32) -> Vec<(u32, u32)> {
    let tasks = fs::read_dir(format!("/proc/{supervisor}/task")).into_iter().flatten().flatten();
    let listed = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<u32> = listed
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect();
    let numbered = |pid: u32| {
        let arguments = process_arguments(pid)?;
        let at = arguments.iter().position(|argument| argument == "--process")?;
        Some((arguments.get(at + 1)?.parse().ok()?, pid))
    };
    pids.into_iter().filter_map(numbered).collect()
}
