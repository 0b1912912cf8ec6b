//! A report of usage on its way into the counts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hasher as _;
use std::sync::Arc;

use fnv::FnvHasher;

use crate::budget::BudgetSpent;
use crate::digest::add_text;
use crate::id::{Invalid, validate_id};
use crate::terms::MemoryFull;

/// Most metrics of one event, and of one organization beside those it has budgets of.
pub const MAX_METRICS: usize = 64;

/// Most different metrics of different organizations in one report.
pub const MAX_AMOUNTS: usize = 1 << 18;

/// The amounts of one report: what its events add up to, by organization and metric.
///
/// Their order does not depend on the order of the events. So a report that was interrupted continues
/// where it stopped when it is sent again.
///
/// ```
/// let mut report = lease::Report::builder();
/// report.add("acme", "", &[("egress_bytes", 3.0)]).unwrap();
/// report.add("acme", "", &[("egress_bytes", 4.0), ("processed_blocks", 0.0)]).unwrap();
/// assert!(report.add("acme", "", &[("egress_bytes", f64::NAN)]).is_err());
/// assert_eq!(report.build().len(), 1);
/// ```
#[derive(Clone, Debug)]
pub struct Report {
    amounts: Vec<Amount>,
    fingerprint: u64,
}

/// What one report adds to one metric of one organization.
#[derive(Clone, Debug)]
pub(crate) struct Amount {
    pub(crate) organization: Arc<str>,
    pub(crate) metric: Arc<str>,
    pub(crate) value: f64,
    /// How many events it comes from.
    pub(crate) events: u32,
}

impl Report {
    /// A report without any event yet.
    pub fn builder() -> ReportBuilder {
        ReportBuilder::default()
    }

    /// How many amounts there are. Those of 0 are left out: they count nothing.
    pub fn len(&self) -> usize {
        self.amounts.len()
    }

    /// Whether the report counts nothing.
    pub fn is_empty(&self) -> bool {
        self.amounts.is_empty()
    }

    /// A number that distinguishes this report from others under the same idempotency key. It is the same
    /// on every machine and in every release, because stores keep it.
    pub const fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    pub(crate) fn amounts(&self) -> &[Amount] {
        &self.amounts
    }
}

/// Adds up the events of one report.
#[derive(Clone, Debug, Default)]
pub struct ReportBuilder {
    sums: HashMap<Arc<str>, Sums>,
    /// Every metric there is a sum of, so that each name is kept once.
    metrics: HashSet<Arc<str>>,
    amounts: usize,
}

/// By metric: the sum, and how many events it comes from.
type Sums = BTreeMap<Arc<str>, (f64, u32)>;

impl ReportBuilder {
    /// Adds one event: what an organization used of each metric, and the API key that came with it;
    /// empty when there is none.
    ///
    /// # Errors
    ///
    /// Why the event cannot be counted. Nothing of it is, then, and the report is as it was.
    pub fn add(
        &mut self,
        organization: &str,
        api_key: &str,
        metrics: &[(&str, f64)],
    ) -> Result<(), Uncountable> {
        validate_id("api_key_id", api_key, false).map_err(|_| Uncountable::ApiKey)?;
        validate_id("organization_id", organization, true)
            .map_err(|_| Uncountable::Organization)?;
        if metrics.len() > MAX_METRICS {
            return Err(Uncountable::TooManyMetrics);
        }
        for (metric, value) in metrics {
            validate_id("metrics.key", metric, true).map_err(|_| Uncountable::Metric)?;
            if !value.is_finite() || *value < 0.0 {
                return Err(Uncountable::Value);
            }
        }
        let known = self.sums.get(organization);
        let is_new = |metric: &str| known.is_none_or(|sums| !sums.contains_key(metric));
        let new = metrics.iter().filter(|(metric, _)| is_new(metric)).count();
        if self.amounts + new > MAX_AMOUNTS {
            return Err(Uncountable::NoRoom);
        }
        for &(metric, value) in metrics.iter().filter(|(_, value)| *value > 0.0) {
            self.add_one(organization, metric, value);
        }
        Ok(())
    }

