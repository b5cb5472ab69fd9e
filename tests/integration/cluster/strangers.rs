//! Connections to the port of a cluster from outside the cluster.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::*;
use crate::support::{HostsFile, ServiceProcess, swelter_command, wait_for};

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
    let cluster = HostsCluster::with_secret("s3cr3t");
    let mut first = cluster.start(0, CONFIG);
    cluster.connect_to(0);
    let resident = proc_status_field(first.pid(), "VmRSS");
    let floods = [0, 1].map(|process| ConnectionFlood::of(cluster.ports[process]));
    floods[0].wait_for_calls(500);
    let mut second = cluster.start(1, CONFIG);
    check_results(&both_ready_addresses(&mut first, &mut second));
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
    terminate_together([second, first]);
}

#[test]
fn weak_secret_is_refused_across_hosts() {
    let hosts = HostsFile::new(&["127.0.0.1:1".into(), "192.0.2.1:1".into()]);
    let process = |config: &str, secret: Option<&str>| {
        let service = hosts.process(ServiceBuilder::new(config), 0);
        match secret {
            Some(secret) => service.env(CLUSTER_SECRET, secret).run_to_end(),
            None => service.run_to_end(),
        }
    };
    let made = swelter_command().args(["cluster", "secret"]).output().unwrap();
    assert!(made.status.success());
    let made = String::from_utf8(made.stdout).unwrap();
    assert_eq!(made.lines().count(), 1, "{made}");
    for secret in [None, Some("s3cr3t"), Some("correct horse battery staple")] {
        let (code, log) = process("", secret);
        assert_eq!(code, Some(2));
        assert!(log.contains("run `swelter cluster secret`"), "{log}");
        assert!(secret.is_none_or(|secret| !log.contains(secret)), "{log}");
    }
    let (code, log) = process("[cluster]\nconnect_time = \"1s\"\n", Some(&made));
    assert_eq!(code, Some(1));
    assert!(log.contains("process 1 of 2 has not connected within 1 s"), "{log}");
    assert_eq!(log.matches("cluster.tls is not set").count(), 1, "warned of once: {log}");
}

#[test]
fn handshake_panic_ends_only_its_connection() {
    let cluster = HostsCluster::new(2);
    let mut first = cluster.process(0, CONFIG).env("SWELTER_PANIC_POINT", "handshake:1").spawn();
    let mut stranger = cluster.connect_to(0);
    assert_eq!(std::io::Read::read(&mut stranger, &mut [0]).unwrap_or(0), 0, "it is closed");
    let mut second = cluster.start(1, CONFIG);
    check_results(&both_ready_addresses(&mut first, &mut second));
    assert!(first.log().contains("asks for it at handshake"), "{}", first.log());
    terminate_together([second, first]);
}
