//! The invariants of the store, asserted in debug builds after every edit.

use super::chunk::NO_CHUNK;
use super::store::{NEVER, Store};

impl Store {
    /// Panics where the city's chunks, head and withdrawals contradict each other.
    pub fn check(&self, city: u32) {
        let (head, index) = (&self.heads[city as usize], &self.index[city as usize]);
        let mut times = Vec::new();
        for (i, &id) in index.chunks.iter().enumerate() {
            let chunk = self.arena.get(id);
            assert!(chunk.len > 0, "no chunk is empty");
            assert_eq!(
                chunk.next,
                index.chunks.get(i + 1).copied().unwrap_or(NO_CHUNK),
                "chunks are linked in order"
            );
            let micros = || chunk.rows().iter().map(|row| row.held().micros());
            assert_eq!(
                (chunk.sum, Some(chunk.peak)),
                (micros().sum(), micros().max()),
                "a header sums up its rows"
            );
            assert!(chunk.revisions.as_ref().is_none_or(|revisions| revisions.len() == chunk.rows().len()));
            times.extend(chunk.rows().iter().map(|row| (chunk.frame.millis(*row), row.held().micros())));
        }
        assert!(times.is_sorted_by(|a, b| a.0 < b.0), "times strictly increase");
        assert!(times.iter().all(|(millis, _)| !index.withdrawn.contains_key(millis)), "held or withdrawn");
        let tail_revisions =
            index.chunks.back().is_some_and(|&tail| self.arena.get(tail).revisions.is_some());
        assert!(
            index.chunks.is_empty() || head.tail_revisions == tail_revisions,
            "the head knows of its tail's revisions"
        );
        let last = times.last().map_or(NEVER, |(millis, _)| *millis);
        let withdrawn = index.withdrawn.last_key_value().map_or(NEVER, |(&millis, _)| millis);
        assert_eq!(head.newest, last.max(withdrawn), "nothing known is newer than newest");
        assert!(head.high >= last, "high is that of the newest reading or more");
        let floor = last.saturating_sub(self.retention.window.millis());
        let window = times.iter().filter(|(millis, _)| *millis >= floor);
        let (sum, count) = window.fold((0, 0), |(sum, count), (_, micros)| (sum + micros, count + 1));
        assert_eq!(
            (head.run_sum, head.run_count),
            (sum, count),
            "the running window is that of the newest reading"
        );
    }
}
