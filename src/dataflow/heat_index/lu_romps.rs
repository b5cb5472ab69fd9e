//! The heat index of Lu and Romps, computed from tables that are filled from its definition.
//!
//! The definition solves two equations. The first gives the state of a body in the air of the
//! reading: the resistance of its skin to the flow of heat that keeps the core at 310 K or, if even
//! no resistance is too much, the rate at which the body gains heat. The second gives the
//! temperature of reference air in which the body is in the same state. The state is one number, so
//! the second equation is two curves, which are tabulated. So is the first equation if sweat drips;
//! if sweat evaporates, Newton's method solves it.

use std::sync::LazyLock;

use libm::{exp, log};

/// Core temperature, K.
const CORE_TEMPERATURE: f64 = 310.0;
/// Triple point of water, K, and its pressure, Pa.
const TRIPLE_POINT: f64 = 273.16;
const TRIPLE_PRESSURE: f64 = 611.65;
/// Gas constants of dry air and water vapour, and heat capacities of vapour (at constant volume and
/// pressure), liquid water, ice and air (at constant pressure), J/kg/K.
const GAS_AIR: f64 = 287.04;
const GAS_VAPOUR: f64 = 461.0;
const VAPOUR_CV: f64 = 1418.0;
const VAPOUR_CP: f64 = 1879.0;
const WATER_C: f64 = 4119.0;
const ICE_C: f64 = 1861.0;
const AIR_CP: f64 = 719.0 + GAS_AIR;
/// Differences of specific internal energy at the triple point, vapour over water and water over
/// ice, J/kg.
const VAPORIZATION: f64 = 2.3740e6;
const FUSION: f64 = 0.3337e6;
/// Latent heat of vaporization at the core temperature, J/kg, rounded as in the form of 2025.
const LATENT_HEAT: f64 = 2_417_405.2;
/// Pressure of the air, and the highest vapour pressure of reference air, Pa.
const AIR_PRESSURE: f64 = 1.013e5;
const REFERENCE_VAPOUR: f64 = 1600.0;
/// Metabolic rate, W/m², and the mass of air breathed for it, kg/J.
const METABOLISM: f64 = 180.0;
const BREATH: f64 = 1.43e-6;
/// Heat lost by breathing, W/m²: for each K and for each Pa by which the air is below the core.
const BREATH_PER_K: f64 = BREATH * METABOLISM * AIR_CP;
const BREATH_PER_PA: f64 = BREATH * METABOLISM * LATENT_HEAT * GAS_AIR / (AIR_PRESSURE * GAS_VAPOUR);
/// Heat transfer from bare skin to the air: convection, W/m²/K, radiation, W/m²/K⁴, and the
/// resistance of the air to vapour, Pa m²/W.
const CONVECTION: f64 = 12.3;
const RADIATION: f64 = 0.97 * 0.80 * 5.67e-8;
const AIR_RESISTANCE: f64 = 60.6 / CONVECTION;
/// The skin's resistance to vapour is this times the fifth power of its resistance to heat.
const SKIN_VAPOUR: f64 = 6e8;
/// The vapour pressure of sweat relative to pure water, and that of the core, Pa (a test computes
/// it).
const SWEAT_VAPOUR_RATIO: f64 = 0.9;
const CORE_VAPOUR: f64 = 5612.299124343398;

/// The range of air temperatures for which readings and reference air are tabulated, K: the
/// accepted range with a margin.
const MIN_AIR_TEMPERATURE: f64 = 183.0;
const MAX_AIR_TEMPERATURE: f64 = 333.5;
/// Dripping skin is warmer than this, K (by more than a degree for accepted readings and their
/// reference air).
const DRIPPING_SKIN_MIN: f64 = 303.0;
/// No accepted reading makes a body gain more heat than this, W/m².
const MAX_GAIN: f64 = 3600.0;

