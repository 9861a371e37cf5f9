PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo cluster-demo images lock test test-trainjob check generate verify bench clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{printf "  make %-14s %s\n", $$1, $$2}'

# One install for everything, done again only when what is installed changes.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fusechat needs Python 3.11 or newer; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY) ## fuse tiny chat models on this machine, from training them to the score table
	$(BIN)/python examples/tiny/make_tiny.py
	$(BIN)/fusechat run examples/tiny.yaml

cluster-demo: $(READY) ## the same by the operator on a real Kubernetes node (root, Debian, ../shared; or KUBECONFIG)
	test -n "$$KUBECONFIG" || sh tests/cluster/install.sh
	$(BIN)/python -m tests.cluster.demo

images: ## build the two container images with docker, podman or buildah (options: images/build.sh)
	sh images/build.sh

lock: $(READY) ## write the versions of what is in the images (images/*.txt)
	$(BIN)/python images/lock.py

test: $(READY) ## all tests that need no cluster
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests/unit tests/golden tests/pipeline

test-trainjob: $(READY) ## trainings through Kubeflow Trainer, JobSet and Kueue, on ../shared/kube or KUBECONFIG
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m trainjob tests/cluster

check: $(READY) ## style, types, layers, and that generated files are up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory verify

generate: $(READY) ## write the CRD (crds/, the chart) and docs/reference.md from core/fusechat/spec.py
	$(BIN)/python -m fusechat.crd crds charts/fusechat/crds docs

verify: $(READY) ## fail when generated files differ from what `make generate` writes
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && mkdir "$$folder/crds" "$$folder/docs" \
	  && $(BIN)/python -m fusechat.crd "$$folder/crds" "$$folder/docs" \
	  && diff -r crds "$$folder/crds" && diff -r charts/fusechat/crds "$$folder/crds" \
	  && diff docs/reference.md "$$folder/docs/reference.md" \
	  && echo "generated files are up to date"

bench: $(READY) ## run every benchmark and write benchmarks/results.md (long; QUICK=1 for a smoke run)
	@for file in $(filter-out benchmarks/harness.py,$(wildcard benchmarks/*.py)); do \
	  echo "== $$file"; $(BIN)/python $$file $(if $(QUICK),--quick,--write) || exit 1; done

clean: ## remove the environment, caches and the local store
	rm -rf $(VENV) .fusechat .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
