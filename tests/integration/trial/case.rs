//! A case: it runs its plan and then compares everything with the recomputation.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::backups::TakenBackup;
use super::checkpoints;
use super::cluster::{DeathPoint, LaunchPlan, TrialCluster};
use super::comparisons::{Comparisons, check_dead_letters, panic_message};
use super::feeder::{Feed, Feeder, PostedLog, TrialControl};
use super::follower::Follower;
use super::plan::{CasePlan, CaseSettings, LogMode, RULES, TrialTopology};
use super::results_folder::{folder_sink_table, results_folder};
use crate::cluster::authority::CertificateAuthority;
use crate::folder_reader::{check_folder, check_positions, is_rows_file, open_files, wait_for_folder};
use crate::kafka::broker::PrivateBroker;
use crate::kafka::case::{KafkaCase as Topics, PARTITIONS};
use crate::kafka::random_log;
use crate::support::{ServiceStatus, check_current, check_history};

const FOLLOWER_COUNT: u64 = 2;

/// The outcome of a case.
#[derive(Default)]
pub struct CaseOutcome {
    pub seed: u64,
    pub mode: Option<LogMode>,
    pub settings: Option<CaseSettings>,
    pub faults: BTreeMap<&'static str, usize>,
    pub topologies: Vec<TrialTopology>,
    /// Times that processes were started.
    pub starts: usize,
    /// Times that they ended by themselves and were started again.
    pub own_ends: usize,
    pub records: u64,
    pub comparisons: Comparisons,
    /// The comparisons of the folder sink among them, and the changes of rows that they found.
    pub folder_comparisons: usize,
    pub folder_changes: usize,
    pub resets: usize,
    pub resumed: usize,
    /// Why it was aborted.
    pub failure: Option<String>,
    pub time: Duration,
    /// Kept if something is wrong.
    pub folder: Option<PathBuf>,
}

impl CaseOutcome {
    pub fn is_good(&self) -> bool {
        self.failure.is_none() && self.comparisons.differences.is_empty()
    }
}

/// Runs a plan; the broker is shared by the cases of a lane.
pub fn run_plan(plan: &CasePlan, broker: &mut Option<PrivateBroker>) -> CaseOutcome {
    let began = Instant::now();
    let folder = tempfile::Builder::new().prefix(&format!("trial-{}-", plan.seed)).tempdir().unwrap();
    fs::write(folder.path().join("plan.txt"), plan.to_string()).unwrap();
    let (mode, settings) = (Some(plan.mode), Some(plan.settings));
    let mut outcome = CaseOutcome { seed: plan.seed, mode, settings, ..CaseOutcome::default() };
    let done = catch_unwind(AssertUnwindSafe(|| {
        let mut case = TrialCase::start(plan, folder.path(), broker, &mut outcome);
        for step in &plan.steps {
            case.run_step(step);
        }
        case.finish_case();
    }));
    outcome.failure = done.err().map(|panic| panic_message(&*panic));
    outcome.time = began.elapsed();
    if !outcome.is_good() || std::env::var_os("SWELTER_TRIAL_KEEP").is_some_and(|keep| !keep.is_empty()) {
        outcome.folder = Some(folder.keep());
    }
    outcome
}

pub struct TrialCase<'a> {
    plan: &'a CasePlan,
    folder: &'a Path,
    pub(super) broker: &'a mut Option<PrivateBroker>,
    pub(super) cluster: TrialCluster,
    /// None once all records are sent.
    feeder: Option<Feeder>,
    followers: Vec<Follower>,
    pub(super) shared: Arc<TrialControl>,
    /// Taken so far.
    pub(super) backups: Vec<TakenBackup>,
    /// Of those who were ready last.
    pub(super) generation: Option<String>,
    /// What the clocks of processes are off, ms.
    pub(super) clocks: Vec<i64>,
    /// No fault has been injected since all were ready.
    pub(super) settled: bool,
    began: Instant,
    diary: File,
    pub(super) outcome: &'a mut CaseOutcome,
}

