//! The API's objects, cut down to the fields we read.
//!
//! JSON and protobuf fill the same types, so that what becomes of an object does not depend on how it came. The numbers
//! of the fields are those of Kubernetes' published definitions: `generated.proto` in `k8s.io/api/core/v1`,
//! `k8s.io/api/discovery/v1`, `k8s.io/api/networking/v1` and `k8s.io/apimachinery/pkg/apis/meta/v1`. Fields without a line here are skipped. To
//! prost `required` means that a default stands in for what is absent.
//!
//! The types are lenient on purpose: an object that fails to decode is lost until the next list, so
//! every field may be absent or null, addresses stay text, and numbers are wider than the API's.
//! What is wrong with a value is `convert`'s to say, by the name of its field. Empty text means the same as none: in
//! protobuf the API server writes it where JSON has nothing. Nothing here uses
//! `serde(flatten)`, which would buffer every field that we do not name.

mod known_keys;

pub use known_keys::KnownKeys;

use super::wire::Wire;
use crate::model::{ServiceName, SliceName};
use k8s_openapi::jiff;
use prost::Message;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};

/// The label that makes a Service another proxy's business.
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// The label of slices and Services without a cluster IP.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// The label that names the Service of an EndpointSlice.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// The label that names the zone of a Node.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// The annotation with the time of the change that led to an EndpointSlice.
pub const TRIGGER_TIME_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// The annotation with which a Service asks for an IPVS scheduler.
pub const IPVS_SCHEDULER_ANNOTATION: &str = "kube-proxy-rs.io/ipvs-scheduler";

/// The annotation of a bookmark at the end of a streaming list.
pub(super) const LIST_END_ANNOTATION: &str = "k8s.io/initial-events-end";

/// A kind of object that an API server has.
pub(super) trait ApiObject: Wire + Send {
    /// Its name in messages.
    const KIND: &'static str;
    /// The path of its group and version.
    const API: &'static str;
    /// Its name in paths.
    const PLURAL: &'static str;

    /// What each object has.
    fn metadata(&self) -> &ObjectMeta;
}

macro_rules! api_object {
    ($object:ty, $kind:literal, $api:literal, $plural:literal) => {
        impl ApiObject for $object {
            const KIND: &'static str = $kind;
            const API: &'static str = $api;
            const PLURAL: &'static str = $plural;

            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }
        }
    };
}

api_object!(ServiceObject, "Service", "/api/v1", "services");
api_object!(EndpointSliceObject, "EndpointSlice", "/apis/discovery.k8s.io/v1", "endpointslices");
api_object!(NodeObject, "Node", "/api/v1", "nodes");
api_object!(ServiceCidrObject, "ServiceCIDR", "/apis/networking.k8s.io/v1", "servicecidrs");

/// `metadata` of every object. `managedFields` alone can be half of an object; it is skipped.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectMeta {
    /// Its name in its namespace.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// Absent of what belongs to the cluster.
    #[prost(string, optional, tag = "3")]
    pub namespace: Option<String>,
    /// What to watch from, to learn of later versions.
    #[prost(string, optional, tag = "6")]
    pub resource_version: Option<String>,
    /// When it was made.
    #[prost(message, optional, tag = "8")]
    #[serde(default, deserialize_with = "time")]
    pub creation_timestamp: Option<Time>,
    /// When it was to be deleted, if so.
    #[prost(message, optional, tag = "9")]
    #[serde(default, deserialize_with = "time")]
    pub deletion_timestamp: Option<Time>,
    /// By which it is selected.
    #[prost(message, required, tag = "11")]
    #[serde(default, deserialize_with = "nullable")]
    pub labels: KnownKeys,
    /// Annotations.
    #[prost(message, required, tag = "12")]
    #[serde(default, deserialize_with = "nullable")]
    pub annotations: KnownKeys,
}

/// A time. The API has no use for what is less than a second.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Time {
    /// Since 1970.
    #[prost(int64, required, tag = "1")]
    pub seconds: i64,
}

/// core/v1 Service.
#[derive(Clone, PartialEq, Message, Deserialize)]
pub struct ServiceObject {
    /// Name, version, labels.
    #[prost(message, required, tag = "1")]
    #[serde(default, deserialize_with = "nullable")]
    pub metadata: ObjectMeta,
    /// What is asked for.
    #[prost(message, required, tag = "2")]
    #[serde(default, deserialize_with = "nullable")]
    pub spec: ServiceSpec,
    /// What has been given.
    #[prost(message, required, tag = "3")]
    #[serde(default, deserialize_with = "nullable")]
    pub status: ServiceStatus,
}

