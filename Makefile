# make help lists the targets. Everything needs Go; tests, demo and benchmarks also need root and a Debian machine (see docs).

SHELL := /bin/bash
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
UNITDIR ?= /etc/systemd/system
DESTDIR ?=

# The daemon, and the keeper of layers that are loaded on demand. Each has a unit of its name in deploy/.
PROGRAMS := erofs-snapshotter erofs-snapshotter-keeper

# Where third-party tools, layers and images for tests are kept. They are found before the machine's own.
export EROFS_LAB_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/erofs-snapshotter
export PATH := $(EROFS_LAB_CACHE)/bin:$(PATH)

# A CI run promises all that tests may need, so a test that would be skipped fails.
ifeq ($(CI),true)
export EROFS_TEST_REQUIRE ?= all
endif

PACKAGES ?= ./...
TIMEOUT ?= 40m
FUZZTIME ?= 20s

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## bin/erofs-snapshotter and bin/erofs-snapshotter-keeper
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ $(addprefix ./cmd/,$(PROGRAMS))

.PHONY: install
install: ## what `make build` made, its systemd units and an example configuration (PREFIX, SYSCONFDIR, UNITDIR, DESTDIR)
	@for program in $(PROGRAMS); do \
		test -x bin/$$program || { echo "bin/$$program is not there: run make build first, as an ordinary user"; exit 1; }; \
	done
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(UNITDIR)
	install -m 0755 $(addprefix bin/,$(PROGRAMS)) $(DESTDIR)$(PREFIX)/bin
	for program in $(PROGRAMS); do \
		sed 's|/usr/local/bin/|$(PREFIX)/bin/|' deploy/$$program.service >$(DESTDIR)$(UNITDIR)/$$program.service || exit 1; \
	done
	test -e $(DESTDIR)$(SYSCONFDIR)/erofs-snapshotter/config.toml || \
		install -D -m 0644 deploy/config.toml $(DESTDIR)$(SYSCONFDIR)/erofs-snapshotter/config.toml

.PHONY: check
check: ## gofmt, go vet, staticcheck and the import walls
	@unformatted=$$(gofmt -l .); \
		[ -z "$$unformatted" ] || { echo "not formatted, run gofmt -w:" $$unformatted; exit 1; }
	go vet ./...
	integration/lab/tools.sh staticcheck
	staticcheck ./...
	go test -count=1 -run 'TestWalls' ./integration

.PHONY: test
test: lab ## all tests, with the tools and images they need (root)
	go test -p 2 -count=1 -timeout $(TIMEOUT) $(PACKAGES)

.PHONY: test-unit
test-unit: ## the tests that need nothing but Go
	go test $$(go list ./... | grep -v '/integration')

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME (20s)
	@git grep -lz --untracked -E '^func Fuzz' -- '*_test.go' | xargs -0 -r grep -HoE '^func Fuzz[A-Za-z0-9_]*' | sed 's/:func / /' | sort | \
		while read -r file target; do \
			echo "== $$target in $$(dirname "$$file") for $(FUZZTIME)"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x "./$$(dirname "$$file")" || exit 1; \
		done

.PHONY: torture
torture: export EROFS_TEST_LONG = 1
torture: lab ## the long forms of the integration tests (about an hour)
	go test -count=1 -v -timeout 3h ./integration/... ./ondemand/blob

.PHONY: kernels vm test-vm test-vm-short
kernels: packages ## kernels for make vm and test-vm, from Debian's source packages (about 6 minutes each on idle cores; KERNELS="6.1 6.12")
	@integration/vm/kernel.sh $(KERNELS)
vm: kernels images ## the converter's images and the backends on other kernels, in emulated machines (VMFLAGS="-kernels 6.1 -record docs/kernels.md")
	go run ./integration/vm $(VMFLAGS)
test-vm: kernels lab ## stories with containerd on all kernels, in all modes; results in docs/kernels.md (hours; VMFLAGS="-kernels 6.12 -modes fscache")
	go run ./integration/vm -stories . -record docs/kernels.md $(VMFLAGS)
test-vm-short: kernels lab ## one story with containerd for each mode (about 15 minutes)
	go run ./integration/vm -stories short $(VMFLAGS)

.PHONY: demo
demo: build packages ## from nothing to a container that runs from EROFS: shows mounts and sizes, cleans up (root)
	go run ./integration/demo

.PHONY: bench bench-lazy bench-convert
bench: build lab ## compare pulls with overlayfs and containerd's erofs snapshotter; results in bench-results/ (root)
	go run ./integration/bench $(BENCHFLAGS)
bench-lazy: build lab ## measure layers that are loaded on demand; results in bench-results/ (root)
	go run ./integration/benchlazy $(BENCHFLAGS)
bench-convert: ## compare conversions with decompressors, unpackers and makers of EROFS; results in bench-results/ (root)
	@integration/lab/tools.sh packages erofs-utils
	@integration/lab/images.sh scipy node-modules
	go run ./integration/benchconvert $(BENCHFLAGS)

.PHONY: packages tools images lab
packages: ## Debian packages for tests, demo and benchmarks
	@integration/lab/tools.sh packages
tools: packages ## third-party tools for tests, demo and benchmarks
	@integration/lab/tools.sh
images: packages ## images for tests and benchmarks
	@integration/lab/images.sh
# Tools and images are made side by side. Without them tests are skipped, loudly; in CI that is an error.
lab:
	@$(MAKE) --no-print-directory --keep-going -j2 tools images || { \
		echo "$@: tests that need what is missing are skipped" >&2; [ "$(CI)" != true ]; }

.PHONY: clean
clean: ## what make built here; the cache of tools and images stays
	rm -rf bin bench-results
	find . -name '*.test' -type f -not -path './.git/*' -delete
