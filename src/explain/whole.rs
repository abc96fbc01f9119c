//! A whole node: every difference between what is wanted and what the kernel has, and what is wrong with any Service.

use super::answers::NodePage;
use super::facts::{NodeState, ProxyState};
use super::findings::{self, Finding, severity_words};
use super::kernel::{Expected, objects, obstacle_finding, unrouted_finding};
use super::report::kernel_is_right;
use super::text::{kernel_words, write_differences, write_nothing, write_proxy};
use super::view::ServiceView;
use crate::backend::{Difference, KernelObject};
use crate::model::IpFamily;
use crate::sync::Identity;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;

/// At most this many Services are named with one finding; JSON has them all.
const MOST_SERVICES: usize = 10;

/// All pages of a node, put together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Mode and tools.
    pub identity: Identity,
    /// Its name.
    pub name: String,
    /// Its Services.
    pub services: Vec<ServiceView>,
    /// What all of them need of the kernel, by family.
    pub wanted: BTreeMap<IpFamily, Vec<KernelObject>>,
}

impl Node {
    /// Joins pages. A kernel object that several pages have is one object with the lines of all; `is_ours_alone` says of
    /// which objects, by name, the kernel should have nothing else.
    #[must_use]
    pub fn of(pages: Vec<NodePage>, is_ours_alone: impl Fn(&str) -> bool) -> Node {
        let mut node = Node::default();
        let mut parts: BTreeMap<IpFamily, BTreeMap<String, KernelObject>> = BTreeMap::new();
        for page in pages {
            (node.identity, node.name) = (page.identity, page.node);
            node.services.extend(page.services);
            for (family, objects) in page.wanted {
                let Some(family) = IpFamily::ALL.into_iter().find(|it| it.as_str() == family) else {
                    continue;
                };
                let part = parts.entry(family).or_default();
                objects.into_iter().for_each(|object| join(part, object));
            }
        }
        let alone = |object: KernelObject| {
            let is_shared = object.is_shared && !is_ours_alone(&object.name);
            KernelObject { is_shared, ..object }
        };
        let whole = |(family, objects): (IpFamily, BTreeMap<String, KernelObject>)| {
            (family, objects.into_values().map(alone).collect())
        };
        node.wanted = parts.into_iter().map(whole).collect();
        node
    }
}

fn join(part: &mut BTreeMap<String, KernelObject>, object: KernelObject) {
    match part.get_mut(&object.name) {
        None => _ = part.insert(object.name.clone(), object),
        Some(known) => {
            let there: HashSet<&String> = known.lines.iter().collect();
            let new: Vec<String> =
                object.lines.iter().filter(|line| !there.contains(line)).cloned().collect();
            known.lines.extend(new);
        }
    }
}

/// A finding, and which Services it is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeFinding {
    /// It.
    #[serde(flatten)]
    pub finding: Finding,
    /// The Services that it concerns; none where it is about the node.
    pub services: Vec<String>,
}

/// What `explain --all` says.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// The node.
    pub node: String,
    /// Mode and tools.
    #[serde(flatten)]
    pub identity: Identity,
    /// How the proxy that was asked is doing; absent where none was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxyState>,
    /// How many Services it serves.
    pub services: usize,
    /// What is wrong, the worst first.
    pub findings: Vec<NodeFinding>,
    /// Where the kernel differs from what is wanted.
    pub differences: Vec<Difference>,
    /// The kernel is as it should be; `null` when that cannot be found out.
    pub kernel_is_right: Option<bool>,
}

impl NodeReport {
    /// Puts together what the plan and the node say.
    #[must_use]
    pub fn new(node: Node, state: NodeState) -> NodeReport {
        let mut found = of_node(&node, &state);
        let around = NodeState {
            refusing: state.refusing,
            node_port_range: state.node_port_range,
            ..NodeState::default()
        };
        for view in &node.services {
            let of_view = findings::all(Some(view), &around).into_iter();
            let services = || vec![view.service.clone()];
            found.extend(of_view.map(|finding| NodeFinding { finding, services: services() }));
        }
        found.sort_by_key(|it| (it.finding.severity, it.finding.code));
        NodeReport {
            node: node.name,
            identity: node.identity,
            proxy: state.proxy,
            services: node.services.len(),
            kernel_is_right: kernel_is_right(found.iter().map(|it| &it.finding)),
            findings: found,
            differences: state.families.into_iter().flat_map(|facts| facts.differences).collect(),
        }
    }

