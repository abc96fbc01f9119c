//! Where the API server is and who we are to it, from a kubeconfig or from the pod.

use super::ClientOptions;
use anyhow::{Context, bail};
use http::{HeaderValue, Uri, header};
use kube::config::{KubeConfigOptions, Kubeconfig};
use std::path::{Path, PathBuf};

const USER_AGENT: &str = concat!("kube-proxy-rs/", env!("CARGO_PKG_VERSION"));

/// The settings, and the files that a change of makes us build a new client.
pub(super) async fn load(options: &ClientOptions) -> anyhow::Result<(kube::Config, Vec<PathBuf>)> {
    let (mut config, files) = match (&options.kubeconfig, &options.master) {
        (Some(path), master) => from_kubeconfig(path, master.as_deref())
            .await
            .with_context(|| format!("kubeconfig {}", path.display()))?,
        (None, Some(master)) => (kube::Config::new(parse_master(master)?), Vec::new()),
        (None, None) => {
            let config = kube::Config::incluster_env().context(
                "neither a kubeconfig nor --master is given, and the service account of the pod is no use",
            )?;
            (config, Vec::new())
        }
    };
    config.cluster_url = absolute(config.cluster_url.clone(), config.root_cert.is_some())?;
    config.headers.push((header::USER_AGENT, HeaderValue::from_static(USER_AGENT)));
    if let Some(proxy) = config.proxy_url.take() {
        tracing::warn!(%proxy, "HTTP proxies are not supported, the API server is dialled directly");
    }
    Ok((config, files))
}

fn parse_master(master: &str) -> anyhow::Result<Uri> {
    master.parse().with_context(|| format!("master address {master:?}"))
}

async fn from_kubeconfig(path: &Path, master: Option<&str>) -> anyhow::Result<(kube::Config, Vec<PathBuf>)> {
    // Opened first because kube's own message has the path in it a second time.
    std::fs::File::open(path)?;
    let mut kubeconfig = Kubeconfig::read_from(path)?;
    let selected = Selected::find(&mut kubeconfig)?;
    if let Some(master) = master {
        parse_master(master)?;
        selected.cluster.server = Some(master.to_owned());
    }
    if selected.cluster.server.as_deref().unwrap_or_default().is_empty() {
        bail!("cluster {:?} has no server", selected.cluster_name);
    }
    let authority = selected.authority();
    let mut files = selected.identity();
    files.push(path.to_owned());
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    // Only with the path set does kube look at the file again when the authority is rotated.
    config.root_cert_file = authority;
    Ok((config, files))
}

/// The parts of a kubeconfig that its current context points at.
struct Selected<'a> {
    cluster_name: String,
    cluster: &'a mut kube::config::Cluster,
    user: Option<&'a kube::config::AuthInfo>,
}

impl<'a> Selected<'a> {
    fn find(kubeconfig: &'a mut Kubeconfig) -> anyhow::Result<Self> {
        let Some(name) = kubeconfig.current_context.clone().filter(|name| !name.is_empty()) else {
            bail!("current-context is not set");
        };
        let named = kubeconfig.contexts.iter().find(|context| context.name == name);
        let Some(context) = named.and_then(|context| context.context.as_ref()) else {
            bail!("current-context is {name:?}, but contexts has none of that name");
        };
        let cluster_name = context.cluster.clone();
        let named = kubeconfig.clusters.iter_mut().find(|cluster| cluster.name == cluster_name);
        let Some(cluster) = named.and_then(|cluster| cluster.cluster.as_mut()) else {
            bail!("context {name:?} names cluster {cluster_name:?}, but clusters has none of that name");
        };
        // A user that is not there is no mistake: anonymous access is legal.
        let user = context.user.as_ref();
        let user = kubeconfig.auth_infos.iter().find(|info| Some(&info.name) == user);
        Ok(Selected { cluster_name, cluster, user: user.and_then(|info| info.auth_info.as_ref()) })
    }

    /// The file of the certificate authority, unless the kubeconfig carries it.
    fn authority(&self) -> Option<PathBuf> {
        let carried = self.cluster.certificate_authority_data.as_ref().is_some_and(|data| !data.is_empty());
        let file = self.cluster.certificate_authority.as_ref().filter(|file| !file.is_empty() && !carried);
        file.map(PathBuf::from)
    }

    /// The files of the client certificate.
    fn identity(&self) -> Vec<PathBuf> {
        let user = self.user.iter();
        user.flat_map(|user| [&user.client_certificate, &user.client_key])
            .flatten()
            .filter(|file| !file.is_empty())
            .map(PathBuf::from)
            .collect()
    }
}

/// Adds the scheme to an address that has none, as kubectl does: TLS where an authority is known.
fn absolute(url: Uri, tls: bool) -> anyhow::Result<Uri> {
    if url.authority().is_none() {
        bail!("the API server's address {:?} has no host", url.to_string());
    }
    if url.scheme().is_some() {
        return Ok(url);
    }
    let mut parts = url.into_parts();
    parts.scheme = Some(if tls { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP });
    parts.path_and_query.get_or_insert(http::uri::PathAndQuery::from_static("/"));
    Ok(Uri::from_parts(parts)?)
}
