"""The chart and deploy/ make the objects they should, and refuse what makes no sense."""

import copy
import tempfile
import unittest

import helm_python
import kubernetes_validate
import objects
import yaml

KUBERNETES = "1.36"
# What these tests leave to the operator that brings the kind: its schema does not come with Kubernetes.
FOREIGN = {"ServiceMonitor", "PrometheusRule"}
PLACEHOLDER = {"apiServer": "https://CONTROL-PLANE-ENDPOINT:6443"}

NONSENSE = {
    "a mode that does not exist": ({"mode": "nftables-but-faster"}, "mode"),
    "a flavor that does not exist": ({"iptablesFlavor": "new"}, "iptablesFlavor"),
    "an API server that is a bare name": ({"apiServer": "api.example"}, "apiServer"),
    "a misspelt value": ({"apiserver": "https://api.example"}, "apiserver"),
    "a misspelt field of the configuration": ({"config": {"clusterCidr": "10.0.0.0/8"}}, "clusterCidr"),
    "a network without a prefix": ({"config": {"clusterCIDR": "10.0.0.0"}}, "clusterCIDR"),
    "a duration without a unit": ({"config": {"iptables": {"syncPeriod": "30"}}}, "syncPeriod"),
    "a mark bit beyond the mark": ({"config": {"iptables": {"masqueradeBit": 32}}}, "masqueradeBit"),
    "a bind address without a port": ({"config": {"healthzBindAddress": "0.0.0.0"}}, "healthzBindAddress"),
    "health switched off": ({"config": {"healthzBindAddress": ""}}, "healthzBindAddress"),
    "a surge": ({"updateStrategy": {"rollingUpdate": {"maxSurge": 1}}}, "maxSurge"),
    "verbosity in words": ({"verbosity": "high"}, "verbosity"),
    "a digest that is a tag": ({"image": {"digest": "v1"}}, "digest"),
    "a pull policy that does not exist": ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
    "an argument that is no flag": ({"extraArgs": ["v=5"]}, "extraArgs"),
    "a toleration that is a string": ({"tolerations": ["all"]}, "tolerations"),
}


