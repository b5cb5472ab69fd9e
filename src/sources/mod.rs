//! Where logs come from.

pub mod file;
