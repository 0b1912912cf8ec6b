//! The ids of service entries.

/// The id of one service entry of one policy file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(pub(crate) u32);

impl ServiceId {
    /// The position of the entry in [`Policy::services`](crate::Policy::services).
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}
