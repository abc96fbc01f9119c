#!/usr/bin/env python3
"""Builds the container image: an OCI layout in one tar file, without a container engine, without pulling a base.

    build.py --binary amd64=PATH [--binary arm64=PATH …] --output IMAGE.tar [--rootfs FOLDER]

Its content is the program, iptables of both flavors and nft from Debian's packages, the libraries these need, and
nothing else: no shell, no package manager. The same packages and binary give the same bytes.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CACHE = REPOSITORY / ".cache" / "image"
EPOCH = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))

# The packages that files are taken from. iptables and nftables bring the tools, the others the libraries they are linked
# to. With nft, explain reads the tables of other programs; the proxy itself runs without it.
PACKAGES = [
    "iptables",
    "nftables",
    "libnftables1",
    "libjansson4",
    "libgmp10",
    "libedit2",
    "libtinfo6",
    "libbsd0",
    "libmd0",
    "libxtables12",
    "libip4tc2",
    "libip6tc2",
    "libmnl0",
    "libnftnl11",
    "libnetfilter-conntrack3",
    "libnfnetlink0",
    "libgcc-s1",
    "libc6",
]
NFT, LEGACY = "usr/sbin/xtables-nft-multi", "usr/sbin/xtables-legacy-multi"
NFT_TOOL = "usr/sbin/nft"
# All match and target extensions, also those our rules do not use: the tools need them to list the rules of others.
EXTENSIONS = "usr/lib/*/xtables/lib*.so"
PROGRAM = "usr/local/bin/kube-proxy-rs"
# What a user other than root is permitted, if the container has it at all: NET_ADMIN (12) and NET_RAW (13), revision 2.
# Not in effect by itself: a file that says so cannot be started where the container has less.
CAPABILITIES = struct.pack("<5I", 2 << 24, 1 << 12 | 1 << 13, 0, 0, 0)
# The DaemonSet of kubeadm names this path.
ALIAS = "usr/local/bin/kube-proxy"
# What container runtimes mount onto, and what the manifests do.
MOUNT_POINTS = ["dev", "etc", "proc", "run", "sys", "tmp", "var/lib/kube-proxy"]
TOOLS = {
    f"usr/sbin/{family}{flavor}{verb}": target
    for family in ("iptables", "ip6tables")
    for flavor, target in (("", NFT), ("-nft", NFT), ("-legacy", LEGACY))
    for verb in ("", "-restore", "-save")
}


class Tree:
    """Files of one layer, by path without a leading slash: bytes, or the target of a symbolic link."""

    def __init__(self):
        self.files = {}
        self.xattrs = {}

    def add(self, path, content, mode=0o644, xattrs=None):
        self.files[path] = (mode, content)
        self.xattrs[path] = xattrs or {}

    def link(self, path, target):
        self.files[path] = (0o777, str(target))

    def tar(self):
        """The layer: sorted, owned by root, dated alike."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            folders = set()
            for path in sorted(self.files):
                for folder in reversed(Path(path).parents):
                    if str(folder) != "." and folder not in folders:
                        folders.add(folder)
                        archive.addfile(entry(str(folder), 0o755, tarfile.DIRTYPE))
                self.add_to(archive, path)
        return buffer.getvalue()

    def add_to(self, archive, path):
        mode, content = self.files[path]
        if content is None:
            archive.addfile(entry(path, mode, tarfile.DIRTYPE))
        elif isinstance(content, str):
            link = entry(path, mode, tarfile.SYMTYPE)
            link.linkname = content
            archive.addfile(link)
        else:
            file = entry(path, mode, tarfile.REGTYPE)
            file.size = len(content)
            file.pax_headers = {f"SCHILY.xattr.{name}": value.decode() for name, value in self.xattrs[path].items()}
            archive.addfile(file, io.BytesIO(content))


def entry(path, mode, kind):
    info = tarfile.TarInfo(path)
    info.mode, info.type, info.mtime = mode, kind, EPOCH
    return info


def run(*command, **options):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, **options).stdout


