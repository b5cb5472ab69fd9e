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

use super::answers::{AnswerLimits, Answers, Slice};
use super::snapshot::{Resumed, Snapshooter};
use super::told::{Processes, Told, Watched};
use super::{Changed, Rolling};
use crate::model::{
    Arrival, Change, CityId, CityKey, CityName, CurrentRow, DayChange, Mark, Outcome, Parcel, Parcels, Query,
    Render, Snapshots, state_shard,
};

/// What the operator gives out: at each epoch what that epoch changed, once no more input can come for it.
pub struct Streams<'scope> {
    pub rows: Stream<'scope, u64, Vec<Change>>,
    pub current: VecCollection<'scope, u64, (CityId, CurrentRow), isize>,
    pub days: Stream<'scope, u64, Vec<DayChange>>,
    pub outcomes: Stream<'scope, u64, Vec<Outcome>>,
    /// Each with the processes that are told.
    pub told: Stream<'scope, u64, Vec<(Processes, Told)>>,
    /// For durable sinks.
    pub parcels: Stream<'scope, u64, Vec<Parcel>>,
}

type CurrentDiff = ((CityId, CurrentRow), u64, isize);

/// What the operator takes in.
pub struct Inputs<'scope> {
    /// A city's name must be here at the epoch of the city's first arrival or before.
    pub cities: Stream<'scope, u64, Vec<CityName>>,
    pub arrivals: Stream<'scope, u64, Vec<Arrival>>,
    pub queries: Stream<'scope, u64, Vec<Query>>,
    /// The same at each worker.
    pub marks: Stream<'scope, u64, Vec<Mark>>,
}

/// Sends each arrival and query to the worker that owns its city, and its epoch through `rolling` once the epoch is complete. What is
/// changed is written by `render`, where there is one. It begins with what is `resumed`, and gives the state to `snapshots` whenever
/// a mark comes. Answers are made within `limits`.
pub fn rolling<'scope>(
    inputs: Inputs<'scope>,
    rolling: Rolling,
    render: Option<Box<dyn Render>>,
    resumed: Resumed,
    snapshots: Option<Box<dyn Snapshots>>,
    limits: AnswerLimits,
) -> Streams<'scope> {
    let Inputs { cities, arrivals, queries, marks } = inputs;
    let scope = arrivals.scope();
    let mut builder = OperatorBuilder::new("Rolling".into(), scope);
    // A worker has whole parts of the state.
    let owner = |hash: u32| u64::from(state_shard(hash));
    let mut cities = builder.new_input(cities, Exchange::new(move |city: &CityName| owner(city.key.hash)));
    let mut arrivals =
        builder.new_input(arrivals, Exchange::new(move |arrival: &Arrival| owner(arrival.city.hash)));
    let mut queries =
        builder.new_input(queries, Exchange::new(move |query: &Query| owner(CityKey::hash(&query.city))));
    let mut marks = builder.new_input(marks, Pipeline);
    let (outputs, streams) = outputs(&mut builder);
    let activator = scope.activator_for(builder.operator_info().address);
    builder.build(move |initial| {
        let mut pending = PendingEpochs::default();
        let mut resumed = (!resumed.cities.is_empty()).then(|| {
            activator.activate();
            let capabilities: Vec<_> =
                initial.iter().map(|capability| capability.delayed(&resumed.epoch)).collect();
            (resumed, capabilities)
        });
        let mut operator = RollingOperator {
            rolling,
            render,
            watched: Watched::default(),
            answers: Answers::new(limits),
            answering: None,
            snapshots: snapshots.map(Snapshooter::new),
            changed: Changed::default(),
            telling: Vec::new(),
            written: Parcels::default(),
            outputs,
        };
        move |frontiers: &[MutableAntichain<u64>]| {
            if let Some((resumed, capabilities)) = resumed.take() {
                operator.resume(resumed, &capabilities);
            }
            cities.for_each(|capability, data| pending.add(&capability, |epoch| epoch.cities.append(data)));
            arrivals.for_each(|capability, data| {
                pending.add(&capability, |epoch| epoch.arrivals.push(std::mem::take(data)));
            });
            queries.for_each(|capability, data| pending.add(&capability, |epoch| epoch.queries.append(data)));
            marks.for_each(|capability, data| pending.add(&capability, |epoch| epoch.marks.append(data)));
            let mut slice = operator.answers.slice();
            while let Some((epoch, complete)) = pending.take_complete(frontiers) {
                operator.apply_epoch(epoch, complete, &mut slice);
            }
            operator.continue_answers(frontiers, &mut slice, &activator);
            operator.continue_snapshots(frontiers, &activator);
        }
    });
    streams
}

