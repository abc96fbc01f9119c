//! Decoding that never fails as a whole: one bad object must not take its page or its watch along.

use super::Encoding;
use crate::model::excerpt;
use crate::watch::objects::{ApiObject, ObjectMeta, nullable};
use bytes::Bytes;
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

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
struct Identity {
    #[prost(message, required, tag = "1")]
    metadata: IdentityMeta,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IdentityMeta {
    #[prost(string, optional, tag = "1")]
    #[serde(default, deserialize_with = "nullable")]
    name: Option<String>,
    #[prost(string, optional, tag = "3")]
    #[serde(default, deserialize_with = "nullable")]
    namespace: Option<String>,
    #[prost(string, optional, tag = "6")]
    #[serde(default, deserialize_with = "nullable")]
    resource_version: Option<String>,
}

impl<K: ApiObject> Decoded<K> {
    pub(in crate::watch) fn decode(encoding: Encoding, bytes: &Bytes) -> Result<Self, String> {
        let error = match encoding.message(bytes) {
            Ok(object) => return Ok(Decoded::Object(object)),
            Err(error) => excerpt(&error),
        };
        let Identity { metadata } = encoding.message(bytes)?;
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