def unpack_packages(arch):
    """Downloads the packages and unpacks them into one folder; says which versions they are."""
    folder = CACHE / arch
    debs, fresh, root = folder / "debs", folder / "debs.new", folder / "root"
    for path in (fresh, root):
        shutil.rmtree(path, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        download(arch, fresh)
        shutil.rmtree(debs, ignore_errors=True)
        fresh.rename(debs)
    except subprocess.CalledProcessError as error:
        if not debs.exists():
            raise SystemExit(f"image: apt-get cannot download the packages for {arch}:\n{error.stderr}") from error
        print("image: apt-get cannot download; taking the packages of last time", file=sys.stderr)
    versions = {}
    for deb in sorted(debs.glob("*.deb")):
        run("dpkg", "-x", deb, root)
        name, version = run("dpkg-deb", "--show", "--showformat=${Package} ${Version}", deb).split(" ")
        versions[name] = version
    return root, versions


def download(arch, folder):
    # As root apt would drop to a user of its own, which may not write here, and says so at length.
    apt = ["apt-get", "-o", "APT::Sandbox::User=root"]
    if run("dpkg", "--print-architecture").strip() != arch:
        # Lists of its own, so that this machine need not be told of a second architecture.
        state = CACHE / arch / "apt"
        for inner in ("lists/partial", "cache/archives/partial"):
            (state / inner).mkdir(parents=True, exist_ok=True)
        (state / "status").touch()
        own = {
            "APT::Architecture": arch,
            "APT::Architectures": arch,
            "Dir::State::lists": state / "lists",
            "Dir::State::status": state / "status",
            "Dir::Cache": state / "cache",
        }
        apt += [part for key, value in own.items() for part in ("-o", f"{key}={value}")]
    try:
        run(*apt, "download", *PACKAGES, cwd=folder)
    except subprocess.CalledProcessError:
        run(*apt, "update")
        run(*apt, "download", *PACKAGES, cwd=folder)


def needed(path):
    """The libraries an ELF file names."""
    for line in run("readelf", "--wide", "--dynamic", path).splitlines():
        if "(NEEDED)" in line:
            yield line.split("[")[1].rstrip("]")


def loader(path):
    """The path that an ELF program names for its loader."""
    text = run("readelf", "--wide", "--program-headers", path)
    return text.split("interpreter: /")[1].split("]")[0]


def libraries(root, files):
    """Everything these files need to run, found in the unpacked packages."""
    known = {path.name: path for pattern in ("lib*/*", "lib/*/*", "usr/lib/*/*") for path in root.glob(pattern)}
    found, todo = set(), list(files)
    while todo:
        for name in needed(todo.pop()):
            if name not in known:
                raise SystemExit(f"image: library {name} is in none of {', '.join(PACKAGES)}")
            if known[name] not in found:
                found.add(known[name])
                todo.append(known[name].resolve())
    return found


def tools_layer(root, versions, binary):
    """Everything but the program, which changes more often."""
    tree = Tree()
    tools = [root / NFT, root / LEGACY, root / NFT_TOOL]
    programs = [*tools, *root.glob(EXTENSIONS)]
    for path in [*programs, *libraries(root, [*programs, binary])]:
        name = str(path.relative_to(root))
        tree.add(name, path.resolve().read_bytes(), 0o755 if path in tools or "ld-linux" in name else 0o644)
    asked = loader(root / NFT)
    found = next(name for name in tree.files if Path(name).name == Path(asked).name)
    if asked != found:
        tree.link(asked, f"/{found}")
    for name, target in TOOLS.items():
        tree.link(name, Path(target).name)
    for folder in MOUNT_POINTS:
        tree.add(folder, None, 0o1777 if folder == "tmp" else 0o755)
    # glibc asks DNS before /etc/hosts unless told otherwise.
    tree.add("etc/nsswitch.conf", b"hosts: files dns\n")
    for name in versions:
        notice = root / "usr/share/doc" / name / "copyright"
        if notice.exists():
            tree.add(f"usr/share/doc/{name}/copyright", notice.read_bytes())
    return tree


def program_layer(binary, notices):
    tree = Tree()
    tree.add(PROGRAM, Path(binary).read_bytes(), 0o755, {"security.capability": CAPABILITIES})
    tree.link(ALIAS, Path(PROGRAM).name)
    tree.add("usr/share/doc/kube-proxy-rs/LICENSE", (REPOSITORY / "LICENSE").read_bytes())
    if notices:
        tree.add("usr/share/doc/kube-proxy-rs/NOTICES", notices.read_bytes())
    return tree


class Layout:
    """An OCI image layout in the making."""

    def __init__(self, labels=()):
        self.blobs = {}
        self.labels = {"org.opencontainers.image.title": "kube-proxy-rs", **dict(labels)}

    def blob(self, media_type, content):
        if not isinstance(content, bytes):
            content = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        digest = hashlib.sha256(content).hexdigest()
        self.blobs[digest] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    def image(self, arch, layers, versions):
        """One platform's manifest."""
        tars = [tree.tar() for tree in layers]
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(EPOCH))
        config = {
            "architecture": arch,
            "os": "linux",
            "created": created,
            "config": {
                "Entrypoint": [f"/{PROGRAM}"],
                "Env": ["PATH=/usr/local/bin:/usr/sbin"],
                "Labels": {**self.labels, **package_labels(versions)},
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars]},
            "history": [{"created": created, "created_by": step} for step in ("iptables, nft and libraries", "kube-proxy-rs")],
        }
        kind = "application/vnd.oci.image"
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": self.blob(f"{kind}.config.v1+json", config),
            "layers": [self.blob(f"{kind}.layer.v1.tar+gzip", gzip.compress(tar, mtime=0)) for tar in tars],
        }
        descriptor = self.blob(manifest["mediaType"], manifest)
        return {**descriptor, "platform": {"architecture": arch, "os": "linux"}}

    def index(self, manifests):
        """What stands for the images of all platforms."""
        media_type = "application/vnd.oci.image.index.v1+json"
        return self.blob(media_type, {"schemaVersion": 2, "mediaType": media_type, "manifests": manifests})

    def write(self, output, entry_point, name):
        """The archive, whose one entry is called by this name."""
        entry_point["annotations"] = {
            "io.containerd.image.name": name,
            "org.opencontainers.image.ref.name": name.rpartition(":")[2],
        }
        tree = Tree()
        for digest, content in self.blobs.items():
            tree.add(f"blobs/sha256/{digest}", content)
        index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry_point]}
        tree.add("index.json", json.dumps(index, sort_keys=True).encode())
        tree.add("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(tree.tar())
        return entry_point["digest"]


def package_labels(versions):
    return {"io.kube-proxy-rs.packages": " ".join(f"{name}={version}" for name, version in sorted(versions.items()))}


def report(arch, layers, manifest, versions):
    """What is in it, and how big that is."""
    files = {path: item for tree in layers for path, item in tree.files.items()}
    size = lambda content: len(content) if isinstance(content, bytes) else 0
    total = sum(size(content) for _, content in files.values())
    print(f"linux/{arch}: {total / 1e6:.1f} MB in {len(files)} files, {manifest / 1e6:.1f} MB compressed")
    extensions = [item for path, item in files.items() if "/xtables/" in path]
    for path, (_, content) in sorted(files.items()):
        if "/xtables/" not in path and not isinstance(content, (str, type(None))):
            print(f"  {size(content):>10}  /{path}")
    print(f"  {sum(size(content) for _, content in extensions):>10}  /usr/lib/*/xtables: {len(extensions)} extensions")
    links = sorted(Path(path).name for path, (_, content) in files.items() if isinstance(content, str))
    print(f"  links: {' '.join(links)}")
    print(f"  packages: {' '.join(f'{name} {version}' for name, version in sorted(versions.items()))}")


def write_rootfs(folder, layers):
    shutil.rmtree(folder, ignore_errors=True)
    for tree in layers:
        with tarfile.open(fileobj=io.BytesIO(tree.tar())) as archive:
            archive.extractall(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", action="append", required=True, metavar="ARCH=PATH", help="amd64=…, arm64=…")
    parser.add_argument("--output", type=Path, required=True, help="the tar file to write")
    parser.add_argument("--name", default="kube-proxy-rs:0.1.0", help="what the image is called")
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="org.opencontainers.image.…")
    parser.add_argument("--notices", type=Path, help="the licences of the program's crates, to be part of the image")
    parser.add_argument("--packages", type=Path, help="write here which packages, in which versions, as JSON")
    parser.add_argument("--rootfs", type=Path, help="also write the file tree of the last architecture here")
    parser.add_argument("--quiet", action="store_true", help="do not list the content")
    options = parser.parse_args()
    layout, manifests, packages = Layout(label.split("=", 1) for label in options.label), [], {}
    for arch, _, binary in (pair.partition("=") for pair in options.binary):
        root, versions = unpack_packages(arch)
        packages[arch] = versions
        layers = [tools_layer(root, versions, Path(binary)), program_layer(binary, options.notices)]
        before = sum(map(len, layout.blobs.values()))
        manifests.append(layout.image(arch, layers, versions))
        if not options.quiet:
            report(arch, layers, sum(map(len, layout.blobs.values())) - before, versions)
        if options.rootfs:
            write_rootfs(options.rootfs, layers)
    if options.packages:
        options.packages.write_text(json.dumps(packages, sort_keys=True))
    digest = layout.write(options.output, layout.index(manifests), options.name)
    print(f"{options.name} {digest}")
    print(f"{options.output}, {options.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