/// The heat index of Lu and Romps, in °F, for `t` in °F (-130 to 140) and `rh` in % (0 to 100; over
/// ice below the triple point): the model of "Extending the heat index" (Lu and Romps 2022,
/// doi:10.1175/jamc-d-22-0021.1) in its authors' simpler form of 2025, which omits clothing. Within
/// 1e-6 °F of that definition.
pub fn lu_romps(t: f64, rh: f64) -> f64 {
    let tables = &*TABLES;
    let (temperature, humidity) = ((t - 32.0) / 1.8 + 273.15, rh / 100.0);
    let air = Air::new(temperature, humidity * saturation(temperature));
    let gain = air.gain();
    let reference = if gain < 0.0 {
        tables.of_resistance.at((CORE_TEMPERATURE - tables.skin(&air, humidity)) / air.heat)
    } else {
        tables.of_gain.at(gain)
    };
    (reference - 273.15) * 1.8 + 32.0
}

/// Saturation vapour pressure, Pa, at `t` K: over ice below the triple point.
fn saturation(t: f64) -> f64 {
    let (heat_capacity, internal_energy) =
        if t >= TRIPLE_POINT { (WATER_C, VAPORIZATION) } else { (ICE_C, VAPORIZATION + FUSION) };
    let power = (VAPOUR_CP - heat_capacity) / GAS_VAPOUR;
    let decay = (internal_energy - (VAPOUR_CV - heat_capacity) * TRIPLE_POINT) / GAS_VAPOUR;
    TRIPLE_PRESSURE * exp(power * log(t / TRIPLE_POINT) + decay * (1.0 / TRIPLE_POINT - 1.0 / t))
}

/// The air around a body.
struct Air {
    /// K.
    temperature: f64,
    /// Vapour pressure, Pa.
    vapour: f64,
    /// The heat that the body must lose through its skin, W/m².
    heat: f64,
}

impl Air {
    fn new(temperature: f64, vapour: f64) -> Air {
        let breath = BREATH_PER_K * (CORE_TEMPERATURE - temperature) + BREATH_PER_PA * (CORE_VAPOUR - vapour);
        Air { temperature, vapour, heat: METABOLISM - breath }
    }

    /// The reference air of heat indexes at `temperature` K.
    fn reference(temperature: f64) -> Air {
        Air::new(temperature, saturation(temperature).min(REFERENCE_VAPOUR))
    }

    /// Heat gained by a body whose skin has no resistance, W/m².
    fn gain(&self) -> f64 {
        self.heat - self.dry_loss(CORE_TEMPERATURE) - (CORE_VAPOUR - self.vapour) / AIR_RESISTANCE
    }

    /// Heat lost by skin of `skin` K, except by sweating, W/m².
    fn dry_loss(&self, skin: f64) -> f64 {
        let t = self.temperature;
        (skin - t) * (CONVECTION + RADIATION * (skin * skin + t * t) * (skin + t))
    }

    /// Heat lost by sweat that evaporates from skin of `skin` K, W/m², and its derivative by
    /// `skin`.
    fn evaporation(&self, skin: f64) -> (f64, f64) {
        let resistance = (CORE_TEMPERATURE - skin) / self.heat;
        let fourth = SKIN_VAPOUR * (resistance * resistance) * (resistance * resistance);
        let total = fourth * resistance + AIR_RESISTANCE;
        let loss = (CORE_VAPOUR - self.vapour) / total;
        (loss, loss * 5.0 * fourth / (total * self.heat))
    }

    /// Heat lost by skin of `skin` K that drips with sweat, W/m².
    fn dripping(&self, skin: f64) -> f64 {
        (SWEAT_VAPOUR_RATIO * saturation(skin) - self.vapour) / AIR_RESISTANCE
    }

    /// The temperature of skin that does not drip, K.
    fn dry_skin(&self) -> f64 {
        bisect_root(0.0, CORE_TEMPERATURE, |skin| self.dry_loss(skin) + self.evaporation(skin).0 - self.heat)
    }

    /// The resistance of the skin to heat, K m²/W.
    fn resistance(&self) -> f64 {
        let loss = |skin| self.dry_loss(skin) + self.evaporation(skin).0.min(self.dripping(skin));
        (CORE_TEMPERATURE - bisect_root(100.0, CORE_TEMPERATURE, |skin| loss(skin) - self.heat)) / self.heat
    }
}

