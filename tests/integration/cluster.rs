//! Several processes: what each serves, who may join, and how they end.

pub mod authority;
mod strangers;
mod tls;

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::stream::MaybeTlsStream;
use tokio_tungstenite::tungstenite::{Message, connect};

use crate::support::{
    CLUSTER_SECRET, HostsCluster, ServiceBuilder, ServiceProcess, consecutive_free_ports, get, is_ready,
    post, remove_ages, send_signal, terminate_together, wait_for,
};

/// `swelter run` with further arguments.
fn start_cluster(data: &Path, config: &str, arguments: &[&str]) -> ServiceProcess {
    ServiceBuilder::new(config).data(data).args(arguments).spawn()
}

/// The addresses that the next lines print, once each of these processes is ready.
fn ready_addresses(program: &mut ServiceProcess, processes: usize) -> Vec<String> {
    let addresses = program.next_addresses(processes);
    for address in &addresses {
        wait_for("readiness", || is_ready(address).then_some(()));
    }
    addresses
}

/// The addresses of both processes of a cluster, once they are ready.
fn both_ready_addresses(first: &mut ServiceProcess, second: &mut ServiceProcess) -> Vec<String> {
    [ready_addresses(first, 1), ready_addresses(second, 1)].concat()
}

fn is_alive(pid: Pid) -> bool {
    // A process that was not waited for yet has no command line any more.
    std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).is_ok_and(|line| !line.is_empty())
}

