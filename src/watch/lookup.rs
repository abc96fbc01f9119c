//! One Service as the source has it, without the selectors of the watches: for people who ask why it
//! is not served. Never part of the watch itself.

use super::client::Connection;
use super::objects::{EndpointSliceObject, PROXY_NAME_LABEL, SERVICE_NAME_LABEL, ServiceObject};
use anyhow::{Context, Result};
use kube::Api;
use kube::api::ListParams;

/// So many slices of a namespace are looked at.
const MOST_SLICES: u32 = 5000;

/// What the source has of one Service.
#[derive(Debug, Default)]
pub struct Raw {
    /// The Service itself.
    pub service: Option<ServiceObject>,
    /// Slices that are called after it and lack the label that would make them its own.
    pub unlabelled_slices: Vec<String>,
}

impl Raw {
    pub(super) fn note_service(&mut self, object: ServiceObject, namespace: &str, name: &str) {
        let metadata = &object.metadata;
        if metadata.name.as_deref() == Some(name) && metadata.namespace.as_deref() == Some(namespace) {
            self.service = Some(object);
        }
    }

    pub(super) fn note_slice(&mut self, object: &EndpointSliceObject, namespace: &str, name: &str) {
        let metadata = &object.metadata;
        let slice = metadata.name.as_deref().unwrap_or_default();
        let is_named_after =
            slice.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
        let label = metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME_LABEL));
        if metadata.namespace.as_deref() == Some(namespace) && is_named_after && label.is_none() {
            self.unlabelled_slices.push(object.name().to_string());
        }
    }

    /// The proxy that a label gives the Service to.
    #[must_use]
    pub fn other_proxy(&self) -> Option<&str> {
        let labels = self.service.as_ref()?.metadata.labels.as_ref()?;
        labels.get(PROXY_NAME_LABEL).map(String::as_str)
    }
}

/// Asks the API server for one Service and the slices beside it.
///
/// # Errors
/// When it does not answer, or does not let us.
pub async fn lookup(connection: &Connection, namespace: &str, name: &str) -> Result<Raw> {
    let mut raw = Raw::default();
    let services: Api<ServiceObject> = Api::namespaced(connection.client(), namespace);
    // Not by name: whoever may watch Services may list them, and need not be allowed more.
    let named = ListParams::default().fields(&format!("metadata.name={name}"));
    let found =
        services.list(&named).await.with_context(|| format!("asking for Service {namespace}/{name}"))?;
    found.items.into_iter().for_each(|service| raw.note_service(service, namespace, name));
    let slices: Api<EndpointSliceObject> = Api::namespaced(connection.client(), namespace);
    let unlabelled = ListParams::default().labels(&format!("!{SERVICE_NAME_LABEL}")).limit(MOST_SLICES);
    let listed =
        slices.list(&unlabelled).await.with_context(|| format!("listing EndpointSlices of {namespace}"))?;
    listed.items.iter().for_each(|slice| raw.note_slice(slice, namespace, name));
    Ok(raw)
}
