//! The built program with topics: its configuration, its life, and its end.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::broker::{BrokerAccess, pause_process};
use super::topics::{COMPACT, LOG_APPEND_TIME, TopicAdmin, unique_name};
use crate::service_process::{WAIT_TIMEOUT, get, wait_for};

/// What a configuration says.
#[derive(Clone, Debug)]
pub struct KafkaConfig {
    pub access: BrokerAccess,
    pub input: String,
    pub results: String,
    pub current: String,
    pub progress: String,
    pub ingest: bool,
    /// Whether there are results.
    pub has_sink: bool,
    /// Of the input.
    pub format: &'static str,
    /// Further lines of their tables.
    pub rules: String,
    pub source: String,
    pub sink: String,
}

impl KafkaConfig {
    /// Names that nobody else has. There are no topics yet.
    pub fn new(access: &BrokerAccess) -> KafkaConfig {
        let input = unique_name("readings");
        KafkaConfig {
            access: access.clone(),
            results: format!("{input}-heat-index"),
            current: format!("{input}-heat-index-now"),
            progress: format!("{input}-progress"),
            input,
            ingest: false,
            has_sink: true,
            format: "json",
            rules: String::new(),
            source: String::new(),
            sink: "shards = 2\ncommit_interval = \"20ms\"\n".into(),
        }
    }

    pub fn dead_letter_topic(&self) -> String {
        format!("{}.failed.1", self.input)
    }

    /// Makes all topics but the one that is named, as they should be.
    pub fn create_topics_except(&self, left_out: &str, partitions: i32) {
        let topics = TopicAdmin::of(&self.access);
        let second = format!("{}.failed.2", self.input);
        for (name, partitions, config) in [
            (&self.input, partitions, LOG_APPEND_TIME),
            (&self.dead_letter_topic(), partitions, LOG_APPEND_TIME),
            (&second, partitions, LOG_APPEND_TIME),
            (&self.results, 4, COMPACT),
            (&self.current, 4, COMPACT),
            (&self.progress, 1, COMPACT),
        ] {
            if name != left_out {
                topics.create(name, partitions, &[config]);
            }
        }
    }

    pub fn create_topics(&self, partitions: i32) {
        self.create_topics_except("", partitions);
    }

    pub fn to_toml(&self) -> String {
        let KafkaConfig { access, input, results, current, progress, ingest, format, rules, source, .. } =
            self;
        let properties = access.properties().into_iter().filter(|(name, _)| *name != "bootstrap.servers");
        let properties: Vec<_> =
            properties.map(|(name, value)| format!("properties.\"{name}\" = \"{value}\"")).collect();
        let cluster = format!("brokers = \"{}\"\n{}", access.address, properties.join("\n"));
        let sink = match self.has_sink {
            false => String::new(),
            true => format!(
                "[[sinks]]\ntype = \"kafka\"\n{cluster}\ntopic = \"{results}\"\ncurrent_topic = \"{current}\"\n\
                 progress_topic = \"{progress}\"\n{}\n",
                self.sink
            ),
        };
        format!(
            "[results]\nwindow = \"30m\"\nlateness = \"90m\"\nhistory = \"1h\"\n{rules}\n\
             [ingest]\nenabled = {ingest}\n\
             [[sources]]\ntype = \"kafka\"\n{cluster}\ntopic = \"{input}\"\nformat = \"{format}\"\n{source}\n{sink}"
        )
    }
}

/// Whether what is served at an address has caught up.
pub fn is_ready(address: &str) -> bool {
    get(address, "/readyz").is_ok_and(|answer| answer.status == 200)
}

/// `swelter run`. It is killed when this is dropped.
pub struct SwelterProcess {
    child: Child,
    folder: TempDir,
    /// Whether it may abort.
    dies: bool,
}

impl SwelterProcess {
    /// Starts it with a data folder, which is all that a second start may find of the first one beside the topics.
    pub fn start(setup: &KafkaConfig, data: &Path, workers: u64) -> SwelterProcess {
        SwelterProcess::start_dying_after(setup, data, workers, None)
    }

    /// One that dies by itself after so many transactions, when the next is flushed and not committed.
    pub fn start_dying_after(
        setup: &KafkaConfig,
        data: &Path,
        workers: u64,
        after: Option<u64>,
    ) -> SwelterProcess {
        SwelterProcess::start_with(setup, data, workers, after, &[])
    }

    /// One with further arguments.
    pub fn start_with(
        setup: &KafkaConfig,
        data: &Path,
        workers: u64,
        after: Option<u64>,
        arguments: &[&str],
    ) -> SwelterProcess {
        SwelterProcess::start_configured(&setup.to_toml(), data, workers, after, arguments)
    }

