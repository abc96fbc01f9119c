"""What is in dist/ is a whole release, and says of itself what it is."""

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unittest
from pathlib import Path

import helm_python
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "e2e" / "image"))
sys.path.insert(0, str(REPOSITORY / "packaging"))
import layout  # noqa: E402 - shared with the image's test
import version as versions  # noqa: E402 - what a release is called

DIST, VERSION, NAME = Path(os.environ["DIST"]), versions.current(), "kube-proxy-rs"
DEBIAN = VERSION.replace("-", "~") + "-1"
CPUS = {"amd64": "x86_64", "arm64": "aarch64"}
MACHINES = {"amd64": "X86-64", "arm64": "AArch64"}
# Debian 12's C library; the programs run wherever that one or a newer one is.
GLIBC = (2, 36)
ARCHES = sorted(path.name.split("-")[-1].removesuffix(".tar.gz") for path in DIST.glob("*-linux-*.tar.gz"))
NATIVE = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True).stdout.strip()


def read(suffix):
    return (DIST / f"{NAME}-{VERSION}{suffix}").read_bytes()


def output(*command):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def members(package):
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(package))) as archive:
        return {item.name: archive.extractfile(item).read() for item in archive if item.isfile()}


def program(arch):
    return members(read(f"-linux-{arch}.tar.gz"))[f"{NAME}-{VERSION}-linux-{arch}/{NAME}"]


class Files(unittest.TestCase):
    def test_nothing_is_missing(self):
        whole = {f"{NAME}-{VERSION}{suffix}" for suffix in (".oci.tar", "-chart.oci.tar", ".tgz", ".yaml", ".cdx.json")}
        whole |= {f"{NAME}-{VERSION}-linux-{arch}.tar.gz" for arch in ARCHES}
        whole |= {f"{NAME}_{DEBIAN}_{arch}.deb" for arch in ARCHES}
        whole |= {"NOTICES", "RELEASE-NOTES.md", "SHA256SUMS"}
        self.assertEqual({path.name for path in DIST.iterdir()}, whole)

    def test_checksums_are_those_of_all_files(self):
        lines = (line.split("  ") for line in (DIST / "SHA256SUMS").read_text().splitlines())
        found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in DIST.iterdir()}
        del found["SHA256SUMS"]
        self.assertEqual({name: digest for digest, name in lines}, found)

    def test_release_notes_are_the_changelogs(self):
        text = (DIST / "RELEASE-NOTES.md").read_text()
        self.assertTrue(text.startswith(f"# {NAME} {VERSION}\n"))
        self.assertIn("### ", text)


class Programs(unittest.TestCase):
    def test_an_archive_has_all_that_an_installation_by_hand_needs(self):
        manual = [f"{NAME}.8", f"{NAME}.bash", f"_{NAME}", f"{NAME}.fish"]
        names = [NAME, f"{NAME}.service", "LICENSE", "NOTICES", "CHANGELOG.md", *manual]
        for arch in ARCHES:
            top = f"{NAME}-{VERSION}-linux-{arch}"
            found = set(members(read(f"-linux-{arch}.tar.gz")))
            self.assertEqual(found, {f"{top}/{name}" for name in names})

    def test_programs_are_of_their_architecture_and_of_no_newer_c_library(self):
        for arch in ARCHES:
            with self.subTest(arch), tempfile.NamedTemporaryFile() as file:
                file.write(program(arch))
                file.flush()
                self.assertRegex(output("readelf", "--file-header", file.name), MACHINES[arch])
                symbols = re.findall(r"GLIBC_(\d+)\.(\d+)", output("readelf", "--wide", "--version-info", file.name))
                self.assertLessEqual(max(tuple(map(int, pair)) for pair in symbols), GLIBC)

    def test_each_says_which_build_it_is(self):
        for arch, config, layers in layout.Layout(DIST / f"{NAME}-{VERSION}.oci.tar").platforms():
            with self.subTest(arch), tempfile.TemporaryDirectory() as folder:
                layout.unpack(layers, folder)
                path = f"/usr/local/bin/{NAME}"
                command = [f"{folder}{path}"]
                if arch != NATIVE:
                    # Within the image's own files: its loader is a link with an absolute path.
                    emulator = shutil.which(f"qemu-{CPUS[arch]}-static")
                    shutil.copy(emulator, f"{folder}/emulator")
                    command = ["chroot", folder, "/emulator", path]
                said = output(*command, "--version=raw")
                self.assertRegex(said, f"^name={NAME} version={VERSION} .* platform=linux/{CPUS[arch]} ")
                if "flags=debug" not in said:
                    revision = config["config"]["Labels"]["org.opencontainers.image.revision"]
                    self.assertIn(f" commit={revision} ", said)

    def test_a_program_shows_nothing_of_the_machine_that_built_it(self):
        for arch in ARCHES:
            for folder in (str(Path.home() / ".cargo").encode(), str(REPOSITORY).encode()):
                # The debug build has them.
                found = folder in program(arch) and b"debug,dynamic" not in program(arch)
                self.assertFalse(found, f"{folder} is in the program for {arch}")


