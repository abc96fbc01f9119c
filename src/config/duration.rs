//! Durations as Go writes them (`1m30s`), because flags and configuration files do.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

const SECOND: i64 = 1_000_000_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;

/// A signed number of nanoseconds with Go's text form.
///
/// It is signed only so that validation can complain about negative values together with
/// everything else; resolved settings carry a [`Duration`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoDuration(i64);

impl GoDuration {
    /// No time at all.
    pub const ZERO: GoDuration = GoDuration(0);

    /// A number of nanoseconds.
    #[must_use]
    pub const fn from_nanos(nanos: i64) -> Self {
        GoDuration(nanos)
    }

    /// A number of seconds; meant for constants, saturates.
    #[must_use]
    pub const fn from_secs(seconds: i64) -> Self {
        GoDuration(seconds.saturating_mul(SECOND))
    }

    /// Below zero.
    #[must_use]
    pub fn is_negative(self) -> bool {
        self.0 < 0
    }

    /// The same as an unsigned duration; negative ones become zero.
    #[must_use]
    pub fn to_duration(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }
}

impl FromStr for GoDuration {
    type Err = String;

    /// Accepts what Go's `time.ParseDuration` accepts.
    fn from_str(text: &str) -> Result<Self, String> {
        let (negative, mut rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        if rest == "0" {
            return Ok(GoDuration::ZERO);
        }
        if rest.is_empty() {
            return Err(invalid(text));
        }
        let mut total: i128 = 0;
        while !rest.is_empty() {
            let (nanos, tail) = parse_term(rest, text)?;
            total += nanos;
            if total > i128::from(i64::MAX) + 1 {
                return Err(too_long(text));
            }
            rest = tail;
        }
        let signed = if negative { -total } else { total };
        i64::try_from(signed).map(GoDuration).map_err(|_| too_long(text))
    }
}

fn invalid(text: &str) -> String {
    format!("{text:?} is not a duration such as {EXAMPLES}")
}

fn no_unit(text: impl fmt::Display) -> String {
    format!("{text} has no unit; write a duration such as {EXAMPLES}")
}

fn too_long(text: &str) -> String {
    format!("{text:?} is more than {}", GoDuration(i64::MAX))
}

const EXAMPLES: &str = "30s, 5m or 1h30m";

/// Parses one number with its unit from the front of `rest`; `whole` is for the complaint.
fn parse_term<'a>(rest: &'a str, whole: &str) -> Result<(i128, &'a str), String> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let (integer, rest) = rest.split_at(digits(rest));
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    if integer.is_empty() && fraction.is_empty() {
        return Err(invalid(whole));
    }
    let end = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(end);
    let unit = match unit {
        "" => return Err(no_unit(format_args!("{whole:?}"))),
        "ns" => 1,
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => SECOND,
        "m" => MINUTE,
        "h" => HOUR,
        other => return Err(format!("{whole:?} has the unit {other:?}; there are h, m, s, ms, us and ns")),
    };
    let integer: u64 = if integer.is_empty() { 0 } else { integer.parse().map_err(|_| too_long(whole))? };
    let nanos = i128::from(integer) * i128::from(unit) + fraction_of(fraction, unit);
    Ok((nanos, rest))
}

/// Computed as Go does, in floating point, so that the last nanosecond is the same.
fn fraction_of(digits: &str, unit: i64) -> i128 {
    let (mut value, mut scale) = (0_u64, 1.0);
    for digit in digits.bytes().map(|digit| u64::from(digit - b'0')) {
        if value > i64::MAX.unsigned_abs() / 10 {
            break;
        }
        value = value * 10 + digit;
        scale *= 10.0;
    }
    (value as f64 * (unit as f64 / scale)) as i128
}

impl fmt::Display for GoDuration {
    /// Prints as Go does: `1h2m3s`, `1.5s`, `100ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let second = SECOND.unsigned_abs();
        match nanos {
            0 => f.write_str("0s"),
            1..1_000 => write!(f, "{nanos}ns"),
            1_000..1_000_000 => write_decimal(f, nanos, 1_000, "\u{b5}s"),
            1_000_000..1_000_000_000 => write_decimal(f, nanos, 1_000_000, "ms"),
            _ => {
                let (minutes, rest) = (nanos / second / 60, nanos % (60 * second));
                if minutes >= 60 {
                    write!(f, "{}h", minutes / 60)?;
                }
                if minutes > 0 {
                    write!(f, "{}m", minutes % 60)?;
                }
                write_decimal(f, rest, second, "s")
            }
        }
    }
}

