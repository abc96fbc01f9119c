//! The stream of our own Node.

use super::convert::{self, Converted};
use super::objects::NodeObject;
use super::stream::Source;
use crate::model::{ObjectKind, WatchEvent};
use std::sync::Arc;

/// The Node we run on.
pub(super) struct OwnNode {
    /// Its name.
    pub(super) name: Arc<str>,
}

impl Source for OwnNode {
    type Object = NodeObject;
    const KIND: ObjectKind = ObjectKind::Node;

    fn labels(&self) -> &'static str {
        ""
    }

    fn fields(&self) -> String {
        format!("metadata.name={}", self.name)
    }

    fn is_ours(&self, name: &str) -> bool {
        name == &*self.name
    }

    fn convert(&self, object: &NodeObject) -> Converted<WatchEvent> {
        let Converted { value, issues } = convert::node(object);
        Converted { value: value.map(|node| WatchEvent::Node(Arc::new(node))), issues }
    }

    fn gone(&self, _namespace: &str, _name: &str) -> WatchEvent {
        WatchEvent::NodeGone
    }
}