    /// The exit status: 0 when the kernel is as it should be, 1 when not, 3 when that cannot be found out.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self.kernel_is_right {
            Some(true) => 0,
            Some(false) => 1,
            None => 3,
        }
    }
}

/// What is wrong with the node itself and its kernel.
fn of_node(node: &Node, state: &NodeState) -> Vec<NodeFinding> {
    let mut found = Vec::new();
    let known: BTreeSet<&str> = node.services.iter().map(|view| view.service.as_str()).collect();
    let views = || node.services.iter().flat_map(|view| &view.families);
    for facts in &state.families {
        let endpoints = views().any(|view| view.family == facts.family && view.expected().endpoints);
        let services = concerned(&facts.differences, &known);
        for finding in objects(facts, Expected { objects: true, endpoints }) {
            let is_difference = finding.code.is_difference();
            found.push(NodeFinding {
                finding,
                services: if is_difference { services.clone() } else { Vec::new() },
            });
        }
        found.extend(facts.obstacles.iter().map(|obstacle| NodeFinding {
            finding: obstacle_finding(obstacle, &facts.family),
            services: obstacle.services.clone(),
        }));
        found.extend(facts.unrouted.iter().map(|unrouted| NodeFinding {
            finding: unrouted_finding(unrouted, &facts.family),
            services: unrouted.services.iter().cloned().collect(),
        }));
    }
    let whole = findings::whole_node(state).into_iter().chain(findings::stale_picture(state));
    let whole = whole.chain(findings::repeated_drift(state));
    found.extend(whole.map(|finding| NodeFinding { finding, services: Vec::new() }));
    found
}

/// The Services that lines name in their comments.
fn concerned(differences: &[Difference], known: &BTreeSet<&str>) -> Vec<String> {
    let lines = differences.iter().flat_map(|it| it.missing.iter().chain(&it.surplus));
    let words = lines.flat_map(|line| line.split([' ', '"'])).filter(|word| word.contains('/'));
    let names = words.map(|word| word.split_once(':').map_or(word, |(name, _)| name));
    let found: BTreeSet<&str> = names.filter(|name| known.contains(name)).collect();
    found.into_iter().map(str::to_owned).collect()
}

impl fmt::Display for NodeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Node    {}, mode {}", self.node, self.identity.mode)?;
        write_proxy(f, self.proxy.as_ref())?;
        let concerned: BTreeSet<&String> = self.findings.iter().flat_map(|it| &it.services).collect();
        writeln!(f, "Services {}, {} with findings", self.services, concerned.len())?;
        writeln!(f, "\nKernel  {}", kernel_words(self.kernel_is_right))?;
        write_differences(f, &self.differences)?;
        if self.findings.is_empty() {
            return write_nothing(f, self.proxy.as_ref(), "that can be seen from this node");
        }
        writeln!(f, "\nFindings")?;
        let mut rest = self.findings.as_slice();
        while let [first, ..] = rest {
            let is_alike = |it: &&NodeFinding| {
                it.finding.code == first.finding.code && it.finding.severity == first.finding.severity
            };
            let alike = rest.iter().take_while(is_alike).count();
            let (group, others) = rest.split_at(alike);
            write_group(f, group)?;
            rest = others;
        }
        Ok(())
    }
}

