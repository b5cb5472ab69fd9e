//! The plan of a case, drawn from its seed.

use std::fmt;
use std::time::Duration;

use crate::support::Random;

/// Keys of `[results]` in the configuration of every case.
pub const RULES: &str = "window = \"30m\"\nlateness = \"90m\"\nhistory = \"1h\"";
/// The most processes and workers of each.
const MAX_PROCESSES: u64 = 3;
const MAX_WORKERS: u64 = 2;
/// A low limit of open files: lower than the number of strangers' connections.
const LOW_OPEN_FILES: u64 = 768;
/// Records for each fault.
const RECORDS_PER_FAULT: usize = 140;

/// Where readings come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogMode {
    Journal,
    Kafka,
}

impl LogMode {
    pub fn of(seed: u64) -> LogMode {
        match Random::new(seed).below(2) {
            0 => LogMode::Journal,
            _ => LogMode::Kafka,
        }
    }
}

/// Makes the draw of the sinks independent of all others.
const SINKS_STREAM: u64 = 0x7369_6e6b_7300_0000;

/// The sinks of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrialSinks {
    pub kafka: bool,
    pub folder: bool,
}

impl TrialSinks {
    /// Of the cases of the journal, half have a folder. Of those of Kafka, half have a folder beside
    /// Kafka, a quarter a folder alone.
    fn of(seed: u64, mode: LogMode) -> TrialSinks {
        let lot = Random::new(seed ^ SINKS_STREAM).below(4);
        match mode {
            LogMode::Journal => TrialSinks { kafka: false, folder: lot >= 2 },
            LogMode::Kafka => TrialSinks { kafka: lot < 3, folder: lot > 0 },
        }
    }

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match (self.kafka, self.folder) {
            (false, false) => "no sink",
            (true, false) => "sink Kafka",
            (false, true) => "sink folder",
            (true, true) => "sinks Kafka and folder",
        }
    }
}

/// The number of processes, and how they are restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TrialTopology {
    pub processes: u64,
    pub workers: u64,
    /// Each is started by itself, as by an orchestrator, and reaches the others through proxies;
    /// otherwise by a supervisor.
    pub separate: bool,
}

impl TrialTopology {
    fn random(random: &mut Random) -> TrialTopology {
        let (processes, workers) = (1 + random.below(MAX_PROCESSES), 1 + random.below(MAX_WORKERS));
        TrialTopology { processes, workers, separate: random.below(2) == 0 && processes > 1 }
    }

    pub fn is_supervised(self) -> bool {
        self.processes > 1 && !self.separate
    }
}

impl fmt::Display for TrialTopology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.separate { ", each by itself" } else { "" };
        write!(f, "{} x {}{kind}", self.processes, self.workers)
    }
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    KillOne,
    KillAll,
    KillSupervisor,
    /// All are killed so long after they were started.
    KillStarting(Duration),
    /// One process is stopped with SIGSTOP.
    Pause(Duration),
    /// A process aborts before the commit that follows so many transactions.
    DieBeforeCommit(u64),
    /// A process aborts before the manifest that follows so many checkpoints.
    DieBeforeManifest(u64),
    /// A process aborts after so many transactions of its folder, when the rows of the next one are
    /// synced.
    DieBeforeFolderCommit(u64),
    /// A process dies between the claims of two sinks.
    DieBetweenClaims(ClaimCrash),
    /// While no process runs.
    Damage(Damage),
    /// No file can be written to.
    DiskFull(Duration),
    /// The folder of checkpoints alone cannot be written to.
    CheckpointsUnwritable(Duration),
    /// The folder of results cannot be written to, nor read.
    FolderBlocked(Duration),
    KillBroker(Duration),
    PauseBroker(Duration),
    /// All connections of one process end, and no new one is made.
    CutConnections(Duration),
    /// Nothing goes through the connections of one process.
    StallConnections(Duration),
    /// Clocks of processes differ from the next start on.
    ClockSkew,
    /// SIGTERM and another start, which no client should notice.
    Restart,
    /// Successors take over from the running processes.
    Takeover,
    /// The running processes are stopped with SIGSTOP, and go on once others have taken over.
    StoppedTakeover,
    /// The running processes are killed while others stand by.
    StandbyTakeover,
    /// Strangers send garbage to every port for so long before and after a start; meanwhile a
    /// process is killed.
    Strangers(Duration),
    /// One process can open no more files.
    NoOpenFiles(Duration),
    /// A backup is taken while records arrive. It is restored and compared in the end.
    Backup,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    Truncated,
    Changed,
    Removed,
}

