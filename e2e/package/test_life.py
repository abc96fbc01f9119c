"""The package's life on a node with systemd: installed, configured, started, stuck, upgraded, removed, purged.

The API server is the small one of e2e/image; requests go through a Service to a server on the node's own address.
"""

import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import yaml
from machine import Machine

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGE_TESTS = REPOSITORY / "e2e" / "image"
sys.path.insert(0, str(IMAGE_TESTS))
from api_server import certificates  # noqa: E402 - shared with the image's test

UNIT, TOKEN = "kube-proxy-rs.service", "a-token"
OWN, CLUSTER_IP = "10.200.0.11", "10.96.0.10"
LABELS = {"kubernetes.io/service-name": "web"}
OBJECTS = [
    {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "node-0"},
        "status": {"addresses": [{"type": "InternalIP", "address": OWN}]},
    },
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"clusterIP": CLUSTER_IP, "clusterIPs": [CLUSTER_IP], "ports": [{"name": "http", "port": 80}]},
    },
    {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "addressType": "IPv4",
        "metadata": {"name": "web-1", "namespace": "shop", "labels": LABELS},
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [OWN], "conditions": {"ready": True}, "nodeName": "node-0"}],
    },
]
# A sync a second, so that two seconds without one are too long.
CONFIG = """apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection:
  kubeconfig: /etc/kube-proxy-rs/kubeconfig.conf
clusterCIDR: 10.128.0.0/16
hostnameOverride: node-0
mode: iptables
iptables:
  syncPeriod: 1s
"""

# Not `python3 -m http.server`, which asks DNS for its own name, and this node has none.
WEB_SERVER = """
import http.server, socketserver, sys
server = socketserver.ThreadingTCPServer((sys.argv[1], int(sys.argv[2])), http.server.SimpleHTTPRequestHandler)
print("listening", flush=True)
server.serve_forever()
"""


def kubeconfig(port):
    authority = "/etc/kube-proxy-rs/ca.crt"
    cluster = {"certificate-authority": authority, "server": f"https://127.0.0.1:{port}"}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "a", "cluster": cluster}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "users": [{"name": "a", "user": {"token": TOKEN}}],
            "current-context": "a",
        }
    )