/// Findings of one code: what each says and of which Service, and once what helps.
fn write_group(f: &mut fmt::Formatter<'_>, group: &[NodeFinding]) -> fmt::Result {
    let Some(first) = group.first() else { return Ok(()) };
    writeln!(f, "  {} {}", severity_words(first.finding.severity), first.finding.code)?;
    for (index, it) in group.iter().enumerate().take(MOST_SERVICES) {
        let named: Vec<&str> = it.services.iter().take(MOST_SERVICES).map(String::as_str).collect();
        let more = match it.services.len().saturating_sub(MOST_SERVICES) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        match named.as_slice() {
            [] => writeln!(f, "          {}", it.finding.message)?,
            [one] => writeln!(f, "          {one}: {}", it.finding.message)?,
            several => {
                writeln!(
                    f,
                    "          {}\n          Services: {}{more}",
                    it.finding.message,
                    several.join(", ")
                )?;
            }
        }
        // What helps against several is said after the last of them.
        let shown = group.get(index + 1).filter(|_| index + 1 < MOST_SERVICES);
        let is_repeated = shown.is_some_and(|next| next.finding.advice == it.finding.advice);
        if !is_repeated && !it.finding.advice.is_empty() {
            writeln!(f, "          {}", it.finding.advice)?;
        }
    }
    match group.len().saturating_sub(MOST_SERVICES) {
        0 => Ok(()),
        more => writeln!(f, "          and {more} more; -o json has all"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::FamilyFacts;
    use super::super::findings::Severity;
    use super::*;

    fn object(name: &str, lines: &[&str]) -> KernelObject {
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        KernelObject { name: name.to_owned(), lines, is_shared: true }
    }

    fn page(services: &[&str], objects: Vec<KernelObject>) -> NodePage {
        let view = |name: &&str| ServiceView { service: (*name).to_owned(), ..ServiceView::default() };
        NodePage {
            services: services.iter().map(view).collect(),
            wanted: BTreeMap::from([("IPv4".to_owned(), objects)]),
            ..NodePage::default()
        }
    }

    #[test]
    fn an_object_of_several_pages_has_the_lines_of_all_and_each_once() {
        let first = page(&["a/a"], vec![object("nat KUBE-SERVICES", &["a", "base"])]);
        let second = page(
            &["b/b"],
            vec![object("nat KUBE-SERVICES", &["b", "base"]), object("nat PREROUTING", &["j"])],
        );
        let node = Node::of(vec![first, second], |name| name != "nat PREROUTING");
        assert_eq!(node.services.len(), 2);
        let joined = KernelObject { is_shared: false, ..object("nat KUBE-SERVICES", &["a", "base", "b"]) };
        assert_eq!(node.wanted[&IpFamily::V4], [joined, object("nat PREROUTING", &["j"])]);
    }

    #[test]
    fn a_difference_names_the_services_of_its_lines_and_no_others() {
        let node = Node::of(vec![page(&["shop/web", "shop/db"], Vec::new())], |_| true);
        let missing =
            ["-d 10.96.0.1 -m comment --comment \"shop/web:http cluster IP\" -j X", "-j shop/unknown"];
        let difference = Difference {
            object: "nat KUBE-SERVICES".to_owned(),
            is_gone: false,
            missing: missing.map(str::to_owned).to_vec(),
            surplus: Vec::new(),
        };
        let facts = FamilyFacts {
            family: "IPv4".to_owned(),
            differences: vec![difference],
            ..FamilyFacts::default()
        };
        let report = NodeReport::new(node, NodeState { families: vec![facts], ..NodeState::default() });
        assert_eq!(report.exit_status(), 1);
        let [found] = report.findings.as_slice() else { panic!("{:?}", report.findings) };
        assert_eq!(
            (found.finding.severity, found.services.as_slice()),
            (Severity::Broken, ["shop/web".to_owned()].as_slice())
        );
        let text = report.to_string();
        assert!(
            text.contains(
                "BROKEN  kernel-object-missing\n          shop/web: nat KUBE-SERVICES lacks 2 entries"
            ),
            "{text}"
        );
    }

    #[test]
    fn findings_of_one_cause_stand_together_with_what_helps_once() {
        let finding = |service: &str| NodeFinding {
            finding: Finding {
                code: super::super::Code::NoEndpoints,
                severity: Severity::Problem,
                message: "no endpoints".to_owned(),
                advice: "compare the labels".to_owned(),
            },
            services: vec![service.to_owned()],
        };
        let report = NodeReport {
            node: "node-0".to_owned(),
            identity: Identity::default(),
            proxy: None,
            services: 3,
            findings: ["a/a", "b/b"].map(finding).to_vec(),
            differences: Vec::new(),
            kernel_is_right: Some(true),
        };
        let text = report.to_string();
        assert!(text.contains("Services 3, 2 with findings"), "{text}");
        assert_eq!(text.matches("compare the labels").count(), 1, "{text}");
        assert!(text.contains("          a/a: no endpoints\n          b/b: no endpoints\n"), "{text}");
    }
}
