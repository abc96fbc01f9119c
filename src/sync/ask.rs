//! Questions about the state that the loop owns. It answers them between passes, one Service or one
//! page at a time, so that nobody has to copy the cluster and no pass has to wait for long.

use super::pass::FamilySync;
use crate::explain::{Contest, ContestedIp, ContestedPort, Row, ServiceView, Services};
use crate::model::{ServiceName, Snapshot, word};
use crate::state::{Asked, FrontendConflict, ReservedClaim, Tracker};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Bound;
use tokio::sync::{mpsc, oneshot};

/// Services in one answer.
const PAGE: usize = 500;

/// Who we are: constant for the life of the loop.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `iptables` or `ipvs`.
    pub mode: String,
    /// The iptables tools: `nft` or `legacy`.
    pub flavor: String,
}

/// How large the picture is, and how far the loop has got.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Picture {
    /// Mode and tools.
    #[serde(flatten)]
    pub identity: Identity,
    /// Our node.
    pub node: String,
    /// Its zone, if it has one.
    pub zone: Option<String>,
    /// The node's own IP by family, where it is known.
    pub node_ips: BTreeMap<String, IpAddr>,
    /// The addresses that answer on node ports, by family; nothing means every address of the node.
    pub node_port_ips: BTreeMap<String, Option<Vec<IpAddr>>>,
    /// Services and EndpointSlices have been listed once.
    pub is_complete: bool,
    /// Services with a cluster IP.
    pub services: usize,
    /// Endpoints by family, once per port.
    pub endpoints: BTreeMap<String, usize>,
    /// Endpoints that terminate and still serve.
    pub draining: usize,
    /// Services whose latest change is not in the kernel yet.
    pub pending: usize,
}

impl std::fmt::Display for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let zone = self.zone.as_deref().map(|zone| format!(", zone {zone}")).unwrap_or_default();
        let Identity { mode, flavor } = &self.identity;
        writeln!(f, "Node       {}{zone}", self.node)?;
        writeln!(f, "Node IPs   {}", listed(self.node_ips.values()))?;
        for (family, ips) in &self.node_port_ips {
            writeln!(f, "Node ports {family} on {}", node_port_words(ips.as_deref()))?;
        }
        writeln!(f, "Mode       {mode} (tools: iptables-{flavor})")?;
        writeln!(f, "Services   {}, {} waiting for a sync", self.services, self.pending)?;
        for (family, count) in &self.endpoints {
            writeln!(f, "Endpoints  {count} {family}")?;
        }
        writeln!(f, "Draining   {}", self.draining)?;
        if !self.is_complete {
            writeln!(f, "Waiting for the first list of Services and EndpointSlices: nothing is programmed")?;
        }
        Ok(())
    }
}

/// Where node ports answer, in words.
#[must_use]
pub fn node_port_words(ips: Option<&[IpAddr]>) -> String {
    match ips {
        None => "every address of the node".to_owned(),
        Some([]) => "NO address: the node has none that --nodeport-addresses allows".to_owned(),
        Some(ips) => listed(ips),
    }
}

fn listed<'i>(ips: impl IntoIterator<Item = &'i IpAddr>) -> String {
    let texts: Vec<String> = ips.into_iter().map(ToString::to_string).collect();
    if texts.is_empty() { "unknown".to_owned() } else { texts.join(", ") }
}

/// A question, with the way back. An asker that has gone is none of the loop's business.
#[derive(Debug)]
pub enum Question {
    /// What becomes of one Service; `None` when it is not known.
    Service(ServiceName, oneshot::Sender<Option<ServiceView>>),
    /// All Services of a namespace (or all there are), after a name, in the order of names.
    Services {
        /// Only these.
        namespace: Option<String>,
        /// Only what comes after this `namespace/name`.
        after: Option<String>,
        /// The way back.
        reply: oneshot::Sender<Services>,
    },
    /// The picture.
    Picture(oneshot::Sender<Picture>),
}

/// The questions that wait; a loop that nobody can ask has none.
pub(super) async fn next(questions: &mut Option<mpsc::Receiver<Question>>) -> Question {
    if let Some(receiver) = questions {
        if let Some(question) = receiver.recv().await {
            return question;
        }
        *questions = None;
    }
    std::future::pending().await
}

