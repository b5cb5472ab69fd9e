//! Heat indexes and their categories, as integers that can be stored, compared and added.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A heat index in units of 1e-6 °F: an integer, so that sums cancel exactly in any order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HeatIndex(i64);

impl HeatIndex {
    /// The least and the greatest heat index of accepted input, rounded outwards: by every formula
    /// an accepted reading lies between -425 and 3,596 °F.
    pub const MIN: HeatIndex = HeatIndex(-425_000_000);
    /// The highest heat index, 3,600 °F: more than any formula gives in the accepted ranges.
    pub const MAX: HeatIndex = HeatIndex(3_600_000_000);

    /// The heat index nearest to `fahrenheit` °F, ties to even.
    pub fn from_fahrenheit(fahrenheit: f64) -> HeatIndex {
        HeatIndex((fahrenheit * 1e6).round_ties_even() as i64)
    }

    /// A heat index in units of 1e-6 °F.
    pub const fn from_micros(micros: i64) -> HeatIndex {
        HeatIndex(micros)
    }

    /// The heat index in units of 1e-6 °F.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// The distance from [`HeatIndex::MIN`] in 1e-6 °F, which fits 32 bits and sorts as the heat
    /// index does.
    #[inline(always)]
    pub const fn to_compact(self) -> u32 {
        (self.0 - Self::MIN.0) as u32
    }

    /// The heat index that [`HeatIndex::to_compact`] has packed.
    #[inline(always)]
    pub const fn from_compact(compact: u32) -> HeatIndex {
        HeatIndex(compact as i64 + Self::MIN.0)
    }

    /// The f64 nearest to the heat index, °F.
    pub fn fahrenheit(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

// Every distance from `MIN` fits 32 bits, as `to_compact` says.
const _: () = assert!(HeatIndex::MAX.0 - HeatIndex::MIN.0 <= u32::MAX as i64);

/// The mean in °F of `count` heat indexes that add up to `sum` micro-degrees: the f64 nearest to
/// `sum / (count * 1e6)`.
pub fn mean_fahrenheit(sum: i64, count: u32) -> f64 {
    nearest_quotient(sum.into(), u128::from(count) * 1_000_000)
}

/// The f64 nearest to `numerator / divisor`, ties to even: rounded once, however large they are.
/// The divisor is at most 2^95.
#[inline]
pub(super) fn nearest_quotient(numerator: i128, divisor: u128) -> f64 {
    const EXACT: u128 = 1 << 53;
    if numerator.unsigned_abs() <= EXACT && divisor <= EXACT {
        // One division of exact operands, each converted to f64 from 64 bits.
        return numerator as i64 as f64 / divisor as u64 as f64;
    }
    let magnitude = long_quotient(numerator.unsigned_abs(), divisor);
    if numerator < 0 { -magnitude } else { magnitude }
}

/// Long division, 32 bits a step, until the quotient has 64 bits or the remainder is 0. A remainder
/// sets the last bit, which then decides ties.
fn long_quotient(numerator: u128, divisor: u128) -> f64 {
    const STEP: u32 = 32;
    let (mut quotient, mut rest) = (numerator / divisor, numerator % divisor);
    let mut shift = 0;
    while quotient < 1 << 64 && rest > 0 {
        rest <<= STEP;
        quotient = (quotient << STEP) | (rest / divisor);
        rest %= divisor;
        shift += STEP;
    }
    (quotient | u128::from(rest != 0)) as f64 / 2f64.powi(shift as i32)
}

/// The danger category of a heat index, by the thresholds of the US National Weather Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Category {
    /// Below 80 °F.
    #[serde(rename = "none")]
    None,
    /// From 80 °F.
    #[serde(rename = "caution")]
    Caution,
    /// From 90 °F.
    #[serde(rename = "extreme_caution")]
    ExtremeCaution,
    /// From 103 °F.
    #[serde(rename = "danger")]
    Danger,
    /// From 125 °F.
    #[serde(rename = "extreme_danger")]
    ExtremeDanger,
}

impl Category {
    /// All categories, the mildest first.
    pub const ALL: [Category; 5] = [
        Category::None,
        Category::Caution,
        Category::ExtremeCaution,
        Category::Danger,
        Category::ExtremeDanger,
    ];

