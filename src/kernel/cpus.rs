//! How many CPUs the machine has, whatever part of them is ours.

/// CPUs that are online. Not the number a cgroup or an affinity mask allows us: what is sized by
/// it, the kernel shares among all programs.
#[must_use]
pub fn online() -> u32 {
    let told = std::fs::read_to_string("/sys/devices/system/cpu/online").ok();
    told.and_then(|text| count(text.trim())).unwrap_or_else(usable)
}

fn usable() -> u32 {
    std::thread::available_parallelism().ok().and_then(|count| u32::try_from(count.get()).ok()).unwrap_or(1)
}

/// Reads a list like `0-3,6`.
fn count(list: &str) -> Option<u32> {
    let mut total = 0;
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        total += last.checked_sub(first)? + 1;
    }
    (total > 0).then_some(total)
}

/// Reads whatever it is, for fuzzing.
#[cfg(any(test, feature = "testing"))]
pub(super) fn read_anything(text: &str) {
    let _ = count(text.trim());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_counted() {
        for (list, expected) in [("0", Some(1)), ("0-1", Some(2)), ("0-3,6,8-9", Some(7))] {
            assert_eq!(count(list), expected, "{list}");
        }
        for broken in ["", "x", "3-1"] {
            assert_eq!(count(broken), None, "{broken}");
        }
        assert!(online() >= 1);
    }
}
