//! The stream of Services.

use super::convert::{self, Converted};
use super::objects::ServiceObject;
use super::stream::Source;
use crate::model::{ObjectKind, ServiceName, WatchEvent};

/// All Services but headless ones and those of another proxy; the server picks them.
pub(super) struct Services;

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
        let Converted { value, issues } = convert::service(object);
        Converted { value: value.map(|service| WatchEvent::Service(Box::new(service))), issues }
    }

    fn gone(&self, namespace: &str, name: &str) -> WatchEvent {
        WatchEvent::ServiceGone(ServiceName::new(namespace, name))
    }
}
