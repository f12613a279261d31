# The one door. Needs Python 3.11 or later and nothing else; all that is installed goes into .venv.
#
#   make demo    train a small MoE on real text, watch its routing, leave a report
#   make test    everything that must hold: format, lint, types, floors, wheel, tests
#   make lint    the part of it that runs nothing
#   make chaos   the long versions: 1,000 kills, 1,000 forks, a soak; writes RELIABILITY.json
#   make bench   what tracing costs
#   make docs    renew generated blocks of the documentation and the picture in README.md
#
# Versions are pinned in constraints.txt. Where there is no GPU, the small build of torch does:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo

.DEFAULT_GOAL := help
.PHONY: help demo test lint wheel chromium chaos bench docs clean
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install --no-compile
# Python compiles what is imported, and keeps it: a third of what is installed.
unexport PYTHONDONTWRITEBYTECODE
GENERATED := $(shell grep -ls '\[\[\[cog' README.md docs/*.md 2>/dev/null)

help:
	@sed -n 's/^#   make/  make/p' Makefile

demo: $(VENV)/ready-to-run
	@$(BIN)/moetrace demo

test: $(VENV)/ready-to-test chromium
	@$(MAKE) wheel >$(VENV)/wheel.log 2>&1 & wheel=$$!; $(MAKE) lint; lint=$$?; \
	  wait $$wheel; wheel=$$?; cat $(VENV)/wheel.log; [ $$lint = 0 ] && [ $$wheel = 0 ]
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --doctest-modules \
	  src tests README.md docs

lint: $(VENV)/ready-to-test
	$(BIN)/ruff format --check --quiet --exclude '*.md' .
	$(BIN)/ruff check --quiet .
	$(BIN)/pyright & other=$$!; $(BIN)/mypy; mypy=$$?; wait $$other && exit $$mypy
	$(BIN)/lint-imports
	$(if $(GENERATED),$(BIN)/cog --check $(GENERATED),)

wheel: $(VENV)/ready-to-test
	@.ci/test-wheel $(BIN)/python

# CHAOS="--kills 100 --soak 0" makes it shorter; see python -m tests.chaos --help.
chaos: $(VENV)/ready-to-test
	@MOETRACE_WHOLE_MATRIX=1 $(BIN)/python -m tests.chaos $(CHAOS)

bench: $(VENV)/ready-to-test
	@set -e; for question in benchmarks/[a-z]*.py; do $(BIN)/python "$$question"; done

docs: $(VENV)/ready-to-test chromium
	$(if $(GENERATED),$(BIN)/cog -r $(GENERATED),@echo "found no generated block in README.md or docs/")
	@$(BIN)/python -m tests.report.readme_picture docs/img/report.png

# The report's test and its picture need a real browser; without one they are left out, with a word.
chromium:
	@if ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  echo "installing chromium for the report's test"; \
	  { timeout 120 apt-get -qq update && DEBIAN_FRONTEND=noninteractive timeout 300 \
	    apt-get -qq --no-install-recommends install chromium chromium-driver; } >/dev/null 2>&1 \
	  || echo "chromium did not install; the report's test will be skipped"; \
	fi

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# torch goes first and alone: asked for by its exact version, pip may take a CPU build of it from
# wherever this machine's pip looks; asked for through a dependency's range, it would not.
$(VENV)/pip-is-current: constraints.txt
	@PYTHON=$$(for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	      && echo "$$python" && break; done); \
	  [ -n "$$PYTHON" ] || { echo "found no Python 3.11 or later; name one: make PYTHON=..."; exit 1; }; \
	  [ -x $(BIN)/python ] || "$$PYTHON" -m venv $(VENV)
	@echo "installing into $(VENV) (once, about a minute)"
	@$(PIP) "$$(grep '^pip==' constraints.txt)"
	@$(PIP) --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	@$(PIP) --constraint constraints.txt hatchling setuptools editables
	@touch $@

$(VENV)/ready-to-run: pyproject.toml hatch_build.py $(wildcard src/moetrace/ops/_host_*.[ch]) $(VENV)/pip-is-current
	@$(PIP) --constraint constraints.txt --no-build-isolation --editable ".[demo]"
	@touch $@

# pyright runs on Node.js; its extra brings one, so that none is downloaded behind pip's back.
$(VENV)/ready-to-test: $(VENV)/ready-to-run
	@$(PIP) --constraint constraints.txt --no-build-isolation \
	  --group test --group lint "pyright[nodejs]"
	@touch $@
