//! The one place that ends the process before `main` returns. (A panic hook is the other way: see `cli::logging`.)

/// Why a process ends at once, with the exit code that supervisors see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// A stop was requested, and a start that waits for something did not notice.
    Stopped,
    Failed,
    /// Another generation has taken over: this one must not be started again.
    TakenOver,
    /// A worker has panicked; the hook has logged why.
    WorkerPanicked,
    /// A second signal to stop.
    StoppedAgain,
}

impl ExitReason {
    pub const fn code(self) -> u8 {
        match self {
            ExitReason::Stopped => 0,
            ExitReason::Failed => 1,
            ExitReason::TakenOver => 3,
            ExitReason::WorkerPanicked => 101,
            ExitReason::StoppedAgain => 130,
        }
    }
}

/// Ends the process. Everything durable is safe at any time, so nothing is closed in order.
pub fn end_process(reason: ExitReason) -> ! {
    std::process::exit(i32::from(reason.code()))
}
