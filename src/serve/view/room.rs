//! The memory of what clients have asked for and have not taken yet.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Busy;

/// Of all clients together: those that do not read must not take more.
const ROOM_BYTES: usize = 256 << 20;
/// Until there is room for one more.
const ROOM_WAIT: Duration = Duration::from_secs(1);

/// Clones are the same.
#[derive(Clone)]
pub(super) struct Room(Arc<Semaphore>);

/// Room that is taken, until it is dropped.
pub struct Held(OwnedSemaphorePermit);

impl Room {
    pub(super) fn new() -> Room {
        Room(Arc::new(Semaphore::new(ROOM_BYTES)))
    }

    /// Waits a little. What is larger than all of the room has it alone.
    pub(super) async fn take(&self, bytes: usize) -> Result<Held, Busy> {
        let taken = tokio::time::timeout(ROOM_WAIT, self.0.clone().acquire_many_owned(permits(bytes))).await;
        taken.ok().and_then(Result::ok).map(Held).ok_or(Busy::Room)
    }

    #[cfg(test)]
    pub(super) fn take_now(&self, bytes: usize) -> Result<Held, Busy> {
        self.0.clone().try_acquire_many_owned(permits(bytes)).map(Held).map_err(|_| Busy::Room)
    }
}

impl Held {
    /// Gives back all but `bytes`, where that is less.
    pub fn shrink(&mut self, bytes: usize) {
        let spare = self.0.num_permits().saturating_sub(bytes);
        drop(self.0.split(spare));
    }
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes.min(ROOM_BYTES)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_not_there_for_others() {
        let room = Room::new();
        let mut held = room.take_now(usize::MAX).unwrap();
        assert_eq!(room.take_now(1).err(), Some(Busy::Room));
        held.shrink(usize::MAX);
        assert!(room.take_now(1).is_err());
        held.shrink(100);
        assert!(room.take_now(ROOM_BYTES - 100).is_ok());
        drop(held);
        assert!(room.take_now(ROOM_BYTES).is_ok());
    }
}
