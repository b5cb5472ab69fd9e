//! Information on the service for its server, and the admission of posted readings.

use std::sync::Arc;

use crate::config::{IngestPlan, ServicePlan};
use crate::kafka::partitioner;
use crate::model::PartitionTable;
use crate::serve::{IngestLog, ServiceInfo};
use crate::sources::journal;

/// The information that a server shows.
pub fn service_info(plan: &ServicePlan, partitions: PartitionTable, generation: Arc<str>) -> ServiceInfo {
    ServiceInfo {
        generation,
        formula: plan.formula.name(),
        window: plan.retention.window,
        lateness: plan.retention.lateness,
        history: plan.retention.history,
        stale_after: plan.stale_after,
        units: plan.output_units,
        workers: plan.workers * plan.cluster.processes,
        partitions,
        directory: plan.directory,
        read_options: plan.ingest_read_options(),
        ingest_log: plan.ingest.as_ref().map(|ingest| ingest_log(ingest, plan.max_cities)),
    }
}

/// The log that admits posted readings. Records of a topic are assumed to be in the partitions that
/// Kafka's default partitioner chooses.
fn ingest_log(ingest: &IngestPlan, max_cities: u32) -> IngestLog {
    match &ingest.source {
        Some(topic) => {
            let partition_of =
                |city: &str, partitions| partitioner::partition_for_key(city.as_bytes(), partitions);
            IngestLog { source: topic.as_str().into(), max_cities, partition_of }
        }
        None => IngestLog {
            source: journal::SOURCE_NAME.into(),
            max_cities,
            partition_of: journal::partition_of_city,
        },
    }
}
