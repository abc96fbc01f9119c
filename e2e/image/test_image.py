"""The image is well made, holds what it should, and programs a node with its own iptables under the manifests' privileges."""

import os
import shutil
import struct
import subprocess
import tempfile
import unittest
from pathlib import Path

import layout
import node

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGE = os.environ["IMAGE"]
NATIVE = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True).stdout.strip()
PROGRAM = "/usr/local/bin/kube-proxy-rs"
MANIFEST = "/var/lib/kube-proxy/shop.yaml"
CLUSTER_IP = {"iptables": "10.96.0.10/32", "ip6tables": "fd00:96::10/128"}


def native():
    return next((config, layers) for arch, config, layers in layout.Layout(IMAGE).platforms() if arch == NATIVE)


class Content(unittest.TestCase):
    def setUp(self):
        self.config, self.layers = native()

    def test_it_starts_the_program(self):
        self.assertEqual(self.config["config"]["Entrypoint"], [PROGRAM])
        self.assertEqual(self.config["os"], "linux")

    def test_kube_proxys_path_is_there_for_its_daemon_set(self):
        links = {item.name: item.linkname for item in layout.members(self.layers) if item.issym()}
        self.assertEqual(links["usr/local/bin/kube-proxy"], "kube-proxy-rs")

    def test_there_is_nothing_to_misuse(self):
        programs = {item.name for item in layout.members(self.layers) if item.isfile() and item.mode & 0o111}
        programs = {name for name in programs if "ld-linux" not in name}
        tools = {f"usr/sbin/{name}" for name in ("xtables-nft-multi", "xtables-legacy-multi", "nft")}
        self.assertEqual(programs, tools | {PROGRAM[1:]})

    def test_every_file_is_roots_and_nothing_is_set_uid(self):
        for item in layout.members(self.layers):
            with self.subTest(item.name):
                self.assertEqual((item.uid, item.gid, item.mode & 0o6000), (0, 0, 0))
                self.assertFalse(item.isfile() and item.mode & 0o022, "other users can write it")

    def test_only_the_program_has_capabilities_and_none_in_effect(self):
        given = {item.name: layout.xattrs(item) for item in layout.members(self.layers) if layout.xattrs(item)}
        [value] = given.pop(PROGRAM[1:]).values()
        self.assertEqual(given, {})
        revision, permitted, *rest = struct.unpack("<5I", value)
        self.assertEqual((revision, permitted, rest), (2 << 24, 1 << node.NET_ADMIN | 1 << node.NET_RAW, [0, 0, 0]))

    def test_the_licences_of_what_is_inside_are_inside(self):
        names = {item.name for item in layout.members(self.layers)}
        for package in ("iptables", "nftables", "libc6", "libnftnl11", "libxtables12"):
            self.assertIn(f"usr/share/doc/{package}/copyright", names)


class Running(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.root = Path(self.folder) / "rootfs"
        layout.unpack(native()[1], self.root)
        shutil.copy(REPOSITORY / "examples" / "shop.yaml", self.root / MANIFEST[1:])
        self.node = node.Node(self.root)

    def tearDown(self):
        self.node.close()
        shutil.rmtree(self.folder)

    def flags(self, flavor):
        return [f"--manifests={MANIFEST}", "--hostname-override=node-0", f"--iptables-flavor={flavor}", "--v=2"]

    def initialise(self, flavor):
        code, text = self.node.output(PROGRAM, *self.flags(flavor), "--init-only")
        self.assertEqual(code, 0, text)
        self.node.confine_files()

    def rules(self, tool, flavor):
        code, text = self.node.output(f"{tool}-{flavor}-save", "-t", "nat")
        self.assertEqual(code, 0, text)
        return text

    def programs_both_families(self, flavor, capabilities, user=None):
        self.initialise(flavor)
        with self.node.running(PROGRAM, *self.flags(flavor), capabilities=capabilities, user=user) as (process, log):
            for tool, address in CLUSTER_IP.items():

                def programmed(tool=tool, address=address):
                    self.assertIsNone(process.poll(), log())
                    return f"-d {address}" in self.rules(tool, flavor)

                node.wait_for(programmed, f"a rule for {address}", log)
            self.assertNotIn("ERROR", log())

    def test_it_also_starts_by_kube_proxys_name(self):
        code, text = self.node.output("/usr/local/bin/kube-proxy", "--version")
        self.assertEqual(code, 0, text)

    def test_explain_reads_the_tables_of_other_programs(self):
        chain = "add chain inet own f { type filter hook forward priority 10; policy drop; }"
        for words in ("add table inet own", chain):
            code, text = self.node.output("nft", words)
            self.assertEqual(code, 0, text)
        _, text = self.node.output(PROGRAM, "explain", "--all", *self.flags("nft"))
        self.assertIn("inet own f: the policy is drop", text)

    def test_nft_needs_net_admin_only(self):
        self.programs_both_families("nft", {node.NET_ADMIN})

    def test_nft_works_for_another_user_than_root(self):
        self.programs_both_families("nft", {node.NET_ADMIN}, user=65534)

    def test_legacy_is_for_root_only_and_it_says_so(self):
        self.initialise("legacy")
        both = {node.NET_ADMIN, node.NET_RAW}
        with self.node.running(PROGRAM, *self.flags("legacy"), capabilities=both, user=65534) as (process, log):
            said = "legacy IPv4 table nat: Permission denied"
            node.wait_for(lambda: said in log() or process.poll() is not None, "a word about it", log)
            self.assertIn(said, log())

    def test_commands_that_need_no_capability_start_without_any(self):
        process = self.node.inside(PROGRAM, "--version", capabilities=set(), user=65534, stdout=subprocess.PIPE)
        process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0)

    def test_legacy_needs_net_raw_too(self):
        self.programs_both_families("legacy", {node.NET_ADMIN, node.NET_RAW})

    def test_without_net_raw_legacy_says_so_and_ends(self):
        self.initialise("legacy")
        with self.node.running(PROGRAM, *self.flags("legacy"), capabilities={node.NET_ADMIN}) as (process, log):
            node.wait_for(lambda: process.poll() is not None, "the end of the program", log)
            self.assertNotEqual(process.returncode, 0)
            self.assertIn("no support for primary IP family", log())

    def test_without_the_init_container_it_names_the_setting_it_cannot_write(self):
        self.node.confine_files()
        with self.node.running(PROGRAM, *self.flags("nft"), capabilities={node.NET_ADMIN}) as (process, log):
            node.wait_for(lambda: process.poll() is not None, "the end of the program", log)
            self.assertIn("route_localnet", log())

    def test_it_answers_probes(self):
        self.initialise("nft")
        url = "http://127.0.0.1:10256/livez"
        with self.node.running(PROGRAM, *self.flags("nft"), capabilities={node.NET_ADMIN}) as (_, log):
            ask = ["nsenter", self.node.namespace, "curl", "-sf", "-o", "/dev/null", url]
            node.wait_for(lambda: subprocess.run(ask, check=False).returncode == 0, "an answer", log)


if __name__ == "__main__":
    unittest.main()
