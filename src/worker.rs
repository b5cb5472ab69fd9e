//! One worker's loop: poll, advance, step, emit.
