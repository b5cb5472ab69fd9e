//! The control thread of a process: it owns the control state, and all changes go through its
//! inbox.

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

/// Interval at which a process reports its greatest epoch in use.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Messages in the inbox of the control thread.
enum Input {
    /// At process 0: an event of another process.
    FromPeer {
        process: usize,
        event: ControlEvent,
    },
    /// The next command of the log, from process 0.
    Command(ControlCommand),
    /// At process 0: append this command to the log, if the phase allows it.
    Append(ControlCommand),
    /// An event of this process.
    Report(ControlEvent),
    Worker(WorkerEvent),
    Attach(LocalWorkers),
    Links(Links),
}

/// Messages of the control thread to the main thread of the process.
#[derive(Debug)]
pub enum MainEvent {
    /// The next command that may block, or that ends the run.
    Command(ControlCommand),
    /// At process 0: an event of any process, this one included.
    Reported {
        process: usize,
        event: ControlEvent,
    },
    WorkersExited(Result<(), RunError>),
    /// A permanent failure: the run ends.
    Failed(Failure),
}

/// A handle to the control thread of this process.
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

    /// Connects the links to the other processes.
    pub fn connect(&self, links: Links) {
        self.send(Input::Links(links));
    }

    /// Attaches the workers of this process.
    pub fn attach(&self, workers: LocalWorkers) {
        self.send(Input::Attach(workers));
    }

    /// Passes on a message of another process: an event at process 0, a command at the others.
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

    /// Ends the run of this process and of the others.
    pub fn fail(&self, failure: Failure) {
        let _ = self.main.send(MainEvent::Failed(failure));
    }

    /// At process 0: the greatest epoch that any process uses or requests.
    pub fn newest_epoch(&self) -> u64 {
        self.newest_epoch.load(Ordering::Relaxed)
    }

    fn send(&self, input: Input) {
        // The thread lives as long as a handle to it.
        let _ = self.inbox.send(input);
    }
}

struct ControlThread {
    /// At process 0.
    sequencer: Option<Sequencer>,
    local: LocalControl,
    links: Links,
    /// Messages to send once the links are connected.
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

    /// Reports to process 0, which may be this one.
    fn report(&mut self, event: ControlEvent) {
        if self.sequencer.is_some() {
            self.on_event(0, event);
        } else {
            self.send_all(PeerMessage::Event(event));
        }
    }

    /// At process 0: handles an event.
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

    /// At process 0: publishes the command as the next one of the log, to all processes.
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

    /// Sends to all links. Processes other than 0 have only a link to process 0.
    fn send_all(&mut self, message: PeerMessage) {
        if !self.is_connected {
            return self.early.push(message);
        }
        if let Err(error) = self.links.send_all(&message) {
            // The log of the other processes would have a gap.
            let _ = self.main.send(MainEvent::Failed(Failure::new(error.to_string())));
        }
    }
}
