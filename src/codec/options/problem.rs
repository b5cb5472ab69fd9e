//! A refused option.

/// An option that cannot be applied, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionProblem {
    /// The key in a configuration; on a command line with `-` for `_`.
    pub key: &'static str,
    pub problem: String,
}