/// What one Service asks for and should not have, or does not: addresses, and ports of the node.
fn contested(
    (claims, conflicts): (&[ReservedClaim], &[FrontendConflict]),
) -> (Vec<ContestedIp>, Vec<ContestedPort>) {
    let reserved = claims.iter().map(|claim| {
        let contest = if claim.owner.is_api_server() { Contest::ApiServer } else { Contest::Foreign };
        (&claim.asked, contest, claim.refused, None, claim.complaint())
    });
    let taken = conflicts.iter().map(|conflict| {
        (&conflict.asked, Contest::Taken, true, Some(conflict.owner.to_string()), conflict.complaint())
    });
    let (mut ips, mut ports) = (Vec::new(), Vec::new());
    for (Asked { address, port, .. }, contest, refused, owner, complaint) in reserved.chain(taken) {
        match (*address, *port) {
            (Some(address), _) => ips.push(ContestedIp { address, contest, refused, owner, complaint }),
            (None, Some((node_port, protocol))) => {
                let protocol = protocol.to_string();
                ports.push(ContestedPort { node_port, protocol, contest, owner, complaint });
            }
            (None, None) => {}
        }
    }
    (ips, ports)
}

/// What can be told of a picture and the families that it is programmed for.
pub struct Told<'a> {
    /// Mode and tools.
    pub identity: &'a Identity,
    /// The picture.
    pub tracker: &'a Tracker,
    /// The families.
    pub families: &'a [FamilySync],
}

impl Told<'_> {
    /// Answers one question.
    pub fn answer(&self, question: Question) {
        match question {
            Question::Service(name, reply) => drop(reply.send(self.service(&name, true))),
            Question::Services { namespace, after, reply } => {
                drop(reply.send(self.services(namespace.as_deref(), after.as_deref())));
            }
            Question::Picture(reply) => drop(reply.send(self.picture())),
        }
    }

    /// One Service; with what it needs of the kernel, if that is wanted.
    #[must_use]
    pub fn service(&self, name: &ServiceName, with_kernel: bool) -> Option<ServiceView> {
        let snapshot = self.tracker.snapshot();
        let record = snapshot.services.get(name).filter(|record| record.service.is_some())?;
        let one = Snapshot {
            services: BTreeMap::from([(name.clone(), record.clone())]),
            node: snapshot.node.clone(),
        };
        let part = |family: &FamilySync| {
            let endpoints = self.tracker.endpoints(family.family());
            family.view((&one, name), endpoints, with_kernel)
        };
        let (contested_ips, contested_ports) =
            contested((self.tracker.claims_of(name), self.tracker.conflicts_of(name)));
        Some(ServiceView {
            service: name.to_string(),
            node: snapshot.node.name.to_string(),
            zone: snapshot.node.zone.as_deref().map(|zone| word(zone).into_owned()),
            mode: self.identity.mode.clone(),
            flavor: self.identity.flavor.clone(),
            contested_ips,
            contested_ports,
            too_large: self.tracker.over_bounds_of(name).iter().map(|it| it.excess.to_string()).collect(),
            refused_endpoints: record.slices.iter().map(|slice| usize::from(slice.refused)).sum(),
            families: self.families.iter().filter_map(part).collect(),
        })
    }

    /// One page of Services.
    #[must_use]
    pub fn services(&self, namespace: Option<&str>, after: Option<&str>) -> Services {
        let after = after.and_then(|text| text.split_once('/')).map(|(ns, name)| ServiceName::new(ns, name));
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let known = self.tracker.snapshot().services.range((start, Bound::Unbounded));
        let mut names = known
            .filter(|(_, record)| record.service.is_some())
            .map(|(name, _)| name)
            .filter(|name| namespace.is_none_or(|wanted| wanted == name.namespace()));
        let page: Vec<&ServiceName> = names.by_ref().take(PAGE).collect();
        let last = page.last().map(ToString::to_string);
        let views = page.iter().filter_map(|name| self.service(name, false));
        Services {
            items: views.map(|view| Row::of(&view)).collect(),
            next: last.filter(|_| names.next().is_some()),
        }
    }

    /// How large the picture is.
    #[must_use]
    pub fn picture(&self) -> Picture {
        let snapshot = self.tracker.snapshot();
        let records = snapshot.services.values();
        let slices = records.clone().flat_map(|record| &record.slices);
        let drains = |facts: crate::model::EndpointFacts| facts.terminating() && facts.serving();
        let endpoints = self.families.iter().map(|it| it.family());
        let node_ip = |it: &FamilySync| Some((it.family().to_string(), it.node_ip()?));
        let node_port_ips = |it: &FamilySync| (it.family().to_string(), it.node_port_ips());
        Picture {
            node_ips: self.families.iter().filter_map(node_ip).collect(),
            node_port_ips: self.families.iter().map(node_port_ips).collect(),
            identity: self.identity.clone(),
            node: snapshot.node.name.to_string(),
            zone: snapshot.node.zone.as_deref().map(|zone| word(zone).into_owned()),
            is_complete: self.tracker.is_complete(),
            services: records.filter(|record| record.service.is_some()).count(),
            endpoints: endpoints.map(|it| (it.to_string(), self.tracker.endpoints(it))).collect(),
            draining: slices.flat_map(|slice| &slice.endpoints).filter(|it| drains(it.facts)).count(),
            pending: self.tracker.pending(),
        }
    }
}
