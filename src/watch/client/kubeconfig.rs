//! Where the API server is and who we are to it, from a kubeconfig or from the pod.

use super::ClientOptions;
use super::pem;
use super::proxy::{self, Proxy};
use super::stamp::Stamp;
use anyhow::{Context, bail};
use http::uri::Scheme;
use http::{HeaderValue, Uri, header};
use kube::config::{AuthInfo, Cluster, Kubeconfig};
use rustls::pki_types::CertificateDer;
use rustls::sign::SingleCertAndKey;
use secrecy::ExposeSecret;
use std::path::Path;
use std::sync::Arc;

const USER_AGENT: &str = concat!("kube-proxy-rs/", env!("CARGO_PKG_VERSION"));

/// What a connection is made from.
pub(super) struct Settings {
    pub(super) config: kube::Config,
    /// Those to trust; without, the system's.
    pub(super) authorities: Option<Vec<CertificateDer<'static>>>,
    pub(super) identity: Option<Arc<SingleCertAndKey>>,
    pub(super) proxy: Option<Proxy>,
    /// Of all that was read, taken before.
    pub(super) stamps: Vec<Stamp>,
}

pub(super) fn load(options: &ClientOptions) -> anyhow::Result<Settings> {
    let mut settings = match (&options.kubeconfig, &options.master) {
        (Some(path), master) => from_kubeconfig(path, master.as_deref())
            .with_context(|| format!("kubeconfig {}", path.display()))?,
        (None, Some(master)) => from_master(master)?,
        (None, None) => from_pod()?,
    };
    settings.config.headers.push((header::USER_AGENT, HeaderValue::from_static(USER_AGENT)));
    Ok(settings)
}

fn parse_master(master: &str) -> anyhow::Result<Uri> {
    master.parse().with_context(|| format!("master address {master:?}"))
}

fn from_master(master: &str) -> anyhow::Result<Settings> {
    let server = absolute(parse_master(master)?, false)?;
    let proxy = proxy::towards(&server, None)?;
    let config = kube::Config::new(server);
    Ok(Settings { config, authorities: None, identity: None, proxy, stamps: Vec::new() })
}

fn from_pod() -> anyhow::Result<Settings> {
    // The kubelet sets it in every container.
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_none() {
        bail!(
            "no way to the API server: give --kubeconfig or --master (this is not a container of a pod: \
             KUBERNETES_SERVICE_HOST is not set)"
        );
    }
    let what = "no way to the API server: --kubeconfig and --master are not given, and the pod's service account \
                cannot be used";
    let mut config = kube::Config::incluster_env().context(what)?;
    let mut stamps: Vec<Stamp> = config.root_cert_file.take().into_iter().map(Stamp::of_file).collect();
    stamps.extend(config.auth_info.token_file.iter().map(Stamp::of_file));
    take_token(&mut config).context(what)?;
    let authorities = config.root_cert.take().unwrap_or_default();
    let authorities = Some(authorities.into_iter().map(CertificateDer::from).collect());
    let proxy = proxy::towards(&config.cluster_url, None)?;
    Ok(Settings { config, authorities, identity: None, proxy, stamps })
}

fn from_kubeconfig(path: &Path, master: Option<&str>) -> anyhow::Result<Settings> {
    let mut stamps = vec![Stamp::of_file(path)];
    let mut kubeconfig = Kubeconfig::from_yaml(&std::fs::read_to_string(path)?)?;
    let mut selected = Selected::find(&mut kubeconfig)?;
    selected.drop_empty();
    selected.trim();
    selected.resolve(path.parent().unwrap_or(Path::new("")));
    if let Some(master) = master {
        parse_master(master)?;
        selected.cluster.server = Some(master.to_owned());
    }
    if selected.cluster.insecure_skip_tls_verify == Some(true) && selected.has_authority() {
        bail!(
            "cluster {:?} sets insecure-skip-tls-verify, but names an authority, too",
            selected.cluster_name
        );
    }
    stamps.extend(selected.stamps());
    let server = selected.server()?;
    let proxy = proxy::towards(&server, selected.cluster.proxy_url.as_deref())?;
    let authorities = pem::authorities(selected.cluster)?;
    let mut config = kube::Config::try_from(kubeconfig)?;
    config.cluster_url = server;
    let identity = take_identity(&mut config)?;
    Ok(Settings { config, authorities, identity, proxy, stamps })
}

