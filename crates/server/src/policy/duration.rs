//! The durations of a policy file: `60s`, `1m30s`, `250ms`.

use std::time::Duration;

/// The units a duration may be given in, with their nanoseconds. `ms` comes before `m`.
const UNITS: [(&str, u64); 6] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
];

/// Reads one or more whole or decimal numbers, each with its unit, without blanks and signs.
///
/// `None` when `text` is anything else, or too long a time for 64 bits of nanoseconds.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0u64;
    while !rest.is_empty() || text.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let (unit, after) =
            UNITS.iter().find_map(|(name, nanos)| Some((*nanos, after.strip_prefix(name)?)))?;
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(unit)?)?.checked_add(part(fraction, unit)?)?;
        rest = after;
    }
    Some(Duration::from_nanos(total))
}

/// Splits the leading decimal digits off.
fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

/// `0.fraction` units, in nanoseconds rounded down. Digits past the 18th say nothing of a nanosecond.
fn part(fraction: &str, unit: u64) -> Option<u64> {
    let digits = &fraction[..fraction.len().min(18)];
    if digits.is_empty() {
        return Some(0);
    }
    let scale = 10u128.pow(u32::try_from(digits.len()).ok()?);
    u64::try_from(u128::from(digits.parse::<u64>().ok()?) * u128::from(unit) / scale).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_sum_of_numbers_with_units() {
        for (text, nanos) in [
            ("60s", 60_000_000_000),
            ("1m30s", 90_000_000_000),
            ("250ms", 250_000_000),
            ("1.5s", 1_500_000_000),
            (".5h", 1_800_000_000_000),
            ("0s", 0),
            ("7us3ns", 7_003),
            ("0.0000000019999999999999999999s", 1),
        ] {
            assert_eq!(parse(text), Some(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_no_duration() {
        for text in
            ["", "60", "s", "-5s", "+5s", "1 h", "1d", ".s", "5 s", "1e3s", "99999999999999h", "é"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
