//! Rules of other programs that decide about the Services' packets.

use super::rule::{Asks, Parsed, States, Target};
use crate::model::IpFamily;
use std::net::IpAddr;

/// Rules of a filter chain that are not ours and may stop what goes to an address, each with whether it
/// stops all of it: others hang on more than is known here. A chain's policy counts as its last rule.
#[must_use]
pub fn foreign_obstacles(found: &[String], to: IpAddr) -> Vec<(String, bool)> {
    let mut obstacles = Vec::new();
    for line in found {
        let parsed = Parsed::of(line);
        let rule = parsed.rule();
        let concerns = rule.asks().all(|it| match it.asks {
            Asks::Destination(net) => {
                IpFamily::of_cidr(&net.cidr) == IpFamily::of(to) && net.cidr.contains(&to) != it.is_negated
            }
            // Established or broken connections only: not why a new one fails.
            Asks::State(states) => states.has(States::NEW) != it.is_negated,
            _ => true,
        });
        let conditions = || rule.asks().filter(|it| it.is_condition());
        if concerns && matches!(rule.target, Target::Drop | Target::Reject(_)) {
            let is_known = conditions().all(|it| matches!(it.asks, Asks::Destination(_) | Asks::State(_)));
            obstacles.push((line.clone(), is_known));
        } else if concerns && conditions().next().is_none() && rule.target == Target::Accept {
            // Whatever stands behind a rule that lets everything through does not matter.
            break;
        }
    }
    obstacles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rules_that_can_stop_a_new_connection_to_the_endpoint_are_obstacles() {
        let found = [
            "-m conntrack --ctstate INVALID -j DROP",
            "-d 192.0.2.0/24 -j DROP",
            "-s 192.0.2.0/24 -d 10.128.0.0/16 -j DROP",
            "-j REJECT",
            "-j ACCEPT",
            "-j DROP",
        ]
        .map(str::to_owned);
        let obstacles = foreign_obstacles(&found, [10, 128, 0, 5].into());
        let some = ("-s 192.0.2.0/24 -d 10.128.0.0/16 -j DROP".to_owned(), false);
        assert_eq!(obstacles, [some, ("-j REJECT".to_owned(), true)]);
    }
}
