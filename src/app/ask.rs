//! `explain` and `status`: who is asked, and how the answer is printed.

use super::inspect;
use super::offline::Offline;
use super::output::{Answer, complain};
use super::print::structured;
use super::read_api::{FIRST_ANSWER, client_options};
use super::status::HEALTHY;
use super::whole;
use crate::config::{Config, Explain, Form, Mode, Target};
use crate::explain::{
    self, ApiFacts, Kind, NodePage, NodeState, ProxyState, Report, Row, ServiceView, Services, Wide,
};
use crate::http;
use crate::kernel::addresses::local_addresses;
use crate::kernel::iptables::Flavor;
use crate::model::{IpFamily, Protocol, ServiceName, excerpt};
use crate::sync::LoopState;
use crate::watch::client::Connection;
use crate::watch::lookup::{self, Raw};
use crate::watch::manifests;
use anyhow::{Context, Error, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// The exit status where there is no such Service.
pub(super) const NO_SUCH_SERVICE: u8 = 2;
/// At most this many names are suggested.
const MOST_SIMILAR: usize = 3;

/// Who is asked.
pub(super) enum Source<'a> {
    /// The proxy that runs here.
    Daemon(&'a Path),
    /// The API server or manifests, read once.
    Offline(Box<Offline>),
}

impl<'a> Source<'a> {
    /// Manifests or a kubeconfig on the command line are asked instead of the running proxy.
    pub(super) async fn of(config: &'a Config) -> Result<Source<'a>> {
        if names_source(config) {
            return Ok(Source::Offline(Box::new(Offline::read(config).await?)));
        }
        match &config.control_socket {
            Some(path) => Ok(Source::Daemon(path)),
            None => bail!(
                "nothing to ask: --control-socket is empty; give the path that the proxy was started with, or \
                 --kubeconfig or --manifests to do without a proxy"
            ),
        }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        read: impl FnOnce(&LoopState<'_>) -> T,
    ) -> Result<T> {
        match self {
            Source::Daemon(socket) => ask_daemon(socket, path).await,
            Source::Offline(offline) => Ok(read(&offline.state())),
        }
    }
}

/// The part of a proxy's status that other commands show.
#[derive(Debug, Deserialize)]
pub(super) struct Running {
    /// The judgement and its reasons.
    #[serde(flatten)]
    pub(super) proxy: ProxyState,
    /// How many endpoints Services have, by family; absent while the loop is busy.
    #[serde(default)]
    endpoints: BTreeMap<String, usize>,
    /// Mode and tools; absent while the loop is busy.
    #[serde(default)]
    mode: String,
    #[serde(default)]
    flavor: String,
}

impl Running {
    /// The mode that it runs in, where that is known.
    pub(super) fn mode(&self) -> Option<Mode> {
        Mode::named(&self.mode)
    }

    /// The flavour of its iptables tools, where it runs any.
    pub(super) fn flavor(&self) -> Option<Flavor> {
        [Flavor::Nft, Flavor::Legacy].into_iter().find(|it| it.as_str() == self.flavor)
    }

    /// Whether Services have endpoints of a family; `None` where that is not known.
    pub(super) fn has_endpoints(&self, family: IpFamily) -> Option<bool> {
        if self.endpoints.is_empty() {
            return None;
        }
        Some(self.endpoints.get(family.as_str()).is_some_and(|count| *count > 0))
    }
}

impl Source<'_> {
    /// The node, page by page.
    pub(super) async fn pages(&self) -> Result<Vec<NodePage>> {
        let mut pages: Vec<NodePage> = Vec::new();
        loop {
            let after = pages.last().and_then(|page| page.next.clone());
            if !pages.is_empty() && after.is_none() {
                return Ok(pages);
            }
            let path = http::path_with_query("/v1/node", &[("after", after.as_deref().unwrap_or_default())]);
            pages.push(self.ask(&path, |state| explain::node_page(state, after.as_deref())).await?);
        }
    }

    /// How the proxy is doing, if one is asked.
    pub(super) async fn running(&self) -> Result<Option<Running>> {
        match self {
            Source::Daemon(socket) => ask_daemon(socket, "/v1/status").await.map(Some),
            Source::Offline(_) => Ok(None),
        }
    }

    /// All Services of a namespace, or all there are.
    pub(super) async fn rows(&self, namespace: Option<&str>) -> Result<Vec<Row>> {
        let mut rows: Vec<Row> = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let (within, from) = (namespace.unwrap_or_default(), after.as_deref().unwrap_or_default());
            let path = http::path_with_query("/v1/services", &[("namespace", within), ("after", from)]);
            let page: Services =
                self.ask(&path, |state| explain::services(state, namespace, after.as_deref())).await?;
            rows.extend(page.items);
            after = page.next;
            if after.is_none() {
                return Ok(rows);
            }
        }
    }
}

fn names_source(config: &Config) -> bool {
    let sources = &config.sources;
    !sources.manifests.is_empty() || sources.kubeconfig.is_some() || sources.master.is_some()
}

async fn ask_daemon<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T> {
    let body = answer_of(socket, path).await?;
    serde_json::from_slice(&body).context("the proxy's answer is not understood; is it another version?")
}

async fn answer_of(socket: &Path, path: &str) -> Result<Vec<u8>> {
    let (status, body) = http::ask_local(socket, path).await.map_err(|error| no_answer(error, socket))?;
    if status != 200 {
        bail!("{}", excerpt(&String::from_utf8_lossy(&body)));
    }
    Ok(body)
}

/// Why there is no answer, and what helps.
fn no_answer(error: io::Error, socket: &Path) -> Error {
    let socket = socket.display();
    let context = match error.kind() {
        ErrorKind::PermissionDenied => {
            format!("cannot ask {socket}: run this as root; only root and the proxy's own user may ask")
        }
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => format!(
            "no process answers on {socket}; is kube-proxy-rs running on this node? --kubeconfig or --manifests do without it"
        ),
        _ => format!("cannot ask {socket}"),
    };
    Error::new(error).context(context)
}

/// `explain`.
pub(super) async fn explain(config: &Config, asked: &Explain) -> Result<Answer> {
    let Some(target) = &asked.target else {
        return whole::explain(config, &Source::of(config).await?, asked).await;
    };
    let target = Target::parse(target, &asked.namespace).map_err(Error::msg)?;
    let source = Source::of(config).await?;
    match target {
        Target::Service { namespace, name, port } => {
            explain_service(config, &source, (&namespace, &name, port.as_deref()), asked).await
        }
        Target::Address(at, protocol) => explain_address(config, &source, (at, protocol), asked).await,
    }
}

/// The Services that answer at an address, each with a packet to it.
async fn explain_address(
    config: &Config,
    source: &Source<'_>,
    (at, protocol): (SocketAddr, Option<Protocol>),
    asked: &Explain,
) -> Result<Answer> {
    let rows = source.rows(None).await?;
    let own = local_addresses(IpFamily::of(at.ip()))?.contains(&at.ip());
    let answering = answering(&rows, at, protocol, own);
    if answering.is_empty() {
        let text = no_service_at(&rows, at, protocol, own);
        return Ok(Answer { text, status: NO_SUCH_SERVICE, wraps: true });
    }
    let asked = Explain { to: Some(at), protocol: protocol.or(asked.protocol), ..asked.clone() };
    let mut all = Answer { wraps: true, ..Answer::default() };
    for row in answering {
        let port = at.port().to_string();
        let one = explain_service(config, source, (&row.namespace, &row.name, Some(&port)), &asked).await?;
        if !all.text.is_empty() {
            all.text.push('\n');
        }
        all.text.push_str(&one.text);
        all.status = all.status.max(one.status);
    }
    Ok(all)
}

/// The Services with a frontend there. A node port that stands on every address is at those of this node only.
fn answering(rows: &[Row], at: SocketAddr, protocol: Option<Protocol>, own: bool) -> Vec<&Row> {
    let is_there = |frontend: &String| {
        let Some((address, of)) = frontend.rsplit_once('/') else { return false };
        let on_node = own && address.strip_prefix("*:").is_some_and(|port| port == at.port().to_string());
        (on_node || address == at.to_string()) && protocol.is_none_or(|protocol| protocol.as_str() == of)
    };
    rows.iter().filter(|row| row.frontends.iter().any(is_there)).collect()
}

/// That no Service answers at an address, and what comes close.
fn no_service_at(rows: &[Row], at: SocketAddr, protocol: Option<Protocol>, own: bool) -> String {
    let protocol = protocol.map(|protocol| format!("/{protocol}")).unwrap_or_default();
    let ip = match at.ip() {
        IpAddr::V4(ip) => format!("{ip}:"),
        IpAddr::V6(ip) => format!("[{ip}]:"),
    };
    let is_near = |frontend: &&String| frontend.starts_with(&ip);
    let near: Vec<String> = rows
        .iter()
        .filter_map(|row| Some(format!("{} at {}", row.full_name(), row.frontends.iter().find(is_near)?)))
        .take(MOST_SIMILAR)
        .collect();
    let hint = match (near.as_slice(), own) {
        ([], true) => "It is an address of this node; no node port of this number answers there.".to_owned(),
        ([], false) => {
            "It is no address of this node either: a node port has to be asked for on its node.".to_owned()
        }
        (near, _) => format!("The address has other ports: {}.", near.join(", ")),
    };
    format!("No Service answers at {at}{protocol} on this node. {hint}\n")
}

async fn explain_service(
    config: &Config,
    source: &Source<'_>,
    (namespace, name, port): (&str, &str, Option<&str>),
    asked: &Explain,
) -> Result<Answer> {
    let full_name = format!("{namespace}/{name}");
    let path = http::path_with_query("/v1/service", &[("name", &full_name)]);
    let wanted = ServiceName::new(namespace, name);
    let mut view: Option<ServiceView> = source.ask(&path, |state| explain::service(state, &wanted)).await?;
    let api = api_facts(config, namespace, name).await?;
    if let (Some(view), Some(port)) = (&mut view, port) {
        keep_port(view, port)?;
    }
    let other_family = view.as_mut().and_then(|view| keep_family(view, asked));
    let mut node = match &view {
        Some(view) => inspect::around(config, view, asked).await,
        None => {
            NodeState { similar: similar(&source.rows(None).await?, namespace, name), ..NodeState::default() }
        }
    };
    node.api = api;
    node.other_family = other_family;
    node.proxy = source.running().await?.map(|running| running.proxy);
    let report = Report::new(full_name, view, node);
    let text = match structured("Explanation", &report, &asked.form)? {
        Some(text) => text,
        None if asked.form == Form::Name => format!("service/{}\n", report.service),
        None if asked.form == Form::Wide => Wide(&report).to_string(),
        None => report.to_string(),
    };
    Ok(Answer { text, status: report.exit_status(), wraps: asked.form == Form::Text })
}

/// The Services whose names are like one that there is not: of this name in other namespaces, or nearly of this name.
pub(super) fn similar(rows: &[Row], namespace: &str, name: &str) -> Vec<String> {
    let near = |row: &Row| {
        let distance = strsim::damerau_levenshtein(&row.name, name);
        let limit = (name.len() / 4).max(1);
        match row.namespace == namespace {
            true => (distance <= limit).then_some(distance),
            false => (distance == 0).then_some(limit),
        }
    };
    let mut found: Vec<(usize, String)> =
        rows.iter().filter_map(|row| Some((near(row)?, row.full_name()))).collect();
    found.sort();
    found.into_iter().map(|(_, name)| name).take(MOST_SIMILAR).collect()
}

/// A traced packet is of one family, so the other one is left out. Returns that family if the Service does not have it.
fn keep_family(view: &mut ServiceView, asked: &Explain) -> Option<String> {
    let address = asked.client.or(asked.to.map(|to| to.ip()))?;
    let family = IpFamily::of(address);
    if view.families.iter().all(|it| it.ip_family() != Some(family)) {
        return Some(family.to_string());
    }
    view.families.retain(|it| it.ip_family() == Some(family));
    None
}

fn keep_port(view: &mut ServiceView, port: &str) -> Result<()> {
    for family in &mut view.families {
        family.ports.retain(|it| {
            it.name == port || it.frontends.iter().any(|at| at.address.ends_with(&format!(":{port}")))
        });
    }
    if view.families.iter().all(|family| family.ports.is_empty()) {
        bail!("Service {} has no port {port}", view.service);
    }
    Ok(())
}

/// What the source has of the object itself; the running proxy has forgotten that.
async fn api_facts(config: &Config, namespace: &str, name: &str) -> Result<Option<ApiFacts>> {
    let sources = &config.sources;
    let raw = if !sources.manifests.is_empty() {
        manifests::raw(&sources.manifests, namespace, name)?
    } else if names_source(config) || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        let asked = async {
            let connection = Connection::open(&client_options(config)).await?;
            let found = lookup::lookup(&connection, namespace, name);
            let found = tokio::time::timeout(FIRST_ANSWER, found).await;
            found.with_context(|| format!("no answer from {} within {FIRST_ANSWER:?}", connection.url()))?
        };
        match asked.await {
            Ok(raw) => raw,
            Err(error) => {
                complain(format_args!("Warning: the API server was not asked: {error:#}"));
                return Ok(None);
            }
        }
    } else {
        return Ok(None);
    };
    Ok(Some(facts_of(raw)))
}

