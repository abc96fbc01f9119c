#!/usr/bin/env python3
"""The places that name the release's version: version.py [VERSION] writes a new one into all of them, or checks them."""

import re
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
# A file, and what stands before the version in it, as a pattern; every place in the file must agree.
PLACES = {
    "Cargo.toml": r'\[workspace\.package\]\nversion = "',
    "Cargo.lock": r'name = "(?:kube-proxy-rs|ipvs-rs|netlink|nftables-rs|demo|fuzz)"\nversion = "',
    "crates/ipvs-rs/Cargo.toml": r'netlink = \{ path = "../netlink", version = "',
    "crates/nftables-rs/Cargo.toml": r'netlink = \{ path = "../netlink", version = "',
    "charts/kube-proxy-rs/Chart.yaml": r"\b(?:version|appVersion): ",
    "charts/kube-proxy-rs/README.md": r"\. Version ",
    "deploy/daemonset.yaml": r"image: kube-proxy-rs:",
    "image/build.py": r'default="kube-proxy-rs:',
    "Dockerfile": r"-t kube-proxy-rs:",
    "README.md": r"/kube-proxy-rs:",
    "docs/operations.md": r"/kube-proxy-rs:",
}
NUMBER = r"\d+\.\d+\.\d+(?:-[0-9a-z.]+)?"


def found():
    for name, before in PLACES.items():
        numbers = re.findall(f"(?:{before})({NUMBER})", (REPOSITORY / name).read_text())
        yield from ((name, number) for number in numbers or ["nothing"])


def current():
    return dict(found())["Cargo.toml"]


def check(version):
    """Ends the program unless everything is of this version."""
    wrong = [f"{name} says {number}" for name, number in found() if number != version]
    if wrong:
        raise SystemExit(f"version: not {version} everywhere: {'; '.join(wrong)}. Run: make version VERSION={version}")


def write(version):
    if not re.fullmatch(NUMBER, version):
        raise SystemExit(f"version: {version} is not of the form 1.2.3 or 1.2.3-rc.1")
    for name, before in PLACES.items():
        path = REPOSITORY / name
        path.write_text(re.sub(f"({before}){NUMBER}", rf"\g<1>{version}", path.read_text()))
    path = REPOSITORY / "CHANGELOG.md"
    text = path.read_text()
    if f"\n## {version}" not in text:
        heading = f"## Unreleased\n\n## {version} - {time.strftime('%Y-%m-%d')}\n"
        path.write_text(text.replace("## Unreleased\n", heading, 1))


def changelog_section(version):
    """What is new in this version; in what is not released yet, if it has no section of its own."""
    text = (REPOSITORY / "CHANGELOG.md").read_text()
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    named = {section.split()[0]: section.split("\n", 1)[1].strip() for section in sections}
    return named.get(version) or named["Unreleased"]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write(sys.argv[1])
    check(sys.argv[1] if len(sys.argv) > 1 else current())
    print(current())
