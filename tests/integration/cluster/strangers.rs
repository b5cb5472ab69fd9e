//! Connections to the port of a cluster from outside the cluster.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::*;
use crate::support::{ServiceBuilder, ServiceProcess, swelter_command, wait_for};

/// Connects to a port as fast as it can until it is dropped, from several threads that each send
/// other bytes.
pub(super) struct ConnectionFlood {
    ended: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl ConnectionFlood {
    pub fn of(port: u16) -> ConnectionFlood {
        let (ended, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let said: [&[u8]; 4] =
            [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", &[b'x'; 5000]];
        let call = |said: &'static [u8]| {
            let (ended, calls) = (Arc::clone(&ended), Arc::clone(&calls));
            thread::spawn(move || {
                let address = ([127, 0, 0, 1], port).into();
                let mut held = VecDeque::new();
                while !ended.load(Ordering::Relaxed) {
                    let Ok(mut socket) = TcpStream::connect_timeout(&address, Duration::from_millis(300))
                    else {
                        thread::sleep(Duration::from_millis(1));
                        continue;
                    };
                    calls.fetch_add(1, Ordering::Relaxed);
                    let _ = socket.write_all(said);
                    held.push_back(socket);
                    // They are kept open.
                    if held.len() > 50 {
                        held.pop_front();
                    }
                }
            })
        };
        let threads = said.map(call).into();
        ConnectionFlood { ended, calls, threads }
    }

    pub fn wait_for_calls(&self, count: u64) {
        let before = self.calls.load(Ordering::Relaxed);
        wait_for("the flood", || (self.calls.load(Ordering::Relaxed) >= before + count).then_some(()));
    }
}

impl Drop for ConnectionFlood {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn proc_status_field(pid: Pid, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
}

fn refused_call_lines(program: &ServiceProcess) -> Vec<String> {
    let log = program.log();
    log.lines()
        .filter(|line| line.contains("to the cluster") && line.contains("refused"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn cluster_starts_and_serves_during_connection_flood() {
    let (data, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ports = [free_port(), free_port()];
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, format!("127.0.0.1:{}\n127.0.0.1:{}\n", ports[0], ports[1])).unwrap();
    let of = |process: &'static str| {
        ["--processes", "2", "--process", process, "--hosts", hosts.to_str().unwrap()]
    };
    let mut first = start_cluster(data.path(), CONFIG, &of("0"), Some("s3cr3t"));
    wait_for("its port", || TcpStream::connect(("127.0.0.1", ports[0])).ok());
    let resident = proc_status_field(first.pid(), "VmRSS");
    let floods = [ConnectionFlood::of(ports[0]), ConnectionFlood::of(ports[1])];
    floods[0].wait_for_calls(500);
    let mut second = start_cluster(data.path(), CONFIG, &of("1"), Some("s3cr3t"));
    let addresses = [ready_addresses(&mut first, 1), ready_addresses(&mut second, 1)].concat();
    post_readings(&addresses, 0);
    wait_for_equal_responses(&addresses, 2);
    floods[0].wait_for_calls(500);
    let threads = [&first, &second].map(|program| proc_status_field(program.pid(), "Threads"));
    let grown = proc_status_field(first.pid(), "VmRSS").saturating_sub(resident) / 1024;
    drop(floods);
    assert!(threads.iter().all(|threads| *threads < 200), "{threads:?} threads");
    assert!(grown < 200, "{grown} MiB more");
    // At most one a minute, with a count.
    for program in [&first, &second] {
        let lines = refused_call_lines(program);
        assert!(lines.len() <= 2, "{lines:#?}");
    }
    assert_eq!(refused_call_lines(&first)[0].matches("refused:").count(), 1);
    second.send_terminate();
    assert_eq!(
        (first.wait_for_exit().code(), second.wait_for_exit().code()),
        (Some(0), Some(0)),
        "{}",
        second.log()
    );
}

#[test]
fn weak_secret_is_refused_across_hosts() {
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1:1\n192.0.2.1:1\n").unwrap();
    let made = swelter_command().args(["cluster", "secret"]).output().unwrap();
    assert!(made.status.success());
    let made = String::from_utf8(made.stdout).unwrap();
    assert_eq!(made.lines().count(), 1, "{made}");
    let arguments = ["--processes", "2", "--process", "0", "--hosts", hosts.to_str().unwrap()];
    for secret in [None, Some("s3cr3t"), Some("correct horse battery staple")] {
        let mut weak = start_cluster(folder.path(), "", &arguments, secret);
        assert_eq!(weak.wait_for_exit().code(), Some(2));
        let log = weak.log();
        assert!(log.contains("run `swelter cluster secret`"), "{log}");
        assert!(secret.is_none_or(|secret| !log.contains(secret)), "{log}");
    }
    let config = "[cluster]\nconnect_time = \"1s\"\n";
    let mut strong = start_cluster(&folder.path().join("data"), config, &arguments, Some(&made));
    assert_eq!(strong.wait_for_exit().code(), Some(1));
    let log = strong.log();
    assert!(log.contains("process 1 of 2 has not connected within 1 s"), "{log}");
    assert_eq!(log.matches("cluster.tls is not set").count(), 1, "warned of once: {log}");
}

#[test]
fn handshake_panic_ends_only_its_connection() {
    let (data, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ports = [free_port(), free_port()];
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, format!("127.0.0.1:{}\n127.0.0.1:{}\n", ports[0], ports[1])).unwrap();
    let of = |process: &'static str| {
        ["--processes", "2", "--process", process, "--hosts", hosts.to_str().unwrap()]
    };
    let first = ServiceBuilder::new(CONFIG).data(data.path()).args(&of("0"));
    let mut first = first.env("SWELTER_PANIC_POINT", "handshake:1").spawn();
    let mut stranger = wait_for("its port", || TcpStream::connect(("127.0.0.1", ports[0])).ok());
    assert_eq!(std::io::Read::read(&mut stranger, &mut [0]).unwrap_or(0), 0, "it is closed");
    let mut second = start_cluster(data.path(), CONFIG, &of("1"), None);
    let addresses = [ready_addresses(&mut first, 1), ready_addresses(&mut second, 1)].concat();
    post_readings(&addresses, 0);
    wait_for_equal_responses(&addresses, 2);
    assert!(first.log().contains("asks for it at handshake"), "{}", first.log());
    second.send_terminate();
    assert_eq!(
        (first.wait_for_exit().code(), second.wait_for_exit().code()),
        (Some(0), Some(0)),
        "{}",
        second.log()
    );
}
