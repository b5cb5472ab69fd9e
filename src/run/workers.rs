//! The threads of the workers, and how they reach those of other processes.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use timely::WorkerConfig;
use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;
use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};
use timely::communication::initialize::Hooks;
use timely::execute::execute_from;

use super::run_error::RunError;
use super::shutdown::Event;
use crate::cluster::PeerStream;
use crate::model::Topology;
use crate::worker::{self, WorkerPlan};

/// How long they may take to come to an end.
const EXIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Starts the workers on threads of their own; `events` hears when they have ended.
pub fn spawn_workers(
    job: WorkerPlan,
    streams: Vec<Option<PeerStream>>,
    first_epoch: u64,
    events: SyncSender<Event>,
) -> Result<(), RunError> {
    let (builders, guard) = build_allocators(job.topology, streams).map_err(RunError::Workers)?;
    let work = move || {
        let guards = execute_from(builders, guard, WorkerConfig::default(), move |worker| {
            // The other workers would wait for one that has panicked, for ever; the message is out by now.
            catch_unwind(AssertUnwindSafe(|| worker::run_worker(worker, &job, first_epoch)))
                .unwrap_or_else(|_| std::process::exit(101));
        });
        let joined = guards.and_then(|guards| guards.join().into_iter().collect::<Result<Vec<()>, _>>());
        let _ = events.send(Event::Ended(joined.map(drop).map_err(RunError::Workers)));
    };
    thread::Builder::new().name("workers".into()).spawn(work).map(drop).map_err(RunError::Threads)
}

type Allocators = (Vec<AllocatorBuilder>, Box<dyn Any + Send>);

/// How workers reach each other: by streams those of other processes.
fn build_allocators(topology: Topology, streams: Vec<Option<PeerStream>>) -> Result<Allocators, String> {
    let Topology { process, workers_per_process: workers, .. } = topology;
    if topology.is_single_process() {
        return match workers {
            1 => timely::CommunicationConfig::Thread,
            workers => timely::CommunicationConfig::Process(workers),
        }
        .try_build();
    }
    for socket in streams.iter().flatten().map(PeerStream::socket) {
        // Whether a peer lives is found out elsewhere.
        let untimed = socket.set_read_timeout(None).and_then(|()| socket.set_write_timeout(None));
        untimed.map_err(|error| error.to_string())?;
    }
    let hooks = Hooks::default();
    let within = ProcessBuilder::new_typed_vector(workers, hooks.refill.clone(), hooks.spill.clone());
    let (builders, guard) = initialize_networking_from_sockets(within, streams, process, workers, hooks)
        .map_err(|error| format!("the dataflow's connections fail: {error}"))?;
    Ok((builders.into_iter().map(AllocatorBuilder::Tcp).collect(), Box::new(guard)))
}

/// Waits until the workers have told all that they have read.
pub fn wait_for_exit(happened: &Receiver<Event>) -> Result<(), RunError> {
    let deadline = Instant::now() + EXIT_TIMEOUT;
    loop {
        match happened.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Event::Asked | Event::Stop) => {}
            Ok(Event::Ended(ended)) => return ended,
            Err(_) => return Err(RunError::Failed("the workers do not come to an end".into())),
        }
    }
}
