//! Checks the invariants of the store in debug builds after every edit.

use super::part::{self, PartView, ReadingsPart};
use super::store::{BEFORE_ALL_TIMES, NO_PART, ReadingStore};

impl ReadingStore {
    /// Panics if the city's chunks, head and tombstones contradict each other.
    pub fn assert_city_invariants(&self, city: u32) {
        let (head, index) = (&self.heads[city as usize], &self.index[city as usize]);
        let mut times = Vec::new();
        for (i, part) in index.parts.iter().enumerate() {
            let view = part.view(&self.arena);
            let mut rows = Vec::new();
            view.for_each_reading(|millis, held| rows.push((millis, held.micros())));
            assert!(!rows.is_empty(), "no part is empty");
            let micros = || rows.iter().map(|(_, micros)| *micros);
            assert_eq!(
                (view.len(), view.heat_sum(), Some(view.max_heat()), Some(view.last_millis())),
                (rows.len(), micros().sum(), micros().max(), rows.last().map(|(millis, _)| *millis)),
                "a header sums up its rows"
            );
            match part {
                ReadingsPart::Open(chunk) => {
                    assert_eq!((i + 1, *chunk), (index.parts.len(), head.tail), "only the tail is open");
                    let chunk = self.arena.get(*chunk);
                    assert!(chunk.revisions.as_ref().is_none_or(|revisions| revisions.len() == rows.len()));
                    assert_eq!(head.tail_revisions, chunk.revisions.is_some(), "the head knows of revisions");
                }
                ReadingsPart::Packed(block) => assert!(i + 1 < index.parts.len() && part::fits_chunk(block)),
            }
            if i == index.window_part as usize {
                let lo = self.arena.get(head.window_chunk);
                let mut copy = Vec::new();
                PartView::Open(lo).for_each_reading(|millis, held| copy.push((millis, held.micros())));
                assert_eq!(copy, rows, "the window's end is in its part or in a copy of it");
                assert_eq!(index.window_block.is_none(), head.window_chunk == head.tail);
            }
            times.extend(rows);
        }
        assert_eq!(index.first_opened_part, NO_PART);
        assert!(times.is_sorted_by(|a, b| a.0 < b.0), "times strictly increase");
        assert!(times.iter().all(|(millis, _)| !index.tombstones.contains_key(millis)), "held or withdrawn");
        let last = times.last().map_or(BEFORE_ALL_TIMES, |(millis, _)| *millis);
        assert_eq!(head.newest, last, "newest is that of the newest reading");
        let withdrawn = index.tombstones.last_key_value().map_or(BEFORE_ALL_TIMES, |(&millis, _)| millis);
        assert!(head.tombstones_ahead || withdrawn <= last, "the head knows of withdrawals that are newer");
        assert_eq!(
            index.has_accepted_reading,
            head.high != BEFORE_ALL_TIMES,
            "a reading was accepted, or none"
        );
        assert!(head.high >= last, "high is that of the newest reading or more");
        let floor = last.saturating_sub(self.retention.window.millis());
        let window = times.iter().filter(|(millis, _)| *millis >= floor);
        let (sum, count) = window.fold((0, 0), |(sum, count), (_, micros)| (sum + micros, count + 1));
        assert_eq!(
            (head.window_sum, head.window_count),
            (sum, count),
            "the running window is that of the newest reading"
        );
    }
}
