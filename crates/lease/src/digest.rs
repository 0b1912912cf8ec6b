//! Digests of texts, for stores: the same on every machine and in every release.

use std::hash::Hasher as _;

use fnv::FnvHasher;
use sha2::{Digest as _, Sha256};

/// Adds a text to a fingerprint, and a byte after it that no UTF-8 text contains.
///
/// Fingerprints are FNV-1a, whose numbers are the same on every machine and in every release.
pub(crate) fn add_text(fingerprint: &mut FnvHasher, text: &str) {
    fingerprint.write(text.as_bytes());
    fingerprint.write_u8(0xff);
}

/// The digest of the trace of an organization, in 16 bytes: the first half of a SHA-256.
///
/// So every trace takes the same room, however long its ids are, and no caller can find other ids
/// with the same digest. It is the same on every machine and in every release, because stores keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceDigest([u8; 16]);

impl TraceDigest {
    pub(crate) fn of(organization: &str, trace: &str) -> Self {
        // A byte that no UTF-8 text contains keeps the two texts apart.
        let digest = Sha256::new_with_prefix(organization).chain_update([0xff]).chain_update(trace);
        let digest: [u8; 32] = digest.finalize().into();
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        Self(half)
    }

    /// The bytes, for stores.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// Reads what [`TraceDigest::to_bytes`] wrote.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_has_one_digest_for_ever_and_no_other_has_it() {
        let digest = TraceDigest::of("acme", "4bf92f3577b34da6a3ce929d0e0e4736");
        let kept = [
            0xbf, 0xd3, 0x93, 0x51, 0x36, 0x10, 0xff, 0xd3, 0xa8, 0x44, 0xe6, 0x3b, 0x1c, 0xe7,
            0x31, 0x5c,
        ];
        assert_eq!(digest.to_bytes(), kept);
        assert_eq!(TraceDigest::from_bytes(kept), digest);
        assert_ne!(TraceDigest::of("acm", "ee"), TraceDigest::of("acme", "e"));
    }
}
