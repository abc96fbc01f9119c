"""deploy/ as it is, on a node without a kubelet: its containers with their arguments, files, privileges and role."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import layout
import node
import yaml
from api_server import certificates
from test_image import CLUSTER_IP, REPOSITORY, native

TOKEN = "a-token"
SECRETS = "var/run/secrets/kubernetes.io/serviceaccount"
NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-0"}}
NODE["status"] = {"addresses": [{"type": "InternalIP", "address": "192.0.2.11"}]}


def documents(*paths):
    for path in paths:
        yield from yaml.safe_load_all((REPOSITORY / path).read_text())


def of_kind(kind, *paths):
    return next(item for item in documents(*paths) if item["kind"] == kind)


class Deploy(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp())
        self.pod = of_kind("DaemonSet", "deploy/daemonset.yaml")["spec"]["template"]["spec"]
        layout.unpack(native()[1], self.folder / "rootfs")
        certificates(self.folder)
        self.node = node.Node(self.folder / "rootfs")
        self.server, port = self.start_api_server()
        self.mount_config_map(port)
        self.mount_service_account()

    def tearDown(self):
        self.server.kill()
        self.server.communicate()
        self.node.close()
        shutil.rmtree(self.folder)

    def start_api_server(self):
        rules = of_kind("ClusterRole", "deploy/rbac.yaml")["rules"]
        (self.folder / "rules.json").write_text(json.dumps(rules))
        (self.folder / "objects.json").write_text(json.dumps([NODE, *documents("examples/shop.yaml")]))
        files = [str(self.folder / name) for name in ("server.crt", "server.key", "objects.json", "rules.json")]
        script = str(Path(__file__).parent / "api_server.py")
        command = ["nsenter", self.node.namespace, sys.executable, "-B", script, *files, TOKEN, self.requests()]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return server, int(server.stdout.readline())

    def requests(self):
        return str(self.folder / "requests.log")

    def mount_config_map(self, port):
        data = of_kind("ConfigMap", "deploy/configmap.yaml")["data"]
        for name, text in data.items():
            text = text.replace("CONTROL-PLANE-ENDPOINT:6443", f"127.0.0.1:{port}")
            (self.folder / "rootfs/var/lib/kube-proxy" / name).write_text(text)

    def mount_service_account(self):
        secrets = self.folder / "rootfs" / SECRETS
        secrets.mkdir(parents=True)
        shutil.copy(self.folder / "ca.crt", secrets / "ca.crt")
        (secrets / "token").write_text(TOKEN)

    def command(self, container):
        words = [*container["command"], *container["args"]]
        return [word.replace("$(NODE_NAME)", "node-0") for word in words]

    def capabilities(self, container):
        self.assertEqual(container["securityContext"]["capabilities"]["drop"], ["ALL"])
        numbers = {"NET_ADMIN": node.NET_ADMIN, "NET_RAW": node.NET_RAW}
        return {numbers[name] for name in container["securityContext"]["capabilities"]["add"]}

    def test_its_pods_program_the_node_with_what_they_are_given(self):
        [init], [container] = self.pod["initContainers"], self.pod["containers"]
        code, text = self.node.output(*self.command(init))
        self.assertEqual(code, 0, text)
        self.node.confine_files()
        with self.node.running(*self.command(container), capabilities=self.capabilities(container)) as (process, log):
            self.both_families_are_programmed(process, log)
            self.probes_succeed(container, log)
            self.assertNotIn("no Node object", log())
        self.every_request_was_granted_and_every_watch_came()

    def test_it_takes_the_place_of_the_image_in_kubeadms_daemon_set(self):
        shutil.copy(Path(__file__).parent / "kubeadm.conf", self.folder / "rootfs/var/lib/kube-proxy/config.conf")
        command = ["/usr/local/bin/kube-proxy", "--config=/var/lib/kube-proxy/config.conf", "--hostname-override=node-0"]
        with self.node.running(*command, capabilities=None) as (process, log):
            self.both_families_are_programmed(process, log)
            self.assertNotRegex(log(), "unknown|duplicate|no effect")
        self.every_request_was_granted_and_every_watch_came()

    def both_families_are_programmed(self, process, log):
        for tool, address in CLUSTER_IP.items():

            def programmed(tool=tool, address=address):
                self.assertIsNone(process.poll(), log())
                return f"-d {address}" in self.node.output(f"{tool}-nft-save", "-t", "nat")[1]

            node.wait_for(programmed, f"a rule for {address}", log)

    def probes_succeed(self, container, log):
        [port] = container["ports"]
        for probe in ("livenessProbe", "readinessProbe"):
            path = container[probe]["httpGet"]["path"]
            url = f"http://127.0.0.1:{port['containerPort']}{path}"
            ask = ["nsenter", self.node.namespace, "curl", "-sf", "-o", os.devnull, url]
            node.wait_for(lambda ask=ask: subprocess.run(ask, check=False).returncode == 0, f"an answer of {path}", log)

    def every_request_was_granted_and_every_watch_came(self):
        requests = {tuple(line.split()) for line in Path(self.requests()).read_text().splitlines()}
        self.assertEqual({request for request in requests if request[0] in ("401", "403")}, set())
        for resource in ("/services", "/nodes", "discovery.k8s.io/endpointslices"):
            for verb in ("list", "watch"):
                self.assertIn(("200", verb, resource), requests)


if __name__ == "__main__":
    unittest.main()
