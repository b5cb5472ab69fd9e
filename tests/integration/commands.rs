//! What the commands of the live service say, and how they end.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

const DEADLINE: Duration = Duration::from_secs(20);

/// Without any variable of the tester's own configuration.
fn swelter(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swelter"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SWELTER_")) {
        command.env_remove(name);
    }
    command.args(line.split_whitespace()).stdin(Stdio::null());
    command
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_configuration_is_checked_and_printed() {
    let right = swelter("run --check-config --workers 2").output().unwrap();
    assert_eq!((right.status.code(), texts(&right)), (Some(0), ("ok\n".into(), String::new())));

    let wrong = swelter("run --check-config --workers 0 --config no-such-file.toml")
        .env("SWELTER_SERVE__LISTN", "127.0.0.1:0")
        .output()
        .unwrap();
    let (out, err) = texts(&wrong);
    assert_eq!((wrong.status.code(), out.as_str(), err.lines().count()), (Some(2), "", 3), "{err}");
    for line in [
        "error: --config: no-such-file.toml cannot be read",
        "error: workers (--workers): \"0\" is not",
        "error: serve.listn (SWELTER_SERVE__LISTN): is not a key: did you mean serve.listen?",
    ] {
        assert!(err.contains(line), "{line}\n{err}");
    }

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("printed.toml");
    let printed = swelter("run --print-config --listen [::1]:7")
        .env("SWELTER_TOKENS", "read hunter2")
        .output()
        .unwrap();
    let (out, _) = texts(&printed);
    assert!(out.contains("listen = \"[::1]:7\"  # --listen\n") && !out.contains("hunter2"), "{out}");
    std::fs::write(&path, out).unwrap();
    let again = swelter("run --check-config --config").arg(&path).output().unwrap();
    assert_eq!(texts(&again), ("ok\n".into(), String::new()));
}

/// A subscriber as a child process, with the session that it has opened.
fn subscriber(line: &str) -> (Child, WebSocket<TcpStream>) {
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

fn changes(as_of: u64) -> Message {
    let row = r#"{"city":"1","reading_at":"2025-11-24T16:00:00Z","heat_index":1.5,"rolling_heat_index":2.5,"category":"none"}"#;
    let kind = if as_of == 0 {
        r#""snapshot","complete":true,"rows""#
    } else {
        r#""changes","removals":[],"upserts""#
    };
    Message::text(format!(r#"{{"type":{kind}:[{row}],"id":"a","as_of":{as_of},"token":"t"}}"#))
}

/// Waits for the end; gives the code and standard error.
fn end(mut child: Child) -> (Option<i32>, String) {
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
fn a_closed_pipe_ends_a_subscriber_well() {
    let (mut child, mut session) = subscriber("--all --json");
    session.send(changes(0)).unwrap();
    let mut first = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut first).unwrap();
    assert!(first.starts_with(r#"{"event":"upsert","as_of":0,"row":{"city":"1","#), "{first}");
    drop(out);
    // The session ends once the subscriber has seen that nobody reads.
    let until = Instant::now() + DEADLINE;
    for as_of in 1.. {
        if session.send(changes(as_of)).is_err() || child.try_wait().unwrap().is_some() {
            break;
        }
        assert!(Instant::now() < until, "the subscriber goes on");
    }
    assert_eq!(end(child), (Some(0), String::new()));
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_subscriber_well() {
    let (child, mut session) = subscriber("1");
    // Nobody reads what it prints: that must not keep it from ending.
    session.send(changes(0)).unwrap();
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(end(child), (Some(0), String::new()));
}

#[test]
fn a_subscriber_that_is_refused_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut command = swelter(&format!("subscribe {address} 1"));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut request = BufReader::new(stream.try_clone().unwrap()).lines();
    while request.next().is_some_and(|line| !line.unwrap().is_empty()) {}
    stream.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").unwrap();
    let (code, err) = end(child);
    assert_eq!(code, Some(1));
    assert_eq!(err, "error: the service asks for a token (401): --token-file names it\n");

    let wrong = swelter("subscribe ftp://example.org 1").output().unwrap();
    assert_eq!(wrong.status.code(), Some(1));
    assert!(texts(&wrong).1.starts_with("error: \"ftp://example.org\" is neither http"));
}