fn facts_of(raw: Raw) -> ApiFacts {
    let spec = raw.service.as_ref().map(|service| &service.spec);
    let kind = spec.map(|spec| match (raw.other_proxy(), spec.cluster_ip.as_deref()) {
        _ if spec.service_type.as_deref() == Some("ExternalName") => Kind::ExternalName,
        (_, Some("None")) => Kind::Headless,
        (Some(proxy), _) => Kind::OtherProxy(proxy.to_owned()),
        (None, None | Some("")) => Kind::NoClusterIp,
        (None, Some(_)) => Kind::Ordinary,
    });
    let lacks_selector = spec.is_some_and(|spec| spec.selector.is_none());
    let Raw { unlabelled_slices, fqdn_slices, .. } = raw;
    ApiFacts { kind, unlabelled_slices, fqdn_slices, lacks_selector }
}

/// `status`.
pub(super) async fn status(config: &Config, form: &Form) -> Result<Answer> {
    let Some(socket) = &config.control_socket else {
        bail!("no proxy to ask: --control-socket is empty; give the path that the proxy was started with")
    };
    // What is printed is what is judged: a second answer may come after another sync.
    let (text, is_healthy) = if matches!(form, Form::Json | Form::Yaml | Form::JsonPath(_)) {
        let status: serde_json::Value = ask_daemon(socket, "/v1/status").await?;
        (structured("Status", &status, form)?.unwrap_or_default(), status["healthy"] != false)
    } else {
        let text = String::from_utf8_lossy(&answer_of(socket, "/v1/status.txt").await?).into_owned();
        let is_healthy = text.starts_with(HEALTHY);
        (text, is_healthy)
    };
    Ok(Answer { text, status: u8::from(!is_healthy), wraps: form == &Form::Text })
}

