//! A case: what its plan says is done, and then all is compared.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::CHECKPOINTS;
use super::backups::Backup;
use super::checkpoints;
use super::cluster::{Cluster, Launch};
use super::comparisons::{Comparisons, said};
use super::feeder::{Feed, Feeder, Posted, Shared};
use super::follower::Follower;
use super::plan::{Mode, Plan, Settings, Topology};
use crate::cluster::authority::Authority;
use crate::kafka::broker::OwnBroker;
use crate::kafka::case::{Case as Topics, PARTITIONS};
use crate::kafka::log;
use crate::served::{Status, check_current, check_history};

const FOLLOWERS: u64 = 2;

/// What came of a case.
#[derive(Default)]
pub struct Outcome {
    pub seed: u64,
    pub mode: Option<Mode>,
    pub settings: Option<Settings>,
    pub faults: BTreeMap<&'static str, usize>,
    pub topologies: Vec<Topology>,
    /// Times that processes were started.
    pub starts: usize,
    /// Times that they ended by themselves, and were started again by whoever is in the supervisor's place.
    pub own_ends: usize,
    pub records: u64,
    pub comparisons: Comparisons,
    pub resets: usize,
    pub resumed: usize,
    /// Why it has not come to its end.
    pub failure: Option<String>,
    pub time: Duration,
    /// Kept where something is wrong.
    pub folder: Option<PathBuf>,
}

impl Outcome {
    pub fn is_good(&self) -> bool {
        self.failure.is_none() && self.comparisons.differences.is_empty()
    }
}

/// Runs what a plan says; the broker is the own one of whoever runs cases one after the other.
pub fn run(plan: &Plan, broker: &mut Option<OwnBroker>) -> Outcome {
    let began = Instant::now();
    let folder = tempfile::Builder::new().prefix(&format!("trial-{}-", plan.seed)).tempdir().unwrap();
    fs::write(folder.path().join("plan.txt"), plan.to_string()).unwrap();
    let (mode, settings) = (Some(plan.mode), Some(plan.settings));
    let mut outcome = Outcome { seed: plan.seed, mode, settings, ..Outcome::default() };
    let done = catch_unwind(AssertUnwindSafe(|| {
        let mut case = Case::start(plan, folder.path(), broker, &mut outcome);
        for step in &plan.steps {
            case.befall(step);
        }
        case.finish();
    }));
    outcome.failure = done.err().map(|panic| said(&*panic));
    outcome.time = began.elapsed();
    if !outcome.is_good() || std::env::var_os("SWELTER_TRIAL_KEEP").is_some_and(|keep| !keep.is_empty()) {
        outcome.folder = Some(folder.keep());
    }
    outcome
}

pub struct Case<'a> {
    plan: &'a Plan,
    folder: &'a Path,
    pub(super) broker: &'a mut Option<OwnBroker>,
    pub(super) cluster: Cluster,
    /// None once all records are sent.
    feeder: Option<Feeder>,
    followers: Vec<Follower>,
    pub(super) shared: Arc<Shared>,
    /// Taken so far.
    pub(super) backups: Vec<Backup>,
    /// Of those who were ready last.
    pub(super) generation: Option<String>,
    /// What the clocks of processes are off, ms.
    pub(super) clocks: Vec<i64>,
    /// Nothing has happened since all were ready.
    pub(super) settled: bool,
    began: Instant,
    diary: File,
    pub(super) outcome: &'a mut Outcome,
}

