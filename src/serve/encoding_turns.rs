//! Long answers are encoded piece by piece, one piece at a time in the whole process.
//!
//! Sessions and requests share a few threads, which take the tasks that can go on in their order. Were the pieces of a hundred
//! answers such tasks, a message of one reading would wait behind all of them. So they wait here instead, in the order in
//! which they came, and of the threads one is always left.

use tokio::sync::{Semaphore, SemaphorePermit};

#[derive(Debug)]
pub struct EncodingTurns(Semaphore);

/// Rows of an answer that is all there, of one turn.
pub const ROWS_PER_TURN: usize = 512;

impl Default for EncodingTurns {
    fn default() -> EncodingTurns {
        EncodingTurns(Semaphore::new(1))
    }
}

impl EncodingTurns {
    /// Waits for the turn; it is over when this is dropped. Nothing is written to a client meanwhile, who may be slow.
    pub async fn wait_for_turn(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.0.acquire().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_exclusive_and_fair() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (turns, order) = (EncodingTurns::default(), std::cell::RefCell::new(Vec::new()));
            let pieces = async |answer: u32| {
                for piece in 0..3 {
                    let turn = turns.wait_for_turn().await;
                    order.borrow_mut().push((piece, answer));
                    tokio::task::yield_now().await;
                    drop(turn);
                }
            };
            tokio::join!(pieces(1), pieces(2), pieces(3));
            let expected: Vec<_> = (0..3).flat_map(|piece| [1, 2, 3].map(|answer| (piece, answer))).collect();
            assert_eq!(order.into_inner(), expected, "each has its next turn once the others had theirs");
        });
    }
}
