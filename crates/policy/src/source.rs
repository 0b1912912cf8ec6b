//! The source of a number of the policy.

/// The source of a limit, or of being disabled. The first source that has a value wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// An operator set it through the API.
    Override,
    /// The organization's or API key's own entry in the policy file.
    Own,
    /// The organization's plan.
    Plan,
    /// The entry of the service.
    Service,
    /// The entry `default`, for a service without one of its own.
    Default,
    /// No source has a value.
    Nothing,
}

impl Source {
    /// The source in words, as in `40 by its own entry`.
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Override => "an override",
            Self::Own => "its own entry",
            Self::Plan => "its plan",
            Self::Service => "the service",
            Self::Default => "the default service",
            Self::Nothing => "nothing",
        }
    }
}
