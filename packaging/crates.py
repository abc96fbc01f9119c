"""The crates that are part of the program, as cargo resolves them: name, version, licence, source folder."""

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
TARGETS = {"amd64": "x86_64-unknown-linux-gnu", "arm64": "aarch64-unknown-linux-gnu"}


@dataclass(order=True)
class Crate:
    name: str
    version: str
    license: str = field(compare=False)
    folder: Path = field(compare=False)
    is_ours: bool = field(compare=False)
    uses: list = field(compare=False, default_factory=list)

    @property
    def purl(self):
        return f"pkg:cargo/{self.name}@{self.version}"


def cargo(*arguments):
    done = subprocess.run(["cargo", *arguments, "--locked"], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"cargo {arguments[0]}: {done.stderr}")
    return done.stdout


def linked(architectures):
    """What ends up in the program: neither what only builds it nor what only tests it."""
    names = set()
    for arch in architectures:
        tree = ["tree", "--package=kube-proxy-rs", "--edges=normal,no-proc-macro", f"--target={TARGETS[arch]}"]
        for line in cargo(*tree, "--prefix=none", "--no-dedupe", "--format={p}").splitlines():
            name, version, *rest = line.split()
            if "(proc-macro)" not in rest:
                names.add((name, version.removeprefix("v")))
    metadata = json.loads(cargo("metadata", "--format-version=1"))
    crates = {}
    for package in metadata["packages"]:
        if (package["name"], package["version"]) in names:
            folder = Path(package["manifest_path"]).parent
            ours = package["source"] is None
            license = (package["license"] or "").replace("/", " OR ")
            crates[package["id"]] = Crate(package["name"], package["version"], license, folder, ours)
    for item in metadata["resolve"]["nodes"]:
        if crate := crates.get(item["id"]):
            crate.uses = sorted(crates[name].purl for name in item["dependencies"] if name in crates)
    assert len(crates) == len(names), "cargo tree and cargo metadata disagree"
    return sorted(crates.values())
