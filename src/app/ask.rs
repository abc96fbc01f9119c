//! `explain`, `services` and `status`: who is asked, and how the answer is printed.

use super::inspect;
use super::offline::Offline;
use super::output::{Answer, complain};
use crate::config::{Config, Explain, OutputForm, TableForm};
use crate::explain::{self, ApiFacts, Kind, Report, Row, ServiceView, Services, table};
use crate::http;
use crate::model::{IpFamily, ServiceName, excerpt};
use crate::sync::LoopState;
use crate::watch::client::{ClientOptions, Connection};
use crate::watch::lookup::{self, Raw};
use crate::watch::manifests;
use anyhow::{Context, Error, Result, bail};
use serde::de::DeserializeOwned;
use std::io::{self, ErrorKind};
use std::path::Path;

/// Who is asked.
enum Source<'a> {
    /// The proxy that runs here.
    Daemon(&'a Path),
    /// The API server or manifests, read once.
    Offline(Box<Offline>),
}

impl<'a> Source<'a> {
    /// Manifests or a kubeconfig on the command line are asked instead of the running proxy.
    async fn of(config: &'a Config) -> Result<Source<'a>> {
        if names_source(config) {
            return Ok(Source::Offline(Box::new(Offline::read(config).await?)));
        }
        match &config.control_socket {
            Some(path) => Ok(Source::Daemon(path)),
            None => bail!("--control-socket, --kubeconfig or --manifests has to say who is to be asked"),
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
        ErrorKind::PermissionDenied => format!("cannot ask {socket}; only root and the proxy's own user may"),
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => format!(
            "no process answers on {socket}; is kube-proxy-rs running on this node? --kubeconfig or --manifests do without it"
        ),
        _ => format!("cannot ask {socket}"),
    };
    Error::new(error).context(context)
}

/// `explain`.
pub(super) async fn explain(config: &Config, asked: &Explain) -> Result<Answer> {
    let (service, port) = match asked.service.rsplit_once(':') {
        Some((service, port)) => (service, Some(port)),
        None => (asked.service.as_str(), None),
    };
    let Some((namespace, name)) =
        service.split_once('/').filter(|(ns, name)| !ns.is_empty() && !name.is_empty())
    else {
        bail!("{:?} is not of the form NAMESPACE/NAME or NAMESPACE/NAME:PORT", asked.service);
    };
    let source = Source::of(config).await?;
    let path = format!("/v1/service?name={namespace}/{name}");
    let wanted = ServiceName::new(namespace, name);
    let mut view: Option<ServiceView> = source.ask(&path, |state| explain::service(state, &wanted)).await?;
    let api = api_facts(config, namespace, name).await?;
    if let (Some(view), Some(port)) = (&mut view, port) {
        keep_port(view, port)?;
    }
    if let Some(view) = &mut view {
        keep_family(view, asked);
    }
    let mut node = match &view {
        Some(view) => inspect::around(config, view, asked).await,
        None => crate::explain::NodeState::default(),
    };
    node.api = api;
    let report = Report::new(service.to_owned(), view, node);
    let text = match asked.form {
        OutputForm::Json => json(&report)?,
        OutputForm::Text => report.to_string(),
    };
    Ok(Answer { text, status: report.exit_status() })
}

/// A traced packet is of one family, so the other one is left out.
fn keep_family(view: &mut ServiceView, asked: &Explain) {
    let Some(address) = asked.client.or(asked.to.map(|to| to.ip())) else { return };
    view.families.retain(|family| family.ip_family() == Some(IpFamily::of(address)));
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
        let options =
            ClientOptions { kubeconfig: sources.kubeconfig.clone(), master: sources.master.clone() };
        let asked = async { lookup::lookup(&Connection::open(&options).await?, namespace, name).await };
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
    ApiFacts { kind, unlabelled_slices: raw.unlabelled_slices }
}

/// `services`.
pub(super) async fn services(config: &Config, namespace: Option<&str>, form: TableForm) -> Result<Answer> {
    let source = Source::of(config).await?;
    let mut rows: Vec<Row> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let mut path = format!("/v1/services?namespace={}", namespace.unwrap_or_default());
        if let Some(after) = &after {
            path = format!("{path}&after={after}");
        }
        let page: Services =
            source.ask(&path, |state| explain::services(state, namespace, after.as_deref())).await?;
        rows.extend(page.items);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let text = match form {
        TableForm::Json => json(&Services { items: rows, next: None })?,
        TableForm::Text | TableForm::Wide => table(&rows, form == TableForm::Wide),
    };
    Ok(text.into())
}

/// `status`.
pub(super) async fn status(config: &Config, form: OutputForm) -> Result<Answer> {
    let Some(socket) = &config.control_socket else {
        bail!("--control-socket has to say who is to be asked")
    };
    let path = match form {
        OutputForm::Json => "/v1/status",
        OutputForm::Text => "/v1/status.txt",
    };
    let body = answer_of(socket, path).await?;
    match form {
        OutputForm::Json => {
            let value: serde_json::Value = serde_json::from_slice(&body).context("reading the answer")?;
            Ok(json(&value)?.into())
        }
        OutputForm::Text => Ok(String::from_utf8_lossy(&body).into_owned().into()),
    }
}

fn json(value: &impl serde::Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(value).context("writing JSON")? + "\n")
}
