//! The ids of leases and of borrows, and what an id of a request may be.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq as _;

/// The longest id a request may carry, in bytes.
pub const MAX_ID_BYTES: usize = 256;

/// The key of one lease: its slot in the table, a serial number and 96 random bits.
///
/// Serial numbers always rise, across restarts too, so no key is used twice. The random bits
/// make a key a proof of holding the lease: they are compared in constant time, and `Debug`
/// leaves them out. The wire form, from [`Display`](fmt::Display), is 32 ASCII characters.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId {
    pub(crate) slot: u32,
    pub(crate) serial: u64,
    pub(crate) secret: Secret,
}

/// The random part of a [`LeaseId`].
pub(crate) type Secret = [u8; 12];

impl LeaseId {
    /// The length of the wire form in bytes.
    pub const WIRE_BYTES: usize = 32;

    /// Builds the id of the `serial`-th grant, at `slot`.
    pub const fn new(slot: u32, serial: u64, secret: [u8; 12]) -> Self {
        Self { slot, serial, secret }
    }

    /// The serial number of the grant. It identifies the lease and reveals no key.
    pub const fn serial(&self) -> u64 {
        self.serial
    }

    /// The slot of the lease in the table. Leases that live at the same time have different slots, and
    /// a slot is used again once its lease has ended.
    pub const fn slot(&self) -> u32 {
        self.slot
    }

    /// The number by which operators identify the lease. It reveals no key.
    pub const fn number(&self) -> LeaseNumber {
        LeaseNumber { serial: self.serial, slot: self.slot }
    }

    /// Whether `serial` and `secret` are those of this id, in time that does not depend on where they differ.
    pub(crate) fn proves(&self, serial: u64, secret: &Secret) -> bool {
        // By words: byte by byte, in constant time, takes six times as long.
        let [(a, b), (other_a, other_b)] = [&self.secret, secret].map(words);
        (self.serial.ct_eq(&serial) & a.ct_eq(&other_a) & b.ct_eq(&other_b)).into()
    }

    /// The fixed binary form, for stores.
    pub fn to_bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.serial.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.slot.to_be_bytes());
        bytes[12..].copy_from_slice(&self.secret);
        bytes
    }

    /// Reads what [`LeaseId::to_bytes`] wrote.
    pub fn from_bytes(bytes: [u8; 24]) -> Self {
        let [s0, s1, s2, s3, s4, s5, s6, s7, p0, p1, p2, p3, secret @ ..] = bytes;
        Self {
            serial: u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            slot: u32::from_be_bytes([p0, p1, p2, p3]),
            secret,
        }
    }
}

const fn words(secret: &Secret) -> (u64, u32) {
    let [a, b, c, d, e, f, g, h, rest @ ..] = *secret;
    (u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u32::from_ne_bytes(rest))
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; Self::WIRE_BYTES];
        let written =
            URL_SAFE_NO_PAD.encode_slice(self.to_bytes(), &mut text).map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(&text[..written]).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for LeaseId {
    type Err = NotALeaseId;

    fn from_str(text: &str) -> Result<Self, NotALeaseId> {
        let mut bytes = [0; 24];
        if text.len() != Self::WIRE_BYTES {
            return Err(NotALeaseId);
        }
        URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).map_err(|_| NotALeaseId)?;
        Ok(Self::from_bytes(bytes))
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeaseId(#{})", self.serial)
    }
}

/// The number by which operators identify a lease: its serial number and its slot.
///
/// It is no key: a caller that knows it can find the lease, and can neither keep it alive nor return
/// it. A later grant has a higher number. The text form is 24 hex digits.
///
/// ```
/// use lease::{LeaseId, LeaseNumber};
///
/// let number = LeaseId::new(7, 1_000, [0x5e; 12]).number();
/// assert_eq!(number.to_string(), "00000000000003e800000007");
/// assert_eq!("00000000000003E800000007".parse(), Ok(number));
/// assert!("3e8".parse::<LeaseNumber>().is_err());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseNumber {
    // In the order of grants: the serial number comes first.
    serial: u64,
    pub(crate) slot: u32,
}

impl LeaseNumber {
    /// The length of the text form in bytes.
    pub const TEXT_BYTES: usize = 24;

    /// The serial number of the grant.
    pub const fn serial(&self) -> u64 {
        self.serial
    }
}

impl fmt::Display for LeaseNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:08x}", self.serial, self.slot)
    }
}

impl fmt::Debug for LeaseNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeaseNumber(#{})", self.serial)
    }
}

impl FromStr for LeaseNumber {
    type Err = NotALeaseNumber;

    /// Reads 24 hex digits of either case.
    fn from_str(text: &str) -> Result<Self, NotALeaseNumber> {
        if text.len() != Self::TEXT_BYTES || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NotALeaseNumber);
        }
        let (serial, slot) = text.split_at(16);
        Ok(Self {
            serial: u64::from_str_radix(serial, 16).map_err(|_| NotALeaseNumber)?,
            slot: u32::from_str_radix(slot, 16).map_err(|_| NotALeaseNumber)?,
        })
    }
}

/// A text that is not the number of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the number of a lease: 24 hex digits")]
pub struct NotALeaseNumber;

/// A text that no server of this project gave out as a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a lease key")]
pub struct NotALeaseId;

/// The caller's own name for one borrow, the same through its retries: 128 random bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BorrowId(pub u128);

impl BorrowId {
    /// The higher and the lower half.
    pub const fn halves(self) -> [u64; 2] {
        [(self.0 >> 64) as u64, self.0 as u64]
    }

    /// The id with these halves.
    pub const fn from_halves([high, low]: [u64; 2]) -> Self {
        Self((high as u128) << 64 | low as u128)
    }
}

impl fmt::Display for BorrowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for BorrowId {
    type Err = Invalid;

    /// Reads 32 hex digits of either case.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid = Invalid { field: "x-borrow-id", problem: "is not 32 hex digits" };
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(invalid);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| invalid)
    }
}

/// Checks one id of a request: not longer than [`MAX_ID_BYTES`], and not empty where it is `required`.
///
/// # Errors
///
/// [`Invalid`] with `field`.
pub fn validate_id(field: &'static str, id: &str, required: bool) -> Result<(), Invalid> {
    if required && id.is_empty() {
        return Err(Invalid { field, problem: "is empty" });
    }
    if id.len() > MAX_ID_BYTES {
        return Err(Invalid { field, problem: "is longer than 256 bytes" });
    }
    Ok(())
}

/// An invalid field of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct Invalid {
    /// The field, as the wire calls it.
    pub field: &'static str,
    /// What is wrong with it, ready to follow the field's name.
    pub problem: &'static str,
}