/// Writes `nanos / scale` with as many decimals as it takes to be exact.
fn write_decimal(f: &mut fmt::Formatter<'_>, nanos: u64, scale: u64, unit: &str) -> fmt::Result {
    write!(f, "{}", nanos / scale)?;
    let fraction = nanos % scale;
    if fraction > 0 {
        let width = scale.ilog10() as usize;
        let digits = format!("{fraction:0width$}");
        write!(f, ".{}", digits.trim_end_matches('0'))?;
    }
    f.write_str(unit)
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    /// From its text; a bare number has no unit, and no field may guess one.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DurationVisitor { nanoseconds: false })
    }
}

/// Decodes the one field that upstream also takes as a number, of nanoseconds: `logging.flushFrequency`.
pub(super) fn or_nanoseconds<'de, D: Deserializer<'de>>(input: D) -> Result<GoDuration, D::Error> {
    input.deserialize_any(DurationVisitor { nanoseconds: true })
}

struct DurationVisitor {
    nanoseconds: bool,
}

impl de::Visitor<'_> for DurationVisitor {
    type Value = GoDuration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a duration such as {EXAMPLES}")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<GoDuration, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<GoDuration, E> {
        if self.nanoseconds { Ok(GoDuration(number)) } else { Err(E::custom(no_unit(number))) }
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<GoDuration, E> {
        let whole = number as i64;
        if self.nanoseconds && whole as f64 == number {
            return Ok(GoDuration(whole));
        }
        Err(E::custom(no_unit(number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nanos(text: &str) -> Result<i64, String> {
        text.parse::<GoDuration>().map(|duration| duration.0)
    }

    #[test]
    fn every_form_go_accepts_is_accepted() {
        for (text, want) in [
            ("0", 0),
            ("+0", 0),
            ("-0", 0),
            ("0s", 0),
            ("5s", 5 * SECOND),
            ("+5s", 5 * SECOND),
            ("-5s", -5 * SECOND),
            ("1478s", 1478 * SECOND),
            ("5.0s", 5 * SECOND),
            ("5.6s", 5_600_000_000),
            ("5.s", 5 * SECOND),
            (".5s", SECOND / 2),
            ("1.004s", 1_004_000_000),
            ("10ns", 10),
            ("11us", 11_000),
            ("12\u{b5}s", 12_000),
            ("12\u{3bc}s", 12_000),
            ("13ms", 13_000_000),
            ("14m", 14 * MINUTE),
            ("24h", 24 * HOUR),
            ("3h30m", 3 * HOUR + 30 * MINUTE),
            ("10.5s4m", 4 * MINUTE + 10_500_000_000),
            ("0.3333333333333333333h", 20 * MINUTE),
            ("0.830103483285477580700h", 49 * MINUTE + 48 * SECOND + 372_539_827),
            ("9223372036854775807ns", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
        ] {
            assert_eq!(nanos(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn complaints_say_what_a_duration_looks_like() {
        let invalid = |text: &str| format!("{text:?} is not a duration such as 30s, 5m or 1h30m");
        for text in ["", "-", "s", ".", ".s", "abc"] {
            assert_eq!(nanos(text), Err(invalid(text)), "{text}");
        }
        for (text, want) in [
            ("3", "\"3\" has no unit; write a duration such as 30s, 5m or 1h30m"),
            ("1m30", "\"1m30\" has no unit; write a duration such as 30s, 5m or 1h30m"),
            ("1d", "\"1d\" has the unit \"d\"; there are h, m, s, ms, us and ns"),
            ("1 s", "\"1 s\" has the unit \" s\"; there are h, m, s, ms, us and ns"),
            ("9223372036854775808ns", "\"9223372036854775808ns\" is more than 2562047h47m16.854775807s"),
            ("3000000h", "\"3000000h\" is more than 2562047h47m16.854775807s"),
        ] {
            assert_eq!(nanos(text), Err(want.to_owned()), "{text}");
        }
    }

    #[test]
    fn durations_print_as_go_prints_them() {
        for (nanos, want) in [
            (0, "0s"),
            (1, "1ns"),
            (1100, "1.1\u{b5}s"),
            (2_200_000, "2.2ms"),
            (100_000_000, "100ms"),
            (1_500_000_000, "1.5s"),
            (MINUTE, "1m0s"),
            (4 * MINUTE + 5_001_000_000, "4m5.001s"),
            (HOUR + 2 * MINUTE + 3 * SECOND, "1h2m3s"),
            (24 * HOUR, "24h0m0s"),
            (-SECOND, "-1s"),
            (i64::MAX, "2562047h47m16.854775807s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ] {
            assert_eq!(GoDuration(nanos).to_string(), want);
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back(nanos: i64) {
            let duration = GoDuration(nanos);
            prop_assert_eq!(duration.to_string().parse::<GoDuration>(), Ok(duration));
        }

        #[test]
        fn parsing_never_panics(text in "[-+0-9.hmsnu\u{b5} ]{0,24}") {
            drop(text.parse::<GoDuration>());
        }
    }
}
