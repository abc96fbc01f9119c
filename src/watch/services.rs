//! The stream of Services.

use super::convert::{self, Converted, Issue, Severity};
use super::objects::ServiceObject;
use super::stream::Source;
use crate::model::{ObjectKind, Service, ServiceName, WatchEvent};
use std::ops::RangeInclusive;

/// All Services but headless ones and those of another proxy; the server picks them.
pub(super) struct Services {
    /// The node ports that the cluster is said to give out.
    pub(super) node_port_range: RangeInclusive<u16>,
}

impl Services {
    /// Node ports that the API server gave out although we were told that it would not. They are
    /// programmed: the API server knows better.
    fn unexpected_node_ports(&self, service: &Service) -> impl Iterator<Item = Issue> {
        let ports = service.ports.iter().enumerate().filter(|(_, port)| port.node_port != 0);
        let unexpected = ports.filter(|(_, port)| !self.node_port_range.contains(&port.node_port));
        unexpected.map(|(index, port)| Issue {
            field: format!("spec.ports[{index}].nodePort"),
            message: format!(
                "{} is outside --service-node-port-range and is used all the same",
                port.node_port
            ),
            severity: Severity::Warning,
        })
    }
}

impl Source for Services {
    type Object = ServiceObject;
    const KIND: ObjectKind = ObjectKind::Service;

    fn labels(&self) -> &'static str {
        "!service.kubernetes.io/service-proxy-name"
    }

    fn fields(&self) -> Option<String> {
        Some("spec.clusterIP!=None".to_owned())
    }

    fn convert(&self, object: &ServiceObject) -> Converted<WatchEvent> {
        let Converted { value, mut issues } = convert::service(object);
        issues.extend(value.iter().flat_map(|service| self.unexpected_node_ports(service)));
        Converted { value: value.map(|service| WatchEvent::Service(Box::new(service))), issues }
    }

    fn gone(&self, namespace: &str, name: &str) -> WatchEvent {
        WatchEvent::ServiceGone(ServiceName::new(namespace, name))
    }
}
