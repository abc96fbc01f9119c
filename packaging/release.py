#!/usr/bin/env python3
"""Puts together a release: release.py --output FOLDER --manual FOLDER [--version VERSION] [--registry REGISTRY] ARCH=PROGRAM…

Everything that it consists of, with checksums. The same commit and the same Debian packages give the same bytes.
"""

import argparse
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import notices
import version as versions
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "image"))
import build as image  # noqa: E402 - the image's builder

NAME = "kube-proxy-rs"
SOURCE = f"https://github.com/{NAME}/{NAME}"
CHART = REPOSITORY / "charts" / NAME
HELM = "application/vnd.cncf.helm"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def run(*command):
    subprocess.run([str(part) for part in command], check=True, cwd=REPOSITORY)


def git(*arguments):
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    return done.stdout.strip()


class Release:
    def __init__(self, options):
        self.output, self.version = options.output.resolve(), options.version
        self.work = self.output / "work"
        self.programs = {arch: Path(path).resolve() for arch, _, path in (pair.partition("=") for pair in options.programs)}
        self.repository = f"{options.registry}/{NAME}" if options.registry else NAME
        self.notices, self.manual = self.output / "NOTICES", options.manual.resolve()

    def path(self, suffix):
        return self.output / f"{NAME}-{self.version}{suffix}"

    def archives(self):
        """The program by itself, for those who install by hand."""
        for arch, program in self.programs.items():
            tree, top = image.Tree(), f"{NAME}-{self.version}-linux-{arch}"
            tree.add(f"{top}/{NAME}", program.read_bytes(), 0o755)
            tree.add(f"{top}/{NAME}.service", (REPOSITORY / "packaging/debian" / f"{NAME}.service").read_bytes())
            for path in [REPOSITORY / "LICENSE", REPOSITORY / "CHANGELOG.md", self.notices]:
                tree.add(f"{top}/{path.name}", path.read_bytes())
            for path in self.manual.iterdir():
                tree.add(f"{top}/{path.name}", path.read_bytes())
            self.path(f"-linux-{arch}.tar.gz").write_bytes(gzip.compress(tree.tar(), mtime=0))

    def image(self):
        labels = {
            "version": self.version,
            "revision": git("rev-parse", "HEAD"),
            "source": SOURCE,
            "documentation": SOURCE,
            "licenses": "Apache-2.0",
            "description": "A service proxy for Kubernetes nodes, in place of kube-proxy",
        }
        binaries = [f"--binary={arch}={program}" for arch, program in self.programs.items()]
        given = [f"--label=org.opencontainers.image.{key}={value}" for key, value in labels.items()]
        files = [f"--output={self.path('.oci.tar')}", f"--packages={self.work / 'packages.json'}"]
        name = f"--name={self.repository}:{self.version}"
        run("python3", "-B", "image/build.py", "--quiet", *binaries, *given, *files, name, f"--notices={self.notices}")

    def bill_of_materials(self):
        packages = self.work / "packages.json"
        run("python3", "-B", "packaging/sbom.py", f"--packages={packages}", f"--output={self.path('.cdx.json')}")

    def debian_packages(self):
        for arch, program in self.programs.items():
            given = [f"--arch={arch}", f"--binary={program}", f"--manual={self.manual}"]
            version = self.version.replace("-", "~")
            given += [f"--version={version}", f"--output={self.output / f'{NAME}_{version}-1_{arch}.deb'}"]
            run("python3", "-B", "packaging/deb.py", *given, f"--notices={self.notices}")

    def chart(self):
        """The chart as `helm package` makes it, and as a registry holds it."""
        tree = image.Tree()
        for path in CHART.rglob("*"):
            if path.is_file():
                tree.add(f"{NAME}/{path.relative_to(CHART)}", self.published(path.read_text()).encode())
        package = gzip.compress(tree.tar(), mtime=0)
        self.path(".tgz").write_bytes(package)
        layout = image.Layout()
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": layout.blob(f"{HELM}.config.v1+json", yaml.safe_load((CHART / "Chart.yaml").read_text())),
            "layers": [layout.blob(f"{HELM}.chart.content.v1.tar+gzip", package)],
            "annotations": {"org.opencontainers.image.title": NAME, "org.opencontainers.image.version": self.version},
        }
        layout.write(self.path("-chart.oci.tar"), layout.blob(MANIFEST, manifest), f"charts/{NAME}:{self.version}")

    def published(self, text):
        """With the image where it will be."""
        text = text.replace(f"repository: {NAME}\n", f"repository: {self.repository}\n")
        return text.replace(f"image: {NAME}:", f"image: {self.repository}:")

    def manifests(self):
        names = [line.removeprefix("- ") for line in (REPOSITORY / "deploy/kustomization.yaml").read_text().splitlines()]
        parts = [(REPOSITORY / "deploy" / name).read_text() for name in names if name.endswith(".yaml")]
        self.path(".yaml").write_text(self.published("---\n".join(parts)))

    def notes(self):
        text = versions.changelog_section(self.version)
        (self.output / "RELEASE-NOTES.md").write_text(f"# {NAME} {self.version}\n\n{text}\n")

    def checksums(self):
        shutil.rmtree(self.work)
        lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(self.output.iterdir())]
        (self.output / "SHA256SUMS").write_text("".join(lines))
        print("".join(lines), end="")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--manual", type=Path, required=True, help="the manual page and completions: make manual")
    parser.add_argument("--version", default=versions.current(), help="must be what Cargo.toml says")
    parser.add_argument("--registry", default="", help="where the image will be: REGISTRY/kube-proxy-rs")
    parser.add_argument("programs", nargs="+", metavar="ARCH=PROGRAM")
    options = parser.parse_args()
    versions.check(options.version)
    os.environ["SOURCE_DATE_EPOCH"] = git("log", "-1", "--format=%ct")
    image.EPOCH = int(os.environ["SOURCE_DATE_EPOCH"])
    shutil.rmtree(options.output, ignore_errors=True)
    release = Release(options)
    release.work.mkdir(parents=True)
    release.notices.write_text(notices.notices(tuple(release.programs)))
    for step in (release.archives, release.image, release.bill_of_materials, release.debian_packages):
        step()
    for step in (release.chart, release.manifests, release.notes, release.checksums):
        step()


if __name__ == "__main__":
    main()