    fn add_one(&mut self, organization: &str, metric: &str, value: f64) {
        if !self.sums.contains_key(organization) {
            self.sums.insert(organization.into(), BTreeMap::new());
        }
        let Some(sums) = self.sums.get_mut(organization) else { return };
        if let Some((sum, events)) = sums.get_mut(metric) {
            // The sum of finite amounts may be infinite.
            *sum = (*sum + value).min(f64::MAX);
            *events += 1;
            return;
        }
        let name = match self.metrics.get(metric) {
            Some(name) => name.clone(),
            None => {
                let name = Arc::<str>::from(metric);
                self.metrics.insert(name.clone());
                name
            }
        };
        sums.insert(name, (value, 1));
        self.amounts += 1;
    }

    /// The report of all events.
    pub fn build(self) -> Report {
        let mut sums: Vec<_> = self.sums.into_iter().collect();
        sums.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let mut amounts = Vec::with_capacity(self.amounts);
        let mut fingerprint = FnvHasher::default();
        for (organization, metrics) in sums {
            for (metric, (value, events)) in metrics {
                add_text(&mut fingerprint, &organization);
                add_text(&mut fingerprint, &metric);
                fingerprint.write(&value.to_bits().to_be_bytes());
                amounts.push(Amount { organization: organization.clone(), metric, value, events });
            }
        }
        Report { amounts, fingerprint: fingerprint.finish() }
    }
}

/// Why something that was reported is not counted. The rest of its report is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Uncountable {
    /// Its organization is empty or too long.
    Organization,
    /// Its API key id is too long.
    ApiKey,
    /// The name of a metric is empty or too long.
    Metric,
    /// An amount is negative or not finite.
    Value,
    /// There are more metrics than an event, or an organization, may have.
    TooManyMetrics,
    /// There are as many counts as there may be.
    NoRoom,
    /// The event cannot be decoded.
    Unreadable,
}

impl Uncountable {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::Organization,
        Self::ApiKey,
        Self::Metric,
        Self::Value,
        Self::TooManyMetrics,
        Self::NoRoom,
        Self::Unreadable,
    ];

    /// Its name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Organization => "organization",
            Self::ApiKey => "api_key",
            Self::Metric => "metric",
            Self::Value => "value",
            Self::TooManyMetrics => "too_many_metrics",
            Self::NoRoom => "no_room",
            Self::Unreadable => "unreadable",
        }
    }
}

/// How many events were skipped, by why, in the order of [`Uncountable::ALL`].
pub type Skipped = [u64; Uncountable::ALL.len()];

/// A report and who sent it.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The indexer that reports.
    pub caller: Option<Box<str>>,
    /// The name under which the report counts once.
    pub idempotency_key: Option<Box<str>>,
    /// The report.
    pub report: Report,
    /// The organizations whose spent budgets the answer lists.
    pub organizations: Vec<Box<str>>,
}

/// The result of a report of usage.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reported {
    /// Whether it counted now; a repeated one does not.
    pub counted: bool,
    /// How many leases it ended, because it spent a budget.
    pub revoked: usize,
    /// At least how many of its events there was no room to count.
    pub skipped: Skipped,
    /// Organizations that were asked about and have spent a budget, by this report or before it, and
    /// that budget: the first 16, in the order of [`Submission::organizations`].
    pub spent: Vec<(Box<str>, BudgetSpent)>,
}

/// Why a report is refused. Nothing of it is counted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportRefusal {
    /// The idempotency key is empty or too long.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The idempotency key names another report.
    #[error("x-idempotency-key names a report with other amounts")]
    KeyReused,
    /// The caller has as many idempotency keys remembered as it may have.
    #[error(transparent)]
    MemoryFull(#[from] MemoryFull),
}