impl ServiceObject {
    /// Namespace and name, also of an object that does not convert.
    #[must_use]
    pub fn name(&self) -> ServiceName {
        ServiceName::new(namespace(&self.metadata), name(&self.metadata))
    }
}

/// `spec` of a Service.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`.
    #[prost(string, optional, tag = "4")]
    #[serde(rename = "type")]
    pub service_type: Option<String>,
    /// The first cluster IP; empty or `None` for headless Services.
    #[prost(string, optional, tag = "3")]
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    /// One cluster IP for each of `ip_families`.
    #[prost(string, repeated, tag = "18")]
    #[serde(default, rename = "clusterIPs", deserialize_with = "nullable")]
    pub cluster_ips: Vec<String>,
    /// `IPv4` and `IPv6` in the Service's order.
    #[prost(string, repeated, tag = "19")]
    #[serde(default, deserialize_with = "nullable")]
    pub ip_families: Vec<String>,
    /// Addresses that the administrator routes to the nodes.
    #[prost(string, repeated, tag = "5")]
    #[serde(default, rename = "externalIPs", deserialize_with = "nullable")]
    pub external_ips: Vec<String>,
    /// Networks that may use the load-balancer IPs.
    #[prost(string, repeated, tag = "9")]
    #[serde(default, deserialize_with = "nullable")]
    pub load_balancer_source_ranges: Vec<String>,
    /// `None` or `ClientIP`.
    #[prost(string, optional, tag = "7")]
    pub session_affinity: Option<String>,
    /// Details of `session_affinity`.
    #[prost(message, required, tag = "14")]
    #[serde(default, deserialize_with = "nullable")]
    pub session_affinity_config: SessionAffinityConfig,
    /// `Cluster` or `Local`.
    #[prost(string, optional, tag = "22")]
    pub internal_traffic_policy: Option<String>,
    /// `Cluster` or `Local`.
    #[prost(string, optional, tag = "11")]
    pub external_traffic_policy: Option<String>,
    /// The port on which load balancers ask for local endpoints.
    #[prost(int64, optional, tag = "12")]
    pub health_check_node_port: Option<i64>,
    /// What the Service listens on.
    #[prost(message, repeated, tag = "1")]
    #[serde(default, deserialize_with = "nullable")]
    pub ports: Vec<ServicePortObject>,
    /// Which pods are its endpoints; what it selects by is not stored.
    #[prost(message, optional, tag = "2")]
    pub selector: Option<Selector>,
}

/// That a selector is there. In protobuf each of its entries is a message of its own.
#[derive(Clone, PartialEq, Message)]
pub struct Selector {}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Selector {})
    }
}

/// `spec.sessionAffinityConfig` of a Service.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionAffinityConfig {
    /// Details of `ClientIP`.
    #[prost(message, required, tag = "1")]
    #[serde(default, rename = "clientIP", deserialize_with = "nullable")]
    pub client_ip: ClientIpConfig,
}

/// `spec.sessionAffinityConfig.clientIP` of a Service.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientIpConfig {
    /// How long a client sticks to its endpoint.
    #[prost(int64, optional, tag = "1")]
    pub timeout_seconds: Option<i64>,
}

/// One of `spec.ports` of a Service.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePortObject {
    /// Absent or empty when there is only one.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// `TCP`, `UDP` or `SCTP`.
    #[prost(string, optional, tag = "2")]
    pub protocol: Option<String>,
    /// The port on the Service's addresses.
    #[prost(int64, optional, tag = "3")]
    pub port: Option<i64>,
    /// The port on the nodes' addresses.
    #[prost(int64, optional, tag = "5")]
    pub node_port: Option<i64>,
}

/// `status` of a Service.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// What the load balancer listens on.
    #[prost(message, required, tag = "1")]
    #[serde(default, deserialize_with = "nullable")]
    pub load_balancer: LoadBalancerStatus,
}

/// `status.loadBalancer` of a Service.
#[derive(Clone, PartialEq, Message, Deserialize)]
pub struct LoadBalancerStatus {
    /// Its addresses.
    #[prost(message, repeated, tag = "1")]
    #[serde(default, deserialize_with = "nullable")]
    pub ingress: Vec<LoadBalancerIngress>,
}

/// One of `status.loadBalancer.ingress` of a Service; host names are not read.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerIngress {
    /// The address, unless the load balancer has a host name only.
    #[prost(string, optional, tag = "1")]
    pub ip: Option<String>,
    /// `VIP` (or absent) when packets arrive with that address, `Proxy` when they do not.
    #[prost(string, optional, tag = "3")]
    pub ip_mode: Option<String>,
}

