//! The resume points of a run's sinks: the positions in the logs that their shards have reached.

use std::collections::{BTreeMap, HashMap};

use crate::model::{PartitionIndex, PartitionName, Shard};
use crate::run::run_error::RunError;
use crate::sinks::progress::ShardProgress;
use crate::worker::{LogPartition, ResumePoints};

/// The positions at which shards resume, in order, and the shards that resume at each.
///
/// # Errors
///
/// If the positions belong to other partitions or to several runs, or a log cannot be read from
/// there.
pub(super) fn find_resume_points(
    all: Vec<(Shard, ShardProgress)>,
    partitions: &[LogPartition],
) -> Result<ResumePoints, RunError> {
    for log in partitions {
        let PartitionName { source, partition } = &log.name;
        let recorded = all.iter().map(|(_, progress)| progress.at(source, *partition).unwrap_or(log.start));
        if let Some(at) = recorded.max_by_key(|at| at.position) {
            let checked = log.source.check_position(*partition, at);
            checked.map_err(|error| RunError::Source { name: source.to_string(), error })?;
        }
    }
    order_resume_points(all, partitions).map_err(RunError::Failed)
}

fn order_resume_points(
    all: Vec<(Shard, ShardProgress)>,
    partitions: &[LogPartition],
) -> Result<ResumePoints, String> {
    let located = all.iter().map(|(shard, progress)| Ok((*shard, locate_partitions(progress, partitions)?)));
    let mut all = located.collect::<Result<Vec<(Shard, HashMap<PartitionIndex, u64>)>, String>>()?;
    // Sort in the order of the log, which is not the order of epochs: a shard that is behind gets
    // newer epochs while it catches up. No partition is read past another shard's position before
    // all partitions have reached that point, so the sums are in that order.
    all.sort_by_key(|(_, positions)| positions.values().sum::<u64>());
    let mut cuts = ResumePoints::default();
    for (shard, positions) in all {
        if cuts.points.last() != Some(&positions) {
            let falls = |(index, before): (&PartitionIndex, &u64)| {
                positions.get(index).is_none_or(|now| now < before)
            };
            if cuts.points.last().is_some_and(|before| before.iter().any(falls)) {
                return Err(
                    "the progress records of the shards contradict each other, as if their topics were restored from different times: restore all of them from the same time, or name new progress and result topics to begin anew"
                        .into(),
                );
            }
            cuts.points.push(positions);
        }
        cuts.of_shards.insert(shard, cuts.points.len() - 1);
    }
    Ok(cuts)
}

/// The position of every partition. A partition added after the record was written is at its start.
fn locate_partitions(
    progress: &ShardProgress,
    partitions: &[LogPartition],
) -> Result<HashMap<PartitionIndex, u64>, String> {
    for (source, of_source) in &progress.positions {
        let is_there = |partition: &&u32| {
            partitions.iter().any(|log| log.name.source == *source && log.name.partition == **partition)
        };
        if let Some(missing) = of_source.keys().find(|partition| !is_there(partition)) {
            return Err(format!(
                "the results include source {source}, partition {missing}, which no longer exists: configure the source again, or name new progress and result topics to begin anew"
            ));
        }
    }
    let position = |log: &LogPartition| {
        let of_source: Option<&BTreeMap<u32, u64>> = progress.positions.get(&log.name.source);
        of_source
            .and_then(|of_source| of_source.get(&log.name.partition))
            .copied()
            .unwrap_or(log.start.position)
    };
    Ok(partitions.iter().map(|log| (log.index, position(log))).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread::Thread;

    use super::*;
    use crate::sources::{Partition, Source, SourceError};

    struct Log;

    impl Source for Log {
        fn name(&self) -> &str {
            "log"
        }

        fn partitions(&self) -> u32 {
            2
        }

        fn open_partition(&self, _: u32, _: u64, _: Thread) -> Result<Box<dyn Partition>, SourceError> {
            Err(SourceError::Fatal("not to be read".into()))
        }
    }

    fn partitions() -> Vec<LogPartition> {
        let log = |partition: u32| LogPartition {
            index: PartitionIndex(partition as u16),
            name: PartitionName { source: "log".into(), partition },
            source: Arc::new(Log),
            start: 0.into(),
            shared: false,
            dead_letters: None,
            dead_letter_rows: Vec::new(),
        };
        vec![log(0), log(1)]
    }

    fn at(shard: u16, epoch: u64, positions: &[u64]) -> (Shard, ShardProgress) {
        let positions = (0..).zip(positions.iter().copied()).collect();
        (
            Shard(shard),
            ShardProgress { epoch, positions: [("log".into(), positions)].into(), before: BTreeMap::new() },
        )
    }

    #[test]
    fn resume_points_are_in_log_order() {
        // Shard 0 has caught up a little, in newer epochs, to a point before that of shard 1, which
        // has not moved; shard 2 is at the same point as shard 1.
        let all = vec![at(1, 50, &[40, 7]), at(0, 90, &[10, 7]), at(2, 91, &[10, 7]), at(3, 20, &[3])];
        let cuts = order_resume_points(all, &partitions()).unwrap();
        let of = |positions: &[u64]| {
            (0..).map(PartitionIndex).zip(positions.iter().copied()).collect::<HashMap<_, _>>()
        };
        assert_eq!(cuts.points, [of(&[3, 0]), of(&[10, 7]), of(&[40, 7])]);
        let of_shards = [(Shard(0), 1), (Shard(1), 2), (Shard(2), 1), (Shard(3), 0)];
        assert_eq!(cuts.of_shards, of_shards.into());
    }

    #[test]
    fn contradicting_progress_records_are_refused() {
        let refused =
            order_resume_points(vec![at(0, 1, &[5, 1]), at(1, 2, &[4, 9])], &partitions()).unwrap_err();
        assert!(refused.contains("contradict"), "{refused}");
        let gone = order_resume_points(vec![at(0, 1, &[5, 1, 1])], &partitions()).unwrap_err();
        assert!(gone.contains("source log, partition 2"), "{gone}");
    }

    /// Killed while shard 0 catches up, with a partition that was added after both shards' first
    /// records.
    #[test]
    fn partition_missing_in_progress_record_resumes_at_its_start() {
        let mut partitions = partitions();
        partitions[1].start = 1_000.into();
        let cuts =
            order_resume_points(vec![at(0, 90, &[90, 1_000]), at(1, 50, &[100])], &partitions).unwrap();
        let of = |first, second| HashMap::from([(PartitionIndex(0), first), (PartitionIndex(1), second)]);
        assert_eq!(cuts.points, [of(90, 1_000), of(100, 1_000)]);
        // The partition was read further than the shard that lacks it has reached.
        let cuts =
            order_resume_points(vec![at(0, 90, &[110, 1_005]), at(1, 50, &[100])], &partitions).unwrap();
        assert_eq!(cuts.points, [of(100, 1_000), of(110, 1_005)]);
    }
}
