//! One Service as the source has it, without the selectors of the watches: for people who ask why it
//! is not served. Never part of the watch itself.

use super::client::Connection;
use super::objects::{ApiObject, EndpointSliceObject, PROXY_NAME_LABEL, SERVICE_NAME_LABEL, ServiceObject};
use super::requests::{Accept, Collection, Negotiation};
use super::wire::Decoded;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Slices of a namespace that are read at most.
const MOST_SLICES: u32 = 5000;
/// Services in a page of a list.
const PAGE: u32 = 500;

/// What the source has of one Service.
#[derive(Debug, Default)]
pub struct Raw {
    /// The Service itself.
    pub service: Option<ServiceObject>,
    /// Slices that are called after it and lack the label that would make them its own.
    pub unlabelled_slices: Vec<String>,
    /// Its slices whose endpoints are names.
    pub fqdn_slices: Vec<String>,
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
        let label = metadata.labels.get(SERVICE_NAME_LABEL);
        if metadata.namespace.as_deref() != Some(namespace) {
            return;
        }
        if is_named_after && label.is_none() {
            self.unlabelled_slices.push(object.name().to_string());
        }
        if label == Some(name) && object.address_type.as_deref() == Some("FQDN") {
            self.fqdn_slices.push(object.name().to_string());
        }
    }

    /// The proxy that a label gives the Service to.
    #[must_use]
    pub fn other_proxy(&self) -> Option<&str> {
        self.service.as_ref()?.metadata.labels.get(PROXY_NAME_LABEL)
    }
}

/// Asks the API server for one Service and the slices beside it.
///
/// # Errors
/// When it does not answer, or does not let us.
pub async fn lookup(connection: &Connection, namespace: &str, name: &str) -> Result<Raw> {
    let mut raw = Raw::default();
    // Not by name: a role that may watch Services may list them, and needs no right to get one.
    let named = format!("metadata.name={name}");
    let negotiation = Arc::new(Negotiation::new(Accept::default()));
    let services =
        Collection::namespaced::<ServiceObject>(connection.clone(), negotiation.clone(), namespace);
    let found = listed(services.selecting("", &named)).await;
    let found = found.with_context(|| format!("asking for Service {namespace}/{name}"))?;
    found.into_iter().for_each(|service| raw.note_service(service, namespace, name));
    for labels in [format!("!{SERVICE_NAME_LABEL}"), format!("{SERVICE_NAME_LABEL}={name}")] {
        let slices =
            Collection::namespaced::<EndpointSliceObject>(connection.clone(), negotiation.clone(), namespace);
        let found = listed(slices.selecting(&labels, "")).await;
        let found: Vec<EndpointSliceObject> =
            found.with_context(|| format!("listing EndpointSlices of {namespace}"))?;
        found.iter().for_each(|slice| raw.note_slice(slice, namespace, name));
    }
    Ok(raw)
}

/// The names of all Services with these labels, as `namespace/name`.
///
/// # Errors
/// When the API server does not answer, or does not take the selector.
pub async fn labelled(connection: &Connection, selector: &str) -> Result<BTreeSet<String>> {
    let negotiation = Arc::new(Negotiation::new(Accept::default()));
    let services = Collection::all::<ServiceObject>(connection.clone(), negotiation);
    let services = services.selecting(selector, "");
    let (mut names, mut next) = (BTreeSet::new(), None);
    loop {
        let asked = services.page(PAGE, next.as_deref()).await;
        let (encoding, page) = asked.with_context(|| format!("listing the Services with {selector:?}"))?;
        for object in page.objects {
            if let Ok(object) = encoding.object::<ServiceObject>(object).await {
                let metadata = object.metadata();
                let namespace = metadata.namespace.as_deref().unwrap_or_default();
                names.insert(format!("{namespace}/{}", metadata.name.as_deref().unwrap_or_default()));
            }
        }
        match page.next {
            Some(more) => next = Some(more),
            None => return Ok(names),
        }
    }
}

/// Those objects of the first page that can be read.
async fn listed<K: ApiObject>(collection: Collection) -> Result<Vec<K>> {
    let (encoding, page) = collection.page(MOST_SLICES, None).await?;
    let mut objects = Vec::new();
    for object in page.objects {
        if let Ok(Decoded::Object(object)) = encoding.object(object).await {
            objects.push(object);
        }
    }
    Ok(objects)
}
