//! What a server of a fleet knows about who leads, and the secret that its servers share.

use std::fmt;
use std::sync::Arc;

use super::rows::LeaderId;

/// The leader of a fleet, as the last answer of the database showed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The number of its term.
    pub epoch: u64,
    /// The id of its term.
    pub id: LeaderId,
    /// Where the other servers reach it.
    pub address: Arc<str>,
    /// Whether it is this server.
    pub is_self: bool,
}

/// The secret by which the servers of a fleet know each other. It is made with the tables.
#[derive(Clone, Copy)]
pub struct FleetSecret(pub(crate) [u8; 32]);

impl FleetSecret {
    /// The secret as text of 64 hexadecimal digits, for a header of a request.
    pub fn to_text(self) -> String {
        format!("{:032x}{:032x}", half(&self.0[..16]), half(&self.0[16..]))
    }

    /// Returns the secret of this text.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let (high, low) = text.split_at_checked(32)?;
        let half = |text| u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes);
        let bytes = [half(high)?, half(low)?].concat();
        (text.len() == 64).then_some(Self(bytes.try_into().ok()?))
    }
}

fn half(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0, |number, byte| number << 8 | u128::from(*byte))
}

impl fmt::Debug for FleetSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FleetSecret([REDACTED])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_becomes_text_and_comes_back_and_debug_hides_it() {
        let secret = FleetSecret(std::array::from_fn(|place| place as u8 * 7));
        assert_eq!(FleetSecret::from_text(&secret.to_text()).unwrap().0, secret.0);
        assert!(FleetSecret::from_text("0").is_none());
        assert!(FleetSecret::from_text(&"g".repeat(64)).is_none());
        assert_eq!(format!("{secret:?}"), "FleetSecret([REDACTED])");
    }
}
