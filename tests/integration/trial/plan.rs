//! What happens in a case: all of it is drawn from its seed.

use std::fmt;
use std::time::Duration;

use crate::recovery::Random;

/// The most processes and workers of each.
const PROCESSES: u64 = 3;
const WORKERS: u64 = 2;
/// What a process may have open where that is little: less than strangers hold connections.
const OPEN_FILES: u64 = 768;
/// Records that come for each fault.
const RECORDS: usize = 140;

/// Where readings come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Journal,
    Kafka,
}

impl Mode {
    pub fn of(seed: u64) -> Mode {
        match Random(seed).next(2) {
            0 => Mode::Journal,
            _ => Mode::Kafka,
        }
    }
}

/// How many processes there are, and who starts them again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Topology {
    pub processes: u64,
    pub workers: u64,
    /// Each is started by itself, as by an orchestrator, and reaches the others through proxies; otherwise by a supervisor.
    pub separate: bool,
}

impl Topology {
    fn random(random: &mut Random) -> Topology {
        let (processes, workers) = (1 + random.next(PROCESSES), 1 + random.next(WORKERS));
        Topology { processes, workers, separate: random.next(2) == 0 && processes > 1 }
    }

    pub fn is_supervised(self) -> bool {
        self.processes > 1 && !self.separate
    }
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.separate { ", each by itself" } else { "" };
        write!(f, "{} x {}{kind}", self.processes, self.workers)
    }
}

/// What befalls a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    KillOne,
    KillAll,
    KillSupervisor,
    /// All are killed so long after they were started.
    KillStarting(Duration),
    /// Of one process, with SIGSTOP.
    Pause(Duration),
    /// With so many transactions before.
    DieBeforeCommit(u64),
    /// With so many checkpoints before.
    DieBeforeManifest(u64),
    /// While no process runs.
    Damage(Damage),
    /// No file can be written to.
    DiskFull(Duration),
    /// The folder of checkpoints alone cannot be written to.
    CheckpointsAway(Duration),
    KillBroker(Duration),
    PauseBroker(Duration),
    /// All connections of one process end, and no new one is made.
    Cut(Duration),
    /// Nothing goes through the connections of one process.
    Stall(Duration),
    /// Clocks of processes differ from the next start on.
    Clocks,
    /// SIGTERM, and another start: nothing that should be noticed.
    Stop,
    /// Others are started beside those that run, and go on in their place.
    TakeOver,
    /// Those that run are killed while others stand by.
    StandIn,
    /// Strangers say garbage to every port for so long before and behind a start; meanwhile a process is killed.
    Strangers(Duration),
    /// One process can open no more files.
    NoFiles(Duration),
    /// A copy is taken while records come. It is restored and compared in the end.
    Backup,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    Truncated,
    Changed,
    Removed,
}

/// A kind of fault: its name in reports, how often it is drawn, and where it can happen.
struct Kind {
    weight: u64,
    draw: fn(&mut Random) -> Fault,
    possible: fn(Mode, Topology) -> bool,
}

const KINDS: &[Kind] = &[
    Kind { weight: 5, draw: |_| Fault::KillOne, possible: |_, _| true },
    Kind { weight: 2, draw: |_| Fault::KillAll, possible: |_, t| t.processes > 1 },
    Kind { weight: 2, draw: |_| Fault::KillSupervisor, possible: |_, t| t.is_supervised() },
    Kind { weight: 2, draw: |r| Fault::KillStarting(millis(r, 0, 800)), possible: |_, _| true },
    Kind { weight: 3, draw: pause, possible: |_, _| true },
    Kind { weight: 3, draw: |r| Fault::DieBeforeCommit(r.next(20)), possible: |m, _| m == Mode::Kafka },
    Kind { weight: 2, draw: |r| Fault::DieBeforeManifest(r.next(3)), possible: |_, _| super::CHECKPOINTS },
    Kind { weight: 2, draw: damage, possible: |_, _| super::CHECKPOINTS },
    Kind { weight: 1, draw: |r| Fault::DiskFull(millis(r, 200, 1_500)), possible: |_, _| true },
    Kind {
        weight: 1,
        draw: |r| Fault::CheckpointsAway(millis(r, 800, 2_500)),
        possible: |_, _| super::CHECKPOINTS,
    },
    Kind { weight: 1, draw: |r| Fault::KillBroker(millis(r, 0, 1_000)), possible: |m, _| m == Mode::Kafka },
    Kind {
        weight: 1,
        draw: |r| Fault::PauseBroker(millis(r, 500, 4_000)),
        possible: |m, _| m == Mode::Kafka,
    },
    Kind { weight: 2, draw: |r| Fault::Cut(millis(r, 0, 3_000)), possible: |_, t| t.separate },
    Kind { weight: 2, draw: |r| Fault::Stall(millis(r, 200, 5_000)), possible: |_, t| t.separate },
    Kind { weight: 1, draw: |_| Fault::Clocks, possible: |_, t| t.separate },
    Kind { weight: 2, draw: |_| Fault::Stop, possible: |_, _| true },
    Kind { weight: 3, draw: |_| Fault::TakeOver, possible: |m, _| m == Mode::Kafka },
    Kind { weight: 2, draw: |_| Fault::StandIn, possible: |m, _| m == Mode::Kafka },
    Kind { weight: 3, draw: |r| Fault::Strangers(millis(r, 300, 1_500)), possible: |_, _| true },
    Kind { weight: 2, draw: |r| Fault::NoFiles(millis(r, 500, 4_000)), possible: |_, _| true },
    Kind { weight: 2, draw: |_| Fault::Backup, possible: |m, _| m == Mode::Journal },
];

fn millis(random: &mut Random, from: u64, to: u64) -> Duration {
    Duration::from_millis(from + random.next(to - from))
}

