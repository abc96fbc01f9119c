"""The package is what Debian's rules and its unit's reader take it for."""

import os
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

PACKAGE = os.environ["PACKAGE"]
UNIT = "usr/lib/systemd/system/kube-proxy-rs.service"
# What people and tools look for, where they look.
EXPECTED = {
    "usr/bin/kube-proxy-rs",
    UNIT,
    "etc/kube-proxy-rs/config.conf",
    "etc/default/kube-proxy-rs",
    "usr/share/man/man8/kube-proxy-rs.8.gz",
    "usr/share/bash-completion/completions/kube-proxy-rs",
    "usr/share/zsh/vendor-completions/_kube-proxy-rs",
    "usr/share/fish/vendor_completions.d/kube-proxy-rs.fish",
    "usr/share/lintian/overrides/kube-proxy-rs",
    "usr/share/doc/kube-proxy-rs/copyright",
    "usr/share/doc/kube-proxy-rs/NOTICES.gz",
    "usr/share/doc/kube-proxy-rs/README.Debian",
    "usr/share/doc/kube-proxy-rs/distributions.md",
    "usr/share/doc/kube-proxy-rs/changelog.gz",
    "usr/share/doc/kube-proxy-rs/changelog.Debian.gz",
}


def run(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


class Content(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.root = Path(cls.folder.name)
        subprocess.run(["dpkg-deb", "--raw-extract", PACKAGE, cls.root], check=True)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_every_file_is_where_it_is_looked_for(self):
        found = {str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()}
        self.assertEqual({name for name in found if not name.startswith("DEBIAN/")}, EXPECTED)

    def test_what_an_administrator_edits_is_kept_by_upgrades(self):
        kept = (self.root / "DEBIAN/conffiles").read_text().split()
        self.assertEqual(set(kept), {f"/{name}" for name in EXPECTED if name.startswith("etc/")})

    def test_it_asks_for_the_libraries_that_the_program_names(self):
        fields = run("dpkg-deb", "--field", PACKAGE, "Depends").stdout
        self.assertRegex(fields, r"^iptables, libc6 \(>= 2\.\d+\), libgcc-s1$")

    def test_lintian_finds_nothing(self):
        done = run("lintian", "--fail-on=error,warning", "--tag-display-limit=0", "--allow-root", PACKAGE)
        self.assertEqual((done.returncode, done.stdout), (0, ""), done.stderr)

    def test_the_configuration_is_one_that_the_program_takes(self):
        done = run(self.root / "usr/bin/kube-proxy-rs", "config", "check", self.root / "etc/kube-proxy-rs/config.conf")
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_completions_are_understood_by_their_shell(self):
        script = self.root / "usr/share/bash-completion/completions/kube-proxy-rs"
        asked = f"source {script}; COMP_WORDS=(kube-proxy-rs expl) COMP_CWORD=1; _kube__proxy__rs kube-proxy-rs expl ''"
        self.assertEqual(run("bash", "-c", f'{asked}; echo "${{COMPREPLY[@]}}"').stdout.strip(), "explain")

    def test_the_unit_confines_what_it_starts(self):
        # 0 is confined, 10 is not; the network is what it is for, so there is no lower than this.
        unit = self.root / UNIT
        judged = run("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=23", unit)
        overall = re.search(r"exposure level for kube-proxy-rs.service: ([\d.]+)", judged.stdout)
        self.assertEqual(judged.returncode, 0, overall and overall[0])


if __name__ == "__main__":
    unittest.main()
