//! What a lease is and how a borrow asks for one.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq as _;

/// The longest id a request may carry, in bytes.
pub const MAX_ID_BYTES: usize = 256;

/// The longest minimal life a return may ask for; a longer one is clamped to it.
pub const MAX_MINIMAL_LIFE: Duration = Duration::from_secs(600);

/// The longest TTL terms may set; a longer one is clamped to it.
pub const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);

/// A point of store time, in nanoseconds.
///
/// Store time never goes back and says nothing about the wall clock; see [`StoreClock`].
///
/// [`StoreClock`]: crate::StoreClock
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The first point of store time.
    pub const ZERO: Self = Self(0);

    /// The point that lies `nanos` nanoseconds after [`Timestamp::ZERO`].
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since [`Timestamp::ZERO`].
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to `self`; zero when `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    /// The point `duration` later; the end of store time (after 584 years) when that overflows.
    fn add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

/// The key of one lease: where it stands in the table, a serial number and 96 random bits.
///
/// Serial numbers rise for ever, across restarts too, so no key is used twice. The random bits
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

    /// Builds the id of the `serial`-th grant, which stands at `slot`.
    pub const fn new(slot: u32, serial: u64, secret: [u8; 12]) -> Self {
        Self { slot, serial, secret }
    }

    /// The serial number of the grant: names a lease to people without giving its key away.
    pub const fn serial(&self) -> u64 {
        self.serial
    }

    /// Where the lease stands in the table. Leases that live at the same time stand at different
    /// places, and a place is taken again once its lease has ended.
    pub const fn slot(&self) -> u32 {
        self.slot
    }

    /// What names the lease to people without giving its key away.
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

/// Names one lease to people: its serial number and where it stands in the table.
///
/// It is no key: who knows it can find the lease, and neither keep it alive nor return it. A later
/// grant has a higher number. The text form is 24 hex digits.
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

/// What a lease is the right to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// To run one stream.
    Session,
    /// To run one job under a stream.
    Worker,
}

/// One borrow, as it was asked for.
///
/// ```
/// use lease::{Kind, Request};
///
/// let session = Request::session("t1r", "acme").trace("4bf92f3577b34da6a3ce929d0e0e4736");
/// assert_eq!(session.kind(), Kind::Session);
/// assert!(session.validate().is_ok());
/// assert_eq!(Request::session("t1r", "").validate().unwrap_err().field, "organization_id");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The name of the indexer that asks; `None` where no indexer is configured.
    pub indexer: Option<&'a str>,
    /// The service to run, as the policy names it.
    pub service: &'a str,
    /// The organization that pays.
    pub organization: &'a str,
    /// The API key id the stream came with; empty when there is none.
    pub api_key: &'a str,
    /// The trace id that ties workers to their session; empty or all zeros when there is none.
    pub trace: &'a str,
    /// Most workers under the trace at once; 0 makes the borrow a session.
    pub max_workers: i64,
    /// The caller's name for this borrow, if it gave one.
    pub borrow_id: Option<BorrowId>,
}

impl<'a> Request<'a> {
    /// A session of `service` for `organization`, with every optional id left out.
    pub const fn session(service: &'a str, organization: &'a str) -> Self {
        Self {
            indexer: None,
            service,
            organization,
            api_key: "",
            trace: "",
            max_workers: 0,
            borrow_id: None,
        }
    }

    /// A worker under `trace`, of which there may be `max_workers` at once.
    pub const fn worker(
        service: &'a str,
        organization: &'a str,
        trace: &'a str,
        max_workers: i64,
    ) -> Self {
        Self { trace, max_workers, ..Self::session(service, organization) }
    }

    /// The same request under a trace id.
    pub const fn trace(self, trace: &'a str) -> Self {
        Self { trace, ..self }
    }

    /// The same request with an API key id.
    pub const fn api_key(self, api_key: &'a str) -> Self {
        Self { api_key, ..self }
    }

    /// The same request from the indexer called `name`.
    pub const fn indexer(self, name: &'a str) -> Self {
        Self { indexer: Some(name), ..self }
    }

    /// The same request under a borrow id.
    pub const fn borrow_id(self, id: BorrowId) -> Self {
        Self { borrow_id: Some(id), ..self }
    }

    /// Whether a session or a worker is asked for.
    pub const fn kind(&self) -> Kind {
        if self.max_workers > 0 { Kind::Worker } else { Kind::Session }
    }

