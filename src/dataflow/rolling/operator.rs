//! [`Rolling`] as a timely operator.

use std::collections::BTreeMap;

use differential_dataflow::{AsCollection, VecCollection};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::{Capability, InputCapability};
use timely::progress::frontier::MutableAntichain;
use timely::scheduling::Activator;

use super::epoch_changes::EpochChanges;
use super::query_responder::{QueryLimits, QueryResponder, WorkSlice};
use super::serving::{CityWatchers, ProcessSet, ServingUpdate};
use super::sink_renderer::SinkRenderer;
use super::snapshot::{InitialState, SnapshotStreamer};
use super::state::Rolling;
use crate::model::{
    Arrival, ArrivalOutcome, BatchBuilder, CheckpointBarrier, CityId, CityIntroduction, CityKey, CurrentRow,
    DayChange, EncodedBatch, Query, RowChange, SnapshotSink, state_shard,
};

/// The outputs of the operator: the changes of each epoch, once no more input can come for it.
pub struct RollingStreams<'scope> {
    pub rows: Stream<'scope, u64, Vec<RowChange>>,
    pub current: VecCollection<'scope, u64, (CityId, CurrentRow), isize>,
    pub days: Stream<'scope, u64, Vec<DayChange>>,
    pub outcomes: Stream<'scope, u64, Vec<ArrivalOutcome>>,
    /// Each with the processes that receive it.
    pub serving_updates: Stream<'scope, u64, Vec<(ProcessSet, ServingUpdate)>>,
    /// For durable sinks.
    pub encoded_batches: Stream<'scope, u64, Vec<EncodedBatch>>,
}

type CurrentDiff = ((CityId, CurrentRow), u64, isize);

/// The inputs of the operator.
pub struct RollingInputs<'scope> {
    /// A city must be introduced in the epoch of its first arrival, or before.
    pub cities: Stream<'scope, u64, Vec<CityIntroduction>>,
    pub arrivals: Stream<'scope, u64, Vec<Arrival>>,
    pub queries: Stream<'scope, u64, Vec<Query>>,
    /// Every worker must get every barrier.
    pub barriers: Stream<'scope, u64, Vec<CheckpointBarrier>>,
}

/// Sends each arrival and query to the worker that owns its city, and applies an epoch to `rolling`
/// once it is complete. The `renderers`, one for each sink, write the changes. The state starts
/// from `initial_state`, and goes to `snapshot_sink` at each barrier. Query responses are made
/// within `limits`.
pub fn build_rolling<'scope>(
    inputs: RollingInputs<'scope>,
    rolling: Rolling,
    renderers: Vec<SinkRenderer>,
    initial_state: InitialState,
    snapshot_sink: Option<Box<dyn SnapshotSink>>,
    limits: QueryLimits,
) -> RollingStreams<'scope> {
    let RollingInputs { cities, arrivals, queries, barriers } = inputs;
    let scope = arrivals.scope();
    let mut builder = OperatorBuilder::new("Rolling".into(), scope);
    // A worker has whole parts of the state.
    let owner = |hash: u32| u64::from(state_shard(hash));
    let mut cities =
        builder.new_input(cities, Exchange::new(move |city: &CityIntroduction| owner(city.key.hash)));
    let mut arrivals =
        builder.new_input(arrivals, Exchange::new(move |arrival: &Arrival| owner(arrival.city.hash)));
    let mut queries =
        builder.new_input(queries, Exchange::new(move |query: &Query| owner(CityKey::hash(&query.city))));
    let mut barriers = builder.new_input(barriers, Pipeline);
    let (outputs, streams) = build_outputs(&mut builder);
    let activator = scope.activator_for(builder.operator_info().address);
    builder.build(move |initial| {
        let mut pending = PendingEpochs::default();
        let mut resumed = (!initial_state.cities.is_empty()).then(|| {
            activator.activate();
            let capabilities: Vec<_> =
                initial.iter().map(|capability| capability.delayed(&initial_state.epoch)).collect();
            (initial_state, capabilities)
        });
        let mut operator = RollingOperator {
            rolling,
            renderers,
            watchers: CityWatchers::default(),
            query_responder: QueryResponder::new(limits),
            response_capability: None,
            snapshot_streamer: snapshot_sink.map(SnapshotStreamer::new),
            epoch_changes: EpochChanges::default(),
            serving_updates: Vec::new(),
            batch_builder: BatchBuilder::default(),
            outputs,
        };
        move |frontiers: &[MutableAntichain<u64>]| {
            if let Some((resumed, capabilities)) = resumed.take() {
                operator.restore(resumed, &capabilities);
            }
            cities.for_each(|capability, data| {
                pending.add_input(&capability, |epoch| epoch.cities.append(data))
            });
            arrivals.for_each(|capability, data| {
                pending.add_input(&capability, |epoch| epoch.arrivals.push(std::mem::take(data)));
            });
            queries.for_each(|capability, data| {
                pending.add_input(&capability, |epoch| epoch.queries.append(data))
            });
            barriers.for_each(|capability, data| {
                pending.add_input(&capability, |epoch| epoch.barriers.append(data))
            });
            let mut slice = operator.query_responder.new_slice();
            while let Some((epoch, complete)) = pending.take_complete(frontiers) {
                operator.apply_epoch(epoch, complete, &mut slice);
            }
            operator.continue_responses(frontiers, &mut slice, &activator);
            operator.continue_snapshot(frontiers, &activator);
        }
    });
    streams
}

