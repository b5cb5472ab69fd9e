//! Heat index formulas.