    /// A number that tells this request from others under the same borrow id.
    ///
    /// It covers every field but the indexer and the borrow id, and is the same on every machine
    /// and in every release, because stores keep it.
    pub fn fingerprint(&self) -> u64 {
        let mut fingerprint = Fingerprint::new();
        for text in [self.service, self.organization, self.api_key, self.trace] {
            fingerprint.text(text);
        }
        fingerprint.bytes(self.max_workers.to_be_bytes());
        fingerprint.finish()
    }

    /// Checks everything that can be checked without the table.
    ///
    /// # Errors
    ///
    /// [`Invalid`] names the field as the wire calls it: `service` or `organization_id` is empty,
    /// an id is longer than [`MAX_ID_BYTES`], or the cap is negative.
    pub fn validate(&self) -> Result<(), Invalid> {
        validate_id("service", self.service, true)?;
        validate_id("organization_id", self.organization, true)?;
        validate_id("api_key_id", self.api_key, false)?;
        validate_id("trace_id", self.trace, false)?;
        if self.max_workers < 0 {
            return Err(Invalid { field: "max_worker_for_trace_id", problem: "is negative" });
        }
        Ok(())
    }
}

/// FNV-1a, whose numbers are the same on every machine and in every release.
#[derive(Debug)]
pub(crate) struct Fingerprint(u64);

impl Fingerprint {
    pub(crate) const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn bytes(&mut self, bytes: impl IntoIterator<Item = u8>) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// Takes in a text and a byte after it that no UTF-8 text contains.
    pub(crate) fn text(&mut self, text: &str) {
        self.bytes(text.bytes().chain([0xff]));
    }

    pub(crate) const fn finish(&self) -> u64 {
        self.0
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

/// What an organization without a name is called where nobody decided otherwise.
pub const ANONYMOUS: &str = "anonymous";

/// The organization that a request counts for: the one it `named` or, where it named none, the `default`.
///
/// # Errors
///
/// [`Invalid`] when there is neither. It names the setting that would help.
///
/// ```
/// use lease::organization_of;
///
/// assert_eq!(organization_of("acme", Some("anonymous")), Ok("acme"));
/// assert_eq!(organization_of("", Some("anonymous")), Ok("anonymous"));
/// let refused = organization_of("", None).unwrap_err();
/// assert_eq!(refused.to_string(), "organization_id is empty, and no default_organization is set");
/// ```
pub fn organization_of<'a>(named: &'a str, default: Option<&'a str>) -> Result<&'a str, Invalid> {
    let problem = "is empty, and no default_organization is set";
    match named {
        "" => default.ok_or(Invalid { field: "organization_id", problem }),
        named => Ok(named),
    }
}

/// A field of a request that cannot be what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct Invalid {
    /// The field, as the wire calls it.
    pub field: &'static str,
    /// What is wrong with it, ready to follow the field's name.
    pub problem: &'static str,
}

/// Why a lease was revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// An operator ended it.
    Operator,
    /// Its organization is disabled.
    OrganizationDisabled,
    /// Its API key is disabled.
    ApiKeyDisabled,
    /// A usage budget of its organization is spent.
    BudgetSpent,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Operator => "revoked by an operator",
            Self::OrganizationDisabled => "the organization is disabled",
            Self::ApiKeyDisabled => "the API key is disabled",
            Self::BudgetSpent => "a usage budget of the organization is spent",
        })
    }
}

/// Everything a store keeps of one lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its key.
    pub id: LeaseId,
    /// Session or worker.
    pub kind: Kind,
    /// The indexer that holds it; `None` for one borrowed while no indexer was configured.
    pub indexer: Option<Box<str>>,
    /// The service it counts against.
    pub service: Box<str>,
    /// The organization it counts against.
    pub organization: Box<str>,
    /// The API key id it counts against; empty when there is none.
    pub api_key: Box<str>,
    /// The trace it runs under; empty when there is none that forms a scope.
    pub trace: Box<str>,
    /// When it was granted, in store time.
    pub granted_at: Timestamp,
    /// How long it lives without a keep-alive, fixed at the grant.
    pub ttl: Duration,
    /// When it ends whatever happens, once it was returned younger than its minimal life.
    pub lingers_until: Option<Timestamp>,
    /// What the borrow was called and asked for, while a retry may still come.
    pub borrowed_as: Option<BorrowedAs>,
}

/// The part of a borrow that only its retries need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BorrowedAs {
    /// The caller's name for the borrow.
    pub id: BorrowId,
    /// [`Request::fingerprint`] of the borrow.
    pub fingerprint: u64,
}
