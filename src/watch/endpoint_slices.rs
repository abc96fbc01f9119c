//! The stream of EndpointSlices.

use super::convert::{self, Converted};
use super::objects::EndpointSliceObject;
use super::stream::Source;
use crate::model::{ObjectKind, WatchEvent};
use std::sync::Arc;

/// All EndpointSlices but those of headless Services. Who wrote them does not matter (kube-proxy).
pub(super) struct EndpointSlices {
    /// Tells local endpoints from remote ones.
    pub(super) node_name: Arc<str>,
}

impl Source for EndpointSlices {
    type Object = EndpointSliceObject;
    const KIND: ObjectKind = ObjectKind::EndpointSlice;

    fn labels(&self) -> &'static str {
        "!service.kubernetes.io/headless"
    }

    fn fields(&self) -> String {
        String::new()
    }

    fn convert(&self, object: &EndpointSliceObject) -> Converted<WatchEvent> {
        let Converted { value, issues } = convert::endpoint_slice(object, &self.node_name);
        Converted { value: value.map(|slice| WatchEvent::Slice(Box::new(slice))), issues }
    }

    fn gone(&self, namespace: &str, name: &str) -> WatchEvent {
        WatchEvent::SliceGone(format!("{namespace}/{name}").into())
    }
}
