//! What is configured: from the shipped defaults, a file, the environment and flags.
