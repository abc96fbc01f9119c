"""Writes the chart's README from values.yaml, or checks that it is up to date: readme.py [--check]"""

import json
import re
import sys
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parents[2] / "charts" / "kube-proxy-rs"

HEAD = """<!-- Made from values.yaml by `make chart-readme`; edit that. -->
# kube-proxy-rs

{description}. Version {version}, for Kubernetes {kube}.

In place of kubeadm's kube-proxy, with its configuration as it is:

```console
$ helm install kube-proxy-rs charts/kube-proxy-rs --namespace kube-system --set existingConfigMap=kube-proxy
```

On a cluster that never had kube-proxy:

```console
$ helm install kube-proxy-rs charts/kube-proxy-rs --namespace kube-system \\
    --set apiServer=https://CONTROL-PLANE-ENDPOINT:6443 --set config.clusterCIDR=10.244.0.0/16
```

[docs/operations.md](../../docs/operations.md) tells how to move a cluster over without losing a connection, and back;
[docs/security.md](../../docs/security.md) what each privilege is for.

## Values

| Value | Default | Meaning |
|---|---|---|
"""


def documented(text):
    """The values with the comment above each, as (path, comment); a key without a comment has None."""
    path, comment = [], []
    for line in text.splitlines():
        key = re.match(r"( *)([A-Za-z]+):", line)
        if line.strip().startswith("#"):
            comment.append(line.strip().lstrip("# "))
        elif key:
            path = [*path[: len(key[1]) // 2], key[2]]
            yield tuple(path), " ".join(comment) or None
            comment = []
        elif not line.strip():
            comment = []


def rows(text):
    values = yaml.safe_load(text)
    covered = None
    for path, comment in documented(text):
        if covered and path[: len(covered)] == covered:
            continue
        value = values
        for key in path:
            value = value[key]
        has_documented_children = isinstance(value, dict) and any(
            len(inner) > len(path) and inner[: len(path)] == path and told for inner, told in documented(text)
        )
        if has_documented_children:
            if comment:
                yield f"| `{'.'.join(path)}` | | {comment} |"
            continue
        if comment is None:
            raise SystemExit(f"values.yaml: {'.'.join(path)} has no comment")
        covered = path
        yield f"| `{'.'.join(path)}` | `{json.dumps(value)}` | {comment} |"


def readme():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    head = HEAD.format(
        description=chart["description"], version=chart["version"], kube=chart["kubeVersion"].removesuffix("-0")
    )
    return head + "\n".join(rows((CHART / "values.yaml").read_text())) + "\n"


def main():
    target = CHART / "README.md"
    if sys.argv[1:] == ["--check"]:
        if not target.exists() or target.read_text() != readme():
            raise SystemExit("charts/kube-proxy-rs/README.md is not what values.yaml says: make chart-readme")
    else:
        target.write_text(readme())


if __name__ == "__main__":
    main()
