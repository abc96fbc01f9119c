# What a release consists of, and how it is published. Included by the Makefile.

.PHONY: release version manual release-check release-test dist-test package-test release-publish release-draft

DIST ?= dist
# Where images and charts are pushed: a registry and an organisation, without "https://".
REGISTRY ?=
# What release-publish pushed, as KEY=VALUE lines.
PUBLISHED ?= /dev/stdout

version: ## write VERSION=1.2.3 into every file that names it, and begin its section of the changelog
	python3 -B packaging/version.py $(VERSION)

manual: ## the manual page and the completions of bash, zsh and fish, into target/manual
	$(CARGO) run --quiet --locked --example manual -- target/manual

release: ARCHES := amd64 arm64
release: deps manual ## all that a release consists of, into dist/ [VERSION=1.2.3 REGISTRY=registry.example/org ARCHES="amd64 arm64"]
	@programs=(); for arch in $(ARCHES); do program=$$(packaging/build $$arch); programs+=("$$arch=$$program"); done; \
	  "$$(e2e/chart/run --python)" -B packaging/release.py --output $(DIST) --manual target/manual \
	  $(addprefix --version ,$(VERSION)) $(addprefix --registry ,$(REGISTRY)) "$${programs[@]}"

# Its cheap half; the steps round a program are what depends on time, place and order by mistake.
release-check: deps manual ## a release round the debug binary, made twice in two places: the same bytes, and all that belongs in it
	@scripts/deps.sh package
	$(CARGO) build --quiet --locked --bin kube-proxy-rs
	e2e/release/run round target/debug/kube-proxy-rs

# Four release builds and a node that boots: an hour on two cores, so the release workflow runs it and `make test` does not.
release-test: deps ## build the release in two fresh clones, compare the bytes, leave them in dist/ and try them; needs root
	@scripts/deps.sh package node
	e2e/release/run twice VERSION=$(VERSION) REGISTRY=$(REGISTRY)

dist-test: deps ## try what is in dist/ on this architecture: contents, the image on a node, the package on another; needs root
	@scripts/deps.sh package node
	e2e/release/run dist $(DIST)

package-test: manual ## a Debian package round the debug binary: its content, its rules, and its life on a node with systemd; needs root
	@scripts/deps.sh package node
	$(CARGO) build --quiet --locked --bin kube-proxy-rs
	e2e/package/run target/debug/kube-proxy-rs

release-publish: ## push image and chart from dist/ to REGISTRY and sign them with cosign [REGISTRY_USER, REGISTRY_PASSWORD, SIGN=no]
	@scripts/deps.sh publish
	packaging/publish $(DIST) $(REGISTRY) >>$(PUBLISHED)

release-draft: ## make the draft of release VERSION on the forge, with everything in dist/; needs gh and its token
	gh release create "v$(VERSION)" --draft --verify-tag --title "$(VERSION)" --notes-file $(DIST)/RELEASE-NOTES.md $(DIST)/*