impl<'a> Case<'a> {
    fn start(
        plan: &'a Plan,
        folder: &'a Path,
        broker: &'a mut Option<OwnBroker>,
        outcome: &'a mut Outcome,
    ) -> Case<'a> {
        let (feed, cities) = feed(plan, folder, broker);
        let config = match &feed {
            Feed::Journal(_) => {
                let tables = tables(plan, folder);
                format!("[results]\n{}\n[ingest]\npartitions = 5\n{tables}", rules())
            }
            Feed::Kafka(case) => case.setup.to_toml(),
        };
        fs::write(folder.join("swelter.toml"), config).unwrap();
        let shared = Arc::new(Shared::default());
        let cluster = Cluster::start(launch(plan, folder, plan.first, &[]));
        outcome.topologies.push(plan.first);
        let feeder = Some(Feeder::start(feed, plan.records, &shared));
        let followers =
            (0..FOLLOWERS).map(|lots| Follower::start(plan.seed ^ lots, cities, &shared)).collect();
        let diary = File::create(folder.join("diary.txt")).unwrap();
        let (clocks, began) = (Vec::new(), Instant::now());
        let mut case = Case {
            plan,
            folder,
            broker,
            cluster,
            feeder,
            followers,
            shared,
            backups: Vec::new(),
            generation: None,
            clocks,
            settled: false,
            began,
            diary,
            outcome,
        };
        case.settle(None);
        case
    }

    /// Waits until all processes are ready, of another generation than `not`, and says where they are.
    pub(super) fn settle(&mut self, not: Option<&str>) -> Vec<String> {
        let (addresses, generation) = self.cluster.wait_ready(not);
        self.shared.set_addresses(&addresses);
        self.note(&format!("ready: generation {generation}"));
        (self.generation, self.settled) = (Some(generation), true);
        addresses
    }

    /// Starts all processes anew, those that still live being killed.
    pub(super) fn start_again(&mut self, topology: Topology, dies: Option<(&'static str, u64)>) {
        let launch = Launch { dies, ..launch(self.plan, self.folder, topology, &self.clocks) };
        self.cluster.start_again(launch);
        self.outcome.topologies.push(topology);
        self.note(&format!("started: {topology}"));
    }

    /// Starts others that are to go on in the place of those that run.
    pub(super) fn succeed(&mut self, topology: Topology, how: &'static str) {
        let launch = Launch { succeeds: Some(how), ..launch(self.plan, self.folder, topology, &[]) };
        self.cluster.succeed(launch, self.settled);
        self.outcome.topologies.push(topology);
        self.note(&format!("started beside them: {topology}"));
    }

    /// Notes in the case's folder what happens, and when.
    pub(super) fn note(&mut self, what: &str) {
        let line = format!("{:.1} s: {what}\n", self.began.elapsed().as_secs_f64());
        self.diary.write_all(line.as_bytes()).unwrap();
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder
    }

    fn finish(&mut self) {
        self.settle(None);
        let feed = self.feeder.take().unwrap().finish();
        self.outcome.records = feed.records();
        self.note("all records are sent");
        self.compare(&feed);
        self.note("compared");
        if CHECKPOINTS {
            self.compare_checkpoint(&feed);
            self.note("a checkpoint of all is compared");
        }
        self.cluster.terminate();
        if let Feed::Journal(posted) = &feed {
            let letters = self.folder.join("data").join("dead-letters.jsonl");
            self.outcome.comparisons.compare("dead letters", || check_letters(&letters, &posted.too_late));
        }
        let before = self.generation.clone();
        self.start_again(self.plan.last, None);
        self.settle(before.as_deref());
        self.compare(&feed);
        self.note("compared");
        self.cluster.terminate();
        if let Feed::Journal(posted) = &feed {
            for backup in &self.backups {
                let cities = cities(self.plan.mode);
                self.outcome.comparisons.compare("a restored backup", || backup.check(posted, cities));
            }
        }
        if let Feed::Kafka(case) = &feed {
            let comparisons = &mut self.outcome.comparisons;
            comparisons.compare("the changes of rows", || case.check_rows());
            comparisons.compare("the changes of current rows", || case.check_current());
            comparisons.compare("dead letters", || case.check_letters());
        }
        self.look_back();
    }

    /// Compares all that is served and has been written so far with the recomputation.
    fn compare(&mut self, feed: &Feed) {
        let Outcome { comparisons, resets, resumed, .. } = &mut *self.outcome;
        let (addresses, as_of) = applied(&mut self.cluster, feed.records());
        self.shared.set_addresses(&addresses);
        let (oracle, cities) = (feed.oracle(), cities(self.plan.mode));
        for (process, address) in addresses.iter().enumerate() {
            comparisons
                .compare(&format!("current rows at process {process}"), || check_current(address, oracle));
            comparisons.compare(&format!("histories at process {process}"), || {
                (0..cities).map(|city| check_history(address, oracle, city)).sum()
            });
        }
        // Each counts from its beginning.
        (*resets, *resumed) = (0, 0);
        for follower in &mut self.followers {
            let kept = follower.kept(as_of);
            comparisons.compare("current rows of a subscriber", || kept.check_current(oracle));
            comparisons.compare("windows of a subscriber", || kept.check_windows(oracle));
            (*resets, *resumed) = (*resets + kept.resets, *resumed + kept.resumed);
        }
        if let Feed::Kafka(case) = feed {
            comparisons.compare("what the topics hold", || {
                case.wait_for_results();
                case.log.rows.len() + case.log.current.len()
            });
        }
    }

    /// Compares a checkpoint that includes the whole log with the recomputation.
    fn compare_checkpoint(&mut self, feed: &Feed) {
        let (folder, cities) = (self.folder, cities(self.plan.mode));
        self.outcome.comparisons.compare("a checkpoint of all", || {
            checkpoints::check(folder, feed.records(), feed.oracle(), cities)
        });
    }

    /// What was noticed on the way.
    fn look_back(&mut self) {
        let Outcome { comparisons, .. } = &mut *self.outcome;
        let complaints = std::mem::take(&mut self.cluster.complaints);
        comparisons.compare("how processes ended", || {
            assert!(complaints.is_empty(), "{}", complaints.join("; "));
            0
        });
        let folder = self.folder;
        comparisons.compare("no process has panicked", || check_logs(folder));
        self.outcome.starts = self.cluster.starts();
        self.outcome.own_ends = self.cluster.own_ends;
    }
}

