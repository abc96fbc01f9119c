//! Rules that are wanted, compared with those that the kernel has: for people.

use super::KernelObject;
use super::rule::Parsed;
use std::collections::HashMap;

/// What a rule does, as a hash.
pub(in crate::backend) fn effect(line: &str) -> u64 {
    Parsed::of(line).rule().effect()
}

/// The lines of `wanted` that are not among `found`, and those of `found` that are not among `wanted`. What
/// stands in a chain that others share with us is never unwanted. Comments are left out when there are many
/// endpoints, and come back with the next full sync, so they make no difference.
pub(in crate::backend) fn differences(wanted: &KernelObject, found: &[String]) -> (Vec<String>, Vec<String>) {
    let read = |lines: &[String]| lines.iter().map(|line| effect(line)).collect::<Vec<_>>();
    let (ours, theirs) = (read(&wanted.lines), read(found));
    let beyond = |lines: &[String], all: &[u64], other: &[u64]| {
        let mut left: HashMap<u64, usize> = HashMap::new();
        other.iter().for_each(|says| *left.entry(*says).or_default() += 1);
        let mut is_lacking = |says: &u64| match left.get_mut(says).filter(|count| **count > 0) {
            Some(count) => {
                *count -= 1;
                false
            }
            None => true,
        };
        let lacking = lines.iter().zip(all).filter(|(_, says)| is_lacking(says));
        lacking.map(|(line, _)| line.clone()).collect()
    };
    let missing = beyond(&wanted.lines, &ours, &theirs);
    let surplus = if wanted.is_shared { Vec::new() } else { beyond(found, &theirs, &ours) };
    (missing, surplus)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(lines: &[&str], is_shared: bool) -> KernelObject {
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        KernelObject { name: "nat X".to_owned(), lines, is_shared }
    }

    fn strings(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn a_missing_and_a_surplus_rule_show() {
        let wanted = object(&["-j A", "-j B"], false);
        assert_eq!(differences(&wanted, &strings(&["-j A", "-j B"])), (vec![], vec![]));
        assert_eq!(
            differences(&wanted, &strings(&["-j A", "-j C"])),
            (strings(&["-j B"]), strings(&["-j C"]))
        );
        assert_eq!(differences(&wanted, &strings(&["-j A", "-j A", "-j B"])), (vec![], strings(&["-j A"])));
    }

    #[test]
    fn a_comment_makes_no_difference() {
        let (with, without) = ("-s 10.0.0.1 -m comment --comment a/b -j A", "-s 10.0.0.1 -j A");
        assert_eq!(differences(&object(&[with], false), &strings(&[without])), (vec![], vec![]));
        assert_eq!(differences(&object(&[without], false), &strings(&[with])), (vec![], vec![]));
    }

    #[test]
    fn rules_of_others_in_a_shared_chain_are_nothing_to_us() {
        let wanted = object(&["-j A"], true);
        assert_eq!(differences(&wanted, &strings(&["-j Z", "-j A"])), (vec![], vec![]));
        assert_eq!(differences(&wanted, &strings(&["-j Z"])), (strings(&["-j A"]), vec![]));
    }
}