type Output<T> = OutputBuilder<u64, CapacityContainerBuilder<Vec<T>>>;

/// In the order of the capabilities of an epoch.
struct Outputs {
    rows: Output<Change>,
    current: Output<CurrentDiff>,
    days: Output<DayChange>,
    outcomes: Output<Outcome>,
    told: Output<(Processes, Told)>,
    parcels: Output<Parcel>,
}

const OUTPUTS: usize = 6;

fn outputs<'scope>(builder: &mut OperatorBuilder<'scope, u64>) -> (Outputs, Streams<'scope>) {
    let (rows_out, rows) = builder.new_output();
    let (current_out, current) = builder.new_output::<Vec<CurrentDiff>>();
    let (days_out, days) = builder.new_output();
    let (outcomes_out, outcomes) = builder.new_output();
    let (told_out, told) = builder.new_output();
    let (parcels_out, parcels) = builder.new_output();
    let outputs = Outputs {
        rows: Output::from(rows_out),
        current: Output::from(current_out),
        days: Output::from(days_out),
        outcomes: Output::from(outcomes_out),
        told: Output::from(told_out),
        parcels: Output::from(parcels_out),
    };
    (outputs, Streams { rows, current: current.as_collection(), days, outcomes, told, parcels })
}

/// What has come for an epoch that is still open.
#[derive(Default)]
struct Pending {
    cities: Vec<CityName>,
    arrivals: Vec<Vec<Arrival>>,
    queries: Vec<Query>,
    marks: Vec<Mark>,
    /// One per output.
    capabilities: Vec<Capability<u64>>,
}

/// The epochs that are still open.
#[derive(Default)]
struct PendingEpochs(BTreeMap<u64, Pending>);

impl PendingEpochs {
    #[inline]
    fn add(&mut self, capability: &InputCapability<u64>, add: impl FnOnce(&mut Pending)) {
        let Some(&epoch) = capability.least() else { return };
        let pending = self.0.entry(epoch).or_default();
        if pending.capabilities.is_empty() {
            let retained = (0..OUTPUTS).filter_map(|output| capability.retain_least(output));
            pending.capabilities.extend(retained);
        }
        add(pending);
    }

    /// The first epoch, if nothing more can come for it.
    fn take_complete(&mut self, frontiers: &[MutableAntichain<u64>]) -> Option<(u64, Pending)> {
        let entry = self.0.first_entry()?;
        let is_open = frontiers.iter().any(|frontier| frontier.less_equal(entry.key()));
        (!is_open).then(|| entry.remove_entry())
    }
}

/// [`Rolling`] with all that follows it at the end of an epoch.
struct RollingOperator {
    rolling: Rolling,
    render: Option<Box<dyn Render>>,
    watched: Watched,
    answers: Answers,
    /// For what is said of answers between epochs.
    answering: Option<Capability<u64>>,
    snapshots: Option<Snapshooter>,
    changed: Changed,
    telling: Vec<(Processes, Told)>,
    written: Parcels,
    outputs: Outputs,
}

impl RollingOperator {
    fn resume(&mut self, resumed: Resumed, capabilities: &[Capability<u64>]) {
        let Resumed { epoch, cities } = resumed;
        let [_, currents, _, _, tells, _] = capabilities else { return };
        self.rolling.resume(cities, &mut self.changed);
        if self.rolling.wanted.told {
            self.watched.tell(epoch, &self.changed, &self.rolling, &mut self.telling);
            self.outputs.told.activate().session(tells).give_container(&mut self.telling);
        }
        self.give_current(epoch, currents);
    }

