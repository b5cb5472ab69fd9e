//! The programs in `examples/`: they do what their first lines say.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::support::prepared::prepared_variable;
use crate::support::{ServiceProcess, post, wait_for};

#[path = "../../examples/embedded.rs"]
#[allow(dead_code)]
mod embedded;

#[test]
fn embedded_dataflow_gives_each_changed_row_once() {
    // By the regression of Rothfusz the four heat indexes are 94.60, 99.84, 97.48 and 91.04 °F.
    let expected = [
        "epoch 0: 2026-07-01T12:00:00Z none -> 94.60 °F",
        "epoch 1: 2026-07-01T14:00:00Z none -> 97.22 °F",
        "epoch 2: 2026-07-01T13:00:00Z none -> 96.04 °F",
        "epoch 2: 2026-07-01T14:00:00Z 97.22 °F -> 97.31 °F",
        "epoch 3: 2026-07-01T12:00:00Z 94.60 °F -> 91.04 °F",
        "epoch 3: 2026-07-01T13:00:00Z 96.04 °F -> 94.26 °F",
        "epoch 3: 2026-07-01T14:00:00Z 97.31 °F -> 96.12 °F",
    ];
    assert_eq!(embedded::changed_rows().unwrap(), expected);
}

#[test]
#[ignore = "needs Python: scripts/test"]
fn python_subscriber_resumes_after_lost_connection() {
    let mut command = Command::new(prepared_variable("TEST_PYTHON"));
    command.arg(examples().join("subscriber.py"));
    subscriber_keeps_exact_copy(command);
}

#[test]
#[ignore = "needs Node.js: scripts/test"]
fn javascript_subscriber_resumes_after_lost_connection() {
    // Node.js looks for packages in folders above the program.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("subscriber.mjs");
    fs::copy(examples().join("subscriber.mjs"), &program).unwrap();
    std::os::unix::fs::symlink(prepared_variable("TEST_NODE_MODULES"), folder.path().join("node_modules"))
        .unwrap();
    let mut command = Command::new("node");
    command.arg(&program);
    subscriber_keeps_exact_copy(command);
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

/// Over lost connections and restarts of the service, the copy equals the rows of REST.
fn subscriber_keeps_exact_copy(program: Command) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let service = ServiceProcess::start(&data, "").wait_until_ready();
    post_readings(&service, &[reading("a", 12, 90.0), reading("b", 12, 80.0), reading("c", 12, 70.0)]);

    let proxy = CutProxy::start(&service.address);
    let subscriber = Subscriber::start(program, &proxy.address, folder.path());
    subscriber.wait_for_copy_of(&service, &["a", "b", "c"]);

    proxy.set_target(None);
    wait_for("the end of the connection", || subscriber.errors().contains("reconnecting").then_some(()));
    let withdrawal = json!({"city": "c", "reading_at": "2026-07-01T12:00:00Z", "deleted": true});
    post_readings(
        &service,
        &[reading("a", 12, 91.0), reading("b", 13, 85.0), reading("d", 12, 60.0), withdrawal],
    );
    proxy.set_target(Some(&service.address));
    subscriber.wait_for_copy_of(&service, &["a", "b", "d"]);
    assert!(subscriber.output().contains(", continued"), "{}", subscriber.output());
    assert!(!subscriber.output().contains("reset"), "{}", subscriber.output());

    // Another start is another generation: the copy is rebuilt, and is exact again.
    service.kill();
    let service = ServiceProcess::start(&data, "").wait_until_ready();
    post_readings(&service, &[reading("e", 12, 75.0)]);
    proxy.set_target(Some(&service.address));
    subscriber.wait_for_copy_of(&service, &["a", "b", "d", "e"]);
    assert!(subscriber.output().contains("reset: generation"), "{}", subscriber.output());
}

fn reading(city: &str, hour: u32, temperature: f64) -> Value {
    let reading_at = format!("2026-07-01T{hour}:00:00Z");
    json!({"city": city, "reading_at": reading_at, "temperature": temperature, "humidity": 50.0})
}

fn post_readings(service: &ServiceProcess, readings: &[Value]) {
    for reading in readings {
        let answer = post(&service.address, "application/json", &reading.to_string()).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
}

/// A running example; it is killed when this is dropped.
struct Subscriber {
    child: Child,
    folder: PathBuf,
}

impl Subscriber {
    fn start(mut program: Command, address: &str, folder: &Path) -> Subscriber {
        let file = |name: &str| File::create(folder.join(name)).unwrap();
        let child = program
            .arg(format!("ws://{address}/v1/subscribe"))
            .arg(folder.join("copy.json"))
            .env("NO_PROXY", "127.0.0.1")
            .stdin(Stdio::null())
            .stdout(file("subscriber.out"))
            .stderr(file("subscriber.err"))
            .spawn()
            .unwrap();
        Subscriber { child, folder: folder.to_path_buf() }
    }

    fn output(&self) -> String {
        fs::read_to_string(self.folder.join("subscriber.out")).unwrap()
    }

    fn errors(&self) -> String {
        fs::read_to_string(self.folder.join("subscriber.err")).unwrap()
    }

    /// Waits until the copy has these cities, with the rows that REST answers.
    fn wait_for_copy_of(&self, service: &ServiceProcess, cities: &[&str]) {
        let what = format!("a copy of {cities:?}");
        wait_for(&what, || {
            let text = fs::read_to_string(self.folder.join("copy.json")).ok()?;
            let copy: Value = serde_json::from_str(&text).unwrap();
            let copied: BTreeMap<_, _> = copy["rows"].as_object().unwrap().clone().into_iter().collect();
            let served = served_rows(service);
            (copied.keys().eq(cities) && copied == served).then_some(())
        });
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The current rows by city, as a subscriber has them.
fn served_rows(service: &ServiceProcess) -> BTreeMap<String, Value> {
    let answer = service.get_json("/v1/cities");
    let with_rows = answer["cities"].as_array().unwrap().iter().filter(|city| city["current"].is_object());
    let rows = with_rows.map(|city| {
        let (name, mut row) = (city["city"].as_str().unwrap().to_string(), city["current"].clone());
        let row_fields = row.as_object_mut().unwrap();
        row_fields.retain(|field, _| field != "stale" && field != "age_s");
        row_fields.insert("city".to_string(), json!(name));
        (name, row)
    });
    rows.collect()
}

/// Forwards connections to a target that can be taken away and changed, which ends every connection.
struct CutProxy {
    address: String,
    state: Arc<Mutex<ProxyState>>,
}

#[derive(Default)]
struct ProxyState {
    target: Option<String>,
    open: Vec<TcpStream>,
}

impl CutProxy {
    fn start(target: &str) -> CutProxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(ProxyState { target: Some(target.to_string()), open: Vec::new() }));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // Without a target the connection is dropped.
                let _ = forward(client, &mut shared.lock());
            }
        });
        CutProxy { address, state }
    }

    fn set_target(&self, target: Option<&str>) {
        let mut state = self.state.lock();
        state.target = target.map(str::to_string);
        for stream in state.open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn forward(client: TcpStream, state: &mut ProxyState) -> io::Result<()> {
    let Some(target) = &state.target else { return Ok(()) };
    let server = TcpStream::connect(target)?;
    state.open.extend([client.try_clone()?, server.try_clone()?]);
    for (mut from, mut to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}
