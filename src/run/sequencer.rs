//! Process 0's part of control: decides from reported events which commands follow in the log. It
//! never blocks and knows no connection.

use std::collections::BTreeMap;

use super::protocol::{ControlCommand, ControlEvent, Phase, RefusedCounts};
use crate::model::{PartitionIndex, PartitionName};

/// The consequence of an event.
#[derive(Debug)]
pub enum Decision {
    /// Append this as the next command of the log.
    Append(ControlCommand),
    /// Pass the event to the current phase at process 0, which decides.
    Tell { process: usize, event: ControlEvent },
}

/// The state of the command log at process 0.
pub struct Sequencer {
    processes: usize,
    phase: Phase,
    /// A bit for each process that takes its results too slowly.
    congested: u64,
    refused: BTreeMap<usize, RefusedCounts>,
    /// The greatest epoch in use, or requested, at any process.
    newest_epoch: u64,
    /// All partitions, by index.
    partitions: Vec<PartitionName>,
    /// How many processes know each added partition.
    processes_by_partition: BTreeMap<PartitionIndex, usize>,
}

impl Sequencer {
    pub fn new(processes: usize) -> Sequencer {
        Sequencer {
            processes,
            phase: Phase::Inspecting,
            congested: 0,
            refused: BTreeMap::new(),
            newest_epoch: 0,
            partitions: Vec::new(),
            processes_by_partition: BTreeMap::new(),
        }
    }

    pub fn newest_epoch(&self) -> u64 {
        self.newest_epoch
    }

    /// Appends a command if it is allowed now, and returns whether it is. Behind a stop, only the
    /// commands that a stop needs are allowed.
    pub fn append(&mut self, command: &ControlCommand) -> bool {
        if !command.is_allowed_in(self.phase) {
            return false;
        }
        if let ControlCommand::Start(plan) = command {
            self.partitions = plan.partitions.iter().map(|(name, _)| name.clone()).collect();
        }
        self.phase = command.phase_after(self.phase);
        true
    }

    /// Handles an event of a process.
    pub fn on_event(&mut self, process: usize, event: ControlEvent) -> Vec<Decision> {
        let command = match event {
            ControlEvent::Progress { newest_epoch } => {
                self.newest_epoch = self.newest_epoch.max(newest_epoch);
                None
            }
            ControlEvent::Congested(is_congested) => self.set_congested(process, is_congested),
            ControlEvent::Refused(counts) => {
                self.refused.insert(process, counts);
                Some(ControlCommand::SetRefused(self.refused.clone()))
            }
            ControlEvent::PartitionFound { name, start } => self.add_partition(name, start),
            ControlEvent::PartitionKnown { index } => self.note_known(index),
            ControlEvent::StopRequested => Some(ControlCommand::Stop),
            event => return vec![Decision::Tell { process, event }],
        };
        let allowed = command.filter(|command| self.append(command));
        allowed.map(Decision::Append).into_iter().collect()
    }

    fn set_congested(&mut self, process: usize, is_congested: bool) -> Option<ControlCommand> {
        let (before, bit) = (self.congested, 1u64 << process);
        self.congested = if is_congested { before | bit } else { before & !bit };
        (self.congested != before).then_some(ControlCommand::Pause { congested: self.congested })
    }

    fn add_partition(&mut self, name: PartitionName, start: u64) -> Option<ControlCommand> {
        if self.phase != Phase::Owning || self.partitions.contains(&name) {
            return None;
        }
        let index = PartitionIndex(self.partitions.len() as u16);
        self.partitions.push(name.clone());
        self.processes_by_partition.insert(index, 0);
        Some(ControlCommand::AddPartition { index, name, start })
    }

