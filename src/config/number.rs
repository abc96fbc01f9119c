//! Numbers as Go reads them: flags after `strconv`, the configuration file after Go's YAML.

/// What Go's `strconv.ParseInt` takes in base 0: a sign, a prefix for the base (`0x`, `0o` or `0`, `0b`),
/// and single underscores between digits and after the prefix.
pub(super) fn integer(text: &str) -> Option<i128> {
    let (is_negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = rest.to_ascii_lowercase();
    let prefixed = [("0x", 16), ("0o", 8), ("0b", 2)]
        .into_iter()
        .find_map(|(prefix, base)| Some((lower.strip_prefix(prefix)?, base)));
    let (digits, base) = match prefixed {
        Some(prefixed) => prefixed,
        // The zero is a digit, so that an underscore may follow it.
        None if lower.starts_with('0') => (lower.as_str(), 8),
        None => (lower.as_str(), 10),
    };
    let is_after_prefix = prefixed.is_some();
    if !underscores_separate(digits, is_after_prefix) {
        return None;
    }
    let plain = digits.replace('_', "");
    // The library would take a second sign.
    if !plain.starts_with(|first: char| first.is_digit(base)) {
        return None;
    }
    let value = i128::from_str_radix(&plain, base).ok()?;
    Some(if is_negative { -value } else { value })
}

/// Each underscore follows a digit (or the prefix) and stands before one.
fn underscores_separate(digits: &str, is_after_prefix: bool) -> bool {
    let starts_well = is_after_prefix || !digits.starts_with('_');
    starts_well && !digits.ends_with('_') && !digits.contains("__")
}

/// The value of an integer flag.
pub(super) fn int32(text: &str) -> Result<i32, String> {
    within(integer(text).ok_or(WHOLE)?, i32::MIN, i32::MAX)
}

/// The value of an integer flag that has no negative values.
pub(super) fn uint32(text: &str) -> Result<u32, String> {
    within(integer(text).ok_or(WHOLE)?, 0, u32::MAX)
}

const WHOLE: &str = "must be a whole number";

/// The value in a narrower type, or a complaint that says how large it may be.
pub(super) fn within<T>(value: i128, least: T, most: T) -> Result<T, String>
where
    T: TryFrom<i128> + std::fmt::Display,
{
    T::try_from(value).map_err(|_| format!("{WHOLE} from {least} to {most}"))
}

/// The value of a flag that is a number with or without a point.
pub(super) fn float32(text: &str) -> Result<f32, String> {
    let value = underscores_separate(text, false).then(|| decimal(&text.replace('_', ""))).flatten();
    value
        .map(|value| value as f32)
        .filter(|value| value.is_finite())
        .ok_or_else(|| "must be a number".to_owned())
}

/// A decimal number with a point or an exponent, or without; infinity is none.
pub(super) fn decimal(text: &str) -> Option<f64> {
    let is_plain = |byte: u8| byte.is_ascii_digit() || b"+-.eE".contains(&byte);
    let value: f64 = text.bytes().all(is_plain).then(|| text.parse().ok())??;
    value.is_finite().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_as_go_reads_them() {
        for (text, want) in [
            ("0", 0),
            ("-0", 0),
            ("+7", 7),
            ("0x0e", 14),
            ("0X0E", 14),
            ("0x_f", 15),
            ("-0x1", -1),
            ("0o17", 15),
            ("017", 15),
            ("00", 0),
            ("0_7", 7),
            ("0b11", 3),
            ("1_000", 1000),
            ("2147483648", 2_147_483_648),
        ] {
            assert_eq!(integer(text), Some(want), "{text}");
        }
        for text in [
            "", "-", "+", "--5", "+-5", "0x", "0b", "0o", "0x-1", "08", "1__0", "_1", "1_", "0b12", "1e3",
            "5.0", " 5",
        ] {
            assert_eq!(integer(text), None, "{text}");
        }
    }

    #[test]
    fn a_flag_that_is_too_large_says_how_large_it_may_be() {
        assert_eq!(int32("0x7fffffff"), Ok(i32::MAX));
        let complaint = "must be a whole number from -2147483648 to 2147483647";
        assert_eq!(int32("2147483648"), Err(complaint.to_owned()));
        assert_eq!(uint32("-1"), Err("must be a whole number from 0 to 4294967295".to_owned()));
        assert_eq!(uint32("1e3"), Err("must be a whole number".to_owned()));
    }

    #[test]
    fn decimals_have_no_words() {
        for (text, want) in [("1e3", 1000.0), ("5.", 5.0), (".5", 0.5), ("+1.5E-1", 0.15)] {
            assert_eq!(decimal(text), Some(want), "{text}");
        }
        for text in ["", ".", "inf", "-nan", "1e400", "1_0", "0x1", "e5"] {
            assert_eq!(decimal(text), None, "{text}");
        }
    }
}
