//! The Kubernetes objects of a packet case.

use serde_json::{Value, json};

use super::{EndpointState, NODE_NAME, PacketCase, Place, SERVICE_PORT, TARGET_PORT};
use crate::model::{IpFamily, Protocol};

/// The port of the endpoint that marker Services have; nothing listens there.
pub const MARKER_ENDPOINT_PORT: u16 = 9;

/// The family's prefix length of a single address.
fn host_prefix(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => 32,
        IpFamily::V6 => 128,
    }
}

/// The API's spelling of a protocol.
fn protocol_name(protocol: Protocol) -> String {
    protocol.as_str().to_uppercase()
}

impl PacketCase {
    /// The case's Service and its EndpointSlices, one per family.
    #[must_use]
    pub fn objects(&self) -> Vec<Value> {
        let mut objects = vec![self.service()];
        objects.extend(IpFamily::ALL.map(|family| self.slice(family)));
        objects
    }

    fn service(&self) -> Value {
        let shape = &self.shape;
        let both =
            |address: &dyn Fn(IpFamily) -> std::net::IpAddr| IpFamily::ALL.map(|f| address(f).to_string());
        let cluster_ips = both(&|family| self.cluster_ip(family));
        let mut port = json!({
            "name": "main", "port": SERVICE_PORT, "targetPort": super::TARGET_PORT,
            "protocol": protocol_name(shape.protocol),
        });
        let mut spec = json!({
            "type": if shape.exposed { "LoadBalancer" } else { "ClusterIP" },
            "clusterIP": cluster_ips[0], "clusterIPs": cluster_ips,
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
            "internalTrafficPolicy": if shape.internal_local { "Local" } else { "Cluster" },
        });
        let mut status = json!({});
        if shape.exposed {
            port["nodePort"] = json!(self.node_port());
            spec["externalIPs"] = json!(both(&|family| self.external_ip(family)));
            spec["externalTrafficPolicy"] = json!(if shape.external_local { "Local" } else { "Cluster" });
            let ingress = IpFamily::ALL.map(|f| json!({"ip": self.load_balancer_ip(f).to_string()}));
            status = json!({"loadBalancer": {"ingress": ingress}});
        }
        if shape.exposed && shape.external_local {
            // The API server always gives such a Service one.
            spec["healthCheckNodePort"] = json!(self.node_port() + 1000);
        }
        if let Some(seconds) = shape.affinity_seconds {
            spec["sessionAffinity"] = json!("ClientIP");
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
        }
        if !shape.source_ranges.is_empty() {
            spec["loadBalancerSourceRanges"] = shape.source_ranges.iter().flat_map(both_ranges).collect();
        }
        spec["ports"] = json!([port]);
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": self.service_name(), "namespace": "packets"},
            "spec": spec, "status": status,
        })
    }

    fn slice(&self, family: IpFamily) -> Value {
        let endpoints: Vec<Value> =
            self.shape.endpoints.iter().map(|(place, state)| endpoint(*place, *state, family)).collect();
        slice(&self.service_name(), family, &endpoints, (TARGET_PORT, self.shape.protocol))
    }
}

fn both_ranges(place: &Place) -> [Value; 2] {
    IpFamily::ALL.map(|family| json!(format!("{}/{}", place.address(family), host_prefix(family))))
}

fn endpoint(place: Place, state: EndpointState, family: IpFamily) -> Value {
    let (ready, serving, terminating) = match state {
        EndpointState::Ready => (true, true, false),
        EndpointState::NotReady => (false, false, false),
        EndpointState::Terminating => (false, true, true),
        EndpointState::Stopped => (false, false, true),
    };
    json!({
        "addresses": [place.address(family).to_string()],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "nodeName": place.node_name(),
    })
}

fn slice(service: &str, family: IpFamily, endpoints: &[Value], port: (u16, Protocol)) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{}", family.as_str().to_lowercase()), "namespace": "packets",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": family.as_str(),
        "endpoints": endpoints,
        "ports": [{"name": "main", "port": port.0, "protocol": protocol_name(port.1)}],
    })
}

/// Our Node, with its address of each family.
#[must_use]
pub fn node_object() -> Value {
    let address = |family| json!({"type": "InternalIP", "address": Place::Node.address(family)});
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE_NAME},
        "status": {"addresses": IpFamily::ALL.map(address)},
    })
}

/// Two Services that only say "this manifest is in force": `marker-<generation>` has an endpoint
/// and so shows in what does address translation, `idle-<generation>` has none and shows in what
/// refuses. Neither is meant to be spoken to.
#[must_use]
pub fn marker_objects(generation: u8) -> Vec<Value> {
    let mut objects = Vec::new();
    for (name, third) in [("marker", 254), ("idle", 255)] {
        let name = format!("{name}-{generation}");
        let cluster_ips = [format!("10.96.{third}.{generation}"), format!("fd00:96::{third}:{generation}")];
        objects.push(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "packets"},
            "spec": {
                "type": "ClusterIP", "clusterIP": cluster_ips[0], "clusterIPs": cluster_ips,
                "ipFamilies": ["IPv4", "IPv6"],
                "ports": [{"name": "main", "port": SERVICE_PORT, "protocol": "TCP"}],
            },
        }));
        if third == 254 {
            objects.extend(IpFamily::ALL.map(|family| {
                let endpoints = [endpoint(Place::Local1, EndpointState::Ready, family)];
                slice(&name, family, &endpoints, (MARKER_ENDPOINT_PORT, Protocol::Tcp))
            }));
        }
    }
    objects
}

/// Objects as the text of one manifest file, a document each.
#[must_use]
pub fn to_manifest(objects: &[Value]) -> String {
    objects.iter().map(|object| format!("---\n{object}\n")).collect()
}