    /// The category of a heat index, whichever formula computed it.
    pub fn of(heat_index: HeatIndex) -> Category {
        match heat_index.0 {
            125_000_000.. => Category::ExtremeDanger,
            103_000_000..125_000_000 => Category::Danger,
            90_000_000..103_000_000 => Category::ExtremeCaution,
            80_000_000..90_000_000 => Category::Caution,
            _ => Category::None,
        }
    }

    /// The name in results and queries.
    pub fn name(self) -> &'static str {
        ["none", "caution", "extreme_caution", "danger", "extreme_danger"][self as usize]
    }
}

/// The heat index of a reading and its category, in 8 bytes, also in an `Option`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeldHeat {
    compact: u32,
    category: Category,
}

impl HeldHeat {
    /// The heat index of a reading, and the category that its formula says.
    #[inline(always)]
    pub fn new(heat_index: HeatIndex, category: Category) -> HeldHeat {
        HeldHeat { compact: heat_index.to_compact(), category }
    }

    /// The heat index of the reading.
    #[inline(always)]
    pub fn heat_index(self) -> HeatIndex {
        HeatIndex::from_compact(self.compact)
    }

    /// The category of the reading.
    #[inline(always)]
    pub fn category(self) -> Category {
        self.category
    }
}

impl fmt::Debug for HeldHeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldHeat")
            .field("heat_index", &self.heat_index())
            .field("category", &self.category)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_heat_takes_8_bytes() {
        assert_eq!((size_of::<HeldHeat>(), size_of::<Option<HeldHeat>>()), (8, 8));
        for heat_index in [HeatIndex::MIN, HeatIndex::default(), HeatIndex::MAX] {
            let held = HeldHeat::new(heat_index, Category::Danger);
            assert_eq!((held.heat_index(), held.category()), (heat_index, Category::Danger));
        }
    }

    #[test]
    fn categories_include_lower_threshold() {
        for (micros, category) in [
            (79_999_999, Category::None),
            (80_000_000, Category::Caution),
            (90_000_000, Category::ExtremeCaution),
            (103_000_000, Category::Danger),
            (124_999_999, Category::Danger),
            (125_000_000, Category::ExtremeDanger),
        ] {
            assert_eq!(Category::of(HeatIndex(micros)), category);
        }
    }

    #[test]
    fn quotients_of_any_size_are_rounded_once() {
        for (sum, count) in
            [(1 << 53, 7), (-(1 << 53), 3), ((1 << 53) - 1, 86_400), (9_000_000_000_000_001, u32::MAX)]
        {
            let narrow = mean_fahrenheit(sum, count);
            let wide = long_quotient(u128::from(sum.unsigned_abs()), u128::from(count) * 1_000_000);
            assert_eq!(narrow.abs(), wide, "{sum} / {count}");
        }
        assert_eq!(mean_fahrenheit(i64::MAX, 1 << 31), i64::MAX as f64 / (2f64.powi(31) * 1e6));
        // What breaks a tie between two doubles is far to the right.
        let tie = (1i128 << 53) + 1;
        assert_eq!(nearest_quotient(tie, 1), (1i64 << 53) as f64);
        assert_eq!(nearest_quotient(tie << 20, 1 << 20), (1i64 << 53) as f64);
        assert_eq!(nearest_quotient((tie << 20) + 1, 1 << 20), ((1i64 << 53) + 2) as f64);
        assert_eq!(nearest_quotient(-((tie << 20) + 1), 1 << 20), -((1i64 << 53) + 2) as f64);
        assert_eq!(nearest_quotient(1, 1 << 90), 2f64.powi(-90));
        assert_eq!(nearest_quotient(0, 1 << 90).to_bits(), 0.0f64.to_bits());
    }
}