    /// One with a configuration in TOML.
    pub fn start_configured(
        toml: &str,
        data: &Path,
        workers: u64,
        after: Option<u64>,
        arguments: &[&str],
    ) -> SwelterProcess {
        let dies = after.map(|after| ("SWELTER_TEST_DIE_BEFORE_COMMIT", after.to_string()));
        SwelterProcess::launch(toml, data, workers, dies.as_slice(), arguments)
    }

    fn launch(
        toml: &str,
        data: &Path,
        workers: u64,
        variables: &[(&str, String)],
        arguments: &[&str],
    ) -> SwelterProcess {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("swelter.toml");
        std::fs::write(&config, toml).unwrap();
        let out = |name: &str| File::create(folder.path().join(name)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_swelter"));
        // What the tests are told is not for the program.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("SWELTER_")) {
                command.env_remove(name);
            }
        }
        command.args(["run", "--listen", "127.0.0.1:0", "--workers", &workers.to_string(), "--config"]);
        // Not by its flag, which is refused where there is no journal.
        command.arg(&config).env("SWELTER_DATA_DIR", data).args(arguments);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let child = command.stdin(Stdio::null()).stdout(out("out")).stderr(out("log")).spawn().unwrap();
        SwelterProcess { child, folder, dies: !variables.is_empty() }
    }

    /// One with a further variable.
    pub fn start_with_variable(setup: &KafkaConfig, data: &Path, variable: (&str, &str)) -> SwelterProcess {
        let toml = setup.to_toml();
        SwelterProcess::launch(&toml, data, 1, &[(variable.0, variable.1.to_owned())], &[])
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, as `-STOP`.
    pub fn send_signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// Waits until it serves, and says at which address.
    pub fn wait_for_address(&mut self) -> String {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            assert!(self.has_ended().is_none(), "it has ended: {}", self.log());
            assert!(Instant::now() < deadline, "it does not listen: {}", self.log());
            let out = std::fs::read_to_string(self.folder.path().join("out")).unwrap();
            // The first process's, of several.
            let line = out.strip_suffix('\n').and_then(|lines| lines.lines().next());
            if let Some(address) = line.and_then(|line| line.strip_prefix("listening on http://")) {
                return address.to_string();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it has said where.
    pub fn is_listening(&self) -> bool {
        std::fs::read_to_string(self.folder.path().join("out")).unwrap().ends_with('\n')
    }

    /// Waits until it has caught up.
    pub fn wait_until_ready(mut self) -> SwelterProcess {
        let address = self.wait_for_address();
        wait_for("readiness", || {
            assert!(self.has_ended().is_none(), "it has ended: {}", self.log());
            is_ready(&address).then_some(())
        });
        self
    }

    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Its whole log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Stops it without ending it, for so long.
    pub fn pause(&self, time: Duration) {
        pause_process(&self.child, time);
    }

    /// Ends it at once; it must have lived until now, unless it was to die.
    pub fn kill(mut self) {
        if let Some(status) = self.has_ended() {
            let died = self.dies && status.signal() == Some(6);
            assert!(died, "it has ended by itself with {status}: {}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        assert!(!self.log().contains("panicked"), "{}", self.log());
    }

    /// Asks it to end.
    pub fn send_terminate(&self) {
        let asked = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        assert!(asked.unwrap().success());
    }

    /// Asks it to end, which it must do with 0 within seconds.
    pub fn terminate(mut self) {
        self.send_terminate();
        let began = Instant::now();
        let status = wait_for("the end", || self.has_ended());
        assert_eq!(status.code(), Some(0), "{}", self.log());
        assert!(began.elapsed() < Duration::from_secs(15), "it took {:?} to end", began.elapsed());
        assert!(!self.log().contains("panicked"), "{}", self.log());
    }

    /// Waits until another one has taken over from it.
    pub fn wait_until_taken_over(mut self) {
        let status = wait_for("that it is taken over", || self.has_ended());
        assert_eq!(status.code(), Some(3), "{}", self.log());
        assert!(!self.log().contains("panicked"), "{}", self.log());
    }

    /// Waits until it has ended because it had to, and gives the last line of what it says.
    pub fn wait_for_failure(mut self) -> String {
        let status = wait_for("that it ends by itself", || self.has_ended());
        let log = self.log();
        assert!(status.code().is_some_and(|code| code != 0), "{status}: {log}");
        assert!(!log.contains("panicked"), "{log}");
        log.lines().last().unwrap_or_default().to_string()
    }
}

impl Drop for SwelterProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Shown where the test fails.
        eprintln!("{}", self.log());
    }
}
