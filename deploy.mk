# How it is installed: image, plain manifests, Helm chart. Included by the Makefile.

.PHONY: chart chart-readme image image-test

CHART_BINARY := target/debug/kube-proxy-rs

chart: ## lint, render and validate charts/ and deploy/: Helm, kustomize, Kubernetes' schemas, promtool
	$(CARGO) build --quiet --locked --bin kube-proxy-rs
	e2e/chart/run $(CHART_BINARY)

chart-readme: ## rewrite the chart's README from values.yaml
	e2e/chart/run --readme

# One binary for every file system: glibc linked in. A --target, so that build scripts and macros are not.
STATIC_TARGET ?= $(shell rustc -vV | sed -n 's/^host: //p')
STATIC_BINARY := target/$(STATIC_TARGET)/release/kube-proxy-rs
ARCH := $(shell dpkg --print-architecture 2>/dev/null)
IMAGE ?= target/image/kube-proxy-rs.oci.tar

image: deps $(IMAGE) ## the container image as an OCI archive, without docker; prints its content and size

# Further architectures: make image BINARIES="amd64=PATH arm64=PATH" with binaries built elsewhere.
BINARIES ?= $(ARCH)=$(STATIC_BINARY)

.PHONY: $(IMAGE)
$(IMAGE):
ifeq ($(BINARIES),$(ARCH)=$(STATIC_BINARY))
	RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --locked --release --bin kube-proxy-rs \
	  --target $(STATIC_TARGET) --target-dir target
endif
	python3 -B image/build.py $(addprefix --binary ,$(BINARIES)) --output $@ --rootfs target/image/rootfs

image-test: deps ## build an image round the debug binary, unpack it, run it confined as the manifests say
	$(CARGO) build --quiet --locked --bin kube-proxy-rs
	python3 -B image/build.py --quiet --binary $(ARCH)=target/debug/kube-proxy-rs --output target/image/debug.oci.tar
	e2e/image/run target/image/debug.oci.tar
