//! The control thread of a process: it owns the control state, and everything that changes that goes through its inbox.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::local_control::{Effect, LocalControl, LocalWorkers};
use super::protocol::{ControlCommand, ControlEvent, PeerMessage};
use super::run_error::{Failure, RunError};
use super::sequencer::{Decision, Sequencer};
use super::shutdown::Shutdown;
use crate::cluster::Links;
use crate::model::Topology;
use crate::worker::WorkerEvent;

/// How often a process reports the greatest epoch that it uses.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// What goes into the control thread.
enum Input {
    /// At process 0: what another process reports.
    FromPeer {
        process: usize,
        event: ControlEvent,
    },
    /// The next command of the log: from process 0.
    Command(ControlCommand),
    /// At process 0: append this to the log, if the phase allows it.
    Append(ControlCommand),
    /// What this process reports.
    Report(ControlEvent),
    Worker(WorkerEvent),
    Attach(LocalWorkers),
    Links(Links),
}

/// What comes out, for the main thread of the process.
#[derive(Debug)]
pub enum MainEvent {
    /// The next command that may wait, or ends the run.
    Command(ControlCommand),
    /// At process 0: what a process has reported, itself included.
    Reported {
        process: usize,
        event: ControlEvent,
    },
    WorkersExited(Result<(), RunError>),
    /// Nothing can be done about it: the run ends.
    Failed(Failure),
}

/// A hold on the control thread of this process.
#[derive(Clone)]
pub struct Control {
    inbox: Sender<Input>,
    main: Sender<MainEvent>,
    newest_epoch: Arc<AtomicU64>,
}

impl Control {
    /// Starts the thread. It sends nothing to other processes before [`Control::connect`].
    pub fn spawn(topology: Topology, shutdown: Shutdown) -> Result<(Control, Receiver<MainEvent>), RunError> {
        let (inbox, inputs) = mpsc::channel();
        let (main, events) = mpsc::channel();
        let newest_epoch = Arc::<AtomicU64>::default();
        let thread = ControlThread {
            sequencer: topology.is_first_process().then(|| Sequencer::new(topology.processes)),
            local: LocalControl::new(topology.process),
            links: Links::none(),
            early: Vec::new(),
            is_connected: false,
            shutdown,
            main: main.clone(),
            newest_epoch: Arc::clone(&newest_epoch),
        };
        let run = move || thread.run(&inputs);
        thread::Builder::new().name("control".into()).spawn(run).map_err(RunError::Threads)?;
        Ok((Control { inbox, main, newest_epoch }, events))
    }

    /// The other processes are connected.
    pub fn connect(&self, links: Links) {
        self.send(Input::Links(links));
    }

    /// The workers of this process are there.
    pub fn attach(&self, workers: LocalWorkers) {
        self.send(Input::Attach(workers));
    }

    /// Another process has sent this: an event at process 0, a command at the others.
    pub fn receive_event(&self, process: usize, event: ControlEvent) {
        self.send(Input::FromPeer { process, event });
    }

    pub fn receive_command(&self, command: ControlCommand) {
        self.send(Input::Command(command));
    }

    /// At process 0: appends a command to the log, if the phase allows it.
    pub fn append(&self, command: ControlCommand) {
        self.send(Input::Append(command));
    }

    /// Reports an event of this process.
    pub fn report(&self, event: ControlEvent) {
        self.send(Input::Report(event));
    }

    pub fn on_worker(&self, event: WorkerEvent) {
        self.send(Input::Worker(event));
    }

    pub fn on_workers_exited(&self, result: Result<(), RunError>) {
        let _ = self.main.send(MainEvent::WorkersExited(result));
    }

    /// Ends the run of this process, and of the others with it.
    pub fn fail(&self, failure: Failure) {
        let _ = self.main.send(MainEvent::Failed(failure));
    }

