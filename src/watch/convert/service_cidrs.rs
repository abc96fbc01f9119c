//! ServiceCIDRs.

use super::names::check_name;
use super::parse::parse_cidr;
use super::{Converted, Issues};
use crate::model::{Cidr, quoted};
use crate::watch::objects::ServiceCidrObject;
use std::sync::Arc;

/// Converts a ServiceCIDR to its name and its networks. Whether it is ready, or about to go, does not matter (kube-proxy):
/// addresses of it may still be in use.
pub fn service_cidr(object: &ServiceCidrObject) -> Converted<(Arc<str>, Box<[Cidr]>)> {
    let mut issues = Issues::default();
    let Some(name) = check_name(object.metadata.name.as_deref(), &mut issues) else {
        return issues.converted(None);
    };
    let mut cidrs = Vec::new();
    for (index, text) in object.spec.cidrs.iter().enumerate() {
        match parse_cidr(text) {
            Some(cidr) => cidrs.push(cidr),
            None => issues.error(
                format_args!("spec.cidrs[{index}]"),
                format_args!("{} is not a network in CIDR form", quoted(text)),
            ),
        }
    }
    issues.converted(Some((name.into(), cidrs.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convert(object: serde_json::Value) -> Converted<(Arc<str>, Box<[Cidr]>)> {
        service_cidr(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn networks_that_are_none_are_named_and_the_rest_is_used() {
        let found = convert(serde_json::json!({
            "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": ["10.96.0.0/12", "nonsense", "fd00:96::/112"]},
            "status": {"conditions": [{"type": "Ready", "status": "False"}]},
        }));
        let cidrs = ["10.96.0.0/12", "fd00:96::/112"].map(|text| text.parse().unwrap());
        assert_eq!(found.value, Some(("kubernetes".into(), cidrs.into())));
        let issues: Vec<String> = found.issues.iter().map(ToString::to_string).collect();
        assert_eq!(issues, ["spec.cidrs[1]: \"nonsense\" is not a network in CIDR form"]);
        assert_eq!(convert(serde_json::json!({"metadata": {}})).value, None);
    }
}