    fn apply_epoch(&mut self, epoch: u64, complete: Pending, slice: &mut Slice) {
        let Pending { cities, arrivals, queries, marks, capabilities } = complete;
        self.apply_arrivals(&cities, &arrivals);
        if let Some(snapshots) = &mut self.snapshots {
            marks.into_iter().for_each(|mark| snapshots.begin(mark, epoch, &mut self.rolling));
        }
        let [rows, currents, days, outcomes, tells, packed] = &capabilities[..] else { return };
        if let Some(render) = &mut self.render {
            self.changed.write(epoch, &self.rolling.cities.names, &mut **render, &mut self.written);
            let mut written = self.written.take_all();
            self.outputs.parcels.activate().session(packed).give_container(&mut written);
        }
        if self.rolling.wanted.told {
            self.tell(epoch, queries, slice, tells);
        }
        if self.rolling.wanted.rows {
            self.outputs.rows.activate().session(rows).give_containers(self.changed.rows.iter_mut());
        }
        self.give_current(epoch, currents);
        self.outputs.days.activate().session(days).give_container(&mut self.changed.days);
        self.outputs.outcomes.activate().session(outcomes).give_container(&mut self.changed.outcomes);
    }

    /// What changes by the arrivals is in `changed` then. What others still need of the state before is copied first.
    fn apply_arrivals(&mut self, cities: &[CityName], arrivals: &[Vec<Arrival>]) {
        let RollingOperator { rolling, watched, answers, snapshots, changed, .. } = self;
        for city in cities {
            rolling.introduce(city);
            watched.introduced(city, rolling);
        }
        if let Some(snapshots) = snapshots {
            snapshots.make_way(arrivals, rolling);
        }
        answers.make_way(arrivals, rolling);
        let all = rolling.wanted.rows || self.render.is_some();
        rolling.apply(arrivals, |city| all || watched.is_watched(city), changed);
    }

    /// Tells serving what an epoch has changed, and begins the answers to its queries.
    fn tell(&mut self, epoch: u64, queries: Vec<Query>, slice: &mut Slice, capability: &Capability<u64>) {
        let RollingOperator { rolling, watched, answers, telling, .. } = self;
        watched.tell(epoch, &self.changed, rolling, telling);
        for query in queries {
            watched.note(&query, rolling);
            answers.take(epoch, query, rolling, telling);
        }
        answers.work(rolling, slice, telling);
        answers.say_begun(telling);
        self.outputs.told.activate().session(capability).give_container(telling);
        self.answering = answers.has_ready().then(|| capability.clone());
    }

    fn give_current(&mut self, epoch: u64, capability: &Capability<u64>) {
        let current = self.changed.current.drain(..).map(|(city, row, diff)| ((city, row), epoch, diff));
        self.outputs.current.activate().session(capability).give_iterator(current);
    }

    /// Makes another slice of the answers that are not complete, whether or not an epoch came.
    fn continue_answers(
        &mut self,
        frontiers: &[MutableAntichain<u64>],
        slice: &mut Slice,
        activator: &Activator,
    ) {
        let Some(capability) = &mut self.answering else { return };
        // As late as the inputs, so that no epoch waits for it.
        let next = frontiers.iter().filter_map(|frontier| frontier.frontier().first().copied()).min();
        if let Some(next) = next.filter(|next| *next > *capability.time()) {
            capability.downgrade(&next);
        }
        self.answers.work(&mut self.rolling, slice, &mut self.telling);
        self.outputs.told.activate().session(&*capability).give_container(&mut self.telling);
        if self.answers.has_ready() {
            activator.activate();
        } else {
            self.answering = None;
        }
    }

    /// Gives the next slice of a snapshot, if one is being taken.
    fn continue_snapshots(&mut self, frontiers: &[MutableAntichain<u64>], activator: &Activator) {
        let Some(snapshots) = &mut self.snapshots else { return };
        if frontiers.iter().all(MutableAntichain::is_empty) {
            snapshots.stop();
        }
        if let Some(after) = snapshots.go_on(&mut self.rolling) {
            activator.activate_after(after);
        }
    }
}
