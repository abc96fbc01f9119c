//! What is wrong with the API's objects themselves, as far as they were asked for.

use super::facts::{Kind, NodeState};
use super::findings::{Code, Finding, Severity, finding};
use super::view::ServiceView;

/// What the API says of the object itself.
pub(super) fn api(view: Option<&ServiceView>, node: &NodeState) -> Vec<Finding> {
    let Some(api) = &node.api else {
        let unknown = || {
            finding(
                (Code::UnknownService, Severity::Problem),
                "the proxy does not know this Service",
                format!(
                    "{}Headless and ExternalName Services, and those of other proxies, are not watched: with \
                     --kubeconfig or --manifests the object itself is looked at.",
                    did_you_mean(node)
                ),
            )
        };
        return if view.is_none() { vec![unknown()] } else { Vec::new() };
    };
    let mut found = Vec::new();
    found.extend(api.unlabelled_slices.iter().map(|slice| {
        finding(
            (Code::SliceWithoutLabel, Severity::Problem),
            format!(
                "EndpointSlice {slice} has no label kubernetes.io/service-name: it belongs to no Service"
            ),
            "The program that writes the slice has to set the label to the Service's name.",
        )
    }));
    found.extend(
        api.kind.as_ref().map_or_else(|| Some(unknown(node)), |kind| kind_finding(kind, view.is_some())),
    );
    found
}

fn unknown(node: &NodeState) -> Finding {
    finding(
        (Code::UnknownService, Severity::Problem),
        "there is no such Service",
        did_you_mean(node).trim_end(),
    )
}

/// The Services with names like the one that was asked for.
fn did_you_mean(node: &NodeState) -> String {
    match node.similar.as_slice() {
        [] => "Check namespace and name. ".to_owned(),
        similar => format!("Did you mean {}? ", similar.join(" or ")),
    }
}

/// What follows from what the Service is.
fn kind_finding(kind: &Kind, is_served: bool) -> Option<Finding> {
    let note = |code, message: String, advice: &str| Some(finding((code, Severity::Note), message, advice));
    match kind {
        Kind::Headless => note(
            Code::Headless,
            "the Service is headless (clusterIP: None): DNS gives out the pods' own addresses".to_owned(),
            "Nothing is programmed for it. If clients should get one address, give it a cluster IP.",
        ),
        Kind::ExternalName => note(
            Code::ExternalName,
            "the Service is an ExternalName: DNS answers with another name".to_owned(),
            "Nothing is programmed for it. Look at DNS, and at whether that other name answers.",
        ),
        Kind::OtherProxy(name) => note(
            Code::OtherProxy,
            format!(
                "another proxy serves it: its label service.kubernetes.io/service-proxy-name is {name:?}"
            ),
            "Remove the label, or ask that proxy about the Service.",
        ),
        Kind::NoClusterIp => Some(finding(
            (Code::NoClusterIp, Severity::Problem),
            "the Service has no cluster IP yet",
            "The API server gives it one; kubectl describe shows why it has not.",
        )),
        Kind::Ordinary if !is_served => Some(finding(
            (Code::NotSeenYet, Severity::Broken),
            "the API server has this Service, but the proxy does not know it",
            "See kube-proxy-rs status for the watch of Services, and compare the kubeconfig of the proxy with this one.",
        )),
        Kind::Ordinary => None,
    }
}

/// Why there are no endpoints, as far as the API says it.
pub(super) fn no_endpoints(label: &str, family: &str, node: &NodeState) -> Finding {
    let api = node.api.as_ref();
    let said = format!("port {label}: no {family} endpoints; connections are refused");
    if let Some(slices) = api.map(|api| &api.fqdn_slices).filter(|slices| !slices.is_empty()) {
        return finding(
            (Code::FqdnEndpoints, Severity::Problem),
            format!("{said}: EndpointSlice {} has names (addressType FQDN)", slices.join(", ")),
            "No service proxy resolves names. Write slices of addressType IPv4 or IPv6, or make the Service an \
             ExternalName.",
        );
    }
    if api.is_some_and(|api| api.lacks_selector) {
        return finding(
            (Code::NoSelector, Severity::Problem),
            format!("{said}: the Service has no selector, and no EndpointSlice has endpoints for it"),
            "No controller writes slices for a Service without spec.selector: write an EndpointSlice with the label \
             kubernetes.io/service-name, or set a selector.",
        );
    }
    finding(
        (Code::NoEndpoints, Severity::Problem),
        said,
        "No pod matches the Service's selector, or none has an address yet: compare spec.selector with the pods' \
         labels. A Service without a selector has the endpoints of slices written by hand.",
    )
}