type OutputBuffer<T> = OutputBuilder<u64, CapacityContainerBuilder<Vec<T>>>;

/// In the order of the capabilities of an epoch.
struct OutputBuffers {
    rows: OutputBuffer<RowChange>,
    current: OutputBuffer<CurrentDiff>,
    days: OutputBuffer<DayChange>,
    outcomes: OutputBuffer<ArrivalOutcome>,
    serving_updates: OutputBuffer<(ProcessSet, ServingUpdate)>,
    encoded_batches: OutputBuffer<EncodedBatch>,
}

const OUTPUT_COUNT: usize = 6;

fn build_outputs<'scope>(
    builder: &mut OperatorBuilder<'scope, u64>,
) -> (OutputBuffers, RollingStreams<'scope>) {
    let (rows_out, rows) = builder.new_output();
    let (current_out, current) = builder.new_output::<Vec<CurrentDiff>>();
    let (days_out, days) = builder.new_output();
    let (outcomes_out, outcomes) = builder.new_output();
    let (updates_out, updates) = builder.new_output();
    let (batches_out, batches) = builder.new_output();
    let outputs = OutputBuffers {
        rows: OutputBuffer::from(rows_out),
        current: OutputBuffer::from(current_out),
        days: OutputBuffer::from(days_out),
        outcomes: OutputBuffer::from(outcomes_out),
        serving_updates: OutputBuffer::from(updates_out),
        encoded_batches: OutputBuffer::from(batches_out),
    };
    (
        outputs,
        RollingStreams {
            rows,
            current: current.as_collection(),
            days,
            outcomes,
            serving_updates: updates,
            encoded_batches: batches,
        },
    )
}

/// The input of an epoch that is still open.
#[derive(Default)]
struct PendingEpoch {
    cities: Vec<CityIntroduction>,
    arrivals: Vec<Vec<Arrival>>,
    queries: Vec<Query>,
    barriers: Vec<CheckpointBarrier>,
    /// One per output.
    capabilities: Vec<Capability<u64>>,
}

/// The epochs that are still open.
#[derive(Default)]
struct PendingEpochs(BTreeMap<u64, PendingEpoch>);

impl PendingEpochs {
    #[inline]
    fn add_input(&mut self, capability: &InputCapability<u64>, add: impl FnOnce(&mut PendingEpoch)) {
        let Some(&epoch) = capability.least() else { return };
        let pending = self.0.entry(epoch).or_default();
        if pending.capabilities.is_empty() {
            let retained = (0..OUTPUT_COUNT).filter_map(|output| capability.retain_least(output));
            pending.capabilities.extend(retained);
        }
        add(pending);
    }

    /// The first epoch, if nothing more can come for it.
    fn take_complete(&mut self, frontiers: &[MutableAntichain<u64>]) -> Option<(u64, PendingEpoch)> {
        let entry = self.0.first_entry()?;
        let is_open = frontiers.iter().any(|frontier| frontier.less_equal(entry.key()));
        (!is_open).then(|| entry.remove_entry())
    }
}

/// [`Rolling`] with its snapshots, query responses and renderers, which run at the end of an epoch.
struct RollingOperator {
    rolling: Rolling,
    renderers: Vec<SinkRenderer>,
    watchers: CityWatchers,
    query_responder: QueryResponder,
    /// For updates about query responses between epochs.
    response_capability: Option<Capability<u64>>,
    snapshot_streamer: Option<SnapshotStreamer>,
    epoch_changes: EpochChanges,
    serving_updates: Vec<(ProcessSet, ServingUpdate)>,
    batch_builder: BatchBuilder,
    outputs: OutputBuffers,
}

impl RollingOperator {
    fn restore(&mut self, resumed: InitialState, capabilities: &[Capability<u64>]) {
        let InitialState { epoch, cities } = resumed;
        let [_, currents, _, _, tells, _] = capabilities else { return };
        self.rolling.restore_cities(cities, &mut self.epoch_changes);
        if self.rolling.outputs.serving {
            self.watchers.collect_updates(
                epoch,
                &self.epoch_changes,
                &self.rolling,
                &mut self.serving_updates,
            );
            self.outputs.serving_updates.activate().session(tells).give_container(&mut self.serving_updates);
        }
        self.emit_current_rows(epoch, currents);
    }