/// discovery.k8s.io/v1 EndpointSlice.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSliceObject {
    /// Name, version, labels.
    #[prost(message, required, tag = "1")]
    #[serde(default, deserialize_with = "nullable")]
    pub metadata: ObjectMeta,
    /// `IPv4`, `IPv6` or `FQDN`.
    #[prost(string, optional, tag = "4")]
    pub address_type: Option<String>,
    /// The ports of every endpoint.
    #[prost(message, repeated, tag = "3")]
    #[serde(default, deserialize_with = "nullable")]
    pub ports: Vec<SlicePortObject>,
    /// The endpoints.
    #[prost(message, repeated, tag = "2")]
    #[serde(default, deserialize_with = "nullable")]
    pub endpoints: Vec<EndpointObject>,
}

impl EndpointSliceObject {
    /// Namespace and name, also of an object that does not convert.
    #[must_use]
    pub fn name(&self) -> SliceName {
        format!("{}/{}", namespace(&self.metadata), name(&self.metadata)).into()
    }
}

/// One of `ports` of an EndpointSlice.
#[derive(Clone, PartialEq, Message, Deserialize)]
pub struct SlicePortObject {
    /// Empty for the only port of a Service; absent means broken.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// `TCP`, `UDP` or `SCTP`.
    #[prost(string, optional, tag = "2")]
    pub protocol: Option<String>,
    /// The number.
    #[prost(int64, optional, tag = "3")]
    pub port: Option<i64>,
}

/// One of `endpoints` of an EndpointSlice.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointObject {
    /// Its addresses, of which the first one counts.
    #[prost(string, repeated, tag = "1")]
    #[serde(default, deserialize_with = "nullable")]
    pub addresses: Vec<String>,
    /// Its state.
    #[prost(message, required, tag = "2")]
    #[serde(default, deserialize_with = "nullable")]
    pub conditions: EndpointConditions,
    /// The node it runs on.
    #[prost(string, optional, tag = "6")]
    pub node_name: Option<String>,
    /// For whom it is meant.
    #[prost(message, required, tag = "8")]
    #[serde(default, deserialize_with = "nullable")]
    pub hints: EndpointHints,
}

/// `conditions` of an endpoint.
#[derive(Clone, Copy, PartialEq, Message, Deserialize)]
pub struct EndpointConditions {
    /// Absent means true.
    #[prost(bool, optional, tag = "1")]
    pub ready: Option<bool>,
    /// Absent means true.
    #[prost(bool, optional, tag = "2")]
    pub serving: Option<bool>,
    /// Absent means false.
    #[prost(bool, optional, tag = "3")]
    pub terminating: Option<bool>,
}

/// `hints` of an endpoint.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointHints {
    /// Zones that should use it.
    #[prost(message, repeated, tag = "1")]
    #[serde(default, deserialize_with = "nullable")]
    pub for_zones: Vec<Hint>,
    /// Nodes that should use it.
    #[prost(message, repeated, tag = "2")]
    #[serde(default, deserialize_with = "nullable")]
    pub for_nodes: Vec<Hint>,
}

/// One of `forZones` or `forNodes`.
#[derive(Clone, PartialEq, Message, Deserialize)]
pub struct Hint {
    /// The zone's or the node's name.
    #[prost(string, required, tag = "1")]
    #[serde(default, deserialize_with = "nullable")]
    pub name: String,
}

/// core/v1 Node.
#[derive(Clone, PartialEq, Message, Deserialize)]
pub struct NodeObject {
    /// Name, version, labels.
    #[prost(message, required, tag = "1")]
    #[serde(default, deserialize_with = "nullable")]
    pub metadata: ObjectMeta,
    /// What is asked for.
    #[prost(message, required, tag = "2")]
    #[serde(default, deserialize_with = "nullable")]
    pub spec: NodeSpec,
    /// What the kubelet reports.
    #[prost(message, required, tag = "3")]
    #[serde(default, deserialize_with = "nullable")]
    pub status: NodeStatus,
}

/// `spec` of a Node.
#[derive(Clone, PartialEq, Message, Deserialize)]
pub struct NodeSpec {
    /// The first pod network.
    #[prost(string, optional, tag = "1")]
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Option<String>,
    /// All pod networks.
    #[prost(string, repeated, tag = "7")]
    #[serde(default, rename = "podCIDRs", deserialize_with = "nullable")]
    pub pod_cidrs: Vec<String>,
    /// What keeps pods away.
    #[prost(message, repeated, tag = "5")]
    #[serde(default, deserialize_with = "nullable")]
    pub taints: Vec<Taint>,
}

/// One of `spec.taints` of a Node.
#[derive(Clone, PartialEq, Message, Deserialize)]
pub struct Taint {
    /// What the taint is about.
    #[prost(string, required, tag = "1")]
    #[serde(default, deserialize_with = "nullable")]
    pub key: String,
}

