//! An option that is refused.

/// An option that cannot be applied, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionProblem {
    /// As a key of the configuration; on a command line with `-` for `_`.
    pub key: &'static str,
    pub problem: String,
}