impl<'a> TrialCase<'a> {
    fn start(
        plan: &'a CasePlan,
        folder: &'a Path,
        broker: &'a mut Option<PrivateBroker>,
        outcome: &'a mut CaseOutcome,
    ) -> TrialCase<'a> {
        let (feed, cities) = new_feed(plan, folder, broker);
        let mut config = match &feed {
            Feed::Journal(_) => {
                let tables = config_tables(plan, folder);
                format!("[results]\n{}\n[ingest]\npartitions = 5\n{tables}", RULES)
            }
            Feed::Kafka(case) => case.setup.to_toml(),
        };
        if plan.settings.sinks.folder {
            config += &folder_sink_table(folder);
        }
        fs::write(folder.join("swelter.toml"), config).unwrap();
        let shared = Arc::new(TrialControl::default());
        let cluster = TrialCluster::start(new_launch(plan, folder, plan.first, &[]));
        outcome.topologies.push(plan.first);
        let feeder = Some(Feeder::start(feed, plan.records, &shared));
        let followers =
            (0..FOLLOWER_COUNT).map(|lots| Follower::start(plan.seed ^ lots, cities, &shared)).collect();
        let diary = File::create(folder.join("diary.txt")).unwrap();
        let (clocks, began) = (Vec::new(), Instant::now());
        let mut case = TrialCase {
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
        case.wait_until_ready(None);
        case
    }

    /// Waits until all processes are ready, of another generation than `not`, and says where they
    /// are.
    pub(super) fn wait_until_ready(&mut self, not: Option<&str>) -> Vec<String> {
        let (addresses, generation) = self.cluster.wait_ready(not);
        self.shared.set_addresses(&addresses);
        self.log_event(&format!("ready: generation {generation}"));
        (self.generation, self.settled) = (Some(generation), true);
        addresses
    }

    /// Kills all processes that still run, and starts all.
    pub(super) fn restart_all(&mut self, topology: TrialTopology, death_point: Option<DeathPoint>) {
        let launch = new_launch(self.plan, self.folder, topology, &self.clocks);
        let launch = LaunchPlan { death_point, ..launch };
        self.cluster.restart(launch);
        self.outcome.topologies.push(topology);
        self.log_event(&format!("started: {topology}"));
    }

    /// Starts successors of the running processes.
    pub(super) fn start_successor(
        &mut self,
        topology: TrialTopology,
        successor_flag: Option<&'static str>,
        death_point: Option<DeathPoint>,
    ) {
        let launch = new_launch(self.plan, self.folder, topology, &[]);
        let launch = LaunchPlan { successor_flag, death_point, ..launch };
        self.cluster.start_successor(launch, self.settled);
        self.outcome.topologies.push(topology);
        self.log_event(&format!("started beside them: {topology}"));
    }

    /// Writes events with their times to the case's folder.
    pub(super) fn log_event(&mut self, what: &str) {
        let line = format!("{:.1} s: {what}\n", self.began.elapsed().as_secs_f64());
        self.diary.write_all(line.as_bytes()).unwrap();
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder
    }

    fn finish_case(&mut self) {
        self.wait_until_ready(None);
        let feed = self.feeder.take().unwrap().finish();
        self.outcome.records = feed.records();
        self.log_event("all records are sent");
        self.compare_served(&feed);
        self.log_event("compared");
        self.compare_checkpoint(&feed);
        self.log_event("a checkpoint of all is compared");
        self.cluster.terminate();
        self.compare_finished_folder(&feed);
        if let Feed::Journal(posted) = &feed {
            let letters = self.folder.join("data").join("dead-letters.jsonl");
            self.outcome
                .comparisons
                .run_check("dead letters", || check_dead_letters(&letters, &posted.too_late));
        }
        let before = self.generation.clone();
        self.restart_all(self.plan.last, None);
        self.wait_until_ready(before.as_deref());
        self.compare_served(&feed);
        self.log_event("compared");
        self.cluster.terminate();
        self.compare_finished_folder(&feed);
        if let Feed::Journal(posted) = &feed {
            for backup in &self.backups {
                let cities = city_count(self.plan.mode);
                self.outcome.comparisons.run_check("a restored backup", || backup.check(posted, cities));
            }
        }
        if let Feed::Kafka(case) = &feed {
            let comparisons = &mut self.outcome.comparisons;
            if self.plan.settings.sinks.kafka {
                comparisons.run_check("the changes of rows", || case.check_rows());
                comparisons.run_check("the changes of current rows", || case.check_current());
            }
            comparisons.run_check("dead letters", || case.check_dead_letters());
        }
        self.check_complaints();
    }

