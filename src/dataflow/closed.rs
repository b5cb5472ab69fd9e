//! The outputs of the dataflow: whole epochs, once they are complete.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use differential_dataflow::{Data, VecCollection};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::probe::{Handle, Probe};

use crate::model::Batch;

/// Complete batches that wait for the worker's loop: those that steps have closed since the last
/// [`Closed::next_batch`]. So a limit of the epochs in flight limits the batches, too.
#[derive(Debug)]
pub struct Closed<C>(Rc<RefCell<VecDeque<Batch<C>>>>);

impl<C> Closed<C> {
    /// The next batch. Batches join without a gap: the `lower` of each is the `upper` of the one
    /// before.
    pub fn next_batch(&self) -> Option<Batch<C>> {
        self.0.borrow_mut().pop_front()
    }
}

type OpenEpochs<C> = BTreeMap<u64, Vec<Vec<C>>>;

/// Collects the data of `stream`, and returns them epoch by epoch as the frontier passes. `probe`
/// follows that frontier.
pub fn collect_closed<C: Clone + 'static>(stream: Stream<'_, u64, Vec<C>>, probe: &Handle<u64>) -> Closed<C> {
    collect_batches(stream, probe, |open: &mut OpenEpochs<C>, epoch, data| {
        open.entry(epoch).or_default().push(std::mem::take(data));
    })
}

/// [`collect_closed`] for a collection, each datum with its difference. Differences of one epoch
/// are not consolidated.
pub fn collect_closed_collection<D: Data>(
    collection: VecCollection<'_, u64, D, isize>,
    probe: &Handle<u64>,
) -> Closed<(D, isize)> {
    // Each update has its own epoch: the message that carries it may be stamped with an earlier
    // one.
    collect_batches(collection.inner, probe, |open: &mut OpenEpochs<(D, isize)>, _, data| {
        for (datum, epoch, diff) in data.drain(..) {
            let pieces = open.entry(epoch).or_default();
            if pieces.is_empty() {
                pieces.push(Vec::new());
            }
            if let Some(piece) = pieces.last_mut() {
                piece.push((datum, diff));
            }
        }
    })
}

fn collect_batches<D: Clone + 'static, C: 'static>(
    stream: Stream<'_, u64, Vec<D>>,
    probe: &Handle<u64>,
    keep: impl Fn(&mut OpenEpochs<C>, u64, &mut Vec<D>) + 'static,
) -> Closed<C> {
    let batches = Rc::new(RefCell::new(VecDeque::new()));
    let closed = Closed(Rc::clone(&batches));
    let passed =
        stream.unary_frontier::<CapacityContainerBuilder<Vec<()>>, _, _, _>(Pipeline, "Close", |_, _| {
            let mut open = OpenEpochs::new();
            let mut lower = 0;
            move |(input, frontier), _| {
                input.for_each(|capability, data| {
                    if let Some(&epoch) = capability.least() {
                        keep(&mut open, epoch, data);
                    }
                });
                let upper = frontier.frontier().first().copied().unwrap_or(u64::MAX);
                if upper > lower {
                    let later = open.split_off(&upper);
                    let complete = std::mem::replace(&mut open, later).into_iter();
                    let pieces = |(epoch, pieces): (u64, Vec<Vec<C>>)| {
                        pieces.into_iter().map(move |piece| (epoch, piece))
                    };
                    let changes = complete.flat_map(pieces).collect();
                    push_batch(&mut batches.borrow_mut(), Batch { lower, upper, changes });
                    lower = upper;
                }
            }
        });
    passed.probe_with(probe);
    closed
}

/// Queues a batch. An empty batch extends an empty batch before it, so epochs without changes need
/// no memory while the output is not read.
fn push_batch<C>(batches: &mut VecDeque<Batch<C>>, batch: Batch<C>) {
    match batches.back_mut() {
        Some(last) if last.changes.is_empty() && batch.changes.is_empty() => last.upper = batch.upper,
        _ => batches.push_back(batch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_epochs_take_no_memory_and_leave_no_gap() {
        let mut batches = VecDeque::new();
        for epoch in 0..1000 {
            let changes = if epoch % 500 == 250 { vec![(epoch, vec![epoch])] } else { Vec::new() };
            push_batch(&mut batches, Batch { lower: epoch, upper: epoch + 1, changes });
        }
        let spans: Vec<_> = batches.iter().map(|batch| (batch.lower, batch.upper)).collect();
        assert_eq!(spans, [(0, 250), (250, 251), (251, 750), (750, 751), (751, 1000)]);
    }
}
