//! What integration tests share. `tests/README.md` says which test belongs where.

pub mod prepared;
