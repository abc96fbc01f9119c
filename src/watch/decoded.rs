//! Decoding that never fails as a whole.
//!
//! To kube an object that does not decode is an error: in a watch the object is lost until the next
//! list, and in a list it takes its whole page along, for ever. One bad object must not do that.

use crate::model::excerpt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::{DeserializeOwned, Deserializer, Error};
use serde::{Deserialize, de};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// An object, or what is known of one that could not be decoded.
#[derive(Clone, Debug)]
pub(super) enum Decoded<K> {
    /// Decoded in full.
    Object(K),
    /// Only the name and the version could be read.
    Broken(Box<Broken>),
}

/// An object that could not be decoded.
#[derive(Clone, Debug)]
pub(super) struct Broken {
    /// `name`, `namespace` and `resourceVersion`.
    metadata: ObjectMeta,
    /// What is wrong with the object.
    pub(super) error: String,
}

#[derive(Deserialize)]
struct Identity {
    metadata: IdentityMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IdentityMeta {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Decoded<K> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        // Borrowed from the line or the page, so this copies nothing.
        let text = <&RawValue as de::Deserialize>::deserialize(input)?.get();
        let error = match serde_json::from_str(text) {
            Ok(object) => return Ok(Decoded::Object(object)),
            Err(error) => excerpt(&error.to_string()),
        };
        let Identity { metadata } = serde_json::from_str(text).map_err(D::Error::custom)?;
        let metadata = ObjectMeta {
            name: metadata.name,
            namespace: metadata.namespace,
            resource_version: metadata.resource_version,
            ..ObjectMeta::default()
        };
        Ok(Decoded::Broken(Box::new(Broken { metadata, error })))
    }
}

impl<K: Resource<DynamicType = ()>> Resource for Decoded<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        match self {
            Decoded::Object(object) => object.meta(),
            Decoded::Broken(broken) => &broken.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Decoded::Object(object) => object.meta_mut(),
            Decoded::Broken(broken) => &mut broken.metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::objects::ServiceObject;
    use kube::api::{ObjectList, WatchEvent};

    const BROKEN: &str =
        r#"{"metadata": {"name": "b", "namespace": "shop", "resourceVersion": "7"}, "spec": 5}"#;

    #[test]
    fn a_broken_object_does_not_take_its_page_along() {
        let page = format!(
            r#"{{"kind": "ServiceList", "apiVersion": "v1", "metadata": {{"resourceVersion": "9"}},
                 "items": [{{"metadata": {{"name": "a"}}}}, {BROKEN}, {{"metadata": {{"name": "c"}}}}]}}"#
        );
        let page: ObjectList<Decoded<ServiceObject>> = serde_json::from_str(&page).unwrap();
        let names: Vec<_> = page.items.iter().map(|item| item.meta().name.as_deref().unwrap()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert!(matches!(page.items[1], Decoded::Broken(_)));
    }

    #[test]
    fn a_broken_object_in_a_watch_keeps_its_name_and_version() {
        let line = format!(r#"{{"type": "MODIFIED", "object": {BROKEN}}}"#);
        let event: WatchEvent<Decoded<ServiceObject>> = serde_json::from_str(&line).unwrap();
        let WatchEvent::Modified(Decoded::Broken(broken)) = event else { panic!("not broken: {event:?}") };
        assert_eq!(broken.metadata.namespace.as_deref(), Some("shop"));
        assert_eq!(broken.metadata.resource_version.as_deref(), Some("7"));
        assert!(broken.error.contains("invalid type: integer `5`"), "{}", broken.error);
    }
}
