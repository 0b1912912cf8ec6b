//! Durations as Go writes them, because the session URLs in production were written for Go.

use std::time::Duration;

/// A text that is not a duration in Go's syntax, or does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDuration {
    /// A number is missing.
    #[error("is not a duration; write it like 20s, 1m30s or 250ms")]
    NotADuration,
    /// A number has no unit.
    #[error("has no unit; write it like 20s, 1m30s or 250ms")]
    MissingUnit,
    /// A unit is none of `ns`, `us`, `ms`, `s`, `m`, `h`.
    #[error("has an unknown unit; the units are ns, us, ms, s, m and h")]
    UnknownUnit,
    /// It is longer than 2^63-1 ns, about 292 years.
    #[error("is longer than 292 years")]
    TooLong,
    /// It is negative.
    #[error("is negative")]
    Negative,
}

/// Reads a length of time in Go's syntax: `1m30s`, `250ms`, `.5h`, `0`.
///
/// # Errors
///
/// [`InvalidDuration`] says what is wrong. Its text continues a sentence that begins with the value.
///
/// ```
/// use std::time::Duration;
/// use tgm_session::parse_duration;
///
/// assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
/// assert!(parse_duration("5").is_err());
/// ```
pub fn parse_duration(text: &str) -> Result<Duration, InvalidDuration> {
    let nanos = parse_nanos(text)?;
    u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| InvalidDuration::Negative)
}

/// The largest magnitude of a result, which is that of `i64::MIN`.
const MAX_MAGNITUDE: u64 = 1 << 63;

/// Reads a signed number of nanoseconds exactly as Go's `time.ParseDuration` does.
fn parse_nanos(text: &str) -> Result<i64, InvalidDuration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    // Only zero needs no unit.
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(InvalidDuration::NotADuration);
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (part, remaining) = parse_part(rest)?;
        total = total
            .checked_add(part)
            .filter(|t| *t <= MAX_MAGNITUDE)
            .ok_or(InvalidDuration::TooLong)?;
        rest = remaining;
    }
    match i64::try_from(total) {
        Ok(nanos) => Ok(if negative { -nanos } else { nanos }),
        // Only a negative number can have this magnitude.
        Err(_) if negative => Ok(i64::MIN),
        Err(_) => Err(InvalidDuration::TooLong),
    }
}