class Rendering(unittest.TestCase):
    maxDiff = None

    def test_every_case_is_valid_for_kubernetes(self):
        for name, values in objects.CASES.items():
            for key, item in objects.rendered(values).items():
                if item["kind"] not in FOREIGN:
                    with self.subTest(case=name, object=key):
                        kubernetes_validate.validate(item, KUBERNETES, strict=True)

    def test_deploy_is_valid_for_kubernetes(self):
        for key, item in objects.deploy().items():
            with self.subTest(object=key):
                kubernetes_validate.validate(item, KUBERNETES, strict=True)

    def test_helm_finds_nothing_to_complain_about(self):
        for name, values in objects.CASES.items():
            with self.subTest(case=name):
                report = helm_python.lint(str(objects.CHART), values, strict=True)
                found = [message for message in report["messages"] if message["severity"] > 1]
                self.assertEqual((found, report["errors"]), ([], []))

    def test_the_chart_as_it_comes_equals_deploy(self):
        chart = {key: without_helms_own(item) for key, item in objects.chart(PLACEHOLDER).items()}
        self.assertEqual(chart, {key: readable(item) for key, item in objects.deploy().items()})

    def test_overlays_differ_from_deploy_in_the_mode_only(self):
        modes = {path.name: objects.deploy(path) for path in (objects.REPOSITORY / "overlays").iterdir()}
        self.assertEqual(set(modes), {"iptables", "ipvs", "nftables"})
        for mode, overlaid in modes.items():
            built, plain = ({key: readable(item) for key, item in it.items()} for it in (overlaid, objects.deploy()))
            config = built["ConfigMap", "kube-proxy-rs"]["data"]["config.conf"]
            self.assertEqual(config.pop("mode"), mode)
            config.pop("ipvs", None)
            plain["ConfigMap", "kube-proxy-rs"]["data"]["config.conf"].pop("mode")
            self.assertEqual(built, plain)

    def test_notes_depend_on_how_it_was_installed(self):
        notes = lambda case: objects.render(objects.CASES[case])["kube-proxy-rs/templates/NOTES.txt"]
        self.assertIn("rollout status daemonset service-proxy", notes("iptables"))
        self.assertIn("docs/security.md lists those", notes("iptables"))
        self.assertIn("in mode ipvs", notes("ipvs"))
        self.assertIn("https://api.cluster.example", notes("ipvs"))
        self.assertIn("patch daemonset kube-proxy", notes("kubeadm"))
        self.assertNotIn("patch daemonset kube-proxy", notes("minimal"))
        some_nodes = {**objects.CASES["kubeadm"], "nodeSelector": {"kubernetes.io/os": "linux", "proxy": "rs"}}
        some_nodes = objects.render(some_nodes)["kube-proxy-rs/templates/NOTES.txt"]
        self.assertNotIn("patch daemonset kube-proxy", some_nodes)
        self.assertIn("Node by node", some_nodes)
        self.assertIn("without a registry", notes("minimal"))
        self.assertNotIn("without a registry", notes("iptables"))

    def test_helm_test_asks_a_service_from_the_pod_network(self):
        for case, values in objects.CASES.items():
            with self.subTest(case=case):
                [pod] = objects.hooks(values).values()
                self.assertNotIn("hostNetwork", pod["spec"])
                [container] = pod["spec"]["containers"]
                self.assertIn("--master=https://kubernetes.default.svc", container["args"])

    def test_what_is_added_reaches_both_containers(self):
        spec = objects.pod_spec(objects.chart(objects.CASES["ipvs"]))
        for container in [*spec["initContainers"], *spec["containers"]]:
            self.assertIn({"name": "RUST_BACKTRACE", "value": "1"}, container["env"])
            self.assertIn({"name": "certificates", "mountPath": "/etc/ssl"}, container["volumeMounts"])
        self.assertIn({"name": "certificates", "hostPath": {"path": "/etc/ssl"}}, spec["volumes"])
        requests = [it["resources"]["requests"]["memory"] for it in spec["initContainers"] + spec["containers"]]
        self.assertEqual(requests, ["32Mi", "64Mi"])

    def test_optional_objects_come_only_when_asked_for(self):
        kinds = lambda case: {kind for kind, _ in objects.chart(objects.CASES[case])}
        base = {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ConfigMap", "DaemonSet"}
        self.assertEqual(kinds("minimal"), base)
        self.assertEqual(kinds("kubeadm"), base - {"ConfigMap"})
        self.assertEqual(kinds("iptables"), base | FOREIGN | {"Service"})


class Refusals(unittest.TestCase):
    def test_the_schema_refuses_nonsense(self):
        for name, (values, culprit) in NONSENSE.items():
            with self.subTest(name):
                with self.assertRaisesRegex(helm_python.HelmValuesError, culprit):
                    objects.render({"apiServer": "https://api.example", **values})

    def test_the_api_server_is_needed(self):
        with self.assertRaisesRegex(helm_python.HelmRenderError, "apiServer is needed"):
            objects.render({})

    def test_prometheus_must_reach_what_it_is_told_to_scrape(self):
        values = {**PLACEHOLDER, "serviceMonitor": {"enabled": True}}
        with self.assertRaisesRegex(helm_python.HelmRenderError, "metricsBindAddress"):
            objects.render(values)


class Privileges(unittest.TestCase):
    def test_the_container_that_stays_has_the_network_and_nothing_else(self):
        both = ["NET_ADMIN", "NET_RAW"]
        values = {
            **{case: (objects.CASES[case], both) for case in ("minimal", "kubeadm", "ipvs")},
            "iptables": (objects.CASES["iptables"], ["NET_ADMIN"]),
            "nftables": ({**PLACEHOLDER, "mode": "nftables"}, ["NET_ADMIN"]),
            "auto": ({**PLACEHOLDER, "mode": "auto"}, both),
            "auto on nft": ({**PLACEHOLDER, "mode": "auto", "iptablesFlavor": "nft"}, ["NET_ADMIN"]),
            # Rules that name sets open a raw socket, whichever tables they are in.
            "ipvs on nft": ({**objects.CASES["ipvs"], "iptablesFlavor": "nft"}, both),
            "kubeadm on nft": ({**objects.CASES["kubeadm"], "iptablesFlavor": "nft"}, both),
        }
        for case, (given, capabilities) in values.items():
            with self.subTest(case=case):
                [container] = objects.pod_spec(objects.chart(given))["containers"]
                expected = {
                    "runAsUser": 0,
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"], "add": capabilities},
                }
                self.assertEqual(container["securityContext"], expected)

    def test_another_user_than_root_gets_net_admin_from_the_programs_file(self):
        values = {**PLACEHOLDER, "runAsUser": 65534, "iptablesFlavor": "nft"}
        pod = objects.pod_spec(objects.chart(values))
        of_nftables = {**PLACEHOLDER, "runAsUser": 65534, "mode": "nftables"}
        context = lambda pod: pod["containers"][0]["securityContext"]
        self.assertEqual(context(objects.pod_spec(objects.chart(of_nftables))), context(pod))
        expected = {
            "runAsUser": 65534,
            "runAsGroup": 65534,
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
        }
        self.assertEqual(pod["containers"][0]["securityContext"], expected)
        # For the service account's token and the control socket.
        self.assertEqual(pod["securityContext"]["fsGroup"], 65534)
        for impossible in ({"iptablesFlavor": "auto"}, {"mode": "ipvs"}):
            with self.assertRaisesRegex(helm_python.HelmRenderError, "needs mode nftables, or another than ipvs"):
                objects.render({**values, **impossible})

    def test_only_the_init_container_is_privileged_and_it_ends(self):
        [init] = objects.pod_spec(objects.deploy())["initContainers"]
        self.assertTrue(init["securityContext"]["privileged"])
        self.assertIn("--init-only", init["args"])
        self.assertNotIn("initContainers", objects.pod_spec(objects.chart(objects.CASES["iptables"])))

    def test_nodes_may_be_changed_only_where_a_readiness_taint_is_named(self):
        for case, taint in {"minimal": None, "iptables": "example.com/services-not-ready"}.items():
            with self.subTest(case=case):
                made = objects.chart(objects.CASES[case])
                [role] = [item for (kind, _), item in made.items() if kind == "ClusterRole"]
                patches = [rule for rule in role["rules"] if "patch" in rule["verbs"] and "nodes" in rule["resources"]]
                self.assertEqual(len(patches), 1 if taint else 0)
                [container] = objects.pod_spec(made)["containers"]
                self.assertEqual(f"--node-readiness-taint={taint}" in container["args"], bool(taint))

    def test_rbac_asks_for_no_more_than_kube_proxys_own_role_has(self):
        allowed = {
            ("", "services"): {"list", "watch"},
            ("", "nodes"): {"get", "list", "watch"},
            ("discovery.k8s.io", "endpointslices"): {"list", "watch"},
            ("networking.k8s.io", "servicecidrs"): {"list", "watch"},
            ("events.k8s.io", "events"): {"create", "patch", "update"},
        }
        [role] = [item for (kind, _), item in objects.deploy().items() if kind == "ClusterRole"]
        for rule in role["rules"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    self.assertLessEqual(set(rule["verbs"]), allowed[(group, resource)])


class Configuration(unittest.TestCase):
    def test_the_program_takes_every_configuration_the_chart_writes(self):
        for name, values in objects.CASES.items():
            maps = [item for (kind, _), item in objects.chart(values).items() if kind == "ConfigMap"]
            for config in (item["data"].get("config.conf") for item in maps):
                if config is not None:
                    with self.subTest(case=name), tempfile.TemporaryDirectory() as folder:
                        log, resolved = objects.resolved(config, folder)
                        said = "\n".join(line for line in log.splitlines() if "FLAG: --" not in line)
                        self.assertNotRegex(said, "unknown|duplicate|strict")
                        self.assertEqual(resolved["mode"], values.get("mode", "iptables"))

    def test_every_field_of_the_configuration_is_in_the_schema(self):
        """What the program writes of itself, the schema must know, but for what the chart settles."""
        import json

        schema = json.loads((objects.CHART / "values.schema.json").read_text())["definitions"]["config"]
        settled = {"apiVersion", "kind", "mode", "clientConnection", "hostnameOverride"}
        useless = {"winkernel", "windowsRunAsService", "portRange"}
        with tempfile.TemporaryDirectory() as folder:
            minimal = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
            _, written = objects.resolved(minimal, folder)
        self.assertEqual(set(written) - settled - useless, set(schema["properties"]))
        for section in ("iptables", "ipvs", "nftables", "conntrack", "detectLocal"):
            self.assertEqual(set(written[section]), set(schema["properties"][section]["properties"]))

    def test_probes_follow_the_health_address(self):
        [container] = objects.pod_spec(objects.chart(objects.CASES["iptables"]))["containers"]
        self.assertEqual(container["ports"][0]["containerPort"], 11256)
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            self.assertEqual(container[probe]["httpGet"]["host"], "2001:db8::11")

    def test_a_changed_configuration_changes_the_pods(self):
        def checksum(**config):
            made = objects.chart({**PLACEHOLDER, "config": config})
            annotations = made[("DaemonSet", "kube-proxy-rs")]["spec"]["template"]["metadata"]["annotations"]
            return annotations["checksum/config"]

        self.assertNotEqual(checksum(), checksum(clusterCIDR="10.0.0.0/8"))


def readable(item):
    """An object with the YAML inside its ConfigMap parsed: comments and order there mean nothing."""
    item = copy.deepcopy(item)
    if item["kind"] == "ConfigMap":
        item["data"] = {key: yaml.safe_load(text) for key, text in item["data"].items()}
    return item


def without_helms_own(item):
    """The object without the labels and the checksum that only a release has."""
    item = readable(item)
    item["metadata"]["labels"] = {
        key: value for key, value in item["metadata"]["labels"].items() if key == "app.kubernetes.io/name"
    }
    if item["kind"] == "DaemonSet":
        del item["spec"]["template"]["metadata"]["annotations"]
    return item


if __name__ == "__main__":
    unittest.main()
