//! The note of the last acknowledged batch, kept in the file outside of redb's own pages.
//!
//! redb keeps two commits and starts from the older one when the newer one is incomplete. After a
//! power loss during a commit that is right: the newer commit was not acknowledged. It is wrong when a
//! page of an acknowledged commit is damaged, and redb cannot distinguish the two. So every batch has
//! a number. After a batch is flushed and before it is acknowledged, its number is noted here. If the
//! newest readable batch of a file is older than the note, acknowledged changes are lost.
//!
//! The note is written after the flush, so it is never ahead of the disk. It is flushed with the next
//! batch, and needs no flush of its own. A power loss before that, within a second at most while there
//! are leases, loses the note.
//!
//! The note is in the first page of the file, of which redb uses the first 320 bytes only. It is
//! written to two places in turn, so that a torn write leaves the note before it.

use std::io;
use std::time::Duration;

use lease::Timestamp;
use redb::StorageBackend;
use sha2::{Digest as _, Sha256};

/// The offsets of the two places: in sectors of their own, behind the bytes that redb uses.
const PLACES: [u64; 2] = [1_024, 2_048];

const MAGIC: [u8; 8] = *b"tgm-note";

/// The length of a note: the magic, three numbers, and the first half of their digest.
const BYTES: usize = 48;

/// The note of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Note {
    /// The number of the batch.
    pub(crate) batch: u64,
    /// Store time, as in its stamp.
    pub(crate) time: Timestamp,
    /// The serial number of the next grant, as in its stamp.
    pub(crate) next_serial: u64,
}

impl Note {
    /// Reads the latest note of the file; batch 0 when there is none, as in files of earlier versions.
    pub(crate) fn read(backend: &impl StorageBackend) -> io::Result<Self> {
        let mut latest = Self::default();
        for place in PLACES {
            if backend.len()? < place + BYTES as u64 {
                break;
            }
            let mut bytes = [0; BYTES];
            backend.read(place, &mut bytes)?;
            match Self::from_bytes(&bytes) {
                Some(note) if note.batch > latest.batch => latest = note,
                _ => {}
            }
        }
        Ok(latest)
    }

    /// Writes the note, without a flush.
    pub(crate) fn write(&self, backend: &impl StorageBackend) -> io::Result<()> {
        backend.write(PLACES[(self.batch % 2) as usize], &self.to_bytes())
    }

    /// The store time from `earlier` until this batch.
    pub(crate) fn since(&self, earlier: Timestamp) -> Duration {
        self.time.since(earlier)
    }

    fn to_bytes(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.batch.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.time.as_nanos().to_le_bytes());
        bytes[24..32].copy_from_slice(&self.next_serial.to_le_bytes());
        let digest = Sha256::digest(&bytes[..32]);
        bytes[32..].copy_from_slice(&digest[..16]);
        bytes
    }

    /// `None` for bytes that are no complete note.
    fn from_bytes(bytes: &[u8; BYTES]) -> Option<Self> {
        let number = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let note = Self {
            batch: number(8)?,
            time: Timestamp::from_nanos(number(16)?),
            next_serial: number(24)?,
        };
        (note.to_bytes() == *bytes).then_some(note)
    }
}

#[cfg(test)]
mod tests {
    use redb::backends::InMemoryBackend;

    use super::*;

    fn note(batch: u64) -> Note {
        Note { batch, time: Timestamp::from_nanos(batch * 7), next_serial: batch * 3 }
    }

    #[test]
    fn the_latest_note_is_read_and_one_that_is_torn_leaves_the_one_before() {
        let backend = InMemoryBackend::new();
        assert_eq!(Note::read(&backend).unwrap(), Note::default());
        backend.set_len(4_096).unwrap();
        assert_eq!(Note::read(&backend).unwrap(), Note::default());
        for batch in 1..=5 {
            note(batch).write(&backend).unwrap();
            assert_eq!(Note::read(&backend).unwrap(), note(batch));
        }
        for place in 0..BYTES as u64 {
            let mut byte = [0];
            backend.read(PLACES[1] + place, &mut byte).unwrap();
            backend.write(PLACES[1] + place, &[byte[0] ^ 1]).unwrap();
            assert_eq!(Note::read(&backend).unwrap(), note(4), "byte {place}");
            backend.write(PLACES[1] + place, &byte).unwrap();
        }
        assert_eq!(Note::read(&backend).unwrap(), note(5));
    }
}
