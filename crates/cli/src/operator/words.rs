//! Times and numbers as text.

use std::time::{Duration, UNIX_EPOCH};

use tgm_session_server::api::{BudgetRow, Refusals};

/// A span of time in its two largest units, such as `1h02m`.
pub(crate) fn span(seconds: f64) -> String {
    // A server may send a negative or absurd span: it is clamped.
    let whole = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX).as_secs();
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86400);
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 => format!("{minutes}m{:02}s", whole % 60),
        3600..86400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// A moment, as `2026-11-23 05:21:34 UTC`.
pub(crate) fn moment(seconds: i64) -> String {
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    // The last second of a year with four digits.
    let since = since.min(Duration::from_secs(253_402_300_799));
    let moment = humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string();
    moment.replace('T', " ").replace('Z', " UTC")
}

/// How much of a budget is used, from 0 to 1.
pub(crate) fn used(budget: &BudgetRow) -> f64 {
    if budget.spent || budget.amount <= 0.0 {
        return 1.0;
    }
    (budget.used / budget.amount).clamp(0.0, 1.0)
}

/// The budget of which the most is used.
pub(crate) fn tightest(budgets: &[BudgetRow]) -> Option<&BudgetRow> {
    budgets.iter().rev().max_by(|one, other| used(one).total_cmp(&used(other)))
}

/// A budget in a few words, such as `egress_bytes 60% used`.
pub(crate) fn budget(budget: &BudgetRow) -> String {
    if budget.spent {
        return format!("{} spent", budget.metric);
    }
    // Rounded up, so that a budget never looks less used than it is.
    format!("{} {:.0}% used", budget.metric, (used(budget) * 100.0).ceil())
}

/// How many borrows were refused, for any reason.
pub(crate) const fn refused(refusals: &Refusals) -> u64 {
    let Refusals { service, organization, api_key, trace, budget, disabled } = *refusals;
    service + organization + api_key + trace + budget + disabled
}

/// How many borrows each scope refused, without zeros.
pub(crate) fn refusals(refusals: &Refusals) -> String {
    let Refusals { service, organization, api_key, trace, budget, disabled } = *refusals;
    let parts: Vec<_> = [
        ("service", service),
        ("organization", organization),
        ("API key", api_key),
        ("trace", trace),
        ("budget", budget),
        ("disabled", disabled),
    ]
    .into_iter()
    .filter(|(_, count)| *count > 0)
    .map(|(what, count)| format!("{what} {count}"))
    .collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(used: f64, amount: f64) -> BudgetRow {
        let per = "day".to_owned();
        let spent = used >= amount;
        BudgetRow { metric: "egress_bytes".into(), used, amount, per, resets_at: 0, spent }
    }

    #[test]
    fn a_duration_is_shown_in_its_two_largest_units() {
        for (seconds, told) in [
            (0.9, "0s"),
            (59.9, "59s"),
            (62.0, "1m02s"),
            (3_720.0, "1h02m"),
            (180_000.0, "2d02h"),
            (-1.0, "0s"),
            (f64::NAN, "0s"),
        ] {
            assert_eq!(span(seconds), told);
        }
    }

    #[test]
    fn a_time_is_shown_in_utc() {
        assert_eq!(moment(1_795_411_294), "2026-11-23 05:21:34 UTC");
        assert_eq!(moment(-5), "1970-01-01 00:00:00 UTC");
        assert_eq!(moment(i64::MAX), "9999-12-31 23:59:59 UTC");
    }

    #[test]
    fn the_used_share_of_a_budget_is_never_rounded_down() {
        assert_eq!(budget(&row(999.0, 1000.0)), "egress_bytes 100% used");
        assert_eq!(budget(&row(601.0, 1000.0)), "egress_bytes 61% used");
        assert_eq!(budget(&row(1000.0, 1000.0)), "egress_bytes spent");
        assert_eq!(budget(&row(0.0, 0.0)), "egress_bytes spent");
        let rows = [row(1.0, 10.0), row(9.0, 10.0), row(5.0, 10.0)];
        assert_eq!(tightest(&rows), Some(&rows[1]));
    }
}
