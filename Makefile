# One command each. `make sif` on a fresh machine sets up what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
IMAGE  ?=

.DEFAULT_GOAL := help
.PHONY: help venv apptainer slurm docker sif verify test test-fast test-nightly check goldens schema rules compat matrix resolvers bench bench-gpu clean

help:            ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

venv: $(BIN)/.ready ## make the project's own Python environment
$(BIN)/.ready: pyproject.toml requirements-dev.lock ci/make-venv.sh
	@bash ci/make-venv.sh $(PYTHON) $(VENV)
	@touch $@

apptainer:       ## install Apptainer if it is missing (needs root)
	@command -v apptainer >/dev/null || bash ci/install-apptainer.sh

docker:          ## install the Docker Engine and a registry for their tests if they are missing (needs root)
	@bash ci/docker/install.sh

slurm:           ## install Slurm for its tests if it is missing (needs root); starts nothing
	@bash ci/slurm/install.sh

sif: venv apptainer ## build the default image, or IMAGE=NAME
	@$(BIN)/python build.py $(IMAGE)

verify: venv apptainer ## build if stale, then verify on this node
	@$(BIN)/python build.py --verify $(IMAGE) $(VERIFY_OPTIONS)

test: venv apptainer slurm docker ## every test, the real default image included
	@$(BIN)/python -m pytest $(PYTEST_OPTIONS)

test-fast: venv  ## tests that need seconds and no Apptainer
	@$(BIN)/python -m pytest -m "not apptainer and not index and not image and not gpu and not slurm and not docker" $(PYTEST_OPTIONS)

test-nightly: venv apptainer ## builds killed at 50 random moments, each followed by one that must recover
	@SIFKIT_KILLS=50 $(BIN)/python -m pytest tests/faults/test_kills.py $(PYTEST_OPTIONS)

check: venv      ## lint, types, import contract
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

goldens: venv    ## rewrite tests/golden from what is rendered now; read the diff
	@$(BIN)/python -m pytest tests/golden -q --update-goldens

schema: venv     ## rewrite the editors' JSON Schemas
	@$(BIN)/python -m sifkit.schema

rules: venv      ## rewrite docs/rules and docs/failures.md from the rules of `sifkit check`
	@$(BIN)/python -m sifkit.check docs

compat: venv     ## read the compatibility tables again from the package index; read the diff
	@$(BIN)/sifkit compat update

matrix: venv apptainer ## build and verify IMAGES=… on the CPU, and record them in docs/images.md
	@$(BIN)/python -m bench.images $(if $(CHECKOUT),--checkout $(CHECKOUT)) $(if $(CONFIG),--config $(CONFIG)) $(IMAGES)

resolvers: venv  ## ask pip and uv what sifkit refuses; recorded in docs/compatibility.md
	@$(BIN)/python -m bench.resolvers

bench: venv apptainer ## measure against the ways of today, each in one run; BENCH=audit: that part alone
	@$(BIN)/python -m bench $(BENCH)

bench-gpu: venv apptainer ## on a GPU: train inside images/IMAGE.sif against outside; BENCH_OPTIONS
	@$(BIN)/python -m bench.gpu $(if $(IMAGE),images/$(IMAGE).sif) $(BENCH_OPTIONS)

clean:           ## remove build products (images too)
	rm -rf images reports build