/// The part of the heat loss of dripping skin of `skin` K that does not depend on the air, W/m².
fn dripping_loss(skin: f64) -> f64 {
    let square = skin * skin;
    CONVECTION * skin + RADIATION * square * square + SWEAT_VAPOUR_RATIO / AIR_RESISTANCE * saturation(skin)
}

/// The temperature of the reference air, K, in which skin has this resistance.
fn reference_of_resistance(resistance: f64) -> f64 {
    bisect_root(MIN_AIR_TEMPERATURE - 5.0, 346.0, |t| {
        let air = Air::reference(t);
        let skin = CORE_TEMPERATURE - resistance * air.heat;
        air.heat - air.dry_loss(skin) - air.evaporation(skin).0.min(air.dripping(skin))
    })
}

/// The temperature of the reference air, K, in which a body whose skin has no resistance gains this
/// heat.
fn reference_of_gain(gain: f64) -> f64 {
    bisect_root(340.0, 1000.0, |t| Air::reference(t).gain() - gain)
}

/// The root of `f`, which is increasing, between `low` and `high`: bisected until no number lies
/// between them.
fn bisect_root(mut low: f64, mut high: f64, f: impl Fn(f64) -> f64) -> f64 {
    loop {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            return low;
        }
        if f(middle) > 0.0 {
            high = middle;
        } else {
            low = middle;
        }
    }
}

static TABLES: LazyLock<Tables> = LazyLock::new(Tables::new);

struct Tables {
    /// Temperature of dripping skin by [`dripping_loss`].
    dripping_skin: Curve<1>,
    /// The lowest [`dripping_loss`] in `dripping_skin`.
    dripping_from: f64,
    /// Approximate temperature of dry skin by the temperature and the relative humidity of the air.
    dry_skin: Vec<[f64; HUMIDITIES + 1]>,
    of_resistance: Curve<5>,
    of_gain: Curve<1>,
}

/// The grid of `Tables::dry_skin`: steps for each K, and steps from dry to saturated.
const PER_K: f64 = 0.5;
const HUMIDITIES: usize = 16;

impl Tables {
    fn new() -> Tables {
        let [from, to] = [DRIPPING_SKIN_MIN, CORE_TEMPERATURE].map(dripping_loss);
        let temperatures = ((MAX_AIR_TEMPERATURE - MIN_AIR_TEMPERATURE) * PER_K) as usize + 1;
        let dry_skin = (0..=temperatures).map(|i| {
            let temperature = MIN_AIR_TEMPERATURE + i as f64 / PER_K;
            std::array::from_fn(|j| {
                let vapour = j as f64 / HUMIDITIES as f64 * saturation(temperature);
                Air::new(temperature, vapour).dry_skin()
            })
        });
        // The curve has kinks at the temperatures where reference skin begins to drip, vapour stops
        // rising, and ice melts. The bend at 300 K is smooth, but tight.
        let drips = bisect_root(320.0, 340.0, |t| {
            let air = Air::reference(t);
            let skin = CORE_TEMPERATURE - air.resistance() * air.heat;
            air.evaporation(skin).0 - air.dripping(skin)
        });
        let saturates = bisect_root(280.0, 300.0, |t| saturation(t) - REFERENCE_VAPOUR);
        let [drips, bends, saturates, melts, coldest] =
            [drips, 300.0, saturates, TRIPLE_POINT, MIN_AIR_TEMPERATURE - 2.0]
                .map(|t| Air::reference(t).resistance());
        let of_resistance = [(drips, 16), (bends, 32), (saturates, 64), (melts, 16), (coldest, 32)];
        Tables {
            dripping_skin: Curve::fill(from, [(to, 32)], |loss| {
                bisect_root(DRIPPING_SKIN_MIN - 1.0, CORE_TEMPERATURE + 1.0, |skin| {
                    dripping_loss(skin) - loss
                })
            }),
            dripping_from: from,
            dry_skin: dry_skin.collect(),
            of_resistance: Curve::fill(0.0, of_resistance, reference_of_resistance),
            of_gain: Curve::fill(0.0, [(MAX_GAIN, 32)], reference_of_gain),
        }
    }

