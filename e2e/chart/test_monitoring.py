"""Alerts and dashboard ask for metrics that exist, in words Prometheus understands, and docs explain them."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import objects
import yaml

ALERTS = objects.CHART / "files" / "alerts.yaml"
DASHBOARD = objects.CHART / "files" / "dashboard.json"
# What Prometheus itself adds.
OF_PROMETHEUS = {"up"}
METRIC = re.compile(r"\b(?:kubeproxy|rest_client|process|kubernetes|go)_[a-z0-9_]+\b|\bup\b")


def documented_metrics():
    table = (objects.REPOSITORY / "docs" / "metrics.md").read_text()
    return set(re.findall(r"^\| `([a-z0-9_]+)` \|", table, re.M))


def metrics_of(expression):
    names = METRIC.findall(re.sub(r'"[^"]*"', "", expression))
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in names}


def promtool(*arguments, cwd=None):
    return subprocess.run([os.environ["PROMTOOL"], *arguments], capture_output=True, text=True, cwd=cwd)


def panels():
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


class Alerts(unittest.TestCase):
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]

    def test_prometheus_understands_them_and_they_fire_when_they_should(self):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(ALERTS, folder)
            shutil.copy(Path(__file__).parent / "alerts_test.yaml", folder)
            for arguments in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]):
                run = promtool(*arguments, cwd=folder)
                self.assertEqual(run.returncode, 0, run.stdout + run.stderr)

    def test_each_is_tested(self):
        tested = (Path(__file__).parent / "alerts_test.yaml").read_text()
        self.assertEqual([rule["alert"] for rule in self.rules if rule["alert"] not in tested], [])

    def test_they_ask_for_metrics_that_exist(self):
        for rule in self.rules:
            with self.subTest(rule["alert"]):
                self.assertLessEqual(metrics_of(rule["expr"]), documented_metrics() | OF_PROMETHEUS)

    def test_docs_say_what_each_means(self):
        text = (objects.REPOSITORY / "docs" / "operations.md").read_text()
        for rule in self.rules:
            self.assertIn(f"### {rule['alert']}\n", text)

    def test_the_chart_carries_them_unchanged(self):
        made = objects.chart(objects.CASES["iptables"])[("PrometheusRule", "service-proxy")]
        self.assertEqual(made["spec"], yaml.safe_load(ALERTS.read_text()))
        self.assertEqual(made["metadata"]["labels"]["release"], "prometheus")

    def test_prometheus_finds_the_pods_by_way_of_the_service(self):
        made = objects.chart(objects.CASES["iptables"])
        monitor = made[("ServiceMonitor", "service-proxy")]["spec"]
        service = made[("Service", "service-proxy-metrics")]
        pods = made[("DaemonSet", "service-proxy")]["spec"]["template"]["metadata"]["labels"]
        self.assertLessEqual(monitor["selector"]["matchLabels"].items(), service["metadata"]["labels"].items())
        self.assertLessEqual(service["spec"]["selector"].items(), pods.items())
        self.assertEqual([end["port"] for end in monitor["endpoints"]], [service["spec"]["ports"][0]["name"]])
        self.assertEqual(service["spec"]["ports"][0]["port"], 11249)


class Dashboard(unittest.TestCase):
    def test_it_asks_for_metrics_that_exist(self):
        for panel in panels():
            for target in panel["targets"]:
                with self.subTest(panel["title"]):
                    self.assertLessEqual(metrics_of(target["expr"]), documented_metrics() | OF_PROMETHEUS)

    def test_prometheus_understands_every_query(self):
        queries = [target["expr"] for panel in panels() for target in panel["targets"]]
        plain = [query.replace("$__rate_interval", "5m").replace("$instance", ".*") for query in queries]
        rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(plain)]
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "queries.yaml").write_text(yaml.safe_dump({"groups": [{"name": "q", "rules": rules}]}))
            run = promtool("check", "rules", "queries.yaml", cwd=folder)
            self.assertEqual(run.returncode, 0, run.stdout + run.stderr)

    def test_panels_have_a_name_an_explanation_and_a_place_of_their_own(self):
        taken = set()
        for panel in panels():
            self.assertTrue(panel["title"] and panel["description"])
            grid = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(grid["x"], grid["x"] + grid["w"])
                for y in range(grid["y"], grid["y"] + grid["h"])
            }
            self.assertFalse(cells & taken, f"{panel['title']} lies on another panel")
            self.assertLessEqual(grid["x"] + grid["w"], 24)
            taken |= cells

    def test_the_chart_carries_it_unchanged(self):
        made = objects.chart(objects.CASES["iptables"])[("ConfigMap", "service-proxy-dashboard")]
        self.assertEqual(json.loads(made["data"]["kube-proxy-rs.json"]), json.loads(DASHBOARD.read_text()))


if __name__ == "__main__":
    unittest.main()