/// `status` of a Node.
#[derive(Clone, PartialEq, Message, Deserialize)]
pub struct NodeStatus {
    /// Its addresses and names.
    #[prost(message, repeated, tag = "5")]
    #[serde(default, deserialize_with = "nullable")]
    pub addresses: Vec<NodeAddress>,
}

/// One of `status.addresses` of a Node.
#[derive(Clone, PartialEq, Message, Deserialize)]
pub struct NodeAddress {
    /// `InternalIP`, `ExternalIP` or the kind of a name.
    #[prost(string, required, tag = "1")]
    #[serde(default, rename = "type", deserialize_with = "nullable")]
    pub address_type: String,
    /// The address or name.
    #[prost(string, required, tag = "2")]
    #[serde(default, deserialize_with = "nullable")]
    pub address: String,
}

/// networking.k8s.io/v1 ServiceCIDR.
#[derive(Clone, PartialEq, Message, Deserialize)]
pub struct ServiceCidrObject {
    /// Name, version, labels.
    #[prost(message, required, tag = "1")]
    #[serde(default, deserialize_with = "nullable")]
    pub metadata: ObjectMeta,
    /// What is asked for.
    #[prost(message, required, tag = "2")]
    #[serde(default, deserialize_with = "nullable")]
    pub spec: ServiceCidrSpec,
}

/// `spec` of a ServiceCIDR.
#[derive(Clone, PartialEq, Message, Deserialize)]
pub struct ServiceCidrSpec {
    /// Networks that cluster IPs are given out from, at most one of each IP family.
    #[prost(string, repeated, tag = "1")]
    #[serde(default, deserialize_with = "nullable")]
    pub cidrs: Vec<String>,
}

fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or_default()
}

fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

/// A null is as good as nothing.
pub(super) fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    input: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

/// A time, if it is one.
fn time<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Time>, D::Error> {
    let text: Option<String> = Option::deserialize(input)?;
    let time = text.and_then(|text| text.parse::<jiff::Timestamp>().ok());
    Ok(time.map(|time| Time { seconds: time.as_second() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_means_the_same_as_absent_everywhere() {
        let service: ServiceObject = serde_json::from_str(
            r#"{"metadata": {"name": "a", "labels": null, "annotations": null, "creationTimestamp": null},
                "spec": {"type": null, "clusterIP": null, "clusterIPs": null, "ports": null,
                         "externalIPs": null, "sessionAffinityConfig": null, "healthCheckNodePort": null},
                "status": {"loadBalancer": null}}"#,
        )
        .unwrap();
        assert!(service.spec.ports.is_empty() && service.spec.cluster_ips.is_empty());
        let slice: EndpointSliceObject = serde_json::from_str(
            r#"{"metadata": null, "ports": null,
                "endpoints": [{"addresses": null, "conditions": null, "hints": null, "nodeName": null},
                              {"hints": {"forZones": null, "forNodes": [{"name": null}]}}]}"#,
        )
        .unwrap();
        assert_eq!(slice.endpoints.len(), 2);
        let node: NodeObject =
            serde_json::from_str(r#"{"spec": null, "status": {"addresses": [{"type": null}]}}"#).unwrap();
        assert_eq!(node.status.addresses.len(), 1);
    }

    #[test]
    fn metadata_keeps_what_we_use_and_drops_the_rest() {
        let node: NodeObject = serde_json::from_str(
            r#"{"kind": "Node", "metadata": {"name": "n", "uid": "u", "resourceVersion": "7",
                "creationTimestamp": "2024-05-01T10:00:00Z", "deletionTimestamp": "yesterday",
                "labels": {"kubernetes.io/arch": null, "topology.kubernetes.io/zone": "z"},
                "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}]}}"#,
        )
        .unwrap();
        let meta = node.metadata;
        assert_eq!(meta.resource_version.as_deref(), Some("7"));
        assert_eq!(meta.creation_timestamp, Some(Time { seconds: 1_714_557_600 }));
        assert_eq!(meta.deletion_timestamp, None);
        assert_eq!(meta.labels.get(ZONE_LABEL), Some("z"));
        assert_eq!(meta.labels.get("kubernetes.io/arch"), None);
        assert_eq!(meta.annotations, KnownKeys::default());
    }

    #[test]
    fn fields_that_we_do_not_know_are_no_obstacle() {
        let service: ServiceObject = serde_json::from_str(
            r#"{"apiVersion": "v1", "spec": {"selector": {"a": "b"}, "trafficDistribution": "X",
                "ports": [{"port": 80, "targetPort": "http", "appProtocol": "h2"}]}}"#,
        )
        .unwrap();
        assert_eq!(service.spec.ports[0].port, Some(80));
    }
}
