//! A plot of one city: heat index, rolling mean, and what corrections changed.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::model::{Batch, CityNames, EventTime, Millis, ResultRow, Row, RowChange, TemperatureUnit};

/// The rows of one city as they were first emitted.
#[derive(Debug)]
pub struct UncorrectedRows {
    city: String,
    rows: BTreeMap<i64, Row>,
}

impl UncorrectedRows {
    pub fn for_city(city: &str) -> UncorrectedRows {
        UncorrectedRows { city: city.to_string(), rows: BTreeMap::new() }
    }

    pub fn record_first_rows(&mut self, batch: &Batch<RowChange>, names: &CityNames) {
        for change in batch.changes.iter().flat_map(|(_, changes)| changes) {
            if let Some(row) = change.after
                && *names.get(change.city) == *self.city
            {
                self.rows.entry(change.reading_at.millis()).or_insert(row);
            }
        }
    }

    pub fn city(&self) -> &str {
        &self.city
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The first rows that were later changed or withdrawn.
    fn corrected_rows(&self, rows: &[ResultRow]) -> BTreeMap<i64, Row> {
        let result = |row: &ResultRow| (row.reading_at.millis(), (row.heat_index, row.sum, row.count));
        let now: BTreeMap<_, _> = rows.iter().map(result).collect();
        let differs =
            |(at, row): &(&i64, &Row)| now.get(at) != Some(&(row.heat_index(), row.sum(), row.count()));
        self.rows.iter().filter(differs).map(|(at, row)| (*at, *row)).collect()
    }
}

const PLOT_SIZE: (u32, u32) = (1200, 720);
const HEAT_INDEX_COLOR: RGBColor = RGBColor(226, 163, 92);
const ROLLING_COLOR: RGBColor = RGBColor(140, 28, 19);
const UNCORRECTED_COLOR: RGBColor = RGBColor(31, 98, 173);
const INK_COLOR: RGBColor = RGBColor(60, 60, 60);

type Drawing<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type DrawError<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

/// The plot as SVG: all rows above. Below, if corrections changed any row, the days around the
/// greatest change, with the rows as they first were. `None` if the city never had a row.
pub fn render_plot(
    first: &UncorrectedRows,
    rows: &[ResultRow],
    window: Millis,
    unit: TemperatureUnit,
) -> io::Result<Option<String>> {
    let corrected = first.corrected_rows(rows);
    // A withdrawn reading may be outside the range of the remaining rows.
    let times = || rows.iter().map(|row| row.reading_at.millis()).chain(corrected.keys().copied());
    let (Some(oldest), Some(newest)) = (times().min(), times().max()) else { return Ok(None) };
    let mut svg = String::new();
    let plot = Plot { city: &first.city, rows, corrected: &corrected, unit };
    let drawn =
        plot.draw_plot(&mut svg, oldest..newest.max(oldest + 1), window).map_err(|error| error.to_string());
    drawn.map_err(io::Error::other)?;
    Ok(Some(svg))
}

struct Plot<'a> {
    city: &'a str,
    rows: &'a [ResultRow],
    corrected: &'a BTreeMap<i64, Row>,
    unit: TemperatureUnit,
}

