//! A finite run: reads files and writes all results. An epoch is the number of records read.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use timely::worker::Worker;

pub use super::batch_plan::{BatchError, BatchPlan, OutputTarget, PlotPlan};
use super::batch_reader::{BatchReader, InputEpoch, ReadSummary};
use crate::codec::{ChangesWriter, Compression, DailyWriter, DeadLettersWriter, Format, ResultRowsWriter};
use crate::dataflow::rolling::Retention;
use crate::dataflow::rolling::snapshot::InitialState;
use crate::dataflow::{self, Graph, GraphPlan};
use crate::fault::check_threads_available;
use crate::fault::exit::{ExitReason, end_process};
use crate::model::{CityRows, DayLine, Millis, OutcomeCounts, Reason};
use crate::sinks::changes::{self, ChangesSink, ChangesThread};
use crate::sinks::output::{OutputFile, StandardOutput, is_written_in_place};
use crate::sinks::plot::{self, UncorrectedRows};
use crate::sinks::result_table::{CityResults, ResultTable};

/// Epochs in flight before reading waits, if there are other workers to process them.
const EPOCHS_IN_FLIGHT: usize = 2;

/// The writer of changes, and the thread that prints the progress.
const OTHER_THREADS: usize = 2;

/// The longest time that a worker parks, so that a lost wake-up does not stop it for ever.
const MAX_PARK: Duration = Duration::from_millis(10);

/// The counts and warnings of a finished run.
#[derive(Clone, Debug, Default)]
pub struct BatchSummary {
    pub records: u64,
    pub outcomes: OutcomeCounts,
    pub refused: BTreeMap<Reason, u64>,
    /// The first refusals as text, if refusals were not written to a file.
    pub examples: Vec<String>,
    pub ignored_fields: u64,
    /// A warning on readings outside the range of the formula.
    pub warning: Option<String>,
    pub cities: usize,
    pub rows: u64,
    /// Possible problems of the input, as text.
    pub warnings: Vec<String>,
}

impl BatchSummary {
    /// Records that were not refused.
    pub fn accepted(&self) -> u64 {
        self.records - self.refused.values().sum::<u64>()
    }
}

/// Runs the plan to its end. `progress` is called now and then with the number of records read. If
/// this fails, no output has appeared under its final name.
pub fn run(
    plan: &BatchPlan,
    progress: impl Fn(u64) + Send + Sync + 'static,
) -> Result<BatchSummary, BatchError> {
    check_threads_available(plan.workers + OTHER_THREADS).map_err(BatchError::Threads)?;
    for input in &plan.inputs {
        input.check_readable(&plan.read).map_err(|error| BatchError::input(&input.name(), error))?;
    }
    let mut outputs = Outputs::create(plan)?;
    let first_city = Arc::new(OnceLock::new());
    let (sinks, changes_thread) = outputs.changes(plan)?.unzip();
    let intake = BatchReader::new(plan, outputs.dead_letters(plan)?, Arc::clone(&first_city));
    let shared = Arc::new(BatchShared {
        intake: Mutex::new(Some(intake)),
        changes: Mutex::new(sinks.unwrap_or_default()),
        stop: AtomicBool::new(false),
        dead_letters: target_name(&plan.dead_letters),
        plot_city: plan.plot.as_ref().map(|plot| match &plot.city {
            Some(city) => Arc::new(OnceLock::from(city.clone())),
            None => first_city,
        }),
    });
    let ends = run_workers(plan, shared, progress)?;
    // The sinks of the changes writer are dropped with the workers. Its own error is the cause of
    // theirs.
    let changes_written = changes_thread.map_or(Ok(()), join_changes_writer);
    changes_written.map_err(|error| BatchError::output(&target_name(&plan.changes), error))?;
    let ended = BatchOutput::gather(ends)?;
    let summary = ended.write(plan, &mut outputs)?;
    outputs.commit()?;
    Ok(summary)
}

fn target_name(target: &Option<OutputTarget>) -> String {
    target.as_ref().map_or(String::new(), OutputTarget::name)
}

fn join_changes_writer(thread: ChangesThread) -> io::Result<()> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that writes the changes has panicked")))
}

