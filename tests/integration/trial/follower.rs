//! Subscribers that move from process to process.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::feeder::TrialControl;
use crate::support::{Random, ReceivedRows, Subscriber, WAIT_TIMEOUT};

/// The read timeout of a connection.
const READ_TIMEOUT: Duration = Duration::from_millis(400);

/// A subscriber with a thread of its own that reads all messages.
pub struct Follower {
    thread: Option<JoinHandle<()>>,
    asks: Sender<u64>,
    answers: Receiver<ReceivedRows>,
    shared: Arc<TrialControl>,
}

impl Follower {
    /// Random numbers choose its processes and windows.
    pub fn start(lots: u64, cities: u32, shared: &Arc<TrialControl>) -> Follower {
        let ((asks, asked), (answer, answers)) = (channel(), channel());
        let of_thread = Arc::clone(shared);
        let follow = move || run_follower(Random::new(lots), cities, &of_thread, &asked, &answer);
        Follower { thread: Some(thread::spawn(follow)), asks, answers, shared: Arc::clone(shared) }
    }

    /// Its rows, once they include an epoch.
    pub fn rows_as_of(&mut self, as_of: u64) -> ReceivedRows {
        let _ = self.asks.send(as_of);
        match self.answers.recv_timeout(WAIT_TIMEOUT) {
            Ok(kept) => kept,
            Err(_) if self.thread.as_ref().is_some_and(JoinHandle::is_finished) => {
                let ended = self.thread.take().unwrap().join();
                std::panic::resume_unwind(ended.unwrap_err())
            }
            Err(_) => panic!("a subscriber does not come to have everything up to {as_of}"),
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.shared.request_stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run_follower(
    mut random: Random,
    cities: u32,
    shared: &TrialControl,
    asked: &Receiver<u64>,
    answer: &Sender<ReceivedRows>,
) {
    let watched: Vec<u32> = (0..cities).filter(|city| *city == 0 || random.below(3) == 0).collect();
    let (mut subscriber, mut wanted) = (Subscriber::new(&watched), None);
    let mut moves = Instant::now();
    while !shared.is_stopped() {
        wanted = wanted.or_else(|| asked.try_recv().ok());
        if !subscriber.is_connected() || Instant::now() > moves && wanted.is_none() {
            subscriber.disconnect();
            moves = Instant::now() + Duration::from_millis(300 + random.below(3_000));
            let lot = random.below(1 << 32);
            let connected = shared.address(lot).map(|address| subscriber.connect(&address, READ_TIMEOUT));
            if connected.is_none_or(|connected| connected.is_err()) {
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        }
        let done = match wanted {
            None => subscriber.read_for(Duration::from_millis(50)).map(|()| false),
            Some(as_of) => subscriber.is_caught_up(as_of, Duration::from_secs(5)),
        };
        match done {
            Ok(false) => {}
            Ok(true) => {
                wanted = None;
                if answer.send(subscriber.kept.clone()).is_err() {
                    return;
                }
            }
            Err(_) => subscriber.disconnect(),
        }
    }
}