/// The parts of a kubeconfig that its current context points at.
struct Selected<'a> {
    cluster_name: String,
    cluster: &'a mut Cluster,
    user: Option<&'a mut AuthInfo>,
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
        let user = kubeconfig.auth_infos.iter_mut().find(|info| Some(&info.name) == user);
        Ok(Selected { cluster_name, cluster, user: user.and_then(|info| info.auth_info.as_mut()) })
    }

    /// Empty is absent, as in client-go; to kube it is a value, or the folder that the kubeconfig is in.
    fn drop_empty(&mut self) {
        let cluster = &mut self.cluster;
        let fields = [
            &mut cluster.certificate_authority,
            &mut cluster.certificate_authority_data,
            &mut cluster.tls_server_name,
            &mut cluster.proxy_url,
        ];
        fields.into_iter().for_each(|field| drop(field.take_if(|text| text.is_empty())));
        let Some(user) = &mut self.user else { return };
        let fields = [
            &mut user.username,
            &mut user.token_file,
            &mut user.client_certificate,
            &mut user.client_certificate_data,
            &mut user.client_key,
            &mut user.impersonate,
            &mut user.impersonate_uid,
        ];
        fields.into_iter().for_each(|field| drop(field.take_if(|text| text.is_empty())));
        let secrets = [&mut user.password, &mut user.token, &mut user.client_key_data];
        secrets.into_iter().for_each(|field| drop(field.take_if(|text| text.expose_secret().is_empty())));
    }

    /// What is sent in a header has no white space around it.
    fn trim(&mut self) {
        let Some(user) = &mut self.user else { return };
        let groups = user.impersonate_groups.iter_mut().flatten();
        let names = [&mut user.impersonate, &mut user.impersonate_uid].into_iter().flatten();
        names.chain(groups).for_each(|name| *name = name.trim().to_owned());
    }

    /// Names of files are relative to the folder of the kubeconfig, a command only if it is a path.
    fn resolve(&mut self, folder: &Path) {
        let resolve = |file: &mut String| *file = folder.join(&*file).to_string_lossy().into_owned();
        self.cluster.certificate_authority.iter_mut().for_each(resolve);
        let Some(user) = &mut self.user else { return };
        let files = [&mut user.token_file, &mut user.client_certificate, &mut user.client_key];
        files.into_iter().flatten().for_each(resolve);
        let command = user.exec.as_mut().and_then(|exec| exec.command.as_mut());
        command.filter(|command| command.contains('/')).map(resolve);
    }

    fn server(&self) -> anyhow::Result<Uri> {
        let name = &self.cluster_name;
        let Some(server) = self.cluster.server.as_ref().filter(|server| !server.is_empty()) else {
            bail!("cluster {name:?} has no server");
        };
        let server = server.parse().with_context(|| format!("server {server:?} of cluster {name:?}"))?;
        absolute(server, self.has_authority())
    }

    fn has_authority(&self) -> bool {
        self.cluster.certificate_authority.is_some() || self.cluster.certificate_authority_data.is_some()
    }

    /// Of the files that are read unless the kubeconfig carries what is in them.
    fn stamps(&self) -> Vec<Stamp> {
        let carried = self.cluster.certificate_authority_data.is_some();
        let authority = self.cluster.certificate_authority.as_ref().filter(|_| !carried);
        let Some(user) = self.user.as_deref() else {
            return authority.map(Stamp::of_file).into_iter().collect();
        };
        let files = [&user.client_certificate, &user.client_key, &user.token_file];
        let plugin = user.exec.as_ref().map(|exec| exec.command.as_deref().unwrap_or_default());
        let files = authority.into_iter().chain(files.into_iter().flatten()).map(Stamp::of_file);
        files.chain(plugin.map(Stamp::of_plugin)).collect()
    }
}

/// Takes what says who we are. As in client-go, no secret is sent over a connection without TLS.
fn take_identity(config: &mut kube::Config) -> anyhow::Result<Option<Arc<SingleCertAndKey>>> {
    if config.cluster_url.scheme() == Some(&Scheme::HTTP) {
        config.auth_info = without_secrets(&config.auth_info);
    }
    let user = &mut config.auth_info;
    let identity = pem::identity(user)?;
    (user.client_certificate, user.client_certificate_data) = (None, None);
    (user.client_key, user.client_key_data) = (None, None);
    take_token(config)?;
    Ok(identity)
}

/// Turns the token into a header. Its file counts for more, and a token for more than a plugin, as in client-go;
/// kube does not trim what it reads, and panics where a header cannot be made of it.
fn take_token(config: &mut kube::Config) -> anyhow::Result<()> {
    let user = &mut config.auth_info;
    let inline = user.token.take().map(|token| token.expose_secret().trim().to_owned());
    let token = match (user.token_file.take(), inline) {
        (Some(file), inline) => read_token(Path::new(&file)).or_else(|error| inline.ok_or(error))?,
        (None, Some(inline)) => inline,
        (None, None) => return Ok(()),
    };
    if user.username.is_some() {
        bail!("the user has a token and a username, and only one of them can be sent");
    }
    (user.exec, user.auth_provider) = (None, None);
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).context("the token cannot be sent")?;
    value.set_sensitive(true);
    config.headers.push((header::AUTHORIZATION, value));
    Ok(())
}

/// The user to act for.
fn without_secrets(user: &AuthInfo) -> AuthInfo {
    AuthInfo {
        impersonate: user.impersonate.clone(),
        impersonate_uid: user.impersonate_uid.clone(),
        impersonate_groups: user.impersonate_groups.clone(),
        impersonate_user_extra: user.impersonate_user_extra.clone(),
        ..AuthInfo::default()
    }
}

fn read_token(file: &Path) -> anyhow::Result<String> {
    let what = || format!("token file {}", file.display());
    let text = std::fs::read_to_string(file).with_context(what)?;
    let token = text.trim();
    if token.is_empty() {
        bail!("{} is empty", what());
    }
    Ok(token.to_owned())
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
    parts.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
    parts.path_and_query.get_or_insert(http::uri::PathAndQuery::from_static("/"));
    Ok(Uri::from_parts(parts)?)
}
