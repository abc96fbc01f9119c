//! The stream of Services.

use super::convert::{self, Converted};
use super::objects::ServiceObject;
use super::stream::Source;
use crate::model::{ObjectKind, ServiceName, WatchEvent};
use std::ops::RangeInclusive;

/// All Services but headless ones and those of another proxy; the server picks them.
pub(super) struct Services {
    /// The node ports that the cluster is said to give out.
    pub(super) node_port_range: RangeInclusive<u16>,
}

impl Source for Services {
    type Object = ServiceObject;
    const KIND: ObjectKind = ObjectKind::Service;

    fn labels(&self) -> &'static str {
        "!service.kubernetes.io/service-proxy-name"
    }

    fn fields(&self) -> String {
        "spec.clusterIP!=None".to_owned()
    }

    fn convert(&self, object: &ServiceObject) -> Converted<WatchEvent> {
        let Converted { value, mut issues } = convert::service(object);
        let outside = |service| convert::node_ports_outside(service, &self.node_port_range);
        issues.extend(value.iter().flat_map(outside));
        Converted { value: value.map(|service| WatchEvent::Service(Box::new(service))), issues }
    }

    fn gone(&self, namespace: &str, name: &str) -> WatchEvent {
        WatchEvent::ServiceGone(ServiceName::new(namespace, name))
    }
}