/// What the proxy that runs here answers to a path of its control socket.
pub(super) async fn answer(config: &Config, path: &str) -> Result<Vec<u8>> {
    let Some(socket) = &config.control_socket else { bail!("no proxy to ask: --control-socket is empty") };
    answer_of(socket, path).await
}

/// What the kernel has of all that is wanted, as JSON, by family.
pub(super) async fn kernel_objects(config: &Config) -> Result<Vec<u8>> {
    let node = whole::node(config, &Source::of(config).await?).await?;
    let found = inspect::kernel_objects(config, &node).await?;
    serde_json::to_vec_pretty(&found).context("writing JSON")
}

/// What the proxy that runs here says of itself; `None` where none can be asked.
pub(super) async fn running(config: &Config) -> Option<Running> {
    ask_daemon(config.control_socket.as_deref()?, "/v1/status").await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, frontends: &[&str]) -> Row {
        let (namespace, name) = name.split_once('/').unwrap();
        Row {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            frontends: frontends.iter().map(|it| (*it).to_owned()).collect(),
            used: 1,
            unused: 0,
            reasons: BTreeMap::new(),
            draining: 0,
            state: "serving".to_owned(),
            problems: Vec::new(),
        }
    }

    fn rows() -> Vec<Row> {
        vec![
            row("shop/web", &["10.96.0.10:80/tcp", "*:30080/tcp", "[fd00::10]:80/tcp"]),
            row("shop/dns", &["10.96.0.11:53/tcp", "10.96.0.11:53/udp"]),
            row("test/web", &["10.96.0.12:80/tcp"]),
        ]
    }

    fn at(address: &str, protocol: Option<Protocol>, own: bool) -> Vec<String> {
        let rows = rows();
        let found = answering(&rows, address.parse().unwrap(), protocol, own);
        found.into_iter().map(Row::full_name).collect()
    }

    #[test]
    fn an_address_leads_to_the_services_that_answer_there() {
        assert_eq!(at("10.96.0.10:80", None, false), ["shop/web"]);
        assert_eq!(at("[fd00::10]:80", None, false), ["shop/web"]);
        assert_eq!(at("192.0.2.7:30080", None, true), ["shop/web"]);
        assert_eq!(at("192.0.2.7:30080", Some(Protocol::Udp), true), [""; 0]);
        assert_eq!(at("192.0.2.7:30080", None, false), [""; 0], "of another node");
        assert_eq!(at("10.96.0.11:53", Some(Protocol::Udp), false), ["shop/dns"]);
    }

    #[test]
    fn an_address_without_a_service_is_answered_with_what_comes_close() {
        let text = |address: &str, own| no_service_at(&rows(), address.parse().unwrap(), None, own);
        assert_eq!(
            text("10.96.0.10:81", false),
            "No Service answers at 10.96.0.10:81 on this node. The address has other ports: shop/web at \
             10.96.0.10:80/tcp.\n"
        );
        assert!(text("192.0.2.7:30081", true).contains("no node port of this number"));
        assert!(text("192.0.2.7:30081", false).contains("asked for on its node"));
    }

    #[test]
    fn names_that_are_nearly_right_are_suggested() {
        assert_eq!(similar(&rows(), "shop", "wev"), ["shop/web"]);
        assert_eq!(similar(&rows(), "prod", "web"), ["shop/web", "test/web"]);
        assert_eq!(similar(&rows(), "shop", "database"), [""; 0]);
    }
}