    /// Skin temperature, K, of a body that would lose too much heat if its skin had no resistance.
    fn skin(&self, air: &Air, humidity: f64) -> f64 {
        let t = air.temperature;
        let loss = air.heat + CONVECTION * t + RADIATION * (t * t) * (t * t) + air.vapour / AIR_RESISTANCE;
        // Both losses by sweat rise with the skin temperature, so the smaller one gives the warmer
        // skin.
        if loss > self.dripping_from {
            let skin = self.dripping_skin.at(loss);
            if air.evaporation(skin).0 >= air.heat - air.dry_loss(skin) {
                return skin;
            }
        }
        let mut skin = self.nearly_dry_skin(t, humidity);
        for _ in 0..3 {
            let (evaporation, rise) = air.evaporation(skin);
            let excess = air.dry_loss(skin) + evaporation - air.heat;
            skin -= excess / (CONVECTION + 4.0 * RADIATION * (skin * skin) * skin + rise);
        }
        skin
    }

    fn nearly_dry_skin(&self, temperature: f64, humidity: f64) -> f64 {
        let (i, x) = split((temperature - MIN_AIR_TEMPERATURE) * PER_K, self.dry_skin.len() - 1);
        let (j, y) = split(humidity * HUMIDITIES as f64, HUMIDITIES);
        let along = |row: &[f64; HUMIDITIES + 1]| row[j] + y * (row[j + 1] - row[j]);
        let (low, high) = (along(&self.dry_skin[i]), along(&self.dry_skin[i + 1]));
        low + x * (high - low)
    }
}

/// The step in which `x` lies, of `count` steps of length 1 from 0, and the position in the step.
fn split(x: f64, count: usize) -> (usize, f64) {
    let step = (x as usize).min(count - 1);
    (step, x - step as f64)
}

/// A function in `N` smooth stretches, each approximated by polynomials on pieces of equal length.
struct Curve<const N: usize> {
    stretches: [Stretch; N],
}

struct Stretch {
    start: f64,
    end: f64,
    pieces_per_unit: f64,
    pieces: Vec<[f64; NODES.len()]>,
}

/// The points of a piece, from 0 to 1, at which its polynomial is exact: the extrema of a Chebyshev
/// polynomial, with both ends.
const NODES: [f64; 6] = [
    0.0,
    1.0,
    0.345_491_502_812_526_3,
    0.904_508_497_187_473_7,
    0.095_491_502_812_526_3,
    0.654_508_497_187_473_7,
];

impl<const N: usize> Curve<N> {
    /// Approximates `f` from `start` on. Each stretch has an end and a number of pieces.
    fn fill(mut start: f64, stretches: [(f64, usize); N], f: impl Fn(f64) -> f64) -> Curve<N> {
        let stretches = stretches.map(|(end, count)| {
            let length = (end - start) / count as f64;
            let piece = |i| {
                let mut coefficients = NODES.map(|node| f(start + (i as f64 + node) * length));
                for order in 1..NODES.len() {
                    for k in (order..NODES.len()).rev() {
                        coefficients[k] =
                            (coefficients[k] - coefficients[k - 1]) / (NODES[k] - NODES[k - order]);
                    }
                }
                coefficients
            };
            let pieces = (0..count).map(piece).collect();
            Stretch { start: std::mem::replace(&mut start, end), end, pieces_per_unit: 1.0 / length, pieces }
        });
        Curve { stretches }
    }

    fn at(&self, x: f64) -> f64 {
        let stretch = &self.stretches[self.stretches[..N - 1].iter().filter(|s| x >= s.end).count()];
        let (i, u) = split((x - stretch.start) * stretch.pieces_per_unit, stretch.pieces.len());
        // Newton's form: the coefficients are divided differences.
        let [c0, c1, c2, c3, c4, c5] = stretch.pieces[i];
        let [n0, n1, n2, n3, n4, _] = NODES;
        let inner = c3 + (u - n3) * (c4 + (u - n4) * c5);
        c0 + (u - n0) * (c1 + (u - n1) * (c2 + (u - n2) * inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_vapour_pressure_matches_definition() {
        assert!((SWEAT_VAPOUR_RATIO * saturation(CORE_TEMPERATURE) - CORE_VAPOUR).abs() < 1e-11);
    }
}