/// State that the workers share.
struct BatchShared {
    /// Taken by the worker that reads.
    intake: Mutex<Option<BatchReader>>,
    /// One per worker, if changes are written.
    changes: Mutex<Vec<ChangesSink>>,
    /// A worker cannot continue, so all stop.
    stop: AtomicBool,
    plot_city: Option<Arc<OnceLock<String>>>,
    /// The name of the dead-letter file.
    dead_letters: String,
}

/// The output of a worker.
struct WorkerOutput {
    results: Vec<CityResults>,
    outcomes: OutcomeCounts,
    first_rows: Option<UncorrectedRows>,
    /// At the worker that read.
    read: Option<Result<ReadSummary, BatchError>>,
}

fn run_workers(
    plan: &BatchPlan,
    shared: Arc<BatchShared>,
    progress: impl Fn(u64) + Send + Sync + 'static,
) -> Result<Vec<WorkerOutput>, BatchError> {
    // Nothing is served here: rows are written when the log ends.
    let history = Millis::default();
    let retention = Retention { window: plan.window, lateness: plan.lateness, history };
    let graph_plan = GraphPlan {
        days: plan.daily.is_some(),
        day_zone: plan.day_zone,
        outcomes: true,
        ..GraphPlan::new(plan.formula, retention)
    };
    let config = match plan.workers {
        1 => timely::Config::thread(),
        workers => timely::Config::process(workers),
    };
    let guards = timely::execute(config, move |worker| {
        let graph = dataflow::build_graph(worker, &graph_plan, InitialState::default(), None);
        let lock = |sinks: &Mutex<Vec<ChangesSink>>| sinks.lock().pop();
        let collector =
            Collector { table: ResultTable::default(), changes: lock(&shared.changes), first_rows: None };
        let intake = (worker.index() == 0).then(|| shared.intake.lock().take());
        let work = || run_worker(worker, graph, collector, intake.flatten(), &shared, &progress);
        // The other workers would wait for a panicked one for ever. The panic message is already
        // printed.
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| end_process(ExitReason::WorkerPanicked))
    })
    .map_err(BatchError::Workers)?;
    guards.join().into_iter().map(|end| end.map_err(BatchError::Workers)).collect()
}

/// Runs one worker from the first epoch to the last.
fn run_worker(
    worker: &mut Worker,
    mut graph: Graph,
    mut collector: Collector,
    intake: Option<BatchReader>,
    shared: &BatchShared,
    progress: &impl Fn(u64),
) -> WorkerOutput {
    let read = intake.map(|mut intake| {
        send_epochs(worker, &mut graph, &mut collector, &mut intake, shared, progress)?;
        intake.finish().map_err(|error| BatchError::output(&shared.dead_letters, error))
    });
    graph.close_inputs();
    while worker.has_dataflows() {
        worker.step_or_park(Some(MAX_PARK));
        collector.collect_closed(&graph, shared);
    }
    WorkerOutput {
        outcomes: collector.table.counts,
        results: collector.table.into_city_results(&graph.city_names),
        first_rows: collector.first_rows,
        read,
    }
}

/// Reads the log into the dataflow, at most [`EPOCHS_IN_FLIGHT`] epochs ahead.
fn send_epochs(
    worker: &mut Worker,
    graph: &mut Graph,
    collector: &mut Collector,
    intake: &mut BatchReader,
    shared: &BatchShared,
    progress: &impl Fn(u64),
) -> Result<(), BatchError> {
    let mut epoch = InputEpoch::default();
    let mut in_flight = VecDeque::new();
    let most = if worker.peers() == 1 { 0 } else { EPOCHS_IN_FLIGHT };
    while !shared.stop.load(Ordering::Relaxed) && intake.next_epoch(&mut epoch)? {
        graph.send_epoch(epoch.upto, &mut epoch.cities, &mut epoch.arrivals);
        in_flight.push_back(epoch.upto);
        while in_flight.len() > most {
            worker.step_or_park(Some(MAX_PARK));
            while in_flight.front().is_some_and(|upto| !graph.probe.less_equal(upto)) {
                in_flight.pop_front();
            }
            collector.collect_closed(graph, shared);
        }
        progress(epoch.upto);
    }
    Ok(())
}

