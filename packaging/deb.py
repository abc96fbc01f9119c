#!/usr/bin/env python3
"""Builds the Debian package round a program: deb.py --help

The same input gives the same bytes. SOURCE_DATE_EPOCH dates the files.
"""

import argparse
import gzip
import os
import re
import subprocess
import tempfile
from email.utils import formatdate
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
HERE = REPOSITORY / "packaging" / "debian"
EPOCH = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
MAINTAINER = "kube-proxy-rs developers <kube-proxy-rs@users.noreply.github.com>"
DOC = "usr/share/doc/kube-proxy-rs"
LIBRARIES = {"libc.so.6": "libc6", "libm.so.6": "libc6", "libgcc_s.so.1": "libgcc-s1"}

CONTROL = """Package: kube-proxy-rs
Version: {version}-1
Architecture: {arch}
Maintainer: {maintainer}
Installed-Size: {size}
Depends: {depends}
Recommends: kmod
Suggests: ipvsadm
Section: net
Priority: optional
Homepage: https://github.com/kube-proxy-rs/kube-proxy-rs
Description: service proxy for Kubernetes nodes, in place of kube-proxy
 Watches Services and EndpointSlices of a Kubernetes cluster and keeps the
 node's kernel equal to what they ask for, by iptables rules or IPVS. Takes
 kube-proxy's flags and configuration file and programs the same rules.
 .
 For nodes on which no pod does this: the service is installed, but neither
 enabled nor started.
"""


def depends(binary):
    """The packages of the libraries that a program names, in the version whose symbols it uses."""
    text = subprocess.run(
        ["readelf", "--wide", "--dynamic", "--version-info", binary], check=True, capture_output=True, text=True
    ).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", text)
    packages = {LIBRARIES[name] for name in needed if not name.startswith("ld-linux")}
    symbols = [tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_(\d+\.\d+)", text)]
    newest = ".".join(map(str, max(symbols)))
    versions = {"libc6": f"libc6 (>= {newest})"}
    return ", ".join(["iptables", *sorted(versions.get(name, name) for name in packages)])


def files(options):
    """Everything in the package, by path: content and mode."""
    manual, docs = options.manual, REPOSITORY / "docs"
    packed = lambda content: gzip.compress(content, mtime=0)
    return {
        "usr/bin/kube-proxy-rs": (options.binary.read_bytes(), 0o755),
        "usr/lib/systemd/system/kube-proxy-rs.service": ((HERE / "kube-proxy-rs.service").read_bytes(), 0o644),
        "etc/kube-proxy-rs/config.conf": ((HERE / "config.conf").read_bytes(), 0o644),
        "etc/default/kube-proxy-rs": ((HERE / "kube-proxy-rs.default").read_bytes(), 0o644),
        "usr/share/man/man8/kube-proxy-rs.8.gz": (packed((manual / "kube-proxy-rs.8").read_bytes()), 0o644),
        "usr/share/bash-completion/completions/kube-proxy-rs": ((manual / "kube-proxy-rs.bash").read_bytes(), 0o644),
        "usr/share/zsh/vendor-completions/_kube-proxy-rs": ((manual / "_kube-proxy-rs").read_bytes(), 0o644),
        "usr/share/fish/vendor_completions.d/kube-proxy-rs.fish": (
            (manual / "kube-proxy-rs.fish").read_bytes(),
            0o644,
        ),
        "usr/share/lintian/overrides/kube-proxy-rs": ((HERE / "lintian-overrides").read_bytes(), 0o644),
        f"{DOC}/copyright": ((HERE / "copyright").read_bytes(), 0o644),
        f"{DOC}/NOTICES.gz": (packed(options.notices.read_bytes()), 0o644),
        f"{DOC}/README.Debian": ((HERE / "README.Debian").read_bytes(), 0o644),
        f"{DOC}/distributions.md": ((docs / "distributions.md").read_bytes(), 0o644),
        f"{DOC}/changelog.gz": (packed((REPOSITORY / "CHANGELOG.md").read_bytes()), 0o644),
        f"{DOC}/changelog.Debian.gz": (packed(changelog(options.version).encode()), 0o644),
    }


def changelog(version):
    return f"""kube-proxy-rs ({version}-1) stable; urgency=medium

  * Release {version}; changelog.gz says what is new.

 -- {MAINTAINER}  {formatdate(EPOCH)}
"""


def lay_out(options, root):
    content = files(options)
    for path, (data, mode) in content.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        target.chmod(mode)
    control = root / "DEBIAN"
    control.mkdir()
    size = sum(-(-len(data) // 1024) for data, _ in content.values())
    fields = {"version": options.version, "arch": options.arch, "maintainer": MAINTAINER, "size": size}
    (control / "control").write_text(CONTROL.format(depends=depends(options.binary), **fields))
    (control / "conffiles").write_text("".join(f"/{path}\n" for path in content if path.startswith("etc/")))
    sums = [["md5sum", path] for path in content if not path.startswith("etc/")]
    lines = [subprocess.run(each, cwd=root, check=True, capture_output=True, text=True).stdout for each in sums]
    (control / "md5sums").write_text("".join(lines))
    for script in ("postinst", "prerm", "postrm"):
        (control / script).write_bytes((HERE / script).read_bytes())
        (control / script).chmod(0o755)
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        folder.chmod(0o755)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", required=True, help="Debian's name of the architecture")
    parser.add_argument("--version", required=True, help="Debian's form: 1.2.3~rc.1 is before 1.2.3")
    for name in ("binary", "manual", "notices", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lay_out(options, Path(folder))
        # One thread: with several, xz cuts its input as it likes.
        build = ["dpkg-deb", "--root-owner-group", "-Zxz", "--threads-max=1", "--build", folder, options.output]
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)}
        subprocess.run(build, check=True, env=environment, stdout=subprocess.DEVNULL)
    print(options.output)


if __name__ == "__main__":
    main()
