//! Heat index formulas.
use crate::model::{Category, HeatIndex, Measurement};
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Formula {
    #[default]
    Rothfusz,
    Nws,
    LuRomps,
}
impl Formula {
    pub fn evaluate(self, m: &Measurement) -> (HeatIndex, Category) {
        let (t, r) = (m.temperature(), m.humidity().min(100.0));
        let h = -42.379 + 2.04901523 * t + 10.14333127 * r
            - 0.22475541 * t * r
            - 0.00683783 * t * t
            - 0.05481717 * r * r
            + 0.00122874 * t * t * r
            + 0.00085282 * t * r * r
            - 0.00000199 * t * t * r * r;
        let q = HeatIndex::from_fahrenheit(h);
        (q, Category::of(q))
    }
}
