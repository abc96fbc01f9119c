# How it is installed: image, plain manifests, Helm chart. Included by the Makefile.

.PHONY: chart chart-readme image image-test

CHART_BINARY := target/debug/kube-proxy-rs

chart: ## lint, render and validate charts/ and deploy/: Helm, kustomize, Kubernetes' schemas, promtool
	$(CARGO) build --quiet --locked --bin kube-proxy-rs
	e2e/chart/run $(CHART_BINARY)

chart-readme: ## rewrite the chart's README from values.yaml
	e2e/chart/run --readme

ARCH := $(shell dpkg --print-architecture 2>/dev/null)
IMAGE ?= target/image/kube-proxy-rs.oci.tar

image: deps $(IMAGE) ## the container image as an OCI archive, without docker; prints its content and size

# For which architectures images and releases are: make image ARCHES="amd64 arm64".
ARCHES ?= $(ARCH)

.PHONY: $(IMAGE)
$(IMAGE):
	@binaries=(); for arch in $(ARCHES); do binaries+=(--binary "$$arch=$$(packaging/build $$arch)"); done; \
	  python3 -B image/build.py "$${binaries[@]}" --output $@ --rootfs target/image/rootfs

image-test: deps ## build an image round the debug binary, unpack it, run it confined as the manifests say
	$(CARGO) build --quiet --locked --bin kube-proxy-rs
	python3 -B image/build.py --quiet --binary $(ARCH)=target/debug/kube-proxy-rs --output target/image/debug.oci.tar
	e2e/image/run target/image/debug.oci.tar
