//! Statistics of how a source is read: they hint at wrong options even if every record can be read.

use super::{HumidityScale, LocalTimeCounts, ReadOptions};
use crate::model::{LocalTimePolicy, Upsert};

/// Counts over all records of a source so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadStatistics {
    pub humidities: HumidityCounts,
    pub local_times: LocalTimeCounts,
}

/// The number of humidities, and of those of at most 1 %, which hardly occur outdoors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HumidityCounts {
    readings: u64,
    low: u64,
}

impl HumidityCounts {
    #[inline]
    pub fn count_reading(&mut self, upsert: &Upsert<'_>) {
        if let Some(measurement) = upsert.event.measurement() {
            self.readings += 1;
            self.low += u64::from(measurement.humidity() <= 1.0);
        }
    }

    /// Whether nearly all humidities are that low, so that they are hardly percents.
    pub fn look_like_fractions(&self) -> bool {
        self.readings > 0 && self.low * 20 >= self.readings * 19
    }
}

impl ReadStatistics {
    /// What may be wrong with the options, for a person.
    pub fn warnings(&self, options: &ReadOptions) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.humidities.look_like_fractions() && options.settings.humidity == HumidityScale::Percent {
            let warning = "nearly all humidities are at most 1 %: if they are shares of 1, say so \
                           (--humidity fraction, humidity = \"fraction\")";
            warnings.push(warning.to_owned());
        }
        let LocalTimeCounts { ambiguous, skipped } = self.local_times;
        if let LocalTimePolicy::Zone(zone) = options.settings.local_time {
            if ambiguous > 0 {
                warnings.push(format!(
                    "{ambiguous} times were shown twice by the clocks of {zone}: the earlier instant was taken"
                ));
            }
            if skipped > 0 {
                warnings
                    .push(format!("{skipped} times were never shown by the clocks of {zone}, and refused"));
            }
        }
        warnings
    }
}
