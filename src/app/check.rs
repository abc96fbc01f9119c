//! `kube-proxy-rs check`: is this node fit for this configuration?

use super::output::{Answer, complain};
use super::source;
use crate::backend;
use crate::check::{self, CheckRequest, Purpose, ServicePortUse};
use crate::config::{Config, OutputForm};
use crate::model::{NodeFacts, ObjectKind, Protocol, Snapshot};
use crate::state::Tracker;
use crate::watch::api;
use crate::watch::client::{ClientOptions, Connection};
use crate::watch::manifests;
use anyhow::{Context, Result, bail};
use std::time::Duration;
use tokio::sync::mpsc;

/// How long the API server may take to list the Services.
const PATIENCE: Duration = Duration::from_secs(60);

/// Prints one finding a line; fails if one of them did.
pub(super) async fn check(config: &Config, form: OutputForm) -> Result<Answer> {
    let request = request(config).await?;
    let findings = check::judge(&check::gather(&request).await, &request);
    let text = match form {
        OutputForm::Text => check::text(&findings),
        OutputForm::Json => check::json(&findings, config.mode),
    };
    Ok(Answer { text, status: u8::from(!check::is_fit(&findings)) })
}

async fn request(config: &Config) -> Result<CheckRequest> {
    let servers = [("healthz", config.healthz), ("metrics", config.metrics)];
    Ok(CheckRequest {
        mode: config.mode,
        flavor: backend::flavor(config),
        localhost_node_ports: config.iptables.localhost_node_ports
            && backend::open(config.mode).facts().localhost_node_ports,
        node_port_range: config.node_ports.range,
        servers: servers.into_iter().filter_map(|(name, address)| Some((name, address?))).collect(),
        service_ports: services(config).await?.map(|tracker| service_ports(tracker.snapshot())),
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
    let options = ClientOptions { kubeconfig: sources.kubeconfig.clone(), master: sources.master.clone() };
    let connection = Connection::open(&options).await?;
    let url = connection.url();
    let (sender, mut events) = mpsc::channel(64);
    let watching = api::run(connection, &config.node_name, sender, source::watch_options(config));
    let listing = async {
        while !tracker.has_listed(ObjectKind::Service) {
            tracker.fold(events.recv().await.context("the watch ended")?);
        }
        Ok(Some(tracker))
    };
    tokio::select! {
        listed = listing => listed,
        () = watching => bail!("the watch ended"),
        () = tokio::time::sleep(PATIENCE) => bail!("{url} did not list the Services within {PATIENCE:?}"),
    }
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
