//! The commands of `docs/disaster-recovery.md`, in the order in which a fault asks for them.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::markdown::{Page, repository};
use super::shell::Shell;
use crate::kafka::broker::shared_broker;
use crate::support::consecutive_free_ports;
use crate::support::prepared::prepared_variable;

const PAGE: &str = "docs/disaster-recovery.md";

/// The blocks of shell commands below a heading, up to the next one.
fn commands_below(heading: &str) -> Vec<String> {
    let text = fs::read_to_string(repository().join(PAGE)).unwrap();
    let (_, rest) = text.split_once(&format!("\n## {heading}\n")).expect("a heading");
    let section = rest.split("\n## ").next().unwrap();
    let fenced = section.split("```").skip(1).step_by(2);
    fenced.filter_map(|block| block.strip_prefix("sh\n").map(String::from)).collect()
}

/// Shell functions around the commands of a page: `serve` waits until the service is ready, `refused`
/// until it has ended with a line that has the words.
const RECOVERY: &str = r#"
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
fn disaster_recovery_commands_lose_nothing() {
    let (access, jars) = (shared_broker(), prepared_variable("SWELTER_KAFKA_LIB"));
    let page = Page::read(PAGE);
    let config = page.blocks.iter().find(|block| block.language == "toml").unwrap().text.clone();
    let run = |commands: &str| commands.replace("swelter run", "serve swelter run");
    let [anew, copy] = ["Begin anew", "Copy the input"].map(|heading| run(&commands_below(heading).concat()));
    let [restore, adopt] = &commands_below("Restore the input")[..] else { panic!("not two blocks") };
    let delete = "kafka-topics.sh --bootstrap-server 127.0.0.1:9092 --delete --topic";
    let commands = format!(
        "{RECOVERY}
        serve swelter run --config swelter.toml; post 0 4; stop
        {delete} heat-index
        refused heat-index 'is gone' 'to begin anew, delete'
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
    let (folder, port) = (tempfile::tempdir().unwrap(), consecutive_free_ports(1));
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
    fs::set_permissions(&tools, PermissionsExt::from_mode(0o755)).unwrap();
    let (out, _) = Shell::run(&format!("PATH=$PWD:$PATH\n{}", named(&commands)), folder, port).finish();
    let rows = out.lines().filter(|line| line.starts_with("row ")).count();
    assert_eq!(rows, 12, "each once: {out}");
}
