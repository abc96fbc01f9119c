//! The API's objects, cut down to the fields we read.
//!
//! The types are lenient on purpose: an object that fails to decode is lost until the next list, so
//! every field may be absent or null, addresses stay text, and numbers are wider than the API's.
//! What is wrong with a value is `convert`'s to say, by the name of its field. Nothing here uses
//! `serde(flatten)`, which would buffer every field that we do not name.

use crate::model::{ServiceName, SliceName};
use k8s_openapi::jiff;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::fmt;

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

/// All labels and annotations that we read.
const KNOWN_KEYS: [&str; 7] = [
    PROXY_NAME_LABEL,
    HEADLESS_LABEL,
    SERVICE_NAME_LABEL,
    ZONE_LABEL,
    TRIGGER_TIME_ANNOTATION,
    IPVS_SCHEDULER_ANNOTATION,
    LIST_END_ANNOTATION,
];

/// A kind of object that an API server has.
pub(super) trait ApiObject: DeserializeOwned + Send + 'static {
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

/// `metadata` of every object. `managedFields` alone can be half of an object; it is skipped.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectMeta {
    /// Its name in its namespace.
    pub name: Option<String>,
    /// Absent of what belongs to the cluster.
    pub namespace: Option<String>,
    /// What to watch from, to learn of later versions.
    pub resource_version: Option<String>,
    /// When it was made.
    #[serde(default, deserialize_with = "time")]
    pub creation_timestamp: Option<Time>,
    /// When it was to be deleted, if so.
    #[serde(default, deserialize_with = "time")]
    pub deletion_timestamp: Option<Time>,
    /// By which it is selected.
    #[serde(default, deserialize_with = "nullable")]
    pub labels: KnownKeys,
    /// What else is said of it.
    #[serde(default, deserialize_with = "nullable")]
    pub annotations: KnownKeys,
}

/// A time. The API has no use for what is less than a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Since 1970.
    pub seconds: i64,
}