/// Posts a reading of each city to each process.
fn post_readings(addresses: &[String], minute: usize) {
    for (at, address) in addresses.iter().enumerate() {
        let records = (0..20).map(|city| {
            let reading_at = format!("2025-07-24T10:{minute:02}:{at:02}Z");
            json!({"city": format!("city {city}"), "reading_at": reading_at, "temperature": 70 + city, "humidity": 50})
                .to_string()
        });
        let body = records.collect::<Vec<_>>().join("\n");
        let answer = post(address, "application/x-ndjson", &body).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
}

fn get_json(address: &str, path: &str) -> Option<Value> {
    let answer = get(address, path).ok().filter(|answer| answer.status == 200)?;
    serde_json::from_str(&answer.body).ok()
}

/// Waits until every process serves the same rows of all cities and the same history, with so many
/// readings a city; returns them.
fn wait_for_equal_responses(addresses: &[String], readings: usize) -> (Value, Value) {
    let said = |address: &String| {
        wait_for("all readings", || {
            let mut cities = get_json(address, "/v1/cities")?["cities"].take();
            remove_ages(&mut cities);
            cities.as_array_mut()?.sort_by_key(|city| city["city"].to_string());
            let history = get_json(address, "/v1/cities/city%207/history")?["rows"].take();
            let all = cities.as_array()?.len() == 20 && history.as_array()?.len() == readings;
            let newest = |city: &Value| city["current"]["count"] == readings;
            (all && cities.as_array()?.iter().all(newest)).then_some((cities, history))
        })
    };
    let all: Vec<_> = addresses.iter().map(said).collect();
    assert!(all.iter().all(|said| *said == all[0]), "{all:?}");
    all[0].clone()
}

/// Posts a reading of each city to each process, and waits until all serve the same results.
fn check_results(addresses: &[String]) {
    post_readings(addresses, 0);
    wait_for_equal_responses(addresses, addresses.len());
}

/// A lost process is noticed by its closed connections: its silence would be noticed later than a
/// test waits.
const CONFIG: &str =
    "[checkpoints]\nevery = \"500ms\"\n[cluster]\npeer_timeout = \"5m\"\nconnect_time = \"20s\"\n";

#[test]
fn every_process_serves_all_cities_and_recovers() {
    let data = tempfile::tempdir().unwrap();
    let mut program = start_cluster(data.path(), CONFIG, &["--processes", "3", "--workers", "2"]);
    let addresses = ready_addresses(&mut program, 3);
    post_readings(&addresses, 0);
    wait_for_equal_responses(&addresses, 3);

    let children = program.child_processes();
    assert_eq!(children.len(), 3);
    send_signal(children[1], Signal::KILL);
    for other in [children[0], children[2]] {
        wait_for("the others' end", || (!is_alive(other)).then_some(()));
    }
    assert_eq!(ready_addresses(&mut program, 3), addresses, "each is where it was");
    post_readings(&addresses, 1);
    wait_for_equal_responses(&addresses, 6);
    program.terminate();

    // The same data with other numbers of processes and workers.
    let mut program = start_cluster(data.path(), CONFIG, &["--processes", "2", "--workers", "1"]);
    let addresses = ready_addresses(&mut program, 2);
    wait_for_equal_responses(&addresses, 6);
    program.terminate();
}

#[test]
fn children_end_with_their_supervisor() {
    let data = tempfile::tempdir().unwrap();
    let mut program = start_cluster(data.path(), CONFIG, &["--processes", "2"]);
    ready_addresses(&mut program, 2);
    let children = program.child_processes();
    send_signal(program.pid(), Signal::KILL);
    for child in children {
        wait_for("a child's end", || (!is_alive(child)).then_some(()));
    }
}

/// Waits for the next message of one of these types.
fn request_message(
    socket: &mut tokio_tungstenite::tungstenite::WebSocket<MaybeTlsStream<TcpStream>>,
    kinds: &[&str],
) -> Value {
    wait_for("a message", || {
        let Message::Text(text) = socket.read().unwrap() else { return None };
        let message: Value = serde_json::from_str(&text).unwrap();
        kinds.contains(&message["type"].as_str().unwrap()).then_some(message)
    })
}

#[test]
fn resume_token_continues_at_another_process() {
    let data = tempfile::tempdir().unwrap();
    let mut program = start_cluster(data.path(), CONFIG, &["--processes", "2"]);
    let addresses = ready_addresses(&mut program, 2);
    post_readings(&addresses, 0);
    wait_for_equal_responses(&addresses, 2);
    let mut token = Value::Null;
    for round in 1..6 {
        let (mut socket, _) = connect(format!("ws://{}/v1/subscribe", addresses[round % 2])).unwrap();
        let subscribe =
            json!({"type": "subscribe", "id": "a", "cities": "all", "rows": "latest", "resume": token});
        let mut subscribe = subscribe.as_object().unwrap().clone();
        if round == 1 {
            subscribe.remove("resume");
        }
        socket.send(Message::text(Value::from(subscribe).to_string())).unwrap();
        let message = request_message(&mut socket, &["snapshot", "changes", "reset"]);
        assert_eq!(message["type"], if round == 1 { "snapshot" } else { "changes" }, "{message}");
        if round > 1 {
            let upserts = message["upserts"].as_array().unwrap();
            assert_eq!(upserts.len(), 20, "what was posted while nobody listened");
        }
        token = message["token"].clone();
        drop(socket);
        post_readings(&addresses, round);
        wait_for_equal_responses(&addresses, 2 * (round + 1));
    }
    program.terminate();
}

#[test]
fn mismatched_peer_is_refused_and_strangers_do_not_delay_start() {
    let cluster = HostsCluster::with_secret("s3cr3t");
    let mut first = cluster.start(0, CONFIG);
    // Strangers: one that says nothing, one that says nonsense.
    let (silent, mut loud) = (cluster.connect_to(0), cluster.connect_to(0));
    loud.write_all(&[0xFF; 4096]).unwrap();
    // A process without the secret trusts no refusal that it gets, and retries until its connect
    // time is over.
    let short = CONFIG.replace("20s", "2s");
    let other_formula = format!("{short}[results]\nformula = \"lu-romps\"\n");
    for (refused, expected) in [
        (cluster.process(1, &other_formula), "results.formula = \"lu-romps\""),
        (cluster.process(1, &short).env(CLUSTER_SECRET, "other"), "cluster secret"),
        (cluster.process(1, &short).args(&["--workers", "3"]), "--workers"),
    ] {
        let (code, log) = refused.run_to_end();
        assert_eq!(code, Some(1));
        assert!(log.lines().last().unwrap().contains(expected), "{expected}: {log}");
        assert!(!log.contains("s3cr3t"), "no secret is shown: {log}");
    }
    let mut second = cluster.start(1, CONFIG);
    check_results(&both_ready_addresses(&mut first, &mut second));
    drop((silent, loud));
    // A stop of one process stops all.
    terminate_together([second, first]);
}

#[test]
fn missing_peer_ends_start_after_timeout() {
    let cluster = HostsCluster::new(2);
    for (process, expected) in
        [(0, "process 1 of 2 has not connected within 1 s"), (1, "process 0 at 127.0.0.1")]
    {
        let (code, log) = cluster.process(process, "[cluster]\nconnect_time = \"1s\"\n").run_to_end();
        assert_eq!(code, Some(1));
        assert!(log.lines().last().unwrap().contains(expected), "{log}");
    }
}

/// Sends a signal to one of two processes that are ready; the other ends with an error.
fn check_lost_peer(config: &str, lost: usize, signal: Signal, expected: &str) {
    let cluster = HostsCluster::new(2);
    let mut both = [0, 1].map(|process| cluster.start(process, config));
    both.iter_mut().for_each(|one| drop(ready_addresses(one, 1)));
    send_signal(both[lost].pid(), signal);
    let other = &mut both[1 - lost];
    assert_eq!(other.wait_for_exit().code(), Some(1), "{}", other.log());
    assert!(other.log().contains(expected), "{expected}: {}", other.log());
}

#[test]
fn lost_peer_ends_process_soon_with_error() {
    for killed in 0..2 {
        check_lost_peer(CONFIG, killed, Signal::KILL, "its connection is lost");
    }
}

#[test]
fn stop_during_start_succeeds_soon() {
    // Longer than a test waits: the stop must not wait for the third process.
    let config = "[cluster]\nconnect_time = \"5m\"\n";
    let cluster = HostsCluster::new(3);
    // The third process never starts, so the others wait.
    let mut two = [0, 1].map(|process| cluster.start(process, config));
    wait_for("a handler of signals", || {
        let caught = |program: &ServiceProcess| {
            let status =
                std::fs::read_to_string(format!("/proc/{}/status", program.pid().as_raw_nonzero())).ok()?;
            let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?.trim().to_owned();
            Some(u64::from_str_radix(&mask, 16).ok()? & 1 << 14 != 0)
        };
        two.iter().all(|program| caught(program) == Some(true)).then_some(())
    });
    two.iter().for_each(|program| program.send_terminate());
    for program in &mut two {
        assert_eq!(program.wait_for_exit().code(), Some(0), "{}", program.log());
    }

    // At different points of a supervised start.
    let points: [fn(&ServiceProcess) -> bool; 4] = [
        |program| program.child_processes().len() == 2,
        |program| !program.log().is_empty(),
        |program| program.data_dir().join("journal").exists(),
        ServiceProcess::is_listening,
    ];
    for (number, point) in points.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let program = start_cluster(&folder.path().join("data"), CONFIG, &["--processes", "2"]);
        wait_for(&format!("point {number} of the start"), || point(&program).then_some(()));
        program.terminate();
    }
}

#[test]
fn processes_serve_on_consecutive_ports() {
    let data = tempfile::tempdir().unwrap();
    for _ in 0..5 {
        let port = consecutive_free_ports(3);
        let listen = format!("127.0.0.1:{port}");
        let arguments = ["--processes", "3", "--listen", &listen];
        let mut program = start_cluster(data.path(), CONFIG, &arguments);
        let addresses = match program.next_addresses_unless_ended(3) {
            // Another process has taken one of them.
            Err(status) if status.code() == Some(1) => continue,
            started => started.unwrap(),
        };
        let expected: Vec<String> = (0..3).map(|process| format!("127.0.0.1:{}", port + process)).collect();
        assert_eq!(addresses, expected);
        return program.terminate();
    }
    panic!("no three ports in a row are free");
}