class Life(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp())
        self.node, self.servers = Machine(os.environ["NODE"]), []
        self.addCleanup(self.end)
        for line in (
            "ip link add up0 type veth peer name up1",
            f"ip address add {OWN}/24 dev up0",
            "ip link set up0 up",
            "ip link set up1 up",
            "ip link set lo up",
            "ip route add default via 10.200.0.1 dev up0",
            "sysctl -qw net.ipv4.ip_forward=1",
        ):
            self.node.ok(*line.split())
        self.start_web_server(OWN, 8080)

    def end(self):
        for server in self.servers:
            server.kill()
            server.communicate()
        self.node.close()
        subprocess.run(["rm", "-rf", self.folder], check=True)

    def beside(self, *command):
        self.servers.append(self.node.beside(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
        return self.servers[-1]

    def start_web_server(self, address, port):
        server = self.beside(sys.executable, "-c", WEB_SERVER, address, str(port))
        self.assertEqual(server.stdout.readline(), "listening\n")

    def start_api_server(self):
        certificates(self.folder)
        (self.folder / "objects.json").write_text(json.dumps(OBJECTS))
        role = next(yaml.safe_load_all((REPOSITORY / "deploy/rbac.yaml").read_text()))
        (self.folder / "rules.json").write_text(json.dumps(role["rules"]))
        files = [self.folder / name for name in ("server.crt", "server.key", "objects.json", "rules.json")]
        script = IMAGE_TESTS / "api_server.py"
        server = self.beside(sys.executable, "-B", script, *files, TOKEN, self.folder / "requests.log")
        return int(server.stdout.readline())

    def install(self, package):
        self.node.put(package, "/tmp/package.deb")
        return self.node.ok("dpkg", "--install", "/tmp/package.deb")

    def configure(self):
        for name, text in (("config.conf", CONFIG), ("kubeconfig.conf", kubeconfig(self.start_api_server()))):
            (self.folder / name).write_text(text)
            self.node.put(self.folder / name, f"/etc/kube-proxy-rs/{name}", mode="600")
        self.node.put(self.folder / "ca.crt", "/etc/kube-proxy-rs/ca.crt")

    def installed_and_started(self):
        self.install(os.environ["PACKAGE"])
        self.configure()
        # Returns once Services are in force.
        status, text = self.node.run("systemctl", "start", UNIT)
        self.assertEqual(status, 0, f"{text}\n{self.journal()}")

    def journal(self):
        return self.node.run("journalctl", "--no-pager", "--lines=30", "--unit", UNIT)[1]

    def show(self, name):
        return self.node.ok("systemctl", "show", "--value", "--property", name, UNIT)

    def answers(self):
        return self.node.run("curl", "-s", "-m", "5", "-o", "/dev/null", f"http://{CLUSTER_IP}/")[0] == 0

    def rules(self):
        """Those of a service proxy; the kubelet keeps rules in KUBE-FIREWALL, too, so that chain stays."""
        found = self.node.ok("iptables-save") + self.node.ok("ip6tables-save")
        return [line for line in found.splitlines() if "KUBE-" in line and "KUBE-FIREWALL" not in line]

    def test_installing_starts_nothing(self):
        self.install(os.environ["PACKAGE"])
        self.assertEqual(self.node.run("systemctl", "is-enabled", UNIT)[1], "disabled")
        self.assertEqual(self.node.run("systemctl", "is-active", UNIT)[1], "inactive")
        self.assertEqual(self.rules(), [])
        verified = self.node.run("systemd-analyze", "verify", "--man=no", f"/usr/lib/systemd/system/{UNIT}")
        self.assertEqual(verified, (0, ""))

    def test_started_means_that_services_are_in_force_under_the_units_restrictions(self):
        self.installed_and_started()
        self.assertTrue(self.answers(), self.journal())
        self.assertEqual(self.show("StatusText"), "Services are in force")
        self.assertNotIn("ERROR", self.journal())
        pid = self.show("MainPID")
        # NET_ADMIN and NET_RAW, and no way to more.
        confined = self.node.ok("grep", "-E", "CapEff|NoNewPrivs|Seccomp:", f"/proc/{pid}/status").split()
        self.assertEqual(confined[1::2], ["0000000000003000", "1", "2"])
        self.assertRegex(self.node.ok("kube-proxy-rs", "services"), r"shop +web .* serving")
        self.node.ok("kube-proxy-rs", "explain", "shop/web", "--hostname-override", "node-0")

    def test_a_proxy_that_cannot_program_is_restarted_by_the_watchdog_until_it_can(self):
        self.install(os.environ["PACKAGE"])
        self.node.ok("mkdir", "-p", f"/run/systemd/system/{UNIT}.d")
        self.node.ok("sh", "-c", f"printf '[Service]\\nWatchdogSec=4s\\n' >/run/systemd/system/{UNIT}.d/test.conf")
        self.node.ok("systemctl", "daemon-reload")
        self.configure()
        self.node.ok("systemctl", "start", UNIT)
        restore = "/usr/sbin/xtables-nft-multi"
        broken = f'if [ "${{0##*-}}" = restore ]; then exit 1; fi; exec -a "$0" {restore}.real "$@"'
        self.node.ok("sh", "-c", f"mv {restore} {restore}.real; printf '%s\\n' '#!/bin/bash' '{broken}' >{restore}")
        self.node.ok("chmod", "755", restore)
        self.node.ok("iptables", "--table", "nat", "--flush", "KUBE-SERVICES")
        self.node.wait_for(lambda: int(self.show("NRestarts")) > 0, "a restart", self.journal)
        self.assertIn("watchdog", self.journal().lower())
        self.assertNotEqual(self.show("ActiveState"), "active")
        self.node.ok("mv", f"{restore}.real", restore)
        self.node.wait_for(lambda: self.show("ActiveState") == "active", "another start", self.journal)
        self.assertTrue(self.answers())

    def test_an_upgrade_restarts_it_and_no_request_fails(self):
        self.installed_and_started()
        before = self.show("MainPID")
        loop = f"for i in $(seq 200); do curl -s -m 5 -o /dev/null http://{CLUSTER_IP}/ || echo failed; done"
        requests = self.node.beside("bash", "-c", loop, stdout=subprocess.PIPE)
        self.install(os.environ["NEXT"])
        self.assertEqual(self.show("ActiveState"), "active")
        self.assertNotEqual(self.show("MainPID"), before)
        self.assertEqual(requests.communicate(timeout=120)[0], "")
        self.assertEqual(self.node.ok("cat", "/etc/kube-proxy-rs/config.conf"), CONFIG.strip())

    def test_a_removal_leaves_the_rules_and_a_purge_takes_them_away(self):
        self.installed_and_started()
        self.node.ok("systemctl", "enable", UNIT)
        self.node.ok("dpkg", "--remove", "kube-proxy-rs")
        self.assertEqual(self.node.run("pgrep", "-x", "kube-proxy-rs")[0], 1)
        self.assertTrue(self.answers())
        self.node.ok("dpkg", "--purge", "kube-proxy-rs")
        self.assertEqual(self.rules(), [])
        left = self.node.run("find", "/etc", "/usr", "/var", "-name", "*kube-proxy-rs*", "-not", "-path", "/var/log/*")[1]
        # With the administrator's own files in it.
        self.assertEqual(left, "/etc/kube-proxy-rs")

    def test_a_purge_leaves_the_rules_to_another_proxy(self):
        self.installed_and_started()
        self.node.ok("dpkg", "--remove", "kube-proxy-rs")
        self.start_web_server("127.0.0.1", 10256)
        self.assertIn("another service proxy", self.node.ok("dpkg", "--purge", "kube-proxy-rs"))
        self.assertTrue(self.answers())


if __name__ == "__main__":
    unittest.main()
