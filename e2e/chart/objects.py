"""What the tests look at: the chart's objects, and those of deploy/."""

import os
import subprocess
from pathlib import Path

import helm_python
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "charts" / "kube-proxy-rs"
DEPLOY = REPOSITORY / "deploy"
CASES = {path.stem: yaml.safe_load(path.read_text()) for path in (Path(__file__).parent / "cases").glob("*.yaml")}


def render(values):
    """The chart's text files, by name, as `helm template kube-proxy-rs -n kube-system` has them."""
    with helm_python.Chart.load(str(CHART)) as chart:
        return chart.render(values, name="kube-proxy-rs", namespace="kube-system")


def chart(values):
    """The objects that an installation makes, by kind and name."""
    return {key: item for key, item in rendered(values).items() if not is_hook(item)}


def hooks(values):
    """Those that `helm test` makes."""
    return {key: item for key, item in rendered(values).items() if is_hook(item)}


def is_hook(item):
    return "helm.sh/hook" in item["metadata"].get("annotations", {})


def rendered(values):
    documents = []
    for name, text in render(values).items():
        if name.endswith(".yaml"):
            documents += yaml.safe_load_all(text)
    return by_kind_and_name(documents)


def deploy(folder=""):
    """The objects of deploy/ or of an overlay in it, as kustomize builds them."""
    built = subprocess.run([os.environ["KUBECTL"], "kustomize", str(DEPLOY / folder)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return by_kind_and_name(yaml.safe_load_all(built.stdout))


def by_kind_and_name(documents):
    objects = {}
    for document in filter(None, documents):
        key = (document["kind"], document["metadata"]["name"])
        assert key not in objects, f"{key} is there twice"
        objects[key] = document
    return objects


def pod_spec(objects):
    [daemon_set] = [item for (kind, _), item in objects.items() if kind == "DaemonSet"]
    return daemon_set["spec"]["template"]["spec"]


def resolved(config, folder):
    """Has the program read a configuration file; gives its log and the configuration it resolved."""
    source, target = Path(folder) / "config.conf", Path(folder) / "resolved.conf"
    source.write_text(config)
    command = [os.environ["KUBE_PROXY_RS"], f"--config={source}", f"--write-config-to={target}", "--v=2"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr, yaml.safe_load(target.read_text())
