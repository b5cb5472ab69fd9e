//! [`Rolling`] as a timely operator.

use std::collections::BTreeMap;

use differential_dataflow::{AsCollection, VecCollection};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::progress::frontier::MutableAntichain;

use super::answers::{AnswerLimits, Answers};
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

const OUTPUTS: usize = 6;

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
    mut rolling: Rolling,
    mut render: Option<Box<dyn Render>>,
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
    let (rows_out, rows) = builder.new_output::<Vec<Change>>();
    let (current_out, current) = builder.new_output::<Vec<CurrentDiff>>();
    let (days_out, days) = builder.new_output::<Vec<DayChange>>();
    let (outcomes_out, outcomes) = builder.new_output::<Vec<Outcome>>();
    let (told_out, told) = builder.new_output::<Vec<(Processes, Told)>>();
    let (parcels_out, parcels) = builder.new_output::<Vec<Parcel>>();
    let mut rows_out = OutputBuilder::<_, CapacityContainerBuilder<Vec<Change>>>::from(rows_out);
    let mut current_out = OutputBuilder::<_, CapacityContainerBuilder<Vec<CurrentDiff>>>::from(current_out);
    let mut days_out = OutputBuilder::<_, CapacityContainerBuilder<Vec<DayChange>>>::from(days_out);
    let mut outcomes_out = OutputBuilder::<_, CapacityContainerBuilder<Vec<Outcome>>>::from(outcomes_out);
    let mut told_out = OutputBuilder::<_, CapacityContainerBuilder<Vec<(Processes, Told)>>>::from(told_out);
    let mut parcels_out = OutputBuilder::<_, CapacityContainerBuilder<Vec<Parcel>>>::from(parcels_out);

    let activator = scope.activator_for(builder.operator_info().address);
    builder.build(move |initial| {
        let mut pending: BTreeMap<u64, Pending> = BTreeMap::new();
        let mut changed = Changed::default();
        let mut watched = Watched::default();
        let mut answers = Answers::new(limits);
        // For what is said of answers between epochs.
        let mut answering: Option<Capability<u64>> = None;
        let mut telling = Vec::new();
        let mut written = Parcels::default();
        let mut snapshots = snapshots.map(Snapshooter::new);
        let mut resumed = (!resumed.cities.is_empty()).then(|| {
            activator.activate();
            let capabilities: Vec<_> =
                initial.iter().map(|capability| capability.delayed(&resumed.epoch)).collect();
            (resumed, capabilities)
        });
        move |frontiers: &[MutableAntichain<u64>]| {
            if let Some((Resumed { epoch, cities }, capabilities)) = resumed.take()
                && let [_, currents, _, _, tells, _] = &capabilities[..]
            {
                rolling.resume(cities, &mut changed);
                if rolling.wanted.told {
                    watched.tell(epoch, &changed, &rolling, &mut telling);
                    told_out.activate().session(tells).give_container(&mut telling);
                }
                let current = changed.current.drain(..).map(|(city, row, diff)| ((city, row), epoch, diff));
                current_out.activate().session(currents).give_iterator(current);
            }
            cities.for_each(|capability, data| {
                let Some(&epoch) = capability.least() else { return };
                let pending = pending.entry(epoch).or_default();
                pending.keep(|output| capability.retain_least(output));
                pending.cities.append(data);
            });
            arrivals.for_each(|capability, data| {
                let Some(&epoch) = capability.least() else { return };
                let pending = pending.entry(epoch).or_default();
                pending.keep(|output| capability.retain_least(output));
                pending.arrivals.push(std::mem::take(data));
            });
            queries.for_each(|capability, data| {
                let Some(&epoch) = capability.least() else { return };
                let pending = pending.entry(epoch).or_default();
                pending.keep(|output| capability.retain_least(output));
                pending.queries.append(data);
            });
            marks.for_each(|capability, data| {
                let Some(&epoch) = capability.least() else { return };
                let pending = pending.entry(epoch).or_default();
                pending.keep(|output| capability.retain_least(output));
                pending.marks.append(data);
            });
            let mut slice = answers.slice();
            while let Some(entry) = pending.first_entry() {
                if frontiers.iter().any(|frontier| frontier.less_equal(entry.key())) {
                    break;
                }
                let (epoch, Pending { cities, arrivals, queries, marks, capabilities }) =
                    entry.remove_entry();
                for city in &cities {
                    rolling.introduce(city);
                    watched.introduced(city, &rolling);
                }
                if let Some(snapshots) = &mut snapshots {
                    snapshots.make_way(&arrivals, &mut rolling);
                }
                answers.make_way(&arrivals, &mut rolling);
                let all = rolling.wanted.rows || render.is_some();
                rolling.apply(&arrivals, |city| all || watched.is_watched(city), &mut changed);
                for mark in marks {
                    if let Some(snapshots) = &mut snapshots {
                        snapshots.begin(mark, epoch, &mut rolling);
                    }
                }
                let [rows, currents, days, outcomes, tells, packed] = &capabilities[..] else { continue };
                if let Some(render) = &mut render {
                    changed.write(epoch, &rolling.cities.names, &mut **render, &mut written);
                    parcels_out.activate().session(packed).give_container(&mut written.take_all());
                }
                if rolling.wanted.told {
                    watched.tell(epoch, &changed, &rolling, &mut telling);
                    for query in queries {
                        watched.note(&query, &rolling);
                        answers.take(epoch, query, &mut rolling, &mut telling);
                    }
                    answers.work(&mut rolling, &mut slice, &mut telling);
                    answers.say_begun(&mut telling);
                    told_out.activate().session(tells).give_container(&mut telling);
                    answering = answers.has_ready().then(|| tells.clone());
                }
                if rolling.wanted.rows {
                    rows_out.activate().session(rows).give_containers(changed.rows.iter_mut());
                }
                let current = changed.current.drain(..).map(|(city, row, diff)| ((city, row), epoch, diff));
                current_out.activate().session(currents).give_iterator(current);
                days_out.activate().session(days).give_container(&mut changed.days);
                outcomes_out.activate().session(outcomes).give_container(&mut changed.outcomes);
            }
            if let Some(capability) = &mut answering {
                // As late as the inputs, so that no epoch waits for it.
                let next = frontiers.iter().filter_map(|frontier| frontier.frontier().first().copied()).min();
                if let Some(next) = next.filter(|next| *next > *capability.time()) {
                    capability.downgrade(&next);
                }
                answers.work(&mut rolling, &mut slice, &mut telling);
                told_out.activate().session(&*capability).give_container(&mut telling);
                match answers.has_ready() {
                    true => activator.activate(),
                    false => answering = None,
                }
            }
            if let Some(snapshots) = &mut snapshots {
                if frontiers.iter().all(MutableAntichain::is_empty) {
                    snapshots.stop();
                }
                if let Some(after) = snapshots.go_on(&mut rolling) {
                    activator.activate_after(after);
                }
            }
        }
    });
    Streams { rows, current: current.as_collection(), days, outcomes, told, parcels }
}

impl Pending {
    fn keep(&mut self, retain: impl Fn(usize) -> Option<Capability<u64>>) {
        if self.capabilities.is_empty() {
            self.capabilities.extend((0..OUTPUTS).filter_map(retain));
        }
    }
}
