//! The broker that tests share, and private brokers, which a test can kill and pause.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rdkafka::ClientConfig;
use rustix::process::Pid;
use tempfile::TempDir;

use crate::support::prepared::prepared_variable;
use crate::support::{pause_process, wait_for};

/// The address of a broker, and the user.
#[derive(Clone, Debug)]
pub struct BrokerAccess {
    /// `127.0.0.1:port`.
    pub address: String,
    /// The user, whose password is the name; `None` on a broker without access control.
    pub user: Option<&'static str>,
}

impl BrokerAccess {
    /// As librdkafka calls it.
    pub fn properties(&self) -> Vec<(&'static str, String)> {
        let mut properties = vec![("bootstrap.servers", self.address.clone())];
        if let Some(user) = self.user {
            properties.push(("security.protocol", "SASL_PLAINTEXT".into()));
            properties.push(("sasl.mechanism", "PLAIN".into()));
            properties.push(("sasl.username", user.into()));
            properties.push(("sasl.password", user.into()));
        }
        properties
    }

    pub fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.extend(self.properties().into_iter().map(|(name, value)| (name.to_string(), value)));
        // Outages are part of the tests.
        config.set_log_level(rdkafka::config::RDKafkaLogLevel::Critical);
        config
    }
}

/// The broker that all tests share. A test that calls this has `#[ignore = "needs Kafka:
/// scripts/test"]`.
pub fn shared_broker() -> BrokerAccess {
    BrokerAccess { address: prepared_variable("SWELTER_KAFKA").into_string().unwrap(), user: None }
}

/// A broker for one test, which may kill and pause it. It ends with the test, which has `#[ignore =
/// "needs Kafka: scripts/test"]`.
pub struct PrivateBroker {
    folder: TempDir,
    child: Option<Child>,
    pub access: BrokerAccess,
}

impl PrivateBroker {
    pub fn start() -> PrivateBroker {
        PrivateBroker::start_with(&[], None)
    }

    /// One with access control; the access is that of `admin`.
    pub fn start_secured() -> PrivateBroker {
        PrivateBroker::start_with(&["--secured"], Some("admin"))
    }

    fn start_with(options: &[&str], user: Option<&'static str>) -> PrivateBroker {
        prepared_variable("SWELTER_KAFKA_LIB");
        let folder = tempfile::tempdir().unwrap();
        let child = spawn_broker(folder.path(), options);
        let access = BrokerAccess { address: String::new(), user };
        let mut broker = PrivateBroker { folder, child: Some(child), access };
        broker.wait_until_ready();
        broker.access.address = broker.file("address").trim().to_string();
        broker
    }

    /// Starts it again, on the same port and data.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs");
        // The log of the last start would be taken for this one's.
        std::fs::remove_file(self.path("log")).unwrap();
        self.child = Some(spawn_broker(self.folder.path(), &[]));
        self.wait_until_ready();
    }

    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Stops it without ending it, for so long.
    pub fn pause(&self, time: Duration) {
        pause_process(Pid::from_child(self.child.as_ref().unwrap()), time);
    }

    fn wait_until_ready(&mut self) {
        let PrivateBroker { folder, child, .. } = self;
        let log = folder.path().join("log");
        wait_for("that the broker has started", || {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            if let Some(status) = child.as_mut()?.try_wait().unwrap() {
                panic!("the broker has ended with {status}: {said}");
            }
            said.contains("Kafka Server started").then_some(())
        });
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }
}

impl Drop for PrivateBroker {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        // libtest shows it if the test fails.
        eprintln!("the broker:\n{}", std::fs::read_to_string(self.path("log")).unwrap_or_default());
    }
}

/// The script becomes the broker, so the child is the broker.
fn spawn_broker(folder: &Path, options: &[&str]) -> Child {
    Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/kafka"))
        .arg("run")
        .arg(folder)
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}
