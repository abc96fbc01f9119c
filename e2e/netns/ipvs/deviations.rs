//! What we do otherwise than the reference without `--ipvs-upstream-compat`: each row of the table in
//! `docs/dataplane-ipvs.md`, and what shows it.

use std::fs;
use std::path::Path;

use super::BTreeSet;

const DOCS: &str = "docs/dataplane-ipvs.md";
/// The heading above the table, and the one below.
const SECTION: (&str, &str) = ("## What we do otherwise", "## What IPVS mode does not do");

/// A row of the table, word for word: the situation, what kube-proxy does, what we do.
struct Deviation {
    row: &'static str,
    shown_by: Shown,
}

enum Shown {
    /// These fixtures (`*`: all of them) end in another state: exactly these lines of `differences`.
    Fixtures(&'static [(&'static [&'static str], &'static str)]),
    /// No fixture shows it, so a test has to: its file and its name.
    Test(&'static str, &'static str),
}

const UNIT_TESTS: &str = "src/backend/ipvs/tests.rs";

static DEVIATIONS: [Deviation; 10] = [
    Deviation {
        row: "| sets and chains | none for the two rows below | two more sets per family and, in `mangle`, the chain `KUBE-LOCAL-POLICY`; always there, mostly empty |",
        shown_by: Shown::Fixtures(&[(
            &["*"],
            r#"
            +ipset create KUBE-NO-LOCAL-ENDPOINTS hash:ip,port family inet hashsize 1024 maxelem 65536
            +ipset create KUBE-NO-LOCAL-ENDPOINTS-EXT hash:ip,port family inet hashsize 1024 maxelem 65536
            +ipset create KUBE-6-NO-LOCAL-ENDPOINTS hash:ip,port family inet6 hashsize 1024 maxelem 65536
            +ipset create KUBE-6-NO-LOCAL-ENDPOINTS-EXT hash:ip,port family inet6 hashsize 1024 maxelem 65536
            +iptables -t mangle -N KUBE-LOCAL-POLICY
            +iptables -t mangle -I INPUT 1 -m comment --comment "kubernetes local traffic policy" -j KUBE-LOCAL-POLICY
            +iptables -t mangle -I OUTPUT 1 -m comment --comment "kubernetes local traffic policy" -j KUBE-LOCAL-POLICY
            +ip6tables -t mangle -N KUBE-LOCAL-POLICY
            +ip6tables -t mangle -I INPUT 1 -m comment --comment "kubernetes local traffic policy" -j KUBE-LOCAL-POLICY
            +ip6tables -t mangle -I OUTPUT 1 -m comment --comment "kubernetes local traffic policy" -j KUBE-LOCAL-POLICY
            "#,
        )]),
    },
    Deviation {
        row: "| policy Local, endpoints elsewhere only, external traffic | sent elsewhere, source lost or unanswered | dropped; pods and the node are still served, as in iptables mode |",
        shown_by: Shown::Fixtures(&[
            (
                &["external-ips-local-policy", "node-port-local-policy-no-local-endpoints"],
                r#"+iptables -t mangle -I KUBE-LOCAL-POLICY 1 ! -s 10.128.0.0/16 -m conntrack --ctstate NEW -m addrtype ! --src-type LOCAL -m comment --comment "Kubernetes service without local endpoints for clients from outside" -m set --match-set KUBE-NO-LOCAL-ENDPOINTS-EXT dst,dst -j DROP"#,
            ),
            (
                &["external-ips-local-policy"],
                "
                +ipset add KUBE-NO-LOCAL-ENDPOINTS-EXT 10.0.2.15,tcp:30087
                +ipset add KUBE-NO-LOCAL-ENDPOINTS-EXT 10.128.0.1,tcp:30087
                +ipset add KUBE-NO-LOCAL-ENDPOINTS-EXT 10.200.0.11,tcp:30087
                +ipset add KUBE-NO-LOCAL-ENDPOINTS-EXT 198.51.100.16,tcp:80
                ",
            ),
            (
                &["node-port-local-policy-no-local-endpoints"],
                "
                +ipset add KUBE-NO-LOCAL-ENDPOINTS-EXT 10.0.2.15,tcp:30082
                +ipset add KUBE-NO-LOCAL-ENDPOINTS-EXT 10.128.0.1,tcp:30082
                +ipset add KUBE-NO-LOCAL-ENDPOINTS-EXT 10.200.0.11,tcp:30082
                ",
            ),
        ]),
    },
    Deviation {
        row: "| the same for internal traffic | refused; sent elsewhere if the Service also has an external policy Cluster | dropped for every client, as in iptables mode |",
        shown_by: Shown::Fixtures(&[(
            &["internal-policy-local-no-local-endpoints"],
            r#"
            +ipset add KUBE-NO-LOCAL-ENDPOINTS 10.96.1.20,tcp:80
            +iptables -t mangle -I KUBE-LOCAL-POLICY 1 -m conntrack --ctstate NEW -m comment --comment "Kubernetes service without local endpoints for anybody" -m set --match-set KUBE-NO-LOCAL-ENDPOINTS dst,dst -j DROP
            "#,
        )]),
    },
    Deviation {
        row: "| the node itself to its external frontend under policy Local | keeps the frontend as source, so endpoints elsewhere cannot answer | masqueraded |",
        shown_by: Shown::Fixtures(&[
            (
                &[
                    "detect-local-node-cidr",
                    "external-ips-local-policy",
                    "load-balancer-local-policy",
                    "node-port-local-policy",
                    "node-port-local-policy-no-local-endpoints",
                    "terminating-local-external-policy",
                ],
                r#"+iptables -t nat -I KUBE-NODE-PORT 1 -p tcp -m comment --comment "Kubernetes nodeport TCP port with externalTrafficPolicy=local" -m set --match-set KUBE-NODE-PORT-LOCAL-TCP dst -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"#,
            ),
            (
                &["external-ips-local-policy"],
                r#"+iptables -t nat -I KUBE-SERVICES 3 -m comment --comment "Kubernetes service external ip + port with externalTrafficPolicy=local" -m set --match-set KUBE-EXTERNAL-IP-LOCAL dst,dst -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"#,
            ),
            (
                &["load-balancer-local-policy"],
                r#"+iptables -t nat -I KUBE-LOAD-BALANCER 1 -m comment --comment "Kubernetes service load balancer ip + port with externalTrafficPolicy=local" -m set --match-set KUBE-LOAD-BALANCER-LOCAL dst,dst -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"#,
            ),
        ]),
    },
    Deviation {
        row: "| source ranges and the node | only the Node object's address counts | any address of the node counts |",
        shown_by: Shown::Test(
            UNIT_TESTS,
            "any_address_of_the_node_lets_it_into_source_ranges_but_not_in_upstreams_ways",
        ),
    },
    Deviation {
        row: "| virtual servers of other programs | removed | left alone |",
        shown_by: Shown::Test(
            UNIT_TESTS,
            "others_virtual_servers_are_left_alone_unless_a_service_wants_them",
        ),
    },
    Deviation {
        row: "| addresses of other programs on `kube-ipvs0` | removed | left alone |",
        shown_by: Shown::Test(UNIT_TESTS, "others_addresses_on_our_interface_and_others_sets_are_left_alone"),
    },
    Deviation {
        row: "| `mh` | hashes the client's port | does not; `mh-port` does |",
        shown_by: Shown::Test(
            "src/model/ipvs.rs",
            "hashing_schedulers_pass_over_drained_servers_and_take_the_port_on_request",
        ),
    },
    Deviation {
        row: "| `sh` and `mh`, the endpoint that a client hashes to is being drained | no new connection for this client | sent to another one |",
        shown_by: Shown::Test(
            "src/model/ipvs.rs",
            "hashing_schedulers_pass_over_drained_servers_and_take_the_port_on_request",
        ),
    },
    Deviation {
        row: "| first endpoint of `rr` | the same on every node | differs |",
        shown_by: Shown::Test(
            UNIT_TESTS,
            "the_first_endpoint_differs_from_node_to_node_but_not_in_upstreams_ways",
        ),
    },
];

