# Weightsmith: `make demo` and `make test` do all the set-up there is; a second run repeats none of it.
# Needs Rust (cargo), Python 3 and a network to the package registries; see scripts/setup.py for what is fetched.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
CARGO ?= cargo
DEMO_ARGS ?=
SERVE_ARGS ?=
TEST_ARGS ?= --workspace

TARGET := $(or $(CARGO_TARGET_DIR),target)
RELEASE_BIN := $(TARGET)/release/weightsmith
DEV_BIN := $(TARGET)/debug/weightsmith
ENV := . .weightsmith/env.sh;

# A fresh rustup is not yet on the PATH of the shell that installed it.
export PATH := $(PATH):$(HOME)/.cargo/bin
# Queries are checked against committed metadata, never against whatever DATABASE_URL points to.
export SQLX_OFFLINE ?= true

.PHONY: help setup text-encoder toolchain build cuda cuda-runtime demo serve test test-peft fmt lint openapi openapi-check dev-bin clean

help: ## This list
	@echo "Targets (variables: DEMO_ARGS, SERVE_ARGS, TEST_ARGS, PYTHON, WEIGHTSMITH_DEPS):"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{ printf "%-16s %s\n", $$1, $$2 }'

setup: ## Fetch and unpack ONNX Runtime and PostgreSQL with pgvector, as pinned in runtime/pins.json
	@$(PYTHON) scripts/setup.py runtime

text-encoder: ## Fetch and unpack a small text encoder (MiniLM, 84 MB)
	@$(PYTHON) scripts/setup.py text

toolchain:
	@$(PYTHON) scripts/setup.py toolchain

build: setup ## Build target/release/weightsmith
	@$(CARGO) build --release --locked -p cli

cuda: toolchain ## Build target/cuda/release/weightsmith for CUDA (with nvcc of this machine, or from PyPI)
	@$(PYTHON) scripts/cuda.py build

cuda-runtime: ## Fetch ONNX Runtime for CUDA with CUDA's libraries, for machines with a GPU (1.9 GB)
	@$(PYTHON) scripts/cuda.py runtime

demo: build text-encoder ## Train generators on digits and on sentences, serve them, generate weights over HTTP, print the tables
	@$(ENV) exec $(RELEASE_BIN) demo $(DEMO_ARGS)

serve: build ## Serve the API on loopback
	@$(ENV) exec $(RELEASE_BIN) serve $(SERVE_ARGS)

test: ## Run every test, against a private Postgres unless DATABASE_URL is set
	@$(PYTHON) scripts/setup.py tests
	@$(ENV) exec $(PYTHON) scripts/with-postgres $(PYTHON) scripts/run_tests.py $(TEST_ARGS)

test-peft: setup text-encoder ## Compare an adapter with Python's peft (fetches torch: gigabytes)
	@[ -x .weightsmith/peft/bin/python ] || $(PYTHON) -m venv .weightsmith/peft
	@.weightsmith/peft/bin/python -c 'import peft, torch, transformers' 2>/dev/null \
		|| .weightsmith/peft/bin/python -m pip install --quiet torch transformers peft
	@$(ENV) WEIGHTSMITH_PEFT_PYTHON=$(CURDIR)/.weightsmith/peft/bin/python \
		$(CARGO) test --locked -p language --test peft -- --ignored

fmt: ## Format the code
	@$(CARGO) fmt --all

lint: toolchain ## Check format and lints; warnings are errors
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@$(CARGO) clippy --workspace --all-targets --features cli/otel --locked -- -D warnings

# Built as `make test` builds, so that neither compiles again what the other has.
dev-bin: toolchain
	@$(CARGO) build --workspace --bins --tests --locked

openapi: dev-bin ## Write openapi/openapi.json from the code
	@mkdir -p openapi
	@$(DEV_BIN) openapi > openapi/openapi.json.part
	@mv openapi/openapi.json.part openapi/openapi.json

openapi-check: dev-bin ## Fail when openapi/openapi.json is not what the code says
	@$(DEV_BIN) openapi | diff -u openapi/openapi.json - \
		|| { echo "openapi/openapi.json differs from the code (above): run \`make openapi\` and commit it." >&2; exit 1; }

clean: ## Remove what was built and fetched (data stays)
	@$(CARGO) clean
	@rm -rf .weightsmith/deps .weightsmith/env.sh
