//! What the commands of the live service say, and how they end.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

use crate::support::swelter_command;

const DEADLINE: Duration = Duration::from_secs(20);

fn swelter(line: &str) -> Command {
    let mut command = swelter_command();
    command.args(line.split_whitespace()).stdin(Stdio::null());
    command
}

fn output_texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn config_command_checks_and_prints() {
    let right = swelter("run --check-config --workers 2").output().unwrap();
    assert_eq!((right.status.code(), output_texts(&right)), (Some(0), ("ok\n".into(), String::new())));

    let wrong = swelter("run --check-config --workers 0 --config no-such-file.toml")
        .env("SWELTER_SERVE__LISTN", "127.0.0.1:0")
        .output()
        .unwrap();
    let (out, err) = output_texts(&wrong);
    assert_eq!((wrong.status.code(), out.as_str(), err.lines().count()), (Some(2), "", 3), "{err}");
    for line in [
        "error: --config: no-such-file.toml cannot be read",
        "error: workers (--workers): \"0\" is not",
        "error: serve.listn (SWELTER_SERVE__LISTN): is not a key: did you mean serve.listen, as SWELTER_SERVE__LISTEN?",
    ] {
        assert!(err.contains(line), "{line}\n{err}");
    }

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("printed.toml");
    let printed = swelter("run --print-config --listen [::1]:7")
        .env("SWELTER_TOKENS", "read hunter2")
        .output()
        .unwrap();
    let (out, _) = output_texts(&printed);
    assert!(out.contains("listen = \"[::1]:7\"  # --listen\n") && !out.contains("hunter2"), "{out}");
    std::fs::write(&path, out).unwrap();
    let again = swelter("run --check-config --config").arg(&path).output().unwrap();
    assert_eq!(output_texts(&again), ("ok\n".into(), String::new()));
}

