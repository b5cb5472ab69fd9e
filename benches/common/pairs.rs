//! Two builds that are measured in turn, so that what the machine does meanwhile falls on both.

use std::path::PathBuf;

use crate::measure::median;

/// The number of pairs for which [`PairedRatio`] has an interval.
pub const PAIRS: usize = 15;

/// Two builds of the program.
pub struct Builds {
    pub old: PathBuf,
    pub new: PathBuf,
}

impl Builds {
    /// Measures each build `PAIRS` times, in turn: the first of a pair is the second of the next.
    pub fn measure_in_turn<T>(&self, mut measure: impl FnMut(&PathBuf) -> T) -> Vec<(T, T)> {
        let pair = |number| match number % 2 {
            0 => {
                let old = measure(&self.old);
                (old, measure(&self.new))
            }
            _ => {
                let new = measure(&self.new);
                (measure(&self.old), new)
            }
        };
        (0..PAIRS).map(pair).collect()
    }
}

/// A figure of two builds.
pub struct PairedRatio {
    old: f64,
    new: f64,
    /// New by old, of each pair.
    ratios: Vec<f64>,
}

impl PairedRatio {
    pub fn new(pairs: impl Iterator<Item = (f64, f64)>) -> PairedRatio {
        let pairs: Vec<(f64, f64)> = pairs.collect();
        let mut ratios: Vec<f64> = pairs.iter().map(|(old, new)| new / old).collect();
        ratios.sort_by(f64::total_cmp);
        let of = |side: fn(&(f64, f64)) -> f64| median(pairs.iter().map(side).collect());
        PairedRatio { old: of(|pair| pair.0), new: of(|pair| pair.1), ratios }
    }

    /// Medians, and the median of the ratios with its interval of 96.5 % confidence: between the
    /// 4th and the 12th of 15, whatever the distribution is (binomial: 1 - 2 * 576 / 2^15).
    pub fn to_text(&self, unit: &str) -> String {
        let PairedRatio { old, new, ratios } = self;
        assert_eq!(ratios.len(), PAIRS);
        let (low, middle, high) = (ratios[3], ratios[7], ratios[11]);
        format!("old {old:9.3}  new {new:9.3} {unit}   ratio {middle:.3} ({low:.3} to {high:.3})")
    }
}
