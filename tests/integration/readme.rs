//! The commands of the README and of the disaster recovery page, run as they are written but for
//! ports, folders and names of topics.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tempfile::TempDir;

use crate::kafka::broker::shared_broker;
use crate::support::prepared::prepared_variable;
use crate::support::{remove_ages, remove_swelter_variables};

/// For all the commands of a section.
const COMMANDS_TIMEOUT: Duration = Duration::from_secs(120);

fn repository_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The blocks of a language below a heading, up to the next one.
fn readme_blocks(heading: &str, language: &str) -> Vec<String> {
    document_blocks("README.md", heading, language)
}

fn document_blocks(file: &str, heading: &str, language: &str) -> Vec<String> {
    let text = fs::read_to_string(repository_root().join(file)).unwrap();
    let (_, rest) = text.split_once(&format!("\n## {heading}\n")).expect("a heading");
    let section = rest.split("\n## ").next().unwrap();
    let fenced = section.split("```").skip(1).step_by(2);
    fenced.filter_map(|block| block.strip_prefix(&format!("{language}\n")).map(String::from)).collect()
}

/// The first of so many ports in a row that nobody has.
fn free_ports(count: u16) -> u16 {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).ok();
    loop {
        let first = free(0).unwrap().local_addr().unwrap().port();
        let all = (1..count).map(|next| first.checked_add(next).and_then(free)).collect::<Option<Vec<_>>>();
        if all.is_some() {
            return first;
        }
    }
}

/// A shell and its child processes, which end with this.
struct ShellRun {
    child: Child,
    folder: TempDir,
}

impl ShellRun {
    /// Runs commands in a folder that has the project's data, with the built program in the path.
    fn start_shell(commands: &str, folder: TempDir, port: u16) -> ShellRun {
        std::os::unix::fs::symlink(repository_root().join("data"), folder.path().join("data")).unwrap();
        let program = PathBuf::from(env!("CARGO_BIN_EXE_swelter"));
        let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        remove_swelter_variables(&mut command);
        let file = |name: &str| fs::File::create(folder.path().join(name)).unwrap();
        let child = command
            .args(["-c", commands])
            .env("PATH", path)
            .env("SWELTER_SERVE__LISTEN", format!("127.0.0.1:{port}"))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("err"))
            .process_group(0)
            .spawn()
            .unwrap();
        ShellRun { child, folder }
    }

    /// Waits until the commands have ended; returns their output.
    fn wait_for_output(mut self) -> String {
        let deadline = Instant::now() + COMMANDS_TIMEOUT;
        let said = |name: &str| fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it takes too long: {}{}", said("out"), said("err"));
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(status.success(), "{status}: {}{}", said("out"), said("err"));
        said("out")
    }
}

