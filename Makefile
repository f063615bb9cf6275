# Two commands do all: `make demo` shows skim at work, `make test` proves it. Each makes .venv if there is none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# a test starts many processes, each of which would compile all modules anew where a machine forbids to keep them
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test test-slow quick lint format lock audit clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@# this torch is the newest one that the tests have run on; one that is there already is kept
	@$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --quiet "torch==2.13.0"
	@# setuptools warns of folders that bear a package's name, as a checkout's do
	@PYTHONWARNINGS="ignore:Editable installation" $(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $(READY)

demo: $(READY)  ## dense and Transkimmer on the built-in task, a table and a shaded sentence
	@$(BIN)/python -m skim.demo

# A worker that dies fails the run at once: xdist (3.8, its issue 1378) would start another, hand it files that are done,
# and wait for them for ever.
test: $(READY)  ## every test but the slow ones; those on real data run if SKIM_MIRROR is set
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test-slow: $(READY)  ## the slow ones alone: kills by the dozen, thousands of drawn cases, minutes of load
	@$(BIN)/python -m pytest -m slow -rP -n 2 --dist load --max-worker-restart 0

quick: $(READY)  ## the core in a minute: states, attention, laws on one family, golden numbers, configs
	@$(BIN)/python -m pytest -n 2 --laws=quick tests/engine/test_tokens.py tests/engine/test_attention.py tests/laws \
		tests/methods/test_golden*.py tests/test_conf.py

lint: $(READY)  ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(READY)  ## ruff, in place
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

lock: $(READY)  ## requirements.lock anew: every package that skim needs, with the hashes of its files
	@$(BIN)/python -m uv pip compile pyproject.toml --universal --python-version 3.10 --generate-hashes --quiet \
		--custom-compile-command "make lock" --output-file requirements.lock

audit: $(READY)  ## known weaknesses of the packages in requirements.lock; needs the network
	@$(BIN)/python -c "import socket; socket.create_connection(('pypi.org', 443), 5)" 2>/dev/null \
		|| { echo "pypi.org cannot be reached: nothing is audited"; exit 0; } \
		&& $(BIN)/python -m pip_audit --require-hashes --disable-pip --requirement requirements.lock

clean:  ## the virtual environment and caches; runs/ stays
	@rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
