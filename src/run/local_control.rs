//! A process's part of control: applies commands of the log, and reports events. It never blocks.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::protocol::{ControlCommand, ControlEvent, Phase, RefusedCounts};
use crate::model::{PartitionIndex, PartitionName, PartitionTable, Reason};
use crate::panics::bug_text;
use crate::worker::{LogPartition, SharedState, WorkerCommand, WorkerCommandSender, WorkerEvent};

/// Opens a partition that was added after the start, if this process can read it.
pub type OpenPartition = Box<dyn Fn(PartitionIndex, &PartitionName, u64) -> Option<LogPartition> + Send>;

/// The running workers of this process.
pub struct LocalWorkers {
    pub shared: Arc<SharedState>,
    pub commands: WorkerCommandSender,
    pub partitions: PartitionTable,
    pub open_partition: OpenPartition,
    pub count: usize,
}

/// What the control thread must do after a command or a worker's event.
#[derive(Debug)]
pub enum Effect {
    Report(ControlEvent),
    /// The main thread executes the command, since it may block.
    Execute(ControlCommand),
    /// The run fails.
    Fail(String),
}

/// The control state of this process.
pub struct LocalControl {
    process: usize,
    phase: Phase,
    workers: Option<LocalWorkers>,
    /// The last value that process 0 has sent.
    congested: u64,
    refused: BTreeMap<usize, RefusedCounts>,
    /// Added partitions that are not read yet.
    added: HashMap<PartitionIndex, (PartitionName, u64)>,
    /// Number of workers that have the resume points.
    installed: usize,
}

impl LocalControl {
    pub fn new(process: usize) -> LocalControl {
        LocalControl {
            process,
            phase: Phase::Inspecting,
            workers: None,
            congested: 0,
            refused: BTreeMap::new(),
            added: HashMap::new(),
            installed: 0,
        }
    }

    /// Attaches the workers, and passes earlier settings on to them.
    pub fn attach(&mut self, workers: LocalWorkers) {
        self.workers = Some(workers);
        self.set_paused();
        self.set_refused();
    }

    /// The greatest epoch in use in this process, once workers run.
    pub fn newest_epoch(&self) -> Option<u64> {
        self.workers.as_ref().map(|workers| workers.shared.newest_epoch())
    }

    /// Applies the next command of the log.
    pub fn apply(&mut self, command: ControlCommand) -> Option<Effect> {
        if !command.is_allowed_in(self.phase) {
            return Some(Effect::Fail(bug_text(&format!(
                "process 0 sent the command `{}` in the phase `{}`",
                command.kind(),
                self.phase.name()
            ))));
        }
        self.phase = command.phase_after(self.phase);
        match command {
            ControlCommand::ReadUntil(positions) => self.send(WorkerCommand::ReadUntil(positions)),
            ControlCommand::Release(release) => self.send(WorkerCommand::Release(release)),
            ControlCommand::ReserveEpochs { until } => self.send(WorkerCommand::ReserveEpochs { until }),
            ControlCommand::StartCheckpoint(barrier) => {
                if self.process == 0 {
                    self.send(WorkerCommand::Barrier(barrier));
                }
            }
            ControlCommand::AddPartition { index, name, start } => {
                return self.add_partition(index, name, start);
            }
            ControlCommand::ReadPartition { index } => self.read_partition(index),
            ControlCommand::Pause { congested } => {
                self.congested = congested;
                self.set_paused();
            }
            ControlCommand::SetRefused(refused) => {
                self.refused = refused;
                self.set_refused();
            }
            command => return Some(Effect::Execute(command)),
        }
        None
    }

    /// Handles an event of a worker.
    pub fn on_worker(&mut self, event: WorkerEvent) -> Option<Effect> {
        match event {
            WorkerEvent::ResumePointsInstalled => {
                self.installed += 1;
                let all = self.workers.as_ref().is_some_and(|workers| workers.count == self.installed);
                all.then_some(Effect::Report(ControlEvent::ResumePointsInstalled))
            }
            WorkerEvent::BarrierAligned(aligned) => {
                Some(Effect::Report(ControlEvent::BarrierAligned(aligned)))
            }
            WorkerEvent::Congested(is_congested) => {
                Some(Effect::Report(ControlEvent::Congested(is_congested)))
            }
            WorkerEvent::Failed(why) => Some(Effect::Fail(why)),
        }
    }

    fn send(&self, command: WorkerCommand) {
        if let Some(workers) = &self.workers {
            workers.commands.send(&command);
        }
    }

    /// Gives a partition the same index as at process 0.
    fn add_partition(&mut self, index: PartitionIndex, name: PartitionName, start: u64) -> Option<Effect> {
        let workers = self.workers.as_ref()?;
        if workers.partitions.push(name.clone()) != index {
            return Some(Effect::Fail(bug_text(&format!(
                "partition {} of source {} has another index here than at process 0",
                name.partition, name.source
            ))));
        }
        self.added.insert(index, (name, start));
        Some(Effect::Report(ControlEvent::PartitionKnown { index }))
    }

    fn read_partition(&mut self, index: PartitionIndex) {
        let Some((name, start)) = self.added.remove(&index) else { return };
        let Some(workers) = &self.workers else { return };
        if let Some(partition) = (workers.open_partition)(index, &name, start) {
            self.send(WorkerCommand::ReadPartition(partition));
        }
    }

    fn set_paused(&self) {
        if let Some(workers) = &self.workers {
            workers.shared.set_congested_elsewhere(self.congested & !(1 << self.process) != 0);
        }
    }

