//! Starts the worker threads, and connects them to those of other processes.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use timely::WorkerConfig;
use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;
use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};
use timely::communication::initialize::Hooks;
use timely::execute::execute_from;

use super::control::Control;
use super::run_error::RunError;
use crate::cluster::PeerStream;
use crate::fault::exit::{ExitReason, end_process};
use crate::model::Topology;
use crate::worker::{WorkerPlan, run_worker};

/// Starts the workers on threads of their own, and tells `control` when they have ended.
pub fn spawn_workers(
    plan: WorkerPlan,
    streams: Vec<Option<PeerStream>>,
    control: Control,
) -> Result<(), RunError> {
    let (builders, guard) = build_allocators(plan.topology, streams).map_err(RunError::Workers)?;
    let work = move || {
        let guards = execute_from(builders, guard, WorkerConfig::default(), move |worker| {
            // The other workers would wait for a panicked one for ever. The panic message is
            // already printed.
            catch_unwind(AssertUnwindSafe(|| run_worker(worker, &plan)))
                .unwrap_or_else(|_| end_process(ExitReason::WorkerPanicked));
        });
        let joined = guards.and_then(|guards| guards.join().into_iter().collect::<Result<Vec<()>, _>>());
        control.on_workers_exited(joined.map(drop).map_err(RunError::Workers));
    };
    thread::Builder::new().name("workers".into()).spawn(work).map(drop).map_err(RunError::Threads)
}

type Allocators = (Vec<AllocatorBuilder>, Box<dyn Any + Send>);

/// Builds the channels between workers; streams connect those of other processes.
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
        // The links detect whether a peer is alive, so these sockets need no timeout.
        let untimed = socket.set_read_timeout(None).and_then(|()| socket.set_write_timeout(None));
        untimed.map_err(|error| error.to_string())?;
    }
    let hooks = Hooks::default();
    let within = ProcessBuilder::new_typed_vector(workers, hooks.refill.clone(), hooks.spill.clone());
    let (builders, guard) = initialize_networking_from_sockets(within, streams, process, workers, hooks)
        .map_err(|error| {
            format!("the connections of the dataflow between the processes cannot be made: {error}")
        })?;
    Ok((builders.into_iter().map(AllocatorBuilder::Tcp).collect(), Box::new(guard)))
}