/// Reads one number with its unit and returns its nanoseconds and the text behind it.
fn parse_part(text: &str) -> Result<(u64, &str), InvalidDuration> {
    let (whole, behind) = split_at_first(text, |b| !b.is_ascii_digit());
    let (fraction, behind) = match behind.strip_prefix('.') {
        Some(behind) => split_at_first(behind, |b| !b.is_ascii_digit()),
        None => ("", behind),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(InvalidDuration::NotADuration);
    }
    let (unit, behind) = split_at_first(behind, |b| b == b'.' || b.is_ascii_digit());
    let unit = nanos_of(unit)?;
    let value = whole
        .bytes()
        .try_fold(0u64, |value, digit| value.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
        .and_then(|value| value.checked_mul(unit))
        .and_then(|value| value.checked_add(nanos_of_fraction(fraction, unit)))
        .filter(|value| *value <= MAX_MAGNITUDE)
        .ok_or(InvalidDuration::TooLong)?;
    Ok((value, behind))
}

/// The nanoseconds of `0.FRACTION` units, rounded the way Go rounds: through a float, downwards.
fn nanos_of_fraction(digits: &str, unit: u64) -> u64 {
    let (mut value, mut scale) = (0u64, 1f64);
    for digit in digits.bytes() {
        // Go drops digits that do not fit into 63 bits. They change less than a nanosecond.
        if value > (MAX_MAGNITUDE - 1) / 10 {
            break;
        }
        let next = value * 10 + u64::from(digit - b'0');
        if next > MAX_MAGNITUDE {
            break;
        }
        value = next;
        scale *= 10.0;
    }
    // It fits: it is less than one unit, and the largest unit has 3.6e12 ns.
    (value as f64 * (unit as f64 / scale)) as u64
}

fn nanos_of(unit: &str) -> Result<u64, InvalidDuration> {
    Ok(match unit {
        "ns" => 1,
        // The letter u, the micro sign and the Greek letter.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        "" => return Err(InvalidDuration::MissingUnit),
        _ => return Err(InvalidDuration::UnknownUnit),
    })
}

/// Splits before the first byte that `stops` accepts. It must accept only ASCII bytes.
fn split_at_first(text: &str, stops: impl Fn(u8) -> bool) -> (&str, &str) {
    text.split_at(text.bytes().position(stops).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        // Each line was printed by Go's time.ParseDuration.
        for (text, nanos) in [
            ("0", 0),
            ("+0", 0),
            ("-0", 0),
            ("00s", 0),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("+5m", 300_000_000_000),
            ("-1s", -1_000_000_000),
            ("1m2m", 180_000_000_000),
            ("1ms1s", 1_001_000_000),
            ("1h15m30.918s", 4_530_918_000_000),
            ("1\u{b5}s", 1_000),
            ("1\u{3bc}s", 1_000),
            ("100\u{b5}s", 100_000),
            ("1us", 1_000),
            ("1.9999999999s", 1_999_999_999),
            ("0.3333333333333333333h", 1_200_000_000_000),
            ("0.100000000000000000000h", 360_000_000_000),
            ("0.9223372036854775807h", 3_320_413_933_267),
            ("0.830103483285477580700h", 2_988_372_539_827),
            ("1.0000000000000000000000001ns", 1),
            ("9223372036854775807ns", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
            ("9223372036.854775807s", i64::MAX),
            ("2562047h47m16.854775807s", i64::MAX),
        ] {
            assert_eq!(parse_nanos(text), Ok(nanos), "{text}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused_with_its_reason() {
        use InvalidDuration::*;
        for (text, reason) in [
            ("", NotADuration),
            ("+", NotADuration),
            ("-", NotADuration),
            ("--1s", NotADuration),
            (".s", NotADuration),
            ("s", NotADuration),
            ("\u{ff10}s", NotADuration),
            ("1s-1s", UnknownUnit),
            ("5", MissingUnit),
            ("0s0", MissingUnit),
            ("1d", UnknownUnit),
            ("1 h", UnknownUnit),
            ("1H", UnknownUnit),
            ("1e3s", UnknownUnit),
            ("3000000h", TooLong),
            ("9223372036854775808ns", TooLong),
            ("9223372036.854775808s", TooLong),
            ("2562047h47m16.854775808s", TooLong),
            ("99999999999999999999ns", TooLong),
            ("9223372036854775807ns1ns", TooLong),
        ] {
            assert_eq!(parse_nanos(text), Err(reason), "{text}");
        }
        assert_eq!(parse_duration("-1s"), Err(Negative));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,40}") {
            let _ = parse_nanos(&text);
        }

        #[test]
        fn no_text_of_the_right_letters_makes_the_parser_panic(text in "[-+]?([0-9.]{0,22}(ns|us|ms|s|m|h|d|)){0,4}") {
            let _ = parse_nanos(&text);
        }

        #[test]
        fn whole_numbers_add_up(h in 0u64..1000, m in 0u64..1000, s in 0u64..1000, ms in 0u64..1000) {
            let expected = Duration::from_secs(h * 3600 + m * 60 + s) + Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&format!("{h}h{m}m{s}s{ms}ms")), Ok(expected));
        }

        #[test]
        fn a_fraction_of_a_second_keeps_every_nanosecond(nanos in 0u32..1_000_000_000) {
            prop_assert_eq!(parse_nanos(&format!("0.{nanos:09}s")), Ok(i64::from(nanos)));
        }
    }
}