    fn note_known(&mut self, index: PartitionIndex) -> Option<ControlCommand> {
        let process_count = self.processes_by_partition.get_mut(&index)?;
        *process_count += 1;
        if *process_count < self.processes {
            return None;
        }
        self.processes_by_partition.remove(&index);
        Some(ControlCommand::ReadPartition { index })
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::run::protocol::{partition_name, start_command};
    use crate::worker::Release;

    /// A sequencer of three processes whose run owns its results.
    fn owning() -> Sequencer {
        let mut sequencer = Sequencer::new(3);
        assert!(sequencer.append(&start_command()));
        assert!(sequencer.append(&ControlCommand::Release(Release { floor: 1, reserved_until: 9 })));
        sequencer
    }

    /// The resulting commands, as text.
    fn on(sequencer: &mut Sequencer, process: usize, event: ControlEvent) -> String {
        let mut text = String::new();
        for decision in sequencer.on_event(process, event) {
            match decision {
                Decision::Append(command) => write!(text, "{command:?}").unwrap(),
                Decision::Tell { process, event } => write!(text, "tell {process} {event:?}").unwrap(),
            }
        }
        text
    }

    #[test]
    fn commands_are_taken_only_in_their_phase() {
        let mut sequencer = Sequencer::new(2);
        let release = ControlCommand::Release(Release { floor: 1, reserved_until: 9 });
        assert!(!sequencer.append(&release), "nothing runs");
        assert!(!sequencer.append(&ControlCommand::ReserveEpochs { until: 5 }));
        assert!(sequencer.append(&start_command()));
        assert!(!sequencer.append(&start_command()));
        assert!(sequencer.append(&ControlCommand::ReadUntil(Vec::new())));
        assert!(!sequencer.append(&ControlCommand::CancelCheckpoint { checkpoint: 1 }));
        assert!(sequencer.append(&release));
        assert!(!sequencer.append(&ControlCommand::ReadUntil(Vec::new())), "the results are this run's");
        assert!(sequencer.append(&ControlCommand::ReserveEpochs { until: 5 }));
    }

    #[test]
    fn nothing_is_released_behind_a_stop() {
        let mut sequencer = Sequencer::new(2);
        assert!(sequencer.append(&start_command()));
        assert_eq!(on(&mut sequencer, 1, ControlEvent::StopRequested), "Stop");
        assert!(!sequencer.append(&ControlCommand::RunWorkers));
        assert_eq!(on(&mut sequencer, 0, ControlEvent::StopRequested), "", "one is enough");
        assert!(!sequencer.append(&ControlCommand::Release(Release { floor: 1, reserved_until: 9 })));
        assert!(
            sequencer.append(&ControlCommand::ReserveEpochs { until: 7 }),
            "what was read is still written"
        );
    }

    #[test]
    fn sources_wait_everywhere_for_the_slowest_process() {
        let mut sequencer = owning();
        assert_eq!(on(&mut sequencer, 1, ControlEvent::Congested(true)), "Pause { congested: 2 }");
        assert_eq!(on(&mut sequencer, 2, ControlEvent::Congested(true)), "Pause { congested: 6 }");
        assert_eq!(on(&mut sequencer, 2, ControlEvent::Congested(true)), "");
        assert_eq!(on(&mut sequencer, 1, ControlEvent::Congested(false)), "Pause { congested: 4 }");
        assert_eq!(on(&mut sequencer, 2, ControlEvent::Congested(false)), "Pause { congested: 0 }");
    }

    #[test]
    fn partition_is_read_once_all_processes_know_it() {
        let mut sequencer = owning();
        let found = |partition| ControlEvent::PartitionFound { name: partition_name(partition), start: 17 };
        assert_eq!(on(&mut sequencer, 0, found(0)), "", "it was there at the start");
        let added = on(&mut sequencer, 0, found(1));
        assert!(added.starts_with("AddPartition { index: PartitionIndex(1)"), "{added}");
        assert_eq!(on(&mut sequencer, 0, found(1)), "", "it is on its way");
        let known = || ControlEvent::PartitionKnown { index: PartitionIndex(1) };
        assert_eq!(on(&mut sequencer, 2, known()), "");
        assert_eq!(on(&mut sequencer, 0, known()), "");
        assert_eq!(on(&mut sequencer, 1, known()), "ReadPartition { index: PartitionIndex(1) }");
    }

    #[test]
    fn answers_and_parts_go_to_the_phase_that_waits() {
        let mut sequencer = owning();
        assert_eq!(on(&mut sequencer, 2, ControlEvent::Started), "tell 2 Started");
        let part = ControlEvent::CheckpointPart { checkpoint: 4, part: Err("full".into()) };
        assert!(on(&mut sequencer, 1, part).starts_with("tell 1 CheckpointPart"));
        assert_eq!(on(&mut sequencer, 1, ControlEvent::Progress { newest_epoch: 8 }), "");
        assert_eq!(on(&mut sequencer, 2, ControlEvent::Progress { newest_epoch: 6 }), "");
        assert_eq!(sequencer.newest_epoch(), 8);
        let refused = on(&mut sequencer, 1, ControlEvent::Refused(vec![(3, 2)]));
        assert_eq!(refused, "SetRefused({1: [(3, 2)]})");
    }
}