/// The authority of the run is claimed, the next sink is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimCrash {
    /// Process 0 is about to claim the next sink.
    Claim,
    /// A process is about to fence its shards of the next sink.
    Fence,
    /// Process 0 of a successor is about to claim the next sink.
    TakeoverClaim,
}

impl ClaimCrash {
    /// The point of the program at which the process panics.
    pub fn panic_point(self) -> &'static str {
        match self {
            ClaimCrash::Claim | ClaimCrash::TakeoverClaim => "between_claims",
            ClaimCrash::Fence => "between_fences",
        }
    }
}

/// What decides which faults are possible.
struct FaultContext {
    mode: LogMode,
    sinks: TrialSinks,
    topology: TrialTopology,
}

impl FaultContext {
    fn is_kafka(&self) -> bool {
        self.mode == LogMode::Kafka
    }
}

/// A kind of fault: how often it is drawn, and where it can happen.
struct FaultKind {
    weight: u64,
    draw: fn(&mut Random) -> Fault,
    possible: fn(&FaultContext) -> bool,
}

const FAULT_KINDS: &[FaultKind] = &[
    FaultKind { weight: 5, draw: |_| Fault::KillOne, possible: |_| true },
    FaultKind { weight: 2, draw: |_| Fault::KillAll, possible: |c| c.topology.processes > 1 },
    FaultKind { weight: 2, draw: |_| Fault::KillSupervisor, possible: |c| c.topology.is_supervised() },
    FaultKind { weight: 2, draw: |r| Fault::KillStarting(millis(r, 0, 800)), possible: |_| true },
    FaultKind { weight: 3, draw: pause, possible: |_| true },
    FaultKind { weight: 3, draw: |r| Fault::DieBeforeCommit(r.below(20)), possible: FaultContext::is_kafka },
    FaultKind { weight: 2, draw: |r| Fault::DieBeforeManifest(r.below(3)), possible: |_| true },
    FaultKind { weight: 2, draw: damage, possible: |_| true },
    FaultKind { weight: 1, draw: |r| Fault::DiskFull(millis(r, 200, 1_500)), possible: |_| true },
    FaultKind {
        weight: 1,
        draw: |r| Fault::CheckpointsUnwritable(millis(r, 800, 2_500)),
        possible: |_| true,
    },
    FaultKind {
        weight: 1,
        draw: |r| Fault::KillBroker(millis(r, 0, 1_000)),
        possible: FaultContext::is_kafka,
    },
    FaultKind {
        weight: 1,
        draw: |r| Fault::PauseBroker(millis(r, 500, 4_000)),
        possible: FaultContext::is_kafka,
    },
    FaultKind {
        weight: 2,
        draw: |r| Fault::CutConnections(millis(r, 0, 3_000)),
        possible: |c| c.topology.separate,
    },
    FaultKind {
        weight: 2,
        draw: |r| Fault::StallConnections(millis(r, 200, 5_000)),
        possible: |c| c.topology.separate,
    },
    FaultKind { weight: 1, draw: |_| Fault::ClockSkew, possible: |c| c.topology.separate },
    FaultKind { weight: 2, draw: |_| Fault::Restart, possible: |_| true },
    FaultKind { weight: 3, draw: |_| Fault::Takeover, possible: FaultContext::is_kafka },
    FaultKind { weight: 2, draw: |_| Fault::StandbyTakeover, possible: FaultContext::is_kafka },
    FaultKind { weight: 3, draw: |r| Fault::Strangers(millis(r, 300, 1_500)), possible: |_| true },
    FaultKind { weight: 2, draw: |r| Fault::NoOpenFiles(millis(r, 500, 4_000)), possible: |_| true },
    FaultKind { weight: 2, draw: |_| Fault::Backup, possible: |c| c.mode == LogMode::Journal },
    FaultKind { weight: 2, draw: |_| Fault::StoppedTakeover, possible: FaultContext::is_kafka },
    FaultKind { weight: 4, draw: claim_crash, possible: |c| c.sinks.folder && c.is_kafka() },
    FaultKind { weight: 2, draw: start_claim_crash, possible: |c| c.sinks.folder && !c.is_kafka() },
    FaultKind {
        weight: 3,
        draw: |r| Fault::DieBeforeFolderCommit(r.below(20)),
        possible: |c| c.sinks.folder,
    },
    FaultKind {
        weight: 2,
        draw: |r| Fault::FolderBlocked(millis(r, 300, 2_500)),
        possible: |c| c.sinks.folder,
    },
];

