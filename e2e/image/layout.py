"""Reads an OCI image layout from a tar file, strictly."""

import gzip
import hashlib
import io
import json
import os
import tarfile

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Layout:
    def __init__(self, path):
        with tarfile.open(path) as archive:
            self.files = {item.name: archive.extractfile(item).read() for item in archive if item.isfile()}
        assert json.loads(self.files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}

    def blob(self, descriptor):
        algorithm, _, digest = descriptor["digest"].partition(":")
        content = self.files[f"blobs/{algorithm}/{digest}"]
        assert hashlib.sha256(content).hexdigest() == digest, f"{digest} is not what it says"
        assert len(content) == descriptor["size"]
        return content

    def platforms(self):
        """Configuration and layers (tar bytes) of each platform, by architecture."""
        index = json.loads(self.files["index.json"])
        [entry] = index["manifests"]
        assert (index["mediaType"], entry["mediaType"]) == (INDEX, INDEX)
        for descriptor in json.loads(self.blob(entry))["manifests"]:
            assert descriptor["mediaType"] == MANIFEST
            manifest = json.loads(self.blob(descriptor))
            config = json.loads(self.blob(manifest["config"]))
            layers = [gzip.decompress(self.blob(layer)) for layer in manifest["layers"]]
            digests = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
            assert config["rootfs"]["diff_ids"] == digests
            assert config["architecture"] == descriptor["platform"]["architecture"]
            yield config["architecture"], config, layers


def xattrs(member):
    prefix = "SCHILY.xattr."
    headers = member.pax_headers.items()
    return {name.removeprefix(prefix): value.encode() for name, value in headers if name.startswith(prefix)}


def unpack(layers, folder):
    for layer in layers:
        with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
            archive.extractall(folder)
            for member in archive.getmembers():
                for name, value in xattrs(member).items():
                    os.setxattr(f"{folder}/{member.name}", name, value)


def members(layers):
    for layer in layers:
        with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
            yield from archive.getmembers()