    /// At process 0: the greatest epoch that any process uses or wants.
    pub fn newest_epoch(&self) -> u64 {
        self.newest_epoch.load(Ordering::Relaxed)
    }

    fn send(&self, input: Input) {
        // The thread lives as long as a hold on it.
        let _ = self.inbox.send(input);
    }
}

struct ControlThread {
    /// At process 0.
    sequencer: Option<Sequencer>,
    local: LocalControl,
    links: Links,
    /// What was to be sent before the links were there.
    early: Vec<PeerMessage>,
    is_connected: bool,
    shutdown: Shutdown,
    main: Sender<MainEvent>,
    newest_epoch: Arc<AtomicU64>,
}

impl ControlThread {
    fn run(mut self, inputs: &Receiver<Input>) {
        let mut progress_due = Instant::now();
        loop {
            match inputs.recv_timeout(progress_due.saturating_duration_since(Instant::now())) {
                Ok(input) => self.on_input(input),
                Err(RecvTimeoutError::Timeout) => {
                    progress_due = Instant::now() + PROGRESS_INTERVAL;
                    if let Some(newest_epoch) = self.local.newest_epoch() {
                        self.report(ControlEvent::Progress { newest_epoch });
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn on_input(&mut self, input: Input) {
        match input {
            Input::FromPeer { process, event } => self.on_event(process, event),
            Input::Command(command) => self.apply(command),
            Input::Append(command) => {
                if self.sequencer.as_mut().is_some_and(|sequencer| sequencer.append(&command)) {
                    self.publish(command);
                }
            }
            Input::Report(event) => self.report(event),
            Input::Worker(event) => {
                let effect = self.local.on_worker(event);
                self.take_effect(effect);
            }
            Input::Attach(workers) => self.local.attach(workers),
            Input::Links(links) => {
                (self.links, self.is_connected) = (links, true);
                for message in std::mem::take(&mut self.early) {
                    self.send_all(message);
                }
            }
        }
    }

    /// What this process reports goes to process 0, which may be this one.
    fn report(&mut self, event: ControlEvent) {
        if self.sequencer.is_some() {
            self.on_event(0, event);
        } else {
            self.send_all(PeerMessage::Event(event));
        }
    }

    /// At process 0.
    fn on_event(&mut self, process: usize, event: ControlEvent) {
        let Some(sequencer) = &mut self.sequencer else { return };
        let decisions = sequencer.on_event(process, event);
        self.newest_epoch.store(sequencer.newest_epoch(), Ordering::Relaxed);
        for decision in decisions {
            match decision {
                Decision::Append(command) => self.publish(command),
                Decision::Tell { process, event } => {
                    let _ = self.main.send(MainEvent::Reported { process, event });
                }
            }
        }
    }

    /// At process 0: the command is the next one of the log, for all processes.
    fn publish(&mut self, command: ControlCommand) {
        self.send_all(PeerMessage::Command(command.clone()));
        self.apply(command);
    }

    fn apply(&mut self, command: ControlCommand) {
        let effect = self.local.apply(command);
        self.take_effect(effect);
    }

    fn take_effect(&mut self, effect: Option<Effect>) {
        match effect {
            None => {}
            Some(Effect::Report(event)) => self.report(event),
            Some(Effect::Execute(command)) => {
                if matches!(command, ControlCommand::Stop) {
                    self.shutdown.confirm_stop();
                }
                let _ = self.main.send(MainEvent::Command(command));
            }
            Some(Effect::Fail(why)) => {
                let _ = self.main.send(MainEvent::Failed(Failure::new(why)));
            }
        }
    }

    /// Others than process 0 have a link to it alone.
    fn send_all(&mut self, message: PeerMessage) {
        if !self.is_connected {
            return self.early.push(message);
        }
        if let Err(error) = self.links.send_all(&message) {
            // The log would have a gap at the others.
            let _ = self.main.send(MainEvent::Failed(Failure::new(error.to_string())));
        }
    }
}
