//! `kube-proxy-rs check`: is this node fit for this configuration?

use super::ask::{self, Running};
use super::output::{Answer, complain};
use super::print::structured;
use super::read_api::read_api;
use super::source;
use crate::backend;
use crate::check::{self, CheckRequest, ModeSource, ProxyState, Purpose, ServicePortUse};
use crate::config::{Config, Form, Mode, ModeChoice};
use crate::model::{IpFamily, NodeFacts, ObjectKind, Protocol, Snapshot};
use crate::state::Tracker;
use crate::watch::manifests;
use anyhow::Result;

/// Prints one finding a line; fails if one of them did. `asked`: what mode `auto` stands for, and whether a mode is named at
/// all.
pub(super) async fn check(
    config: &Config,
    asked: (Option<&ModeChoice>, bool),
    form: &Form,
) -> Result<Answer> {
    let request = request(config, asked).await?;
    let findings = check::judge(&check::gather(&request).await, &request);
    let report = check::Report::new(findings, request.mode);
    let text = match structured("NodeCheck", &report, form)? {
        Some(text) => text,
        None => report.to_string(),
    };
    Ok(Answer { text, status: u8::from(!report.fit), wraps: form == &Form::Text })
}

/// For which mode the node is judged, and why: the one that is asked for, else that of the proxy that runs here, else the
/// default.
fn judged_mode(
    config: &Config,
    (choice, names_mode): (Option<&ModeChoice>, bool),
    running: Option<&Running>,
) -> (Mode, ModeSource) {
    match (choice, running.and_then(Running::mode)) {
        (Some(choice), _) => (config.mode, ModeSource::Auto(choice.reason.clone())),
        (None, running) if names_mode => {
            (config.mode, ModeSource::Asked { beside: running.filter(|it| *it != config.mode) })
        }
        (None, Some(mode)) => (mode, ModeSource::Running),
        (None, None) => (config.mode, ModeSource::Default),
    }
}

async fn request(config: &Config, asked: (Option<&ModeChoice>, bool)) -> Result<CheckRequest> {
    let servers = [("healthz", config.healthz), ("metrics", config.metrics)];
    let tracker = services(config).await?;
    let running = ask::running(config).await;
    let (mode, mode_source) = judged_mode(config, asked, running.as_ref());
    let flavor = running.as_ref().filter(|_| mode_source == ModeSource::Running).and_then(Running::flavor);
    // With Services of its own, the question is not about the proxy that runs here.
    let running = running.filter(|_| tracker.is_none());
    let has_endpoints = tracker.as_ref().map(|tracker| tracker.endpoints(IpFamily::V6) > 0);
    Ok(CheckRequest {
        has_ipv6_endpoints: has_endpoints.or(running.as_ref().and_then(|it| it.has_endpoints(IpFamily::V6))),
        proxy: running.map(|running| ProxyState {
            healthy: running.proxy.healthy,
            reasons: running.proxy.why().cloned().collect(),
        }),
        mode,
        mode_source,
        flavor: flavor.or_else(|| backend::flavor(config)),
        extras: backend::open(mode).extras(config),
        localhost_node_ports: config.iptables.localhost_node_ports
            && backend::open(mode).facts().localhost_node_ports,
        node_port_range: config.node_ports.range,
        servers: servers.into_iter().filter_map(|(name, address)| Some((name, address?))).collect(),
        service_ports: tracker.map(|tracker| service_ports(tracker.snapshot())),
    })
}

/// The Services, if we are told where they are.
async fn services(config: &Config) -> Result<Option<Tracker>> {
    let node = NodeFacts { name: config.node_name.as_str().into(), ..NodeFacts::default() };
    let mut tracker = Tracker::new(node, i64::MAX);
    let sources = &config.sources;
    if !sources.manifests.is_empty() {
        let options = source::manifest_options(config);
        let (events, errors) = manifests::load(&sources.manifests, &options)?;
        errors.iter().for_each(|error| complain(format_args!("Error: {error}")));
        events.into_iter().for_each(|event| tracker.fold(event));
        return Ok(Some(tracker));
    }
    if sources.kubeconfig.is_none() && sources.master.is_none() {
        return Ok(None);
    }
    let has_services = |tracker: &Tracker| tracker.has_listed(ObjectKind::Service);
    Ok(Some(read_api(config, tracker, has_services).await?))
}

fn service_ports(snapshot: &Snapshot) -> Vec<ServicePortUse> {
    let services = snapshot.services.values().filter_map(|record| record.service.as_ref());
    let ports = services.flat_map(|service| {
        let of = |protocol, port, purpose| ServicePortUse {
            service: service.name.to_string(),
            protocol,
            port,
            purpose,
        };
        let health_check = service.external.iter().map(|external| external.health_check_node_port);
        let health_check = health_check.map(|port| of(Protocol::Tcp, port, Purpose::HealthCheck));
        let node_ports =
            service.ports.iter().map(|port| of(port.protocol, port.node_port, Purpose::NodePort));
        node_ports.chain(health_check).collect::<Vec<_>>()
    });
    ports.filter(|it| it.port != 0).collect()
}