/// Collects the closed epochs of a worker's dataflow.
struct Collector {
    table: ResultTable,
    changes: Option<ChangesSink>,
    first_rows: Option<UncorrectedRows>,
}

impl Collector {
    fn collect_closed(&mut self, graph: &Graph, shared: &BatchShared) {
        while let Some(batch) = graph.rows.as_ref().and_then(|closed| closed.next_batch()) {
            self.table.apply_row_changes(&batch);
            if let Some(city) = shared.plot_city.as_ref().and_then(|city| city.get()) {
                self.first_rows
                    .get_or_insert_with(|| UncorrectedRows::for_city(city))
                    .record_first_rows(&batch, &graph.city_names);
            }
            if self.changes.as_ref().is_some_and(|changes| !changes.send_batch(&batch, &graph.city_names)) {
                shared.stop.store(true, Ordering::Relaxed);
            }
        }
        while let Some(batch) = graph.outcomes.as_ref().and_then(|closed| closed.next_batch()) {
            self.table.apply_outcomes(&batch);
        }
        while let Some(batch) = graph.days.as_ref().and_then(|closed| closed.next_batch()) {
            self.table.apply_day_changes(&batch);
        }
    }
}

/// The outputs of all workers, by city.
struct BatchOutput {
    results: Vec<CityResults>,
    outcomes: OutcomeCounts,
    first_rows: Vec<UncorrectedRows>,
    read: ReadSummary,
}

impl BatchOutput {
    fn gather(ends: Vec<WorkerOutput>) -> Result<BatchOutput, BatchError> {
        let (mut results, mut first_rows) = (Vec::new(), Vec::new());
        let (mut outcomes, mut read) = (OutcomeCounts::default(), ReadSummary::default());
        for end in ends {
            results.extend(end.results);
            outcomes.add(&end.outcomes);
            first_rows.extend(end.first_rows);
            if let Some(statistics) = end.read {
                read = statistics?;
            }
        }
        // UTF-8 has the same order by bytes as by code points.
        results.sort_unstable_by(|a: &CityResults, b| a.name.cmp(&b.name));
        Ok(BatchOutput { results, outcomes, first_rows, read })
    }

    fn write(self, plan: &BatchPlan, outputs: &mut Outputs) -> Result<BatchSummary, BatchError> {
        let BatchOutput { results, outcomes, first_rows, read } = self;
        let warnings = read.warnings(plan);
        let ReadSummary { records, refused, examples, ignored_fields, warning, .. } = read;
        let mut summary = BatchSummary {
            records,
            outcomes,
            refused,
            examples,
            ignored_fields,
            warning,
            cities: 0,
            rows: 0,
            warnings,
        };
        let (mut writer, mut daily) = (outputs.rows(plan)?, outputs.daily(plan)?);
        let mut plotted = None;
        let mut rows = Vec::new();
        for mut city in results {
            let name = city.name.clone();
            city.take_rows(&mut rows, |heat_index, measurement| {
                plan.formula.category_of(heat_index, measurement)
            });
            summary.rows += rows.len() as u64;
            summary.cities += usize::from(!rows.is_empty());
            if let Some(writer) = &mut writer {
                let result = writer.write(&CityRows { city: &name, rows: &rows });
                result.map_err(|error| BatchError::output(&target_name(&plan.output), error))?;
            }
            for (day, summary) in city.take_days() {
                let Some(daily) = &mut daily else { break };
                let result = daily.write(&DayLine { city: &name, day, summary });
                result.map_err(|error| BatchError::output(&target_name(&plan.daily), error))?;
            }
            if let Some(first) = first_rows.iter().find(|first| first.city() == &*name && !first.is_empty()) {
                plotted = plot::render_plot(first, &rows, plan.window, plan.output_units.temperature)
                    .map_err(|error| BatchError::output("the plot", error))?;
            }
        }
        writer
            .map_or(Ok(()), ResultRowsWriter::finish)
            .map_err(|e| BatchError::output(&target_name(&plan.output), e))?;
        daily
            .map_or(Ok(()), DailyWriter::finish)
            .map_err(|e| BatchError::output(&target_name(&plan.daily), e))?;
        if plan.plot.is_some() && summary.accepted() == 0 {
            summary.warnings.push("the plot was not drawn: the log has no readings".into());
        }
        if let Some(plot) = plan.plot.as_ref().filter(|_| summary.accepted() > 0) {
            let missing =
                plot.city.clone().map_or(BatchError::NothingToDraw, |city| BatchError::NoSuchCity { city });
            outputs.plot(plot, &plotted.ok_or(missing)?)?;
        }
        Ok(summary)
    }
}