fn pause(random: &mut Random) -> Fault {
    Fault::Pause(match random.next(25) {
        0 => Duration::from_secs(30),
        _ => millis(random, 500, 5_000),
    })
}

fn damage(random: &mut Random) -> Fault {
    Fault::Damage(match random.next(3) {
        0 => Damage::Truncated,
        1 => Damage::Changed,
        _ => Damage::Removed,
    })
}

impl Fault {
    /// As reports call it.
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
            Fault::Damage(Damage::Truncated) => "the newest checkpoint cut off",
            Fault::Damage(Damage::Changed) => "a byte of the newest checkpoint changed",
            Fault::Damage(Damage::Removed) => "a file of the newest checkpoint removed",
            Fault::DiskFull(_) => "disk full (no file can grow)",
            Fault::CheckpointsAway(_) => "the folder of checkpoints cannot be written to",
            Fault::KillBroker(_) => "the broker killed and started again",
            Fault::PauseBroker(_) => "the broker stopped (SIGSTOP)",
            Fault::Cut(_) => "a process cut off from the others (connections closed)",
            Fault::Stall(_) => "a process cut off from the others (nothing goes through)",
            Fault::Clocks => "clocks of processes apart",
            Fault::Stop => "stopped and started again (SIGTERM)",
            Fault::TakeOver => "taken over by another generation",
            Fault::StandIn => "kill -9 of all with a standby beside them",
            Fault::Strangers(_) => "strangers flood every port, and kill -9 of a process",
            Fault::NoFiles(_) => "a process that can open no more files",
            Fault::Backup => "a backup taken, restored elsewhere and compared",
        }
    }

    /// Whether all processes are started anew behind it, which may be in another topology.
    pub fn restarts(self) -> bool {
        use Fault::*;
        matches!(
            self,
            KillSupervisor
                | KillStarting(_)
                | DieBeforeCommit(_)
                | DieBeforeManifest(_)
                | Damage(_)
                | Clocks
                | Stop
                | TakeOver
                | StandIn
                | Strangers(_)
        )
    }
}

pub struct Step {
    /// How long all is left alone before.
    pub wait: Duration,
    pub fault: Fault,
    /// Says which process, file or clock.
    pub lot: u64,
    /// How it goes on.
    pub topology: Topology,
    /// Whether all must be ready before the next one.
    pub settle: bool,
}

/// What all starts of a case have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Processes speak TLS to each other.
    pub tls: bool,
    /// The most files that each process may have open.
    pub open_files: Option<u64>,
}

impl Settings {
    fn random(random: &mut Random) -> Settings {
        let tls = random.next(2) == 0;
        Settings { tls, open_files: (random.next(3) == 0).then_some(OPEN_FILES) }
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "cluster.tls" } else { "no cluster.tls" })?;
        self.open_files.map_or(Ok(()), |files| write!(f, ", {files} open files"))
    }
}

pub struct Plan {
    pub seed: u64,
    pub mode: Mode,
    pub settings: Settings,
    pub first: Topology,
    pub steps: Vec<Step>,
    /// What the last comparison is made in.
    pub last: Topology,
    pub records: usize,
}

impl Plan {
    pub fn new(seed: u64, faults: usize) -> Plan {
        let mode = Mode::of(seed);
        let mut random = Random(!seed);
        let first = Topology::random(&mut random);
        let mut topology = first;
        let step = |_| {
            let step = Step::random(&mut random, mode, topology);
            topology = step.topology;
            step
        };
        let steps = (0..faults).map(step).collect();
        let last = Topology::random(&mut random);
        let mut settings = Settings::random(&mut random);
        let mut plan = Plan { seed, mode, settings, first, steps, last, records: RECORDS * (faults + 1) };
        settings.tls &= plan.topologies().any(|topology| topology.processes > 1);
        plan.settings = settings;
        plan
    }

    fn topologies(&self) -> impl Iterator<Item = Topology> {
        let of_steps = self.steps.iter().map(|step| step.topology);
        [self.first, self.last].into_iter().chain(of_steps)
    }
}

impl Step {
    fn random(random: &mut Random, mode: Mode, topology: Topology) -> Step {
        let wait = millis(random, 100, 1_200);
        let possible = || KINDS.iter().filter(|kind| (kind.possible)(mode, topology));
        let mut drawn = random.next(possible().map(|kind| kind.weight).sum());
        let mut fault = Fault::KillOne;
        for kind in possible() {
            if drawn < kind.weight {
                fault = (kind.draw)(random);
                break;
            }
            drawn -= kind.weight;
        }
        let next = Topology::random(random);
        let next = match fault {
            Fault::Clocks => topology,
            _ if fault.restarts() => next,
            _ => topology,
        };
        Step { wait, fault, lot: random.next(1 << 32), topology: next, settle: random.next(4) > 0 }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { seed, mode, records, settings, first, .. } = self;
        writeln!(f, "seed {seed}: {mode:?}, {records} records, {settings}, first {first}")?;
        for (number, Step { wait, fault, topology, settle, .. }) in self.steps.iter().enumerate() {
            let settled = if *settle { "" } else { "; the next one at once" };
            writeln!(f, "{number}: after {wait:?} {fault:?}, then {topology}{settled}")?;
        }
        writeln!(f, "last {}", self.last)
    }
}

#[test]
fn a_seed_says_all() {
    for seed in 0..50 {
        let (one, other) = (Plan::new(seed, 6), Plan::new(seed, 6));
        assert_eq!(one.to_string(), other.to_string());
        assert_eq!(one.steps.len(), 6);
    }
    assert_ne!(Plan::new(1, 6).to_string(), Plan::new(2, 6).to_string());
}
