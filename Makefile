# The only entry point: people and CI call nothing else. `make` alone lists what there is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CARGO ?= cargo
# Tools that cargo installs for us live inside the repository, out of git's sight.
TOOLS := .cache/tools
DENY := $(TOOLS)/bin/cargo-deny
DENY_VERSION := 0.20.2

.PHONY: help deps demo test fmt fmt-check lint deny advisories workflows unit odd-unit fuzz golden api netns page-test test-ipvs e2e bench bench-scale bench-curve docs clean

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

DEBUG := $${CARGO_TARGET_DIR:-target}/debug

# Two builds: the program as `cargo run` has it, which then finds it built.
demo: ## see it work: a throw-away node, real requests, a change, cleaned up after [MODE=ipvs|nftables]
	@scripts/deps.sh demo $(if $(filter nftables,$(MODE)),nft)
	@echo "Building kube-proxy-rs, then the demo: a few minutes the first time, seconds from then on."
	@$(CARGO) build --locked --bin kube-proxy-rs
	@$(CARGO) build --locked --package demo
	@$(if $(filter ipvs,$(MODE)),scripts/with-ipvs.sh) $(DEBUG)/demo $(DEBUG)/kube-proxy-rs $(MODE)

test: deps fmt-check lint odd-unit fuzz netns page-test chart image-test release-check test-ipvs ## everything CI runs: format, lints, unit to network-namespace tests

deps: ## install the tools that tests need (apt, as root), if any is missing
	@scripts/deps.sh test

fmt: ## format the code
	$(CARGO) fmt --all

fmt-check:
	$(CARGO) fmt --all --check

lint: deny workflows ## clippy with warnings as errors, dependency rules, layers, workflows
	$(CARGO) clippy --locked --workspace --all-targets --features testing -- -D warnings
	$(CARGO) test --locked --lib layers

deny: $(DENY)
	$(DENY) --locked check licenses bans sources

# Needs the network, for RustSec's database, and turns red without any change of ours; so not part of `make lint`.
advisories: $(DENY) ## does a crate that we use have a known hole?
	$(DENY) --locked check advisories

workflows:
	"$$(dirname "$$(e2e/chart/run --python)")"/actionlint .github/workflows/*.yml

# Not optimised and without debug information: it runs for two seconds, and building it is what takes time.
$(DENY):
	CARGO_PROFILE_DEV_DEBUG=0 $(CARGO) install cargo-deny --version $(DENY_VERSION) --locked --debug --root $(TOOLS) --target-dir .cache/build

# Without root, the kernel handles' tests against the live kernel are left out, and it says so.
unit: ## unit, property, loop, golden, packet-table and API-stub tests
	@[ "$$(id -u)" = 0 ] || echo "make unit: not root, so the tests of kernel/ and backend/nftables are LEFT OUT"
	$(CARGO) test --locked --workspace --lib --bins --test cli --test apiserver --test limits --test recorded --test allocations \
		$$([ "$$(id -u)" = 0 ] || echo -- --skip kernel:: --skip nftables::)

# Not on this machine as it is, so that no test comes to lean on it.
odd-unit: deps ## the same on a machine with odd addresses, routes and rules, beside a running copy; needs root
	scripts/odd-machine.sh $(MAKE) unit

SECONDS ?= 10
fuzz: deps ## every parser of what others write, driven by coverage: SECONDS=10 each, two at a time [TARGET=api]
	@scripts/fuzz.sh $(SECONDS) $(TARGET)

golden: ## rewrite the golden files from what is rendered now; review the diff
	UPDATE_GOLDEN=1 $(CARGO) test --locked --test cli golden

api: ## the watch tests; with KUBEBUILDER_ASSETS set, also against a real API server
	$(CARGO) test --locked --test apiserver

# Tests wait for periods to pass: two for each processor keep it busy.
netns: deps ## real packets and the reference's fixtures, in network namespaces; needs root
	@[ "$$(id -u)" = 0 ] || { echo "make netns: needs root, for network namespaces and iptables" >&2; exit 1; }
	$(CARGO) test --locked --test fixtures --test netns -- --test-threads $$(($$(nproc) * 2))
	$(CARGO) test --locked -p nftables-rs --test live -- --ignored

# SHOTS=FOLDER keeps what the browser showed.
page-test: ## the status page in headless Chromium: two widths, light and dark, healthy and degraded; needs root
	@scripts/deps.sh page
	$(CARGO) build --quiet --locked --bin kube-proxy-rs
	e2e/page/run target/debug/kube-proxy-rs $(SHOTS)

test-ipvs: deps ## IPVS mode on a real kernel: here, or in a virtual machine where this kernel has no ip_vs
	@[ "$$(id -u)" = 0 ] || { echo "make test-ipvs: needs root" >&2; exit 1; }
	scripts/test-ipvs.sh

e2e: netns test-ipvs ## every tier that needs more than a compiler

# Instruction counts come from valgrind; they are the part that says the same on every machine.
bench: ## the program's own steps: times (criterion) and instruction counts; a few minutes
	@scripts/deps.sh bench
	$(CARGO) bench --locked --bench time --bench instructions

# Settings of a run; empty ones keep the program's own defaults (benches/scale/settings.rs).
SCALE = N E FLAVOR MODE PEER APISERVER LONE STORM RATE IDLE CONNECTIONS FLOWS FLAGS

bench-scale: deps ## the real program and kernel at size: N=10000 E=5 FLAVOR=nft|legacy or MODE=ipvs|nftables [PEER=/path/to/kube-proxy] [APISERVER=/path/to/kubeconfig]; needs root
	@$(CARGO) build --quiet --locked --release --bin kube-proxy-rs
	@$(CARGO) build --quiet --locked --release --features testing --example scale
	@$(if $(filter ipvs,$(MODE)),VM_SILENCE=$${VM_SILENCE:-1800} scripts/with-ipvs.sh) $${CARGO_TARGET_DIR:-target}/release/examples/scale $${CARGO_TARGET_DIR:-target}/release/kube-proxy-rs $(foreach key,$(SCALE),"$(key)=$($(key))")

bench-curve: deps ## bench-scale from 100 to 30,000 Services in both flavours, and the plots; about ten minutes
	@$(CARGO) build --quiet --locked --release --bin kube-proxy-rs
	@$(CARGO) build --quiet --locked --release --features testing --example scale
	@scripts/bench-curve.sh $(or $(OUT),target/curve)

docs: ## API documentation, warnings as errors
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --document-private-items

clean: ## delete what was built
	$(CARGO) clean
	rm -rf .cache

include deploy.mk
include release.mk
