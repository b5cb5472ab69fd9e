//! The sinks that count no generations: folders and schemas of PostgreSQL.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::identity::{folder_identity, postgres_identity};
use super::source_registry::DeadLetterTable;
use super::specs::SinkSpecs;
use crate::config::ServicePlan;
use crate::dataflow::RendererPlan;
use crate::model::{PartitionTable, Render, Shard};
use crate::sinks::DurableSink;
use crate::sinks::folder::render::FolderRenderer;
use crate::sinks::folder::{FolderSink, FolderSinkPlan};
use crate::sinks::postgres::render::PostgresRenderer;
use crate::sinks::postgres::{PostgresSink, PostgresSinkPlan, PostgresTable};

/// A sink whose generations the authority counts.
pub(super) struct UncountedSink {
    pub sink: Arc<dyn DurableSink>,
    pub first_shard: Shard,
    /// The name of the sink in messages for users.
    pub shown_as: Arc<str>,
    pub renderer: RendererPlan,
    /// Whether dead letters are rows of it.
    has_dead_letters: bool,
}

impl UncountedSink {
    /// Where dead letters are rows, if they are.
    pub fn dead_letter_table(&self) -> Option<DeadLetterTable> {
        let (first_shard, shards) = (self.first_shard, self.sink.shards());
        self.has_dead_letters.then_some(DeadLetterTable { first_shard, shards })
    }
}

/// What all these sinks are made with.
pub(super) struct UncountedSinks<'a> {
    pub plan: &'a ServicePlan,
    /// The authority of the run, for error messages and identities.
    pub authority: &'a str,
    /// Ids of the logs that have one, by source.
    pub log_ids: &'a BTreeMap<String, String>,
}

impl UncountedSinks<'_> {
    /// The sinks in the order of claims, with shards from `first` on.
    pub fn make(&self, specs: &SinkSpecs, first: Shard) -> Vec<UncountedSink> {
        let mut sinks = Vec::new();
        let mut next = first;
        for folder in &specs.folders {
            sinks.push(self.folder(folder, next));
            next.0 += folder.shards;
        }
        for postgres in &specs.postgres {
            sinks.push(self.postgres(postgres, next));
            next.0 += postgres.shards;
        }
        sinks
    }

    fn folder(&self, folder: &FolderSinkPlan, first_shard: Shard) -> UncountedSink {
        let identity = folder_identity(self.plan, folder, self.authority, self.log_ids);
        let (format, shards) = (folder.format, folder.shards);
        let make = move |_: &PartitionTable| -> Box<dyn Render> {
            Box::new(FolderRenderer::new(format, first_shard, shards))
        };
        UncountedSink {
            sink: Arc::new(FolderSink::new(folder.clone(), identity, self.authority.to_owned())),
            first_shard,
            shown_as: format!("folder {}", folder.path.display()).into(),
            renderer: RendererPlan { make: Arc::new(make), write_touched: false },
            has_dead_letters: false,
        }
    }

    fn postgres(&self, postgres: &PostgresSinkPlan, first_shard: Shard) -> UncountedSink {
        let identity = postgres_identity(self.plan, postgres, self.authority, self.log_ids);
        let retention = &self.plan.retention;
        let settings = vec![
            ("formula", self.plan.formula.name().to_owned()),
            ("window_ms", retention.window.millis().to_string()),
            ("lateness_ms", retention.lateness.millis().to_string()),
            ("history_ms", retention.history.millis().to_string()),
        ];
        let (shards, tables) = (postgres.shards, postgres.tables);
        let make = move |partitions: &PartitionTable| -> Box<dyn Render> {
            Box::new(PostgresRenderer::new(first_shard, shards, tables, partitions))
        };
        let shown_as = format!("schema {}", postgres.label()).into();
        let sink = PostgresSink::new(postgres.clone(), identity, settings, self.authority.to_owned());
        let renderer = RendererPlan { make: Arc::new(make), write_touched: false };
        let has_dead_letters = tables.contains(PostgresTable::DeadLetter);
        UncountedSink { sink: Arc::new(sink), first_shard, shown_as, renderer, has_dead_letters }
    }
}