fn millis(random: &mut Random, from: u64, to: u64) -> Duration {
    Duration::from_millis(from + random.below(to - from))
}

fn pause(random: &mut Random) -> Fault {
    Fault::Pause(match random.below(25) {
        0 => Duration::from_secs(30),
        _ => millis(random, 500, 5_000),
    })
}

fn damage(random: &mut Random) -> Fault {
    Fault::Damage(match random.below(3) {
        0 => Damage::Truncated,
        1 => Damage::Changed,
        _ => Damage::Removed,
    })
}

fn claim_crash(random: &mut Random) -> Fault {
    match random.below(3) {
        0 => Fault::DieBetweenClaims(ClaimCrash::TakeoverClaim),
        _ => start_claim_crash(random),
    }
}

/// One at a start, where no other generation runs.
fn start_claim_crash(random: &mut Random) -> Fault {
    Fault::DieBetweenClaims(match random.below(2) {
        0 => ClaimCrash::Claim,
        _ => ClaimCrash::Fence,
    })
}

impl Fault {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Fault::KillOne => "kill -9 of a process",
            Fault::KillAll => "kill -9 of all processes",
            Fault::KillSupervisor => "kill -9 of the supervisor",
            Fault::KillStarting(_) => "kill -9 of all while they start",
            Fault::Pause(time) if time.as_secs() >= 30 => "a process stopped for 30 s (SIGSTOP)",
            Fault::Pause(_) => "a process stopped for up to 5 s (SIGSTOP)",
            Fault::DieBeforeCommit(_) => "killed between flush and commit",
            Fault::DieBeforeManifest(_) => "killed between a checkpoint's files and its manifest",
            Fault::DieBeforeFolderCommit(_) => "killed between a folder's rows and their commit",
            Fault::DieBetweenClaims(ClaimCrash::Claim) => "process 0 killed between two claims",
            Fault::DieBetweenClaims(ClaimCrash::Fence) => "a process killed between the fences of two sinks",
            Fault::DieBetweenClaims(ClaimCrash::TakeoverClaim) => "a successor killed between two claims",
            Fault::Damage(Damage::Truncated) => "the newest checkpoint cut off",
            Fault::Damage(Damage::Changed) => "a byte of the newest checkpoint changed",
            Fault::Damage(Damage::Removed) => "a file of the newest checkpoint removed",
            Fault::DiskFull(_) => "disk full (no file can grow)",
            Fault::CheckpointsUnwritable(_) => "the folder of checkpoints cannot be written to",
            Fault::FolderBlocked(_) => "a file in the place of the folder of results",
            Fault::KillBroker(_) => "the broker killed and started again",
            Fault::PauseBroker(_) => "the broker stopped (SIGSTOP)",
            Fault::CutConnections(_) => "a process cut off from the others (connections closed)",
            Fault::StallConnections(_) => "a process cut off from the others (nothing goes through)",
            Fault::ClockSkew => "clocks of processes apart",
            Fault::Restart => "stopped and started again (SIGTERM)",
            Fault::Takeover => "taken over by another generation",
            Fault::StoppedTakeover => "stopped (SIGSTOP), taken over, and gone on with",
            Fault::StandbyTakeover => "kill -9 of all with a standby beside them",
            Fault::Strangers(_) => "strangers flood every port, and kill -9 of a process",
            Fault::NoOpenFiles(_) => "a process that can open no more files",
            Fault::Backup => "a backup taken, restored elsewhere and compared",
        }
    }

    /// Whether all processes are restarted after it, perhaps in another topology.
    pub fn restarts(self) -> bool {
        use Fault::*;
        matches!(
            self,
            KillSupervisor
                | KillStarting(_)
                | DieBeforeCommit(_)
                | DieBeforeManifest(_)
                | DieBeforeFolderCommit(_)
                | DieBetweenClaims(_)
                | Damage(_)
                | ClockSkew
                | Restart
                | Takeover
                | StoppedTakeover
                | StandbyTakeover
                | Strangers(_)
        )
    }
}

