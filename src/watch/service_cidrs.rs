//! The stream of ServiceCIDRs.

use super::convert::{self, Converted};
use super::objects::ServiceCidrObject;
use super::stream::Source;
use crate::model::{ObjectKind, WatchEvent};

/// The networks that the cluster gives out cluster IPs from. API servers before 1.33 have none, and a role of old may not
/// allow to list them.
pub(super) struct ServiceCidrs;

impl Source for ServiceCidrs {
    type Object = ServiceCidrObject;
    const KIND: ObjectKind = ObjectKind::ServiceCidr;
    const IS_OPTIONAL: bool = true;

    fn labels(&self) -> &'static str {
        ""
    }

    fn fields(&self) -> String {
        String::new()
    }

    fn convert(&self, object: &ServiceCidrObject) -> Converted<WatchEvent> {
        let Converted { value, issues } = convert::service_cidr(object);
        Converted { value: value.map(|(name, cidrs)| WatchEvent::ServiceCidr(name, cidrs)), issues }
    }

    fn gone(&self, _namespace: &str, name: &str) -> WatchEvent {
        WatchEvent::ServiceCidrGone(name.into())
    }
}
