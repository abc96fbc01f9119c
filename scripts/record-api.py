#!/usr/bin/env python3
"""record-api.py URL TOKEN FOLDER: what a real API server answers, in JSON and in protobuf, for the tests of both.

Makes a few objects with every field that we read in namespace `recorded` and deletes them again. The server must
have no other Services and EndpointSlices than its own, and node `recorded` must not exist."""
import json
import pathlib
import ssl
import sys
import urllib.error
import urllib.request

URL, TOKEN, FOLDER = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
TLS = ssl._create_unverified_context()
TYPES = {"json": "application/json", "pb": "application/vnd.kubernetes.protobuf"}
SERVICES, SLICES = "/api/v1/namespaces/recorded/services", "/apis/discovery.k8s.io/v1/namespaces/recorded/endpointslices"
NODES = "/api/v1/nodes"


def call(method, path, body=None, accept="application/json", kind="application/json"):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {TOKEN}", "Accept": accept, "Content-Type": kind}
    request = urllib.request.Request(URL + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, context=TLS) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        return error.read()


def make(path, body):
    answer = json.loads(call("POST", path, body))
    assert answer.get("kind") != "Status", answer


def service(name, spec):
    make(SERVICES, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})


PORT = {"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}
DNS = {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": "dns", "appProtocol": "dns"}
BALANCER = {
    "type": "LoadBalancer", "ports": [PORT | {"nodePort": 30080}, DNS], "selector": {"app": "web"},
    "externalIPs": ["192.0.2.7"], "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
    "loadBalancerSourceRanges": ["198.51.100.0/24"], "sessionAffinity": "ClientIP", "loadBalancerClass": "a.example/b",
    "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 77}}, "trafficDistribution": "PreferSameZone",
}
INGRESS = [{"ip": "203.0.113.9", "ipMode": "VIP"}, {"ip": "203.0.113.10", "ipMode": "Proxy"}, {"hostname": "a.example"}]


def endpoint(last, **fields):
    target = {"kind": "Pod", "name": f"web-{last}", "namespace": "recorded"}
    return {"addresses": [f"10.128.0.{last}"], "nodeName": "recorded", "zone": "a", "targetRef": target} | fields


def endpoint_slice(name, endpoints, **fields):
    labels = {"kubernetes.io/service-name": "web", "endpointslice.kubernetes.io/managed-by": "hand"}
    notes = {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z", "other": "x"}
    metadata = {"name": name, "labels": labels, "annotations": notes}
    ports = [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]
    make(SLICES, {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
                  "addressType": "IPv4", "ports": ports, "endpoints": endpoints} | fields)


def fill():
    make("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "recorded"}})
    service("cluster", {"ports": [PORT], "selector": {"app": "a"}})
    service("node-port", {"type": "NodePort", "ports": [PORT, DNS], "sessionAffinity": "None"})
    service("balanced", BALANCER)
    status = {"status": {"loadBalancer": {"ingress": INGRESS}}}
    call("PATCH", f"{SERVICES}/balanced/status", status, kind="application/merge-patch+json")
    service("headless", {"clusterIP": "None", "ports": [PORT]})
    service("elsewhere", {"type": "ExternalName", "externalName": "b.example"})
    conditions = {"ready": True, "serving": True, "terminating": False}
    hints = {"forZones": [{"name": "a"}, {"name": "b"}], "forNodes": [{"name": "recorded"}]}
    endpoint_slice("plain", [endpoint(1, conditions=conditions), endpoint(2, conditions=conditions | {"ready": False})])
    endpoint_slice("hinted", [endpoint(3, hints=hints), endpoint(4, hostname="h"), {"addresses": ["10.128.0.5"]}])
    endpoint_slice("empty", [], ports=[{}])
    endpoint_slice("six", [{"addresses": ["fd00::1"]}], addressType="IPv6", ports=[{"name": "", "port": 1}])
    spec = {"podCIDR": "10.128.0.0/24", "podCIDRs": ["10.128.0.0/24", "fd00:1::/64"],
            "taints": [{"key": "a.example/b", "effect": "NoSchedule", "value": "c"}]}
    labels = {"topology.kubernetes.io/zone": "a", "kubernetes.io/hostname": "recorded"}
    make(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "recorded", "labels": labels}, "spec": spec})
    addresses = [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "recorded"}]
    status = {"status": {"addresses": addresses, "capacity": {"cpu": "4"}}}
    call("PATCH", f"{NODES}/recorded/status", status, kind="application/merge-patch+json")


def watch_of(path, kind, **query):
    query = "&".join(f"{name}={value}" for name, value in query.items())
    stream = ";stream=watch" if kind == "pb" else ""
    return call("GET", f"{path}?watch=true&timeoutSeconds=2&allowWatchBookmarks=true&{query}", accept=TYPES[kind] + stream)


def version():
    return json.loads(call("GET", f"{SERVICES}?limit=1"))["metadata"]["resourceVersion"]


def record(name, ask):
    """Both encodings of one answer: again if the server has written something else meanwhile."""
    while True:
        before = version()
        answers = {kind: ask(kind) for kind in TYPES}
        if version() == before:
            break
    for kind, answer in answers.items():
        (FOLDER / f"{name}.{kind}").write_bytes(answer)


def record_all():
    initial = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "resourceVersion": ""}
    if b'"ERROR"' in watch_of(SERVICES, "json", **initial):
        # On an etcd older than 3.5.13.
        return record("no-stream", lambda kind: watch_of(SERVICES, kind, **initial))
    for name, path in {"services": SERVICES, "endpointslices": SLICES, "nodes": NODES}.items():
        record(f"{name}-list", lambda kind: call("GET", f"{path}?limit=100", accept=TYPES[kind]))
        record(f"{name}-stream", lambda kind: watch_of(path, kind, **initial))
    record("page", lambda kind: call("GET", f"{SERVICES}?limit=1", accept=TYPES[kind]))
    record("changes", lambda kind: watch_of(SERVICES, kind, resourceVersion=1))
    record("refused", lambda kind: call("GET", f"{SERVICES}?continue=nonsense", accept=TYPES[kind]))


def clean():
    for path in (SERVICES, SLICES, f"{NODES}/recorded"):
        call("DELETE", path)
    call("DELETE", "/api/v1/namespaces/recorded")
    # In case nobody plays the namespace controller.
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "recorded"}, "spec": {"finalizers": []}}
    call("PUT", "/api/v1/namespaces/recorded/finalize", namespace)


FOLDER.mkdir(parents=True, exist_ok=True)
fill()
record_all()
clean()