/// The files being written.
#[derive(Default)]
struct Outputs(Vec<(String, OutputFile)>);

impl Outputs {
    /// Creates the files, which are still empty, so that an unusable path is found before the run.
    fn create(plan: &BatchPlan) -> Result<Outputs, BatchError> {
        let targets = [&plan.output, &plan.changes, &plan.daily, &plan.dead_letters];
        let paths = targets.into_iter().flatten().filter_map(|target| target.path.as_deref());
        // Open a target that is written in place once only: the reader of a pipe would take a
        // second opening for the end.
        for path in paths
            .chain(plan.plot.as_ref().map(|plot| plot.path.as_path()))
            .filter(|path| !is_written_in_place(path))
        {
            OutputFile::create(path)
                .map_err(|error| BatchError::output(&path.display().to_string(), error))?;
        }
        Ok(Outputs::default())
    }

    fn open(&mut self, target: &OutputTarget) -> Result<Box<dyn io::Write + Send>, BatchError> {
        let Some(path) = &target.path else { return Ok(Box::new(StandardOutput::default())) };
        let output = |error| BatchError::output(&target.name(), error);
        let file = OutputFile::create(path).map_err(output)?;
        let writer = file.writer().map_err(output)?;
        self.0.push((target.name(), file));
        Ok(writer)
    }

    fn create_writer<W>(
        &mut self,
        target: &Option<OutputTarget>,
        new: impl FnOnce(Format, Compression, Box<dyn io::Write + Send>) -> io::Result<W>,
    ) -> Result<Option<W>, BatchError> {
        let Some(target) = target else { return Ok(None) };
        let out = self.open(target)?;
        new(target.format, target.compression, out)
            .map(Some)
            .map_err(|error| BatchError::output(&target.name(), error))
    }

    fn rows(&mut self, plan: &BatchPlan) -> Result<Option<ResultRowsWriter>, BatchError> {
        self.create_writer(&plan.output, |format, compression, out| {
            ResultRowsWriter::new(format, compression, plan.output_units, out)
        })
    }

    fn daily(&mut self, plan: &BatchPlan) -> Result<Option<DailyWriter>, BatchError> {
        self.create_writer(&plan.daily, |format, compression, out| {
            DailyWriter::new(format, compression, plan.output_units.temperature, out)
        })
    }

    fn dead_letters(&mut self, plan: &BatchPlan) -> Result<Option<DeadLettersWriter>, BatchError> {
        self.create_writer(&plan.dead_letters, |_, compression, out| DeadLettersWriter::new(compression, out))
    }

    fn changes(&mut self, plan: &BatchPlan) -> Result<Option<(Vec<ChangesSink>, ChangesThread)>, BatchError> {
        self.create_writer(&plan.changes, |_, compression, out| {
            let writer = ChangesWriter::new(compression, plan.output_units.temperature, out)?;
            changes::spawn_changes_writer(writer, plan.workers)
        })
    }

    fn plot(&mut self, plan: &PlotPlan, svg: &str) -> Result<(), BatchError> {
        let target = OutputTarget {
            path: Some(plan.path.clone()),
            format: Format::Json,
            compression: Compression::None,
        };
        let mut out = self.open(&target)?;
        out.write_all(svg.as_bytes()).map_err(|error| BatchError::output(&target.name(), error))
    }

    /// Renames every file to its final name.
    fn commit(self) -> Result<(), BatchError> {
        for (name, file) in self.0 {
            file.commit().map_err(|error| BatchError::output(&name, error))?;
        }
        Ok(())
    }
}