    fn apply_epoch(&mut self, epoch: u64, complete: PendingEpoch, slice: &mut WorkSlice) {
        let PendingEpoch { cities, arrivals, queries, barriers, capabilities } = complete;
        self.apply_arrivals(&cities, &arrivals);
        if let Some(snapshots) = &mut self.snapshot_streamer {
            barriers
                .into_iter()
                .for_each(|barrier| snapshots.begin_snapshot(barrier, epoch, &mut self.rolling));
        }
        let [rows, currents, days, outcomes, updates, packed] = &capabilities[..] else { return };
        if !self.renderers.is_empty() {
            for sink in &mut self.renderers {
                let names = &self.rolling.cities.names;
                sink.render_epoch(epoch, names, &self.epoch_changes, &mut self.batch_builder);
            }
            let mut written = self.batch_builder.take_batches();
            self.outputs.encoded_batches.activate().session(packed).give_container(&mut written);
        }
        if self.rolling.outputs.serving {
            self.emit_serving_updates(epoch, queries, slice, updates);
        }
        if self.rolling.outputs.rows {
            self.outputs.rows.activate().session(rows).give_containers(self.epoch_changes.rows.iter_mut());
        }
        self.emit_current_rows(epoch, currents);
        if self.rolling.outputs.days {
            self.outputs.days.activate().session(days).give_container(&mut self.epoch_changes.days);
        }
        if self.rolling.outputs.outcomes {
            self.outputs
                .outcomes
                .activate()
                .session(outcomes)
                .give_container(&mut self.epoch_changes.outcomes);
        }
    }

    /// Applies the arrivals, which fills `epoch_changes`. Snapshots and query responses copy the
    /// state that they need before.
    fn apply_arrivals(&mut self, cities: &[CityIntroduction], arrivals: &[Vec<Arrival>]) {
        let RollingOperator {
            rolling,
            watchers: watched,
            query_responder: answers,
            snapshot_streamer: snapshots,
            epoch_changes: changed,
            ..
        } = self;
        for city in cities {
            if let Some(snapshots) = snapshots {
                snapshots.copy_before_introduction(&city.name, rolling);
            }
            rolling.introduce_city(city);
            watched.on_city_introduced(city, rolling);
        }
        if let Some(snapshots) = snapshots {
            snapshots.copy_before_write(arrivals, rolling);
        }
        answers.pin_before_write(arrivals, rolling);
        let all = rolling.outputs.computes_rows();
        rolling.apply_arrivals(arrivals, |city| all || watched.is_watched(city), changed);
    }

    /// Sends the changes of an epoch to serving, and opens the responses to its queries.
    fn emit_serving_updates(
        &mut self,
        epoch: u64,
        queries: Vec<Query>,
        slice: &mut WorkSlice,
        capability: &Capability<u64>,
    ) {
        let RollingOperator {
            rolling,
            watchers: watched,
            query_responder: answers,
            serving_updates: telling,
            ..
        } = self;
        watched.collect_updates(epoch, &self.epoch_changes, rolling, telling);
        for query in queries {
            watched.apply_watch_query(&query, rolling);
            answers.accept_query(epoch, query, rolling, telling);
        }
        answers.continue_slice(rolling, slice, telling);
        answers.announce_row_counts(telling);
        self.outputs.serving_updates.activate().session(capability).give_container(telling);
        self.response_capability = answers.has_ready().then(|| capability.clone());
    }

    fn emit_current_rows(&mut self, epoch: u64, capability: &Capability<u64>) {
        let current =
            self.epoch_changes.current.drain(..).map(|(city, row, diff)| ((city, row), epoch, diff));
        self.outputs.current.activate().session(capability).give_iterator(current);
    }

    /// Makes another slice of unfinished query responses, even if no epoch was completed.
    fn continue_responses(
        &mut self,
        frontiers: &[MutableAntichain<u64>],
        slice: &mut WorkSlice,
        activator: &Activator,
    ) {
        let Some(capability) = &mut self.response_capability else { return };
        // As late as the inputs, so that no epoch waits for it.
        let next = frontiers.iter().filter_map(|frontier| frontier.frontier().first().copied()).min();
        if let Some(next) = next.filter(|next| *next > *capability.time()) {
            capability.downgrade(&next);
        }
        self.query_responder.continue_slice(&mut self.rolling, slice, &mut self.serving_updates);
        self.outputs
            .serving_updates
            .activate()
            .session(&*capability)
            .give_container(&mut self.serving_updates);
        if self.query_responder.has_ready() {
            activator.activate();
        } else {
            self.response_capability = None;
        }
    }

    /// Sends the next slice of an unfinished snapshot.
    fn continue_snapshot(&mut self, frontiers: &[MutableAntichain<u64>], activator: &Activator) {
        let Some(snapshots) = &mut self.snapshot_streamer else { return };
        if frontiers.iter().all(MutableAntichain::is_empty) {
            snapshots.cancel_snapshot();
        }
        if let Some(after) = snapshots.continue_slice(&mut self.rolling) {
            activator.activate_after(after);
        }
    }
}