    /// Compares everything that is served or written so far with the recomputation.
    fn compare_served(&mut self, feed: &Feed) {
        let CaseOutcome { comparisons, resets, resumed, .. } = &mut *self.outcome;
        let (addresses, as_of) = wait_until_applied(&mut self.cluster, feed.records());
        self.shared.set_addresses(&addresses);
        let (oracle, cities) = (feed.oracle(), city_count(self.plan.mode));
        for (process, address) in addresses.iter().enumerate() {
            comparisons
                .run_check(&format!("current rows at process {process}"), || check_current(address, oracle));
            comparisons.run_check(&format!("histories at process {process}"), || {
                (0..cities).map(|city| check_history(address, oracle, city)).sum()
            });
        }
        // Each counts from its beginning.
        (*resets, *resumed) = (0, 0);
        for follower in &mut self.followers {
            let kept = follower.rows_as_of(as_of);
            comparisons.run_check("current rows of a subscriber", || kept.check_current(oracle));
            comparisons.run_check("windows of a subscriber", || kept.check_windows(oracle));
            (*resets, *resumed) = (*resets + kept.resets, *resumed + kept.resumed);
        }
        if let Feed::Kafka(case) = feed {
            comparisons.run_check("what the topics hold", || {
                case.wait_for_results();
                case.log.rows.values.len() + case.log.current.len()
            });
        }
        self.compare_folder("what the folder holds", |folder| wait_for_folder(folder, feed.rows()));
    }

    /// Compares the files of the folder sink after a stop with the recomputation.
    fn compare_finished_folder(&mut self, feed: &Feed) {
        let (rows, records) = (feed.rows(), feed.records());
        let changes =
            self.compare_folder("the changes of rows in the folder", |folder| check_folder(folder, rows));
        self.outcome.folder_changes += changes;
        self.compare_folder("the positions of the folder", |folder| check_positions(folder, records));
        self.compare_folder("files of the folder that are not finished", |folder| {
            let open: Vec<_> = open_files(folder).into_iter().filter(|file| is_rows_file(file)).collect();
            assert!(open.is_empty(), "{open:?}");
            0
        });
    }

    /// Runs a check of the folder sink, if the case has one. Says how many values were compared.
    fn compare_folder(&mut self, what: &str, check: impl FnOnce(&Path) -> usize) -> usize {
        if !self.plan.settings.sinks.folder {
            return 0;
        }
        let CaseOutcome { comparisons, folder_comparisons, .. } = &mut *self.outcome;
        *folder_comparisons += 1;
        let before = comparisons.values;
        comparisons.run_check(what, || check(&results_folder(self.folder)));
        comparisons.values - before
    }

    /// Compares a checkpoint that includes the whole log with the recomputation.
    fn compare_checkpoint(&mut self, feed: &Feed) {
        let (folder, cities) = (self.folder, city_count(self.plan.mode));
        self.outcome.comparisons.run_check("a checkpoint of all", || {
            checkpoints::check_newest(folder, feed.records(), feed.oracle(), cities)
        });
    }

    /// Complaints that were noted during the case.
    fn check_complaints(&mut self) {
        let CaseOutcome { comparisons, .. } = &mut *self.outcome;
        let complaints = std::mem::take(&mut self.cluster.complaints);
        comparisons.run_check("how processes ended", || {
            assert!(complaints.is_empty(), "{}", complaints.join("; "));
            0
        });
        let folder = self.folder;
        comparisons.run_check("no process has panicked", || check_logs(folder));
        self.outcome.starts = self.cluster.start_count();
        self.outcome.own_ends = self.cluster.own_ends;
    }
}