pub struct FaultStep {
    /// The pause before the fault.
    pub wait: Duration,
    pub fault: Fault,
    /// Chooses the process, file or clock.
    pub lot: u64,
    /// The topology of the restart after it.
    pub topology: TrialTopology,
    /// Whether all must be ready before the next one.
    pub settle: bool,
}

/// The settings of all starts of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaseSettings {
    pub sinks: TrialSinks,
    /// Processes speak TLS to each other.
    pub tls: bool,
    /// The most files that each process may have open.
    pub open_files: Option<u64>,
}

impl CaseSettings {
    fn random(random: &mut Random, sinks: TrialSinks) -> CaseSettings {
        let tls = random.below(2) == 0;
        CaseSettings { sinks, tls, open_files: (random.below(3) == 0).then_some(LOW_OPEN_FILES) }
    }
}

impl fmt::Display for CaseSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.sinks.name(), if self.tls { "cluster.tls" } else { "no cluster.tls" })?;
        self.open_files.map_or(Ok(()), |files| write!(f, ", {files} open files"))
    }
}

pub struct CasePlan {
    pub seed: u64,
    pub mode: LogMode,
    pub settings: CaseSettings,
    pub first: TrialTopology,
    pub steps: Vec<FaultStep>,
    /// The topology of the last comparison.
    pub last: TrialTopology,
    pub records: usize,
}

impl CasePlan {
    pub fn new(seed: u64, faults: usize) -> CasePlan {
        let mode = LogMode::of(seed);
        let sinks = TrialSinks::of(seed, mode);
        let mut random = Random::new(!seed);
        let first = TrialTopology::random(&mut random);
        let mut topology = first;
        let step = |_| {
            let step = FaultStep::random(&mut random, &FaultContext { mode, sinks, topology });
            topology = step.topology;
            step
        };
        let steps = (0..faults).map(step).collect();
        let last = TrialTopology::random(&mut random);
        let mut settings = CaseSettings::random(&mut random, sinks);
        let mut plan =
            CasePlan { seed, mode, settings, first, steps, last, records: RECORDS_PER_FAULT * (faults + 1) };
        settings.tls &= plan.topologies().any(|topology| topology.processes > 1);
        plan.settings = settings;
        plan
    }

    fn topologies(&self) -> impl Iterator<Item = TrialTopology> {
        let of_steps = self.steps.iter().map(|step| step.topology);
        [self.first, self.last].into_iter().chain(of_steps)
    }
}

impl FaultStep {
    fn random(random: &mut Random, context: &FaultContext) -> FaultStep {
        let wait = millis(random, 100, 1_200);
        let possible = || FAULT_KINDS.iter().filter(|kind| (kind.possible)(context));
        let mut drawn = random.below(possible().map(|kind| kind.weight).sum());
        let mut fault = Fault::KillOne;
        for kind in possible() {
            if drawn < kind.weight {
                fault = (kind.draw)(random);
                break;
            }
            drawn -= kind.weight;
        }
        let next = TrialTopology::random(random);
        let next = match fault {
            Fault::ClockSkew => context.topology,
            _ if fault.restarts() => next,
            _ => context.topology,
        };
        FaultStep { wait, fault, lot: random.below(1 << 32), topology: next, settle: random.below(4) > 0 }
    }
}

impl fmt::Display for CasePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CasePlan { seed, mode, records, settings, first, .. } = self;
        writeln!(f, "seed {seed}: {mode:?}, {records} records, {settings}, first {first}")?;
        for (number, FaultStep { wait, fault, topology, settle, .. }) in self.steps.iter().enumerate() {
            let settled = if *settle { "" } else { "; the next one at once" };
            writeln!(f, "{number}: after {wait:?} {fault:?}, then {topology}{settled}")?;
        }
        writeln!(f, "last {}", self.last)
    }
}

#[test]
fn plan_is_determined_by_seed() {
    for seed in 0..50 {
        let (one, other) = (CasePlan::new(seed, 6), CasePlan::new(seed, 6));
        assert_eq!(one.to_string(), other.to_string());
        assert_eq!(one.steps.len(), 6);
    }
    assert_ne!(CasePlan::new(1, 6).to_string(), CasePlan::new(2, 6).to_string());
}
