#!/usr/bin/env python3
"""Writes the software bill of materials, CycloneDX 1.6: the program's crates and the image's Debian packages.

    sbom.py --packages PACKAGES.json --output SBOM.json

PACKAGES.json, from image/build.py, holds the image's Debian packages with their versions, by architecture.
"""

import argparse
import json
import os
import time
import uuid
from pathlib import Path

import crates


def crate_component(crate):
    component = {"type": "library", "bom-ref": crate.purl, "name": crate.name, "version": crate.version}
    return {**component, "purl": crate.purl, "licenses": [{"expression": crate.license}]}


def debian_component(name, version, arch):
    # A "+" or ":" of a version may not stand in an address as it is.
    quoted = version.replace("+", "%2B").replace(":", "%3A")
    purl = f"pkg:deb/debian/{name}@{quoted}?arch={arch}&distro=debian-12"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def bom(packages):
    found = crates.linked(packages)
    [program] = [crate for crate in found if crate.name == "kube-proxy-rs"]
    debian = [
        debian_component(name, release, arch)
        for arch, items in sorted(packages.items())
        for name, release in sorted(items.items())
    ]
    uses = [{"ref": crate.purl, "dependsOn": list(crate.uses)} for crate in found]
    for use in uses:
        if use["ref"] == program.purl:
            use["dependsOn"] += [component["bom-ref"] for component in debian]
    root = {**crate_component(program), "type": "application"}
    timestamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", "0"))))
    components = [crate_component(crate) for crate in found if crate is not program] + debian
    identity = json.dumps([root, timestamp, components], sort_keys=True)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, identity)}",
        "version": 1,
        "metadata": {"timestamp": timestamp, "component": root},
        "components": components,
        "dependencies": uses + [{"ref": component["bom-ref"]} for component in debian],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    made = bom(json.loads(options.packages.read_text()))
    options.output.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