/// A subscriber as a child process, with the session that it has opened.
fn start_subscriber(line: &str) -> (Child, WebSocket<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let child = swelter(&format!("subscribe http://{address} {line}"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut session = tungstenite::accept(stream).unwrap();
    let hello = r#"{"type":"hello","protocol":1,"generation":"1-a","formula":"nws","window_s":86400,"heartbeat_s":15}"#;
    session.send(Message::text(hello)).unwrap();
    assert!(session.read().unwrap().is_text());
    (child, session)
}

fn changes_message(as_of: u64) -> Message {
    let row = r#"{"city":"1","reading_at":"2025-11-24T16:00:00Z","heat_index":1.5,"rolling_heat_index":2.5,"category":"none"}"#;
    let kind = if as_of == 0 {
        r#""snapshot","complete":true,"rows""#
    } else {
        r#""changes","removals":[],"upserts""#
    };
    Message::text(format!(r#"{{"type":{kind}:[{row}],"id":"a","as_of":{as_of},"token":"t"}}"#))
}

/// Waits until the process has ended; returns its exit code and standard error.
fn wait_for_exit(mut child: Child) -> (Option<i32>, String) {
    let until = Instant::now() + DEADLINE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            child.kill().unwrap();
            panic!("the subscriber does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    (child.wait().unwrap().code(), err)
}

#[test]
fn closed_pipe_ends_subscriber_with_success() {
    let (mut child, mut session) = start_subscriber("--all --json");
    session.send(changes_message(0)).unwrap();
    let mut first = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut first).unwrap();
    assert!(first.starts_with(r#"{"event":"upsert","as_of":0,"row":{"city":"1","#), "{first}");
    drop(out);
    // The session ends once the subscriber has noticed that its output is closed.
    let until = Instant::now() + DEADLINE;
    for as_of in 1.. {
        if session.send(changes_message(as_of)).is_err() || child.try_wait().unwrap().is_some() {
            break;
        }
        assert!(Instant::now() < until, "the subscriber goes on");
    }
    assert_eq!(wait_for_exit(child), (Some(0), String::new()));
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_subscriber_with_success() {
    let (child, mut session) = start_subscriber("1");
    // Its output is not read, which must not keep it from ending.
    session.send(changes_message(0)).unwrap();
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(wait_for_exit(child), (Some(0), String::new()));
}

#[test]
fn refused_subscriber_reports_reason() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut command = swelter(&format!("subscribe {address} 1"));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut request = BufReader::new(stream.try_clone().unwrap()).lines();
    while request.next().is_some_and(|line| !line.unwrap().is_empty()) {}
    stream.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").unwrap();
    let (code, err) = wait_for_exit(child);
    assert_eq!(code, Some(1));
    assert_eq!(err, "error: the service requires a token (401): name its file with --token-file\n");

    let wrong = swelter("subscribe ftp://example.org 1").output().unwrap();
    assert_eq!(wrong.status.code(), Some(1));
    assert!(output_texts(&wrong).1.starts_with("error: \"ftp://example.org\" is neither http"));
}

/// Each command that reads a path, with a path that does not exist: it fails, names the path, and
/// creates nothing.
#[test]
fn missing_path_is_an_error_of_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (typo, empty, file) = (path("typo"), path("empty"), path("typo.jsonl"));
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    for line in [
        format!("dead-letters list --data-dir {typo}"),
        format!("dead-letters list --json --data-dir {typo}"),
        format!("dead-letters list --data-dir {empty}"),
        format!("dead-letters show --data-dir {typo} journal/0/0"),
        format!("dead-letters export --data-dir {typo} --out {}", path("out.jsonl")),
        format!("dead-letters retry --data-dir {typo}"),
        format!("dead-letters resubmit --data-dir {typo} {file}"),
        format!("checkpoints list --data-dir {typo}"),
        format!("checkpoints list --data-dir {empty}"),
        format!("checkpoints list --url {typo}"),
        format!("checkpoints verify --data-dir {typo}"),
        format!("checkpoints verify --url {empty}"),
        format!("checkpoints show --url {empty}"),
        format!("backup --data-dir {typo} --to {}", path("backups")),
        format!("backup --data-dir {empty} --to {}", path("backups")),
        format!("backup --verify {typo}"),
        format!("backup --verify {empty}"),
        format!("restore --from {typo} --data-dir {}", path("restored")),
        format!("batch {}", path("typo.csv")),
        format!("dead-letters list --config {}", path("typo.toml")),
        format!("run --check-config --config {}", path("typo.toml")),
    ] {
        let output = swelter(&line).output().unwrap();
        let (out, err) = output_texts(&output);
        assert!(!output.status.success(), "{line}: {out}");
        assert!(err.starts_with("error: ") && !out.contains("no dead letters"), "{line}: {out} {err}");
    }
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["empty"], "nothing is made by looking for it");
    assert!(std::fs::read_dir(&empty).unwrap().next().is_none());
}

#[test]
fn unused_arguments_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("swelter.toml");
    std::fs::write(&config, "[ingest]\nenabled = false\n").unwrap();
    let config = config.display();
    let data = folder.path().join("data");
    for line in [
        format!("run --check-config --config {config} --data-dir {}", data.display()),
        format!("dead-letters list --config {config} --data-dir {}", data.display()),
    ] {
        let output = swelter(&line).output().unwrap();
        let (_, err) = output_texts(&output);
        assert_eq!(output.status.code(), Some(2), "{line}: {err}");
        assert!(err.contains("--data-dir") && err.contains("is not used"), "{line}: {err}");
    }
    std::fs::create_dir_all(data.join("journal")).unwrap();
    let line = format!("dead-letters list --data-dir {} --source typo", data.display());
    let (_, err) = output_texts(&swelter(&line).output().unwrap());
    assert!(err.contains("there is no source \"typo\"") && err.contains("journal"), "{err}");
}

#[test]
fn subscriber_lists_cities_without_reading() {
    let (mut child, mut session) = start_subscriber("5128581 nowhere");
    let row = r#"{"city":"5128581","reading_at":"2025-11-24T16:00:00Z","heat_index":91.2,"rolling_heat_index":84.0,"count":1,"category":"none"}"#;
    for (complete, rows) in [("false", row), ("true", "")] {
        let token = if complete == "true" { ",\"token\":\"t\"" } else { "" };
        let snapshot = format!(
            r#"{{"type":"snapshot","id":"a","as_of":1,"complete":{complete}{token},"rows":[{rows}]}}"#
        );
        session.send(Message::text(snapshot)).unwrap();
    }
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(line.contains("no reading yet of nowhere: waiting"), "{line}");
    assert!(!line.contains("5128581"), "{line}");
}