class Image(unittest.TestCase):
    def test_one_archive_is_for_all_architectures_and_says_what_it_is(self):
        platforms = list(layout.Layout(DIST / f"{NAME}-{VERSION}.oci.tar").platforms())
        self.assertEqual(sorted(arch for arch, _, _ in platforms), ARCHES)
        for arch, config, layers in platforms:
            labels = config["config"]["Labels"]
            self.assertEqual(labels["org.opencontainers.image.version"], VERSION)
            self.assertRegex(labels["org.opencontainers.image.revision"], "^[0-9a-f]{40}$")
            names = {item.name for item in layout.members(layers)}
            self.assertIn(f"usr/share/doc/{NAME}/NOTICES", names, arch)


class Chart(unittest.TestCase):
    def test_the_package_renders_with_the_published_image(self):
        objects = [item for item in yaml.safe_load_all(read(".yaml")) if item]
        [daemon_set] = [item for item in objects if item["kind"] == "DaemonSet"]
        published = daemon_set["spec"]["template"]["spec"]["containers"][0]["image"]
        self.assertTrue(published.endswith(f"{NAME}:{VERSION}"))
        with tempfile.TemporaryDirectory() as folder:
            for name, content in members(read(".tgz")).items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            with helm_python.Chart.load(str(Path(folder, NAME))) as chart:
                texts = chart.render({"apiServer": "https://10.0.0.1:6443"}, name=NAME, namespace="kube-system")
        self.assertIn(f"image: {published}", "".join(texts.values()).replace('"', ""))

    def test_the_registrys_form_of_it_holds_the_same_package(self):
        files = layout.Layout(DIST / f"{NAME}-{VERSION}-chart.oci.tar")
        [entry] = json.loads(files.files["index.json"])["manifests"]
        manifest = json.loads(files.blob(entry))
        self.assertEqual(manifest["config"]["mediaType"], "application/vnd.cncf.helm.config.v1+json")
        [package] = manifest["layers"]
        self.assertEqual(package["mediaType"], "application/vnd.cncf.helm.chart.content.v1.tar+gzip")
        self.assertEqual(files.blob(package), read(".tgz"))
        self.assertEqual(json.loads(files.blob(manifest["config"]))["version"], VERSION)


class Parts(unittest.TestCase):
    def setUp(self):
        self.text = read(".cdx.json").decode()
        self.components = json.loads(self.text)["components"]

    def test_the_bill_of_materials_is_valid(self):
        self.assertIsNone(JsonStrictValidator(SchemaVersion.V1_6).validate_str(self.text))

    def test_it_names_crates_and_debian_packages(self):
        names = {component["purl"].split("/")[0] + "/" + component["name"] for component in self.components}
        self.assertLessEqual({"pkg:cargo/kube-client", "pkg:cargo/tokio", "pkg:deb/iptables", "pkg:deb/libc6"}, names)
        self.assertNotIn("pkg:cargo/criterion", names)

    def test_every_crate_of_others_has_its_licence_in_the_notices(self):
        notices = (DIST / "NOTICES").read_text()
        ours = {crate["name"] for crate in self.components if not list_of_licences(crate)}
        self.assertEqual(ours, set())
        own = {path.parent.name for path in REPOSITORY.glob("crates/*/Cargo.toml")}
        for crate in self.components:
            if crate["purl"].startswith("pkg:cargo/") and crate["name"] not in own:
                self.assertIn(f"{crate['name']} {crate['version']} (", notices)


def list_of_licences(component):
    return component.get("licenses") or not component["purl"].startswith("pkg:cargo/")


class Packages(unittest.TestCase):
    def test_debian_packages_are_of_this_version(self):
        for arch in ARCHES:
            shown = output("dpkg-deb", "--show", "--showformat=${Package} ${Version} ${Architecture}", DIST / f"{NAME}_{DEBIAN}_{arch}.deb")
            self.assertEqual(shown, f"{NAME} {DEBIAN} {arch}")


if __name__ == "__main__":
    unittest.main()