    /// Sets the counts of the other processes; the local ones are known.
    fn set_refused(&self) {
        let Some(workers) = &self.workers else { return };
        let mut counts = vec![0; Reason::ALL.len()];
        let others = self.refused.iter().filter(|(process, _)| **process != self.process);
        for (number, count) in others.flat_map(|(_, counts)| counts) {
            if let Some(sum) = counts.get_mut(usize::from(*number)) {
                *sum += count;
            }
        }
        workers.shared.refusals.set_remote_counts(&counts);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Receiver;

    use super::*;
    use crate::model::CheckpointBarrier;
    use crate::run::protocol::{partition_name, start_command};
    use crate::worker::{Refusals, Release};

    /// Process 1 of several, with two workers that are not run.
    fn started() -> (LocalControl, Arc<SharedState>, Vec<Receiver<WorkerCommand>>) {
        let shared = Arc::new(SharedState::new(Refusals::new(None), Arc::new(|_| ())));
        let commands = WorkerCommandSender::new(2);
        let queues = (0..2).map(|worker| commands.subscribe(worker).unwrap()).collect();
        let mut control = LocalControl::new(1);
        assert!(matches!(control.apply(start_command()), Some(Effect::Execute(ControlCommand::Start(_)))));
        control.attach(LocalWorkers {
            shared: Arc::clone(&shared),
            commands,
            partitions: PartitionTable::new(vec![partition_name(0)]),
            open_partition: Box::new(|_, _, _| None),
            count: 2,
        });
        (control, shared, queues)
    }

    fn release() -> ControlCommand {
        ControlCommand::Release(Release { floor: 5, reserved_until: 100 })
    }

    #[test]
    fn workers_get_the_commands_of_the_log_in_its_order() {
        let (mut control, _, queues) = started();
        let index = PartitionIndex(0);
        for command in [
            ControlCommand::ReadUntil(vec![(index, 3)]),
            release(),
            ControlCommand::ReserveEpochs { until: 200 },
            ControlCommand::StartCheckpoint(CheckpointBarrier { checkpoint: 1, full: true }),
        ] {
            assert!(control.apply(command).is_none());
        }
        for queue in queues {
            let got: Vec<WorkerCommand> = queue.try_iter().collect();
            let [WorkerCommand::ReadUntil(positions), WorkerCommand::Release(release), reserve] = &got[..]
            else {
                panic!("{} commands: the barrier is sent by process 0 alone", got.len());
            };
            assert_eq!(positions[..], [(index, 3)]);
            assert_eq!(*release, Release { floor: 5, reserved_until: 100 });
            assert!(matches!(reserve, WorkerCommand::ReserveEpochs { until: 200 }));
        }
    }

    #[test]
    fn resume_points_are_installed_once_every_worker_knows_them() {
        let (mut control, ..) = started();
        assert!(control.on_worker(WorkerEvent::ResumePointsInstalled).is_none());
        let effect = control.on_worker(WorkerEvent::ResumePointsInstalled);
        assert!(matches!(effect, Some(Effect::Report(ControlEvent::ResumePointsInstalled))));
    }

    #[test]
    fn congestion_and_refusals_of_others_count_also_if_said_before_the_workers_run() {
        let mut control = LocalControl::new(1);
        let _ = control.apply(start_command());
        assert!(control.apply(ControlCommand::Pause { congested: 0b101 }).is_none());
        assert!(
            control
                .apply(ControlCommand::SetRefused([(0, vec![(0, 2)]), (1, vec![(0, 9)])].into()))
                .is_none()
        );
        let shared = Arc::new(SharedState::new(Refusals::new(None), Arc::new(|_| ())));
        control.attach(LocalWorkers {
            shared: Arc::clone(&shared),
            commands: WorkerCommandSender::new(1),
            partitions: PartitionTable::new(Vec::new()),
            open_partition: Box::new(|_, _, _| None),
            count: 1,
        });
        assert!(shared.must_wait());
        assert_eq!(shared.refusals.counts(), [(Reason::ALL[0], 2)], "its own are not counted twice");
        assert!(control.apply(ControlCommand::Pause { congested: 0b010 }).is_none());
        assert!(!shared.must_wait(), "its own congestion is known to its workers");
    }

    #[test]
    fn partition_has_the_index_of_process_0_or_the_run_fails() {
        let (mut control, ..) = started();
        let _ = control.apply(release());
        let add = |index, partition| ControlCommand::AddPartition {
            index: PartitionIndex(index),
            name: partition_name(partition),
            start: 17,
        };
        let known = control.apply(add(1, 1));
        assert!(matches!(
            known,
            Some(Effect::Report(ControlEvent::PartitionKnown { index: PartitionIndex(1) }))
        ));
        assert!(control.apply(ControlCommand::ReadPartition { index: PartitionIndex(1) }).is_none());
        assert!(matches!(control.apply(add(7, 2)), Some(Effect::Fail(_))));
    }

    #[test]
    fn command_out_of_its_phase_fails_the_run() {
        let (mut control, ..) = started();
        assert!(matches!(
            control.apply(ControlCommand::CancelCheckpoint { checkpoint: 1 }),
            Some(Effect::Fail(_))
        ));
        assert!(control.apply(release()).is_none());
        assert!(matches!(control.apply(ControlCommand::Stop), Some(Effect::Execute(ControlCommand::Stop))));
        assert!(matches!(control.apply(release()), Some(Effect::Fail(_))));
    }
}
