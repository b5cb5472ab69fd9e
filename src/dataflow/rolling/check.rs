//! The invariants of the store, asserted in debug builds after every edit.

use super::part::{self, Part, View};
use super::store::{NEVER, NO_PART, Store};

impl Store {
    /// Panics where the city's chunks, head and withdrawals contradict each other.
    pub fn check(&self, city: u32) {
        let (head, index) = (&self.heads[city as usize], &self.index[city as usize]);
        let mut times = Vec::new();
        for (i, part) in index.parts.iter().enumerate() {
            let view = part.view(&self.arena);
            let mut rows = Vec::new();
            view.for_each(|millis, held| rows.push((millis, held.micros())));
            assert!(!rows.is_empty(), "no part is empty");
            let micros = || rows.iter().map(|(_, micros)| *micros);
            assert_eq!(
                (view.len(), view.sum(), Some(view.peak()), Some(view.last_millis())),
                (rows.len(), micros().sum(), micros().max(), rows.last().map(|(millis, _)| *millis)),
                "a header sums up its rows"
            );
            match part {
                Part::Open(chunk) => {
                    assert_eq!((i + 1, *chunk), (index.parts.len(), head.tail), "only the tail is open");
                    let chunk = self.arena.get(*chunk);
                    assert!(chunk.revisions.as_ref().is_none_or(|revisions| revisions.len() == rows.len()));
                    assert_eq!(head.tail_revisions, chunk.revisions.is_some(), "the head knows of revisions");
                }
                Part::Packed(block) => assert!(i + 1 < index.parts.len() && part::fits(block)),
            }
            if i == index.lo_part as usize {
                let lo = self.arena.get(head.lo);
                let mut copy = Vec::new();
                View::Open(lo).for_each(|millis, held| copy.push((millis, held.micros())));
                assert_eq!(copy, rows, "the window's end is in its part or in a copy of it");
                assert_eq!(index.lo_block.is_none(), head.lo == head.tail);
            }
            times.extend(rows);
        }
        assert_eq!(index.opened, NO_PART);
        assert!(times.is_sorted_by(|a, b| a.0 < b.0), "times strictly increase");
        assert!(times.iter().all(|(millis, _)| !index.withdrawn.contains_key(millis)), "held or withdrawn");
        let last = times.last().map_or(NEVER, |(millis, _)| *millis);
        assert_eq!(head.newest, last, "newest is that of the newest reading");
        let withdrawn = index.withdrawn.last_key_value().map_or(NEVER, |(&millis, _)| millis);
        assert!(head.marks_ahead || withdrawn <= last, "the head knows of withdrawals that are newer");
        assert_eq!(index.has_read, head.high != NEVER, "a reading was accepted, or none");
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