fn city_count(mode: LogMode) -> u32 {
    match mode {
        LogMode::Journal => 5,
        LogMode::Kafka => random_log::CITIES,
    }
}

/// An empty log, and of how many cities it will be.
fn new_feed(plan: &CasePlan, folder: &Path, broker: &mut Option<PrivateBroker>) -> (Feed, u32) {
    let feed = match plan.mode {
        LogMode::Journal => Feed::Journal(Box::new(PostedLog::new(plan.seed))),
        LogMode::Kafka => {
            let access = &broker.as_ref().expect("a case of Kafka needs a broker").access;
            let mut case = Topics::without_topics(access, plan.seed, plan.records);
            case.setup.rules = config_tables(plan, folder);
            case.setup.sink =
                "shards = 2\ncommit_interval = \"20ms\"\ntransaction_timeout = \"10s\"\n".into();
            case.setup.has_sink = plan.settings.sinks.kafka;
            if !case.setup.has_sink {
                case.setup.source = format!("progress_topic = \"{}\"\n", case.setup.progress);
            }
            case.setup.create_topics(PARTITIONS as i32);
            Feed::Kafka(Box::new(case))
        }
    };
    (feed, city_count(plan.mode))
}

/// The tables of a configuration that both kinds of cases have. Without a journal checkpoints need
/// a place.
fn config_tables(plan: &CasePlan, folder: &Path) -> String {
    let mut tables =
        String::from("[cluster]\nconnect_time = \"10s\"\npeer_timeout = \"3s\"\nstandby_after = \"3s\"\n");
    let place = match plan.mode {
        LogMode::Journal => String::new(),
        LogMode::Kafka => checkpoints::checkpoint_folder(folder).display().to_string(),
    };
    tables += &format!("[checkpoints]\nurl = '{place}'\nevery = \"1s\"\nkeep = 2\n");
    if plan.settings.tls {
        tables += &tls_config(&folder.join("certificates"));
    }
    tables
}

/// The table of a certificate for this host, which is made in this folder.
fn tls_config(folder: &Path) -> String {
    let authority = CertificateAuthority::new("trial");
    let files = authority.sign_certificate("127.0.0.1", |_| ());
    fs::create_dir(folder).unwrap();
    let [certificate, key, ca] = [files.certificate, files.key, authority.ca_file()].map(|file| {
        let kept = folder.join(file.file_name().unwrap());
        fs::copy(&file, &kept).unwrap();
        kept
    });
    format!("[cluster.tls]\ncertificate = {certificate:?}\nkey = {key:?}\nca = {ca:?}\n")
}

fn new_launch(plan: &CasePlan, folder: &Path, topology: TrialTopology, clocks: &[i64]) -> LaunchPlan {
    let (folder, config) = (folder.into(), folder.join("swelter.toml"));
    let (clocks, open_files) = (clocks.to_vec(), plan.settings.open_files);
    LaunchPlan {
        folder,
        config,
        topology,
        death_point: None,
        clock_offsets_ms: clocks,
        open_files,
        successor_flag: None,
    }
}

/// Waits until each process has all records in its results; says where they are, and as of when all
/// have them.
fn wait_until_applied(cluster: &mut TrialCluster, records: u64) -> (Vec<String>, u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let (addresses, _) = cluster.wait_ready(None);
        let statuses: Option<Vec<ServiceStatus>> = addresses
            .iter()
            .map(|address| ServiceStatus::fetch_status(address, Duration::from_secs(1)))
            .collect();
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

fn check_logs(folder: &Path) -> usize {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let logs: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "log")).collect();
    for log in &logs {
        let text = String::from_utf8_lossy(&fs::read(log).unwrap()).into_owned();
        let is_planned = |line: &str| line.contains("SWELTER_PANIC_POINT asks for it");
        let is_panic = |line: &&str| line.contains("panicked") && !is_planned(line);
        let panics: Vec<&str> = text.lines().filter(is_panic).collect();
        assert!(panics.is_empty(), "{}: {panics:?}", log.display());
    }
    logs.len()
}