/// core/v1 Service.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ServiceObject {
    /// Name, version, labels.
    #[serde(default, deserialize_with = "nullable")]
    pub metadata: ObjectMeta,
    /// What is asked for.
    #[serde(default, deserialize_with = "nullable")]
    pub spec: ServiceSpec,
    /// What has been given.
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
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`.
    #[serde(rename = "type")]
    pub service_type: Option<String>,
    /// The first cluster IP; empty or `None` for headless Services.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    /// One cluster IP for each of `ip_families`.
    #[serde(default, rename = "clusterIPs", deserialize_with = "nullable")]
    pub cluster_ips: Vec<String>,
    /// `IPv4` and `IPv6` in the Service's order.
    #[serde(default, deserialize_with = "nullable")]
    pub ip_families: Vec<String>,
    /// Addresses that somebody else routes to the nodes.
    #[serde(default, rename = "externalIPs", deserialize_with = "nullable")]
    pub external_ips: Vec<String>,
    /// Networks that may use the load-balancer IPs.
    #[serde(default, deserialize_with = "nullable")]
    pub load_balancer_source_ranges: Vec<String>,
    /// `None` or `ClientIP`.
    pub session_affinity: Option<String>,
    /// Details of `session_affinity`.
    #[serde(default, deserialize_with = "nullable")]
    pub session_affinity_config: SessionAffinityConfig,
    /// `Cluster` or `Local`.
    pub internal_traffic_policy: Option<String>,
    /// `Cluster` or `Local`.
    pub external_traffic_policy: Option<String>,
    /// The port on which load balancers ask for local endpoints.
    pub health_check_node_port: Option<i64>,
    /// What the Service listens on.
    #[serde(default, deserialize_with = "nullable")]
    pub ports: Vec<ServicePortObject>,
}

/// `spec.sessionAffinityConfig` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionAffinityConfig {
    /// Details of `ClientIP`.
    #[serde(default, rename = "clientIP", deserialize_with = "nullable")]
    pub client_ip: ClientIpConfig,
}

/// `spec.sessionAffinityConfig.clientIP` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientIpConfig {
    /// How long a client sticks to its endpoint.
    pub timeout_seconds: Option<i64>,
}

/// One of `spec.ports` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePortObject {
    /// Absent or empty when there is only one.
    pub name: Option<String>,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Option<String>,
    /// The port on the Service's addresses.
    pub port: Option<i64>,
    /// The port on the nodes' addresses.
    pub node_port: Option<i64>,
}

/// `status` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// What the load balancer listens on.
    #[serde(default, deserialize_with = "nullable")]
    pub load_balancer: LoadBalancerStatus,
}

/// `status.loadBalancer` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct LoadBalancerStatus {
    /// Its addresses.
    #[serde(default, deserialize_with = "nullable")]
    pub ingress: Vec<LoadBalancerIngress>,
}

/// One of `status.loadBalancer.ingress` of a Service; host names are not read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerIngress {
    /// The address, unless the load balancer has a host name only.
    pub ip: Option<String>,
    /// `VIP` (or absent) when packets arrive with that address, `Proxy` when they do not.
    pub ip_mode: Option<String>,
}

/// discovery.k8s.io/v1 EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSliceObject {
    /// Name, version, labels.
    #[serde(default, deserialize_with = "nullable")]
    pub metadata: ObjectMeta,
    /// `IPv4`, `IPv6` or `FQDN`.
    pub address_type: Option<String>,
    /// The ports of every endpoint.
    #[serde(default, deserialize_with = "nullable")]
    pub ports: Vec<SlicePortObject>,
    /// The endpoints.
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
#[derive(Clone, Debug, Default, Deserialize)]
pub struct SlicePortObject {
    /// Empty for the only port of a Service; absent means broken.
    pub name: Option<String>,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Option<String>,
    /// The number.
    pub port: Option<i64>,
}

/// One of `endpoints` of an EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointObject {
    /// Its addresses, of which the first one counts.
    #[serde(default, deserialize_with = "nullable")]
    pub addresses: Vec<String>,
    /// Its state.
    #[serde(default, deserialize_with = "nullable")]
    pub conditions: EndpointConditions,
    /// The node it runs on.
    pub node_name: Option<String>,
    /// For whom it is meant.
    #[serde(default, deserialize_with = "nullable")]
    pub hints: EndpointHints,
}

/// `conditions` of an endpoint.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct EndpointConditions {
    /// Absent means true.
    pub ready: Option<bool>,
    /// Absent means true.
    pub serving: Option<bool>,
    /// Absent means false.
    pub terminating: Option<bool>,
}

/// `hints` of an endpoint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointHints {
    /// Zones that should use it.
    #[serde(default, deserialize_with = "nullable")]
    pub for_zones: Vec<Hint>,
    /// Nodes that should use it.
    #[serde(default, deserialize_with = "nullable")]
    pub for_nodes: Vec<Hint>,
}

/// One of `forZones` or `forNodes`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Hint {
    /// The zone's or the node's name.
    #[serde(default, deserialize_with = "nullable")]
    pub name: String,
}

/// core/v1 Node.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct NodeObject {
    /// Name, version, labels.
    #[serde(default, deserialize_with = "nullable")]
    pub metadata: ObjectMeta,
    /// What is asked for.
    #[serde(default, deserialize_with = "nullable")]
    pub spec: NodeSpec,
    /// What the kubelet reports.
    #[serde(default, deserialize_with = "nullable")]
    pub status: NodeStatus,
}

/// `spec` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct NodeSpec {
    /// The first pod network.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Option<String>,
    /// All pod networks.
    #[serde(default, rename = "podCIDRs", deserialize_with = "nullable")]
    pub pod_cidrs: Vec<String>,
    /// What keeps pods away.
    #[serde(default, deserialize_with = "nullable")]
    pub taints: Vec<Taint>,
}

/// One of `spec.taints` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Taint {
    /// What the taint is about.
    #[serde(default, deserialize_with = "nullable")]
    pub key: String,
}

/// `status` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct NodeStatus {
    /// Its addresses and names.
    #[serde(default, deserialize_with = "nullable")]
    pub addresses: Vec<NodeAddress>,
}

/// One of `status.addresses` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct NodeAddress {
    /// `InternalIP`, `ExternalIP` or the kind of a name.
    #[serde(default, rename = "type", deserialize_with = "nullable")]
    pub address_type: String,
    /// The address or name.
    #[serde(default, deserialize_with = "nullable")]
    pub address: String,
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

/// Those of a map's entries whose keys are in `KNOWN_KEYS`; all others are skipped without being stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownKeys([Option<String>; KNOWN_KEYS.len()]);

impl KnownKeys {
    /// The value of a known key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        place(key).and_then(|place| self.0.get(place)?.as_deref())
    }

    fn put(&mut self, place: usize, value: String) {
        if let Some(entry) = self.0.get_mut(place) {
            *entry = Some(value);
        }
    }
}

/// Where a key is among the known ones.
fn place(key: &str) -> Option<usize> {
    KNOWN_KEYS.iter().position(|known| *known == key)
}

impl<'de> Deserialize<'de> for KnownKeys {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_map(KnownKeysVisitor)
    }
}

struct KnownKeysVisitor;

impl<'de> Visitor<'de> for KnownKeysVisitor {
    type Value = KnownKeys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of text to text")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<KnownKeys, A::Error> {
        let mut known = KnownKeys::default();
        while let Some(MapKey(key)) = entries.next_key()? {
            let Some(place) = key else {
                entries.next_value::<IgnoredAny>()?;
                continue;
            };
            if let Some(value) = entries.next_value::<Option<String>>()? {
                known.put(place, value);
            }
        }
        Ok(known)
    }
}

/// A key's place among the known ones; decoded without storing the text.
struct MapKey(Option<usize>);

impl<'de> Deserialize<'de> for MapKey {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl Visitor<'_> for KeyVisitor {
            type Value = MapKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E>(self, text: &str) -> Result<MapKey, E> {
                Ok(MapKey(place(text)))
            }
        }
        input.deserialize_str(KeyVisitor)
    }
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
