//! Long responses are encoded piece by piece, one piece at a time in the whole process.
//!
//! Sessions and requests share a few threads, which run ready tasks in their order. If the pieces
//! of a hundred responses were ready tasks, a message of one reading would wait behind all of them.
//! They wait for their turn here instead, in the order in which they came, so that the other
//! threads are always free.

use tokio::sync::{Semaphore, SemaphorePermit};

#[derive(Debug)]
pub struct EncodingTurns(Semaphore);

/// Rows that are encoded in one turn, of a response whose rows are all in memory.
pub const ROWS_PER_TURN: usize = 512;

impl Default for EncodingTurns {
    fn default() -> EncodingTurns {
        EncodingTurns(Semaphore::new(1))
    }
}

impl EncodingTurns {
    /// Waits for the turn, which ends when the permit is dropped. The holder must not write to a
    /// client, which may be slow.
    pub async fn wait_for_turn(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
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
            assert_eq!(
                order.into_inner(),
                expected,
                "each response has its next turn after one turn of each other"
            );
        });
    }
}
