//! Wall-clock time taken apart, for output only.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: u64 = 86_400;

/// A moment in UTC; prints as RFC 3339 with as many digits of a second as it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UtcTime {
    /// Of the common era.
    pub year: u64,
    /// 1 to 12.
    pub month: u64,
    /// 1 to 31.
    pub day: u64,
    /// 0 to 23.
    pub hour: u64,
    /// 0 to 59.
    pub minute: u64,
    /// 0 to 59.
    pub second: u64,
    /// 0 to 999,999,999.
    pub nanosecond: u32,
}

impl UtcTime {
    /// Go's zero time, which stands for "never" in its output.
    pub const NEVER: UtcTime =
        UtcTime { year: 1, month: 1, day: 1, hour: 0, minute: 0, second: 0, nanosecond: 0 };

    /// Takes a moment apart; one before 1970 counts as 1970.
    #[must_use]
    pub fn of(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let (year, month, day) = date_of(since.as_secs() / DAY);
        let second = since.as_secs() % DAY;
        UtcTime {
            year,
            month,
            day,
            hour: second / 3600,
            minute: second / 60 % 60,
            second: second % 60,
            nanosecond: since.subsec_nanos(),
        }
    }

    /// How long something is past, in the largest unit that is not coarse: `45 s ago`, `3 h ago`.
    #[must_use]
    pub fn ago(seconds: f64) -> String {
        const UNITS: [(f64, &str); 4] = [(86_400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s")];
        let fits = |(length, _): &&(f64, &str)| seconds >= 2.0 * length;
        let (length, unit) = UNITS.iter().find(fits).copied().unwrap_or((1.0, "s"));
        format!("{:.0} {unit} ago", (seconds / length).floor())
    }

    /// A printed moment without its fraction of a second.
    #[must_use]
    pub fn without_fraction(printed: &str) -> Cow<'_, str> {
        match printed.split_once('.') {
            Some((seconds, _)) => format!("{seconds}Z").into(),
            None => printed.into(),
        }
    }
}

/// The date that many days after 1970-01-01. Years are counted from March, so that the leap day
/// is the last day of its year, in eras of 400 years, which are all equally long.
fn date_of(days: u64) -> (u64, u64, u64) {
    const ERA: u64 = 146_097;
    let days = days + 719_468; // from 0000-03-01 to 1970-01-01
    let (era, day_of_era) = (days / ERA, days % ERA);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

impl fmt::Display for UtcTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let UtcTime { year, month, day, hour, minute, second, nanosecond } = self;
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
        if *nanosecond > 0 {
            write!(f, ".{}", format!("{nanosecond:09}").trim_end_matches('0'))?;
        }
        f.write_str("Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_in_a_unit_that_fits() {
        let told = [0.4, 45.9, 119.0, 120.0, 7200.0, 172_800.0].map(UtcTime::ago);
        assert_eq!(told, ["0 s ago", "45 s ago", "119 s ago", "2 min ago", "2 h ago", "2 days ago"]);
    }

    #[test]
    fn moments_print_as_rfc_3339() {
        for (seconds, nanos, want) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (951_782_399, 0, "2000-02-28T23:59:59Z"),
            (951_782_400, 0, "2000-02-29T00:00:00Z"),
            (951_868_800, 0, "2000-03-01T00:00:00Z"),
            (1_700_000_000, 120_000_000, "2023-11-14T22:13:20.12Z"),
            (1_709_251_199, 1, "2024-02-29T23:59:59.000000001Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00Z"),
        ] {
            let time = UNIX_EPOCH + Duration::new(seconds, nanos);
            assert_eq!(UtcTime::of(time).to_string(), want);
        }
        assert_eq!(UtcTime::NEVER.to_string(), "0001-01-01T00:00:00Z");
    }
}