fn cities(mode: Mode) -> u32 {
    match mode {
        Mode::Journal => 5,
        Mode::Kafka => log::CITIES,
    }
}

/// An empty log, and of how many cities it will be.
fn feed(plan: &Plan, folder: &Path, broker: &mut Option<OwnBroker>) -> (Feed, u32) {
    let feed = match plan.mode {
        Mode::Journal => Feed::Journal(Posted::new(plan.seed)),
        Mode::Kafka => {
            let access = &broker.as_ref().expect("a case of Kafka needs a broker").access;
            let mut case = Topics::without_topics(access, plan.seed, plan.records);
            case.setup.rules = tables(plan, folder);
            case.setup.sink =
                "shards = 2\ncommit_interval = \"20ms\"\ntransaction_timeout = \"10s\"\n".into();
            case.setup.make_topics(PARTITIONS as i32);
            Feed::Kafka(Box::new(case))
        }
    };
    (feed, cities(plan.mode))
}

pub(super) fn rules() -> &'static str {
    "window = \"30m\"\nlateness = \"90m\"\nhistory = \"1h\""
}

/// The tables of a configuration that both kinds of cases have. Without a journal checkpoints need a place.
fn tables(plan: &Plan, folder: &Path) -> String {
    let mut tables =
        String::from("[cluster]\nconnect_time = \"10s\"\npeer_timeout = \"3s\"\nstandby_after = \"3s\"\n");
    if CHECKPOINTS {
        let place = match plan.mode {
            Mode::Journal => String::new(),
            Mode::Kafka => checkpoints::folder(folder).display().to_string(),
        };
        tables += &format!("[checkpoints]\nurl = '{place}'\nevery = \"1s\"\nkeep = 2\n");
    }
    if plan.settings.tls {
        tables += &tls(&folder.join("certificates"));
    }
    tables
}

/// The table of a certificate for this host, which is made in this folder.
fn tls(folder: &Path) -> String {
    let authority = Authority::new("trial");
    let files = authority.sign("127.0.0.1", |_| ());
    fs::create_dir(folder).unwrap();
    let [certificate, key, ca] = [files.certificate, files.key, authority.ca()].map(|file| {
        let kept = folder.join(file.file_name().unwrap());
        fs::copy(&file, &kept).unwrap();
        kept
    });
    format!("[cluster.tls]\ncertificate = {certificate:?}\nkey = {key:?}\nca = {ca:?}\n")
}

fn launch(plan: &Plan, folder: &Path, topology: Topology, clocks: &[i64]) -> Launch {
    let (folder, config) = (folder.into(), folder.join("swelter.toml"));
    let (clocks, open_files) = (clocks.to_vec(), plan.settings.open_files);
    Launch { folder, config, topology, dies: None, clocks, open_files, succeeds: None }
}

/// Waits until each process has all records in its results; says where they are, and as of when all have them.
fn applied(cluster: &mut Cluster, records: u64) -> (Vec<String>, u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let (addresses, _) = cluster.wait_ready(None);
        let statuses: Option<Vec<Status>> =
            addresses.iter().map(|address| Status::of(address, Duration::from_secs(1))).collect();
        if let Some(statuses) = &statuses
            && statuses.iter().all(|status| status.applied == status.end && status.end >= records)
        {
            let end = statuses[0].end;
            assert_eq!(end, records, "records that the log has, and that were sent");
            return (addresses, statuses.iter().map(|status| status.as_of).max().unwrap_or(0));
        }
        assert!(Instant::now() < deadline, "{records} records are not applied: {statuses:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The refused records of posts, each once.
pub(super) fn check_letters(file: &Path, too_late: &[String]) -> usize {
    let text = fs::read_to_string(file).unwrap_or_default();
    let letters: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut raw: Vec<_> = letters.iter().map(|letter| letter["raw"].as_str().unwrap()).collect();
    let mut expected: Vec<_> = too_late.iter().map(String::as_str).collect();
    raw.sort_unstable();
    expected.sort_unstable();
    assert_eq!(raw, expected, "dead letters");
    raw.len()
}

fn check_logs(folder: &Path) -> usize {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let logs: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "log")).collect();
    for log in &logs {
        let text = String::from_utf8_lossy(&fs::read(log).unwrap()).into_owned();
        let panics: Vec<&str> = text.lines().filter(|line| line.contains("panicked")).collect();
        assert!(panics.is_empty(), "{}: {panics:?}", log.display());
    }
    logs.len()
}
