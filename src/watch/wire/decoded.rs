//! Decoding that never fails as a whole: one bad object must not take its page or its watch along.

use crate::model::excerpt;
use crate::watch::objects::{ApiObject, ObjectMeta, nullable};
use serde::Deserialize;

/// An object, or what is known of one that could not be decoded.
#[derive(Clone, Debug)]
pub(in crate::watch) enum Decoded<K> {
    /// Decoded in full.
    Object(K),
    /// Only the name and the version could be read.
    Broken(Box<Broken>),
}

/// An object that could not be decoded.
#[derive(Clone, Debug)]
pub(in crate::watch) struct Broken {
    /// `name`, `namespace` and `resourceVersion`.
    metadata: ObjectMeta,
    /// What is wrong with the object.
    pub(in crate::watch) error: String,
}

#[derive(Deserialize)]
struct Identity {
    metadata: IdentityMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IdentityMeta {
    #[serde(default, deserialize_with = "nullable")]
    name: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    namespace: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    resource_version: Option<String>,
}

impl<K: ApiObject> Decoded<K> {
    pub(in crate::watch) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let error = match super::message(bytes) {
            Ok(object) => return Ok(Decoded::Object(object)),
            Err(error) => excerpt(&error),
        };
        let Identity { metadata } = super::message(bytes)?;
        let metadata = ObjectMeta {
            name: metadata.name,
            namespace: metadata.namespace,
            resource_version: metadata.resource_version,
            ..ObjectMeta::default()
        };
        Ok(Decoded::Broken(Box::new(Broken { metadata, error })))
    }

    pub(in crate::watch) fn metadata(&self) -> &ObjectMeta {
        match self {
            Decoded::Object(object) => object.metadata(),
            Decoded::Broken(broken) => &broken.metadata,
        }
    }
}
