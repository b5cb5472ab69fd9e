//! Where logs come from.

pub mod file;
pub mod generator;
pub mod weather;
