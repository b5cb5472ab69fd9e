//! Heat indexes of single readings: pure functions, and the choice between them.
//!
//! Only `+ - * /`, square roots and the `libm` crate are used, in a fixed order of evaluation, so
//! that every host computes the same bits.

mod lu_romps;

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::model::{Category, HeatIndex, Measurement};

pub use lu_romps::lu_romps;

/// The formula of heat indexes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
pub enum Formula {
    /// The plain regression of Rothfusz at any temperature and humidity, for comparison with
    /// programs that use it; it has no meaning in mild, cold or dry air
    #[serde(rename = "rothfusz")]
    #[value(name = "rothfusz")]
    Rothfusz,
    /// The US National Weather Service's, as its calculator computes it: the regression with its
    /// adjustments, a simpler formula in mild air, and the temperature itself in cold air
    #[default]
    #[serde(rename = "nws")]
    #[value(name = "nws")]
    Nws,
    /// The physiological heat index of Lu and Romps, defined at any temperature and humidity
    #[serde(rename = "lu-romps")]
    #[value(name = "lu-romps")]
    LuRomps,
}

impl Formula {
    /// The heat index of a reading, and its category. The category is that of the National Weather
    /// Service's heat index except with [`Formula::LuRomps`]: the bare regression means nothing in
    /// mild or dry air. Humidities above 100 % count as 100 %.
    #[inline]
    pub fn evaluate(self, measurement: &Measurement) -> (HeatIndex, Category) {
        let (t, rh) = (measurement.temperature(), measurement.humidity().min(100.0));
        match self {
            Formula::Rothfusz => {
                let regression = rothfusz(t, rh);
                let official = HeatIndex::from_fahrenheit(nws_given(t, rh, || regression));
                (HeatIndex::from_fahrenheit(regression), Category::of(official))
            }
            Formula::Nws => with_category(nws(t, rh)),
            Formula::LuRomps => with_category(lu_romps(t, rh)),
        }
    }

    /// Whether the formula was made for readings like this one: plain `rothfusz` is not below
    /// `ROTHFUSZ_MIN_FAHRENHEIT`.
    #[inline]
    pub fn is_made_for(self, measurement: &Measurement) -> bool {
        self != Formula::Rothfusz || measurement.temperature() >= ROTHFUSZ_MIN_FAHRENHEIT
    }

    /// The warning, to be logged once, if a log has a reading which the formula was not made for.
    #[cold]
    pub fn warning(self, measurement: &Measurement) -> String {
        let (heat_index, _) = self.evaluate(measurement);
        format!(
            "the formula {self} is not made for readings below {ROTHFUSZ_MIN_FAHRENHEIT} °F, and there are some: of {:?} °F and \
             {:?} % it says {:.1} °F. Take nws or lu-romps, unless parity with the plain regression is what you need \
             (www.wpc.ncep.noaa.gov/html/heatindex_equation.shtml)",
            measurement.temperature(),
            measurement.humidity(),
            heat_index.fahrenheit(),
        )
    }

    /// The category that [`Formula::evaluate`] returns, from a known heat index.
    pub fn category_of(self, heat_index: HeatIndex, measurement: &Measurement) -> Category {
        match self {
            Formula::Rothfusz => Formula::Nws.evaluate(measurement).1,
            Formula::Nws | Formula::LuRomps => Category::of(heat_index),
        }
    }

    /// The name in the configuration and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Formula::Rothfusz => "rothfusz",
            Formula::Nws => "nws",
            Formula::LuRomps => "lu-romps",
        }
    }
}

impl fmt::Display for Formula {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

fn with_category(fahrenheit: f64) -> (HeatIndex, Category) {
    let heat_index = HeatIndex::from_fahrenheit(fahrenheit);
    (heat_index, Category::of(heat_index))
}

/// °F: "the Rothfusz regression is not appropriate when conditions of temperature and humidity
/// warrant a heat index value below about 80 degrees F"
/// (<https://www.wpc.ncep.noaa.gov/html/heatindex_equation.shtml>).
pub const ROTHFUSZ_MIN_FAHRENHEIT: f64 = 80.0;

/// The regression of L. P. Rothfusz (National Weather Service technical attachment SR 90-23, 1990),
/// in °F, for `t` in °F and `rh` in % (0 to 100). It was fitted to heat indexes from about 80 °F
/// upwards, and is evaluated at any temperature here.
#[inline]
pub fn rothfusz(t: f64, rh: f64) -> f64 {
    // Whole degrees and percents often give a result halfway between two micro-degrees, so the
    // order of the terms and of their factors decides the rounding.
    -42.379 + 2.04901523 * t + 10.14333127 * rh
        - 0.22475541 * t * rh
        - 0.00683783 * t * t
        - 0.05481717 * rh * rh
        + 0.00122874 * t * t * rh
        + 0.00085282 * t * rh * rh
        - 0.00000199 * t * t * rh * rh
}

/// The heat index of the US National Weather Service, in °F, for `t` in °F and `rh` in % (0 to
/// 100), as its own calculator computes it (<https://www.wpc.ncep.noaa.gov/html/heatindex.shtml>):
/// the temperature up to 40 °F; a simple formula if that gives at most 79 °F; otherwise the
/// regression with an adjustment for very dry or very humid air.
///
/// Its [description](https://www.wpc.ncep.noaa.gov/html/heatindex_equation.shtml) takes the mean of
/// the simple formula and the temperature, but the formula is that mean already. The result jumps
/// between the cases, as the calculator's does.
#[inline]
pub fn nws(t: f64, rh: f64) -> f64 {
    nws_given(t, rh, || rothfusz(t, rh))
}

#[inline]
fn nws_given(t: f64, rh: f64, regression: impl FnOnce() -> f64) -> f64 {
    if t <= 40.0 {
        return t;
    }
    let simple = 0.5 * (t + (61.0 + (t - 68.0) * 1.2 + rh * 0.094));
    if simple <= 79.0 {
        return simple;
    }
    let regression = regression();
    if rh <= 13.0 && (80.0..=112.0).contains(&t) {
        regression - (13.0 - rh) / 4.0 * ((17.0 - (t - 95.0).abs()) / 17.0).sqrt()
    } else if rh > 85.0 && (80.0..=87.0).contains(&t) {
        regression + (rh - 85.0) / 10.0 * ((87.0 - t) / 5.0)
    } else {
        regression
    }
}
