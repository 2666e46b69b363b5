# `make demo` and `make test` need nothing but Python 3.11, git and make.
PYTHON ?= python3.11
# Processes that run tests. They mostly wait; with many more of them answers come late.
WORKERS ?= 4
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: help demo run test e2e programs model soak bench lint format clean

help: ## what can be made
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

demo: $(VENV)/installed ## play the main job on real nodes, a real webhook and real sidecars
	$(RUN) -m tests.demo

run: $(VENV)/installed ## three nodes and a webhook that stay, and a review to send
	$(RUN) -m tests.run

test: $(VENV)/installed ## all tests
	$(RUN) -m pytest -n $(WORKERS)

e2e: $(VENV)/installed ## the image, and the system in a real cluster on this machine; needs root, Go and Debian packages
	E2E=1 $(RUN) -m pytest tests/image tests/manifests tests/monitoring tests/reconciler tests/e2e

programs: $(VENV)/installed ## build Prometheus and the programs of a cluster, as far as they are not on this machine
	$(RUN) -m tests.e2e.binaries

model: $(VENV)/installed ## the protocol's model, through ten thousand histories
	MODEL_EXAMPLES=10000 $(RUN) -m pytest tests/model

soak: $(VENV)/installed ## the whole system under a seeded nemesis: make soak SECONDS=300 SEED=7
	$(RUN) -m tests.faults.soak $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED))

bench: $(VENV)/installed ## what all of it costs, as ratios: make bench PARTS="protocol admissions api-server holders scrapes waiting"
	$(RUN) -m tests.bench $(if $(BRIEF),--brief) $(PARTS)

lint: $(VENV)/installed ## ruff, mypy, the import rules and hadolint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/hadolint Dockerfile

format: $(VENV)/installed ## let ruff set the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean: ## remove what is not in git
	rm -rf $(VENV) build *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(VENV)/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; name it by: make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable '.[test,lint]'
	@touch $@