/// The differences that a fixture must have, and no more.
pub(super) fn of(fixture: &str) -> BTreeSet<String> {
    let shown = DEVIATIONS.iter().filter_map(|it| match it.shown_by {
        Shown::Fixtures(shown) => Some(shown),
        Shown::Test(..) => None,
    });
    let here = shown.flatten().filter(|(fixtures, _)| fixtures.iter().any(|it| *it == "*" || *it == fixture));
    let lines = here.flat_map(|(_, lines)| lines.lines().map(str::trim));
    lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn the_documented_differences_are_those_that_are_tested() {
    let text = fs::read_to_string(DOCS).unwrap();
    let section = text.split_once(SECTION.0).unwrap().1.split_once(SECTION.1).unwrap().0;
    // The first two lines are the table's head.
    let documented: Vec<_> = section.lines().filter(|line| line.starts_with('|')).skip(2).collect();
    let tested: Vec<_> = DEVIATIONS.iter().map(|it| it.row).collect();
    assert_eq!(documented, tested);
}

#[test]
fn what_is_to_show_a_difference_is_there() {
    for Deviation { row, shown_by } in &DEVIATIONS {
        match shown_by {
            Shown::Fixtures(shown) => {
                let named = shown.iter().flat_map(|(fixtures, _)| *fixtures).filter(|it| **it != "*");
                let missing: Vec<_> = named
                    .filter(|it| {
                        !Path::new("e2e/fixtures/expected/ipvs").join(format!("{it}.addrs")).exists()
                    })
                    .collect();
                assert_eq!(missing, [] as [&&str; 0], "{row}");
            }
            Shown::Test(file, name) => {
                let text = fs::read_to_string(file).unwrap();
                assert!(text.contains(&format!("fn {name}(")), "{row}: {file} has no {name}");
            }
        }
    }
}
