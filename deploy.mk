# How it is installed: image, plain manifests, Helm chart. Included by the Makefile.

.PHONY: chart chart-readme image image-test

CHART_BINARY := target/debug/kube-proxy-rs

chart: ## lint, render and validate charts/ and deploy/: Helm, kustomize, Kubernetes' schemas, promtool
	$(CARGO) build --quiet --locked --bin kube-proxy-rs
	e2e/chart/run $(CHART_BINARY)

chart-readme: ## rewrite the chart's README from values.yaml
	e2e/chart/run --readme
