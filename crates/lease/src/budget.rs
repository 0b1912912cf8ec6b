//! Usage budgets: how much of a metric an organization may use in a day or a month, in UTC.

use std::fmt;

use time::{Date, Month, OffsetDateTime};

/// The wall clock in whole seconds since the start of 1970, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallTime(i64);

impl WallTime {
    /// The time `seconds` after the start of 1970, UTC; clamped to the years 1970 to 9999.
    pub const fn from_unix(seconds: i64) -> Self {
        const END: i64 = 253_402_300_799;
        Self(if seconds < 0 {
            0
        } else if seconds > END {
            END
        } else {
            seconds
        })
    }

    /// Seconds since the start of 1970, UTC.
    pub const fn as_unix(self) -> i64 {
        self.0
    }

    fn date(self) -> Date {
        OffsetDateTime::from_unix_timestamp(self.0).unwrap_or(OffsetDateTime::UNIX_EPOCH).date()
    }
}

impl fmt::Display for WallTime {
    /// Writes `2026-12-01T00:00:00Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = OffsetDateTime::from_unix_timestamp(self.0).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
        let (hour, minute, second) = at.to_hms();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// The length of a budget's window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Period {
    /// From midnight to midnight, UTC.
    Day,
    /// From the first of a month to the first of the next, UTC.
    Month,
}

impl Period {
    /// The number of the window that `at` lies in; a later window has a higher number.
    pub fn window(self, at: WallTime) -> u32 {
        let date = at.date();
        let number = match self {
            Self::Day => date.to_julian_day(),
            Self::Month => date.year() * 12 + i32::from(u8::from(date.month())) - 1,
        };
        u32::try_from(number).unwrap_or(0)
    }

    /// When the window numbered `window` ends.
    pub fn end(self, window: u32) -> WallTime {
        let next = i32::try_from(window).unwrap_or(i32::MAX).saturating_add(1);
        let date = match self {
            Self::Day => Date::from_julian_day(next).ok(),
            Self::Month => u8::try_from(next % 12 + 1)
                .ok()
                .and_then(|month| Month::try_from(month).ok())
                .and_then(|month| Date::from_calendar_date(next / 12, month, 1).ok()),
        };
        let date = date.unwrap_or(Date::MAX);
        WallTime::from_unix(date.midnight().assume_utc().unix_timestamp())
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Day => "day",
            Self::Month => "month",
        })
    }
}

/// What an organization may use of one metric in one window.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// The metric, as reports name it.
    pub metric: Box<str>,
    /// The amount at which the budget is spent.
    pub amount: f64,
    /// The length of the window.
    pub per: Period,
}

impl Budget {
    /// Whether nothing is left of the budget once so much was used in its window.
    pub fn is_spent_by(&self, used: f64) -> bool {
        used >= self.amount
    }
}

/// A budget of which nothing is left.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error(
    "usage budget spent: {metric} {} of {} per {per}, resets at {resets_at}",
    amount_in_words(metric, *used), amount_in_words(metric, *amount)
)]
pub struct BudgetSpent {
    /// The metric.
    pub metric: Box<str>,
    /// What was used in the window.
    pub used: f64,
    /// The budget.
    pub amount: f64,
    /// The length of the window.
    pub per: Period,
    /// When the window ends.
    pub resets_at: WallTime,
}

/// An amount of a metric for people: three digits and a unit where it is large, and of what counts bytes
/// in units of bytes.
///
/// ```
/// use lease::amount_in_words;
///
/// assert_eq!(amount_in_words("egress_bytes", 12.04e9), "12 GB");
/// assert_eq!(amount_in_words("egress_bytes", 999.0), "999 B");
/// assert_eq!(amount_in_words("egress_bytes", 999_900.0), "1 MB");
/// assert_eq!(amount_in_words("blocks", 12_345.0), "12345");
/// assert_eq!(amount_in_words("blocks", 7.5e6), "7.5 million");
/// ```
pub fn amount_in_words(metric: &str, amount: f64) -> String {
    const BYTES: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    const NUMBERS: [&str; 3] = ["million", "billion", "trillion"];
    let is_bytes = metric.ends_with("_bytes");
    let (least, units) = if is_bytes { (1e3, &BYTES[..]) } else { (1e6, &NUMBERS[..]) };
    if amount < least {
        let exact = (amount * 100.0).round() / 100.0;
        return if is_bytes { format!("{exact} B") } else { exact.to_string() };
    }
    let (mut value, mut at) = (amount / least, 0);
    // What would be rounded up to a thousand is one of the next unit.
    while value >= 999.5 && at + 1 < units.len() {
        (value, at) = (value / 1e3, at + 1);
    }
    let decimals = match value {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    let digits = format!("{value:.decimals$}");
    let digits = match decimals {
        0 => &*digits,
        _ => digits.trim_end_matches('0').trim_end_matches('.'),
    };
    format!("{digits} {}", units[at])
}

/// What was used of one metric, in the current day and the current month.
///
/// Both are counted whatever the budgets say, so a budget that is changed from a day to a month
/// finds its count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Used {
    /// The number of the day and the amount used in it.
    pub day: (u32, f64),
    /// The number of the month and the amount used in it.
    pub month: (u32, f64),
}

impl Used {
    /// Adds `value` at `at`.
    ///
    /// A wall clock that was set back a little goes on counting in the latest window. A window
    /// further ahead than the next one was counted under a clock that was wrong, and counting
    /// starts anew in the window of `at`.
    pub fn add(&mut self, value: f64, at: WallTime) {
        for (slot, period) in [(&mut self.day, Period::Day), (&mut self.month, Period::Month)] {
            *slot = current(*slot, period.window(at));
            // Infinity would never be spent down again and cannot be written as JSON.
            slot.1 = (slot.1 + value).min(f64::MAX);
        }
    }

    /// The amount used in the window of `per` that counts at `at`, and the number of that window:
    /// the one that [`Used::add`] would add to.
    pub fn in_window(&self, per: Period, at: WallTime) -> (u32, f64) {
        let latest = match per {
            Period::Day => self.day,
            Period::Month => self.month,
        };
        current(latest, per.window(at))
    }
}

/// The window that counts now and what was used in it, where `kept` was counted last.
fn current(kept: (u32, f64), now: u32) -> (u32, f64) {
    let goes_on = kept.0 == now || kept.0 == now.saturating_add(1);
    if goes_on { kept } else { (now, 0.0) }
}

/// The amount one report adds to one metric of one organization.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage<'a> {
    /// The organization.
    pub organization: &'a str,
    /// The metric.
    pub metric: &'a str,
    /// The amount, finite and not negative.
    pub value: f64,
}