impl Drop for ShellRun {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

/// The lines that are JSON objects with this field.
fn json_objects_with(out: &str, field: &str) -> Vec<Value> {
    let parsed = out.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    parsed.filter(|value| value.get(field).is_some()).collect()
}

#[test]
fn readme_cluster_commands_work() {
    let commands = &readme_blocks("Run a cluster", "sh")[0];
    let (folder, first) = (tempfile::tempdir().unwrap(), free_ports(3));
    let mut commands = commands.replace("/tmp/swelter-cluster", "swelter-cluster");
    for (at, port) in [(0, "8080"), (1, "8081"), (2, "8082")] {
        commands = commands.replace(port, &(first + at).to_string());
    }
    // Other tests have clusters, too.
    let own = folder.path().file_name().unwrap().to_str().unwrap().to_owned();
    commands = commands.replace("swelter-cluster", &format!("swelter-cluster{own}"));
    let out = ShellRun::start_shell(&commands, folder, first).wait_for_output();
    assert_eq!(json_objects_with(&out, "accepted")[0]["accepted"], 1, "{out}");
    let mut rows = Value::from(json_objects_with(&out, "current"));
    remove_ages(&mut rows);
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 4, "of three processes, and of one after the kill: {out}");
    for row in rows {
        assert_eq!(row["current"], rows[0]["current"]);
        assert_eq!(row["current"]["temperature"], 91.4);
    }
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn readme_kafka_commands_work() {
    let access = shared_broker();
    let config = &readme_blocks("With Kafka", "toml")[0];
    // The first block fetches and starts a broker, as scripts/test has done.
    let [_, commands @ ..] = &readme_blocks("With Kafka", "sh")[..] else { panic!("no commands") };
    let (folder, port) = (tempfile::tempdir().unwrap(), free_ports(1));
    let number = std::process::id();
    let topics = |text: &str| {
        text.replace("127.0.0.1:9092", &access.address).replace("heat-index", &format!("heat-index-{number}"))
    };
    let readings = format!("readings-{number}");
    let config = topics(config).replace("\"readings\"", &format!("\"{readings}\""));
    fs::write(folder.path().join("swelter.toml"), config).unwrap();
    let commands = topics(&commands.concat())
        .replace("--topic readings", &format!("--topic {readings}"))
        .replace("localhost:8080", &format!("localhost:{port}"));
    // On a quiet machine the last command shows it at once.
    let results =
        format!("kcat -C -b {} -X isolation.level=read_committed -t heat-index-{number} -e", access.address);
    let commands = format!(
        "{commands}\nuntil {results} | grep JFK | grep -q danger; do sleep 0.2; done\necho hour $hour\n"
    );
    let out = ShellRun::start_shell(&commands, folder, port).wait_for_output();
    let hour = out.lines().find_map(|line| line.strip_prefix("hour ")).expect("the hour");
    let last = |city: &str| {
        let start = format!("{city} {{\"city\":");
        out.lines().any(|line| line.contains(&start) && line.contains(hour))
    };
    // All three, where they were committed together.
    assert!(["JFK", "LGA", "EWR"].into_iter().any(last), "a current row: {out}");
    assert_eq!(json_objects_with(&out, "accepted")[0]["accepted"], 1, "{out}");
}

/// Shell functions around the commands of a page: `serve` waits until the service is ready,
/// `refused` until it has ended with a line that has the words.
const RECOVERY_SHELL_FUNCTIONS: &str = r#"
set -euo pipefail
ready() { until curl -sf localhost:8080/readyz > ready; do kill -0 $1; sleep 0.2; done; }
serve() { "$@" > served 2> served.log & service=$!; ready $service; }
stop() { kill -TERM $service; wait $service; }
refused() {
    if swelter run --config swelter.toml > refused 2> refused.log; then exit 9; fi
    for word in "$@"; do tail -n 1 refused.log | grep -qF -e "$word" || { cat refused.log; exit 8; }; done
}
rows() { kcat -C -q -b 127.0.0.1:9092 -X isolation.level=read_committed -t heat-index -e -f '%k %s\n'; }
post() {
    for city in a b c d; do
        echo "{\"city\":\"$city\",\"reading_at\":\"2026-01-01T00:0$1:00Z\",\"temperature\":9$1,\"humidity\":50}"
    done | curl -sf localhost:8080/v1/readings -H 'Content-Type: application/x-ndjson' --data-binary @- > posted
    until [ "$(rows | wc -l)" -ge "$2" ]; do sleep 0.2; done
}
"#;

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn disaster_recovery_commands_work() {
    let access = shared_broker();
    let jars = prepared_variable("SWELTER_KAFKA_LIB");
    let page = "docs/disaster-recovery.md";
    let of = |heading: &str, language: &str| document_blocks(page, heading, language);
    let config = fs::read_to_string(repository_root().join(page)).unwrap();
    let config = config.split("```toml\n").nth(1).unwrap().split("```").next().unwrap().to_owned();
    let run = |commands: &str| commands.replace("swelter run", "serve swelter run");
    let [anew, copy] = ["Begin anew", "Copy the input"].map(|heading| run(&of(heading, "sh").concat()));
    let [restore, adopt] = &of("Restore the input", "sh")[..] else { panic!("not two blocks") };
    let delete = "kafka-topics.sh --bootstrap-server 127.0.0.1:9092 --delete --topic";
    let commands = format!(
        "{RECOVERY_SHELL_FUNCTIONS}
        serve swelter run --config swelter.toml; post 0 4; stop
        {delete} heat-index
        refused heat-index 'is gone' 'begin anew: delete'
        {anew}
        until [ $(rows | wc -l) -ge 4 ]; do sleep 0.2; done
        {copy}
        stop
        {delete} readings
        refused readings 'is gone'
        {restore}
        refused readings 'is another one: it has the id' '--adopt-logs'
        {adopt}
        post 1 8; stop
        serve swelter run --config swelter.toml; post 2 12; stop
        rows | sed 's/^/row /'",
        anew = anew.replace("heat-index,heat-index-now", "heat-index-now"),
        adopt = run(adopt),
    );
    let (folder, port) = (tempfile::tempdir().unwrap(), free_ports(1));
    let number = std::process::id();
    let named = |text: &str| {
        let named = text
            .replace("127.0.0.1:9092", &access.address)
            .replace("localhost:8080", &format!("localhost:{port}"));
        // Not the type of the sources, nor files.
        let named = named.replace("heat-index", &format!("recovery-{number}-index"));
        named
            .replace("readings", &format!("recovery-{number}-readings"))
            .replace(&format!("/v1/recovery-{number}-readings"), "/v1/readings")
    };
    fs::write(folder.path().join("swelter.toml"), named(&config)).unwrap();
    let tools = folder.path().join("kafka-topics.sh");
    let java = format!(
        "#!/bin/sh\nexec java -Xmx128m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -cp \"{}/*\" org.apache.kafka.tools.TopicCommand \"$@\"\n",
        jars.to_str().unwrap()
    );
    fs::write(&tools, java).unwrap();
    fs::set_permissions(&tools, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let out = ShellRun::start_shell(&format!("PATH=$PWD:$PATH\n{}", named(&commands)), folder, port)
        .wait_for_output();
    let rows = out.lines().filter(|line| line.starts_with("row ")).count();
    assert_eq!(rows, 12, "each once: {out}");
}
