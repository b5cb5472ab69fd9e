//! Limits, errors, close codes and heartbeats.
