//! Process 0's handle to the command log while it starts and runs.

use std::sync::mpsc::Receiver;
use std::time::Duration;

use super::control::{Control, MainEvent};
use super::local_sinks::LocalSinks;
use super::protocol::{ControlCommand, ControlEvent};
use super::run_error::RunError;
use crate::cluster::ClusterError;

/// Executes the commands of the log on the main thread of a process.
pub trait Member {
    fn execute(&mut self, command: ControlCommand) -> Result<(), RunError>;

    fn sinks(&self) -> Result<&LocalSinks, RunError>;
}

/// Appends commands and waits for their answers.
pub struct Lead {
    control: Control,
    events: Receiver<MainEvent>,
    processes: usize,
}

impl Lead {
    pub fn new(control: Control, events: Receiver<MainEvent>, processes: usize) -> Lead {
        Lead { control, events, processes }
    }

    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The next event for the current phase, if one comes in time.
    pub fn next_event(&self, within: Duration) -> Option<MainEvent> {
        self.events.recv_timeout(within).ok()
    }

    pub fn events(&self) -> &Receiver<MainEvent> {
        &self.events
    }

    /// Appends a command, and executes it here at its position in the log.
    pub fn execute(&self, member: &mut impl Member, command: ControlCommand) -> Result<(), RunError> {
        self.control.append(command);
        member.execute(self.next_command()?)
    }

    /// Appends a command that another component executes. Returns it at its position in the log.
    pub fn append_and_take(&self, command: ControlCommand) -> Result<ControlCommand, RunError> {
        self.control.append(command);
        self.next_command()
    }

    /// Appends a command, executes it here, and waits for the answers of all processes. Returns
    /// them by process.
    pub fn execute_everywhere<T>(
        &self,
        member: &mut impl Member,
        command: ControlCommand,
        answer: impl Fn(ControlEvent) -> Option<T>,
    ) -> Result<Vec<T>, RunError> {
        self.execute(member, command)?;
        self.wait_for_answers(answer)
    }

    /// Waits for the answers of all processes.
    pub fn wait_for_answers<T>(
        &self,
        answer: impl Fn(ControlEvent) -> Option<T>,
    ) -> Result<Vec<T>, RunError> {
        let mut answers: Vec<Option<T>> = (0..self.processes).map(|_| None).collect();
        while answers.iter().any(Option::is_none) {
            match self.next()? {
                MainEvent::Reported { process, event } => {
                    if let (Some(slot), Some(answer)) = (answers.get_mut(process), answer(event)) {
                        *slot = Some(answer);
                    }
                }
                event => return Err(ended_by(event)),
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }

    fn next_command(&self) -> Result<ControlCommand, RunError> {
        match self.next()? {
            MainEvent::Command(command) if !matches!(command, ControlCommand::Stop) => Ok(command),
            event => Err(ended_by(event)),
        }
    }

    fn next(&self) -> Result<MainEvent, RunError> {
        self.events.recv().map_err(|_| RunError::bug("the control thread has ended"))
    }
}

/// The error that ends a wait for another event.
pub fn ended_by(event: MainEvent) -> RunError {
    match event {
        MainEvent::Command(ControlCommand::Stop) => RunError::Cluster(ClusterError::Stopped),
        MainEvent::Failed(failure) => failure.into(),
        MainEvent::WorkersExited(Err(error)) => error,
        MainEvent::WorkersExited(Ok(())) => {
            RunError::Failed("the workers ended before the run was stopped: see the errors above".into())
        }
        MainEvent::Command(command) => RunError::bug(format!(
            "the command `{}` came while process 0 waited for something else",
            command.kind()
        )),
        MainEvent::Reported { process, event } => RunError::bug(format!(
            "process {process} reported `{}` while process 0 waited for something else",
            event.kind()
        )),
    }
}