impl Plot<'_> {
    fn draw_plot<'s>(
        &self,
        svg: &'s mut String,
        all: Range<i64>,
        window: Millis,
    ) -> Result<(), DrawError<'s>> {
        let area = SVGBackend::with_string(svg, PLOT_SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let title = format!("Heat index of {} and its rolling mean of {window}", self.city);
        match self.greatest_correction() {
            None => self.draw_panel(&area, &title, &all, false)?,
            Some(at) => {
                let (upper, lower) = area.split_vertically(PLOT_SIZE.1 / 2);
                self.draw_panel(&upper, &title, &all, false)?;
                let around = window.millis().clamp(3_600_000, 7 * 86_400_000) * 2;
                let near = (at - around).max(all.start)..(at + around).min(all.end).max(all.start + 1);
                self.draw_panel(&lower, "What corrections changed, where they changed most", &near, true)?;
            }
        }
        area.present()
    }

    /// The time of the greatest change of the rolling mean; for a withdrawn row, its heat index
    /// counts as the change.
    fn greatest_correction(&self) -> Option<i64> {
        let by = |(at, first): &(&i64, &Row)| {
            let now = self.rows.binary_search_by_key(*at, |row| row.reading_at.millis());
            now.map_or(f64::INFINITY, |now| {
                (self.rows[now].heat_index.fahrenheit() - first.heat_index().fahrenheit()).abs()
            })
        };
        self.corrected.iter().max_by(|a, b| by(a).total_cmp(&by(b))).map(|(at, _)| *at)
    }

    fn draw_panel<'s>(
        &self,
        area: &Drawing<'s>,
        title: &str,
        x: &Range<i64>,
        legend: bool,
    ) -> Result<(), DrawError<'s>> {
        let unit = self.unit;
        let shown_rows: Vec<&ResultRow> =
            self.rows.iter().filter(|row| (x.start..=x.end).contains(&row.reading_at.millis())).collect();
        let firsts: Vec<(i64, Row)> =
            self.corrected.range(x.start..=x.end).map(|(at, row)| (*at, *row)).collect();
        let values = shown_rows
            .iter()
            .map(|row| unit.heat_index(row.heat_index))
            .chain(firsts.iter().filter(|_| legend).map(|(_, row)| unit.heat_index(row.heat_index())));
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        let (low, high) = if low <= high { (low, high) } else { (0.0, 0.0) };
        let margin = ((high - low) * 0.05).max(1.0);
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 18).into_font().color(&INK_COLOR))
            .margin(10)
            .x_label_area_size(30)
            .y_label_area_size(55)
            .build_cartesian_2d(x.clone(), low - margin..high + margin)?;
        let days = (x.end - x.start) / 86_400_000;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK_COLOR.mix(0.12))
            .axis_style(INK_COLOR)
            .y_desc(unit.symbol())
            .x_labels(12)
            .x_label_formatter(&|at| axis_label(*at, days))
            .draw()?;
        let heat = shown_rows.iter().map(|row| (row.reading_at.millis(), unit.heat_index(row.heat_index)));
        chart
            .draw_series(LineSeries::new(heat, HEAT_INDEX_COLOR.stroke_width(1)))?
            .label("heat index")
            .legend(legend_key(HEAT_INDEX_COLOR));
        let rolling = shown_rows.iter().map(|row| (row.reading_at.millis(), unit.mean(row.sum, row.count)));
        chart
            .draw_series(LineSeries::new(rolling, ROLLING_COLOR.stroke_width(2)))?
            .label("rolling mean")
            .legend(legend_key(ROLLING_COLOR));
        if legend {
            for run in self.corrected_runs(&firsts) {
                let first = run.iter().map(|(at, row)| (*at, unit.mean(row.sum(), row.count())));
                let line = chart.draw_series(LineSeries::new(first, UNCORRECTED_COLOR.stroke_width(2)))?;
                if run.first() == firsts.first() {
                    line.label("rolling mean before corrections").legend(legend_key(UNCORRECTED_COLOR));
                }
            }
            let readings = firsts.iter().filter(|(at, row)| self.was_reading_corrected(*at, row));
            let crosses = readings.map(|(at, row)| {
                Cross::new((*at, unit.heat_index(row.heat_index())), 5, UNCORRECTED_COLOR.stroke_width(2))
            });
            chart
                .draw_series(crosses)?
                .label("reading before its correction")
                .legend(|(x, y)| Cross::new((x + 10, y), 5, UNCORRECTED_COLOR.stroke_width(2)));
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::LowerRight)
                .background_style(WHITE.mix(0.85))
                .border_style(INK_COLOR.mix(0.3))
                .draw()?;
        }
        Ok(())
    }

    /// The corrected rows in runs: a run ends at a row that no correction changed.
    fn corrected_runs<'r>(&self, firsts: &'r [(i64, Row)]) -> impl Iterator<Item = &'r [(i64, Row)]> {
        let times: Vec<i64> = self.rows.iter().map(|row| row.reading_at.millis()).collect();
        firsts.chunk_by(move |(a, _), (b, _)| {
            let between = times.partition_point(|at| at <= a)..times.partition_point(|at| at < b);
            times[between].is_empty()
        })
    }

    fn was_reading_corrected(&self, at: i64, first: &Row) -> bool {
        let now = self.rows.binary_search_by_key(&at, |row| row.reading_at.millis());
        now.map_or(true, |now| self.rows[now].heat_index != first.heat_index())
    }
}

fn legend_key(color: RGBColor) -> impl Fn((i32, i32)) -> PathElement<(i32, i32)> {
    move |(x, y)| PathElement::new(vec![(x, y), (x + 20, y)], color.stroke_width(2))
}

/// The date, with the time of day if the axis spans only days.
fn axis_label(millis: i64, days: i64) -> String {
    let time = EventTime::from_millis(millis).unwrap_or_default().to_string();
    match days {
        ..=8 => time[5..16].replace('T', " "),
        9..=800 => time[..10].to_string(),
        _ => time[..7].to_string(),
    }
}
