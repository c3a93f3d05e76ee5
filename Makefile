# What a person and CI run. `make` alone lists it.
#
# The first target that needs it makes .venv and installs there, under the pins of constraints.txt; later ones find
# the stamp and start at once. It needs make, and Python 3.11 or later; to choose one: make test PYTHON=/path/to/python3
# pip obeys its own variables: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test
# gets torch for the CPU on Linux, where PyPI's brings gigabytes of CUDA along.

PYTHON ?= python3.11 python3.12 python3.13 python3.14 python3
WORKERS ?= 2
VENV := .venv
PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest -n $(WORKERS) --dist worksteal

.NOTPARALLEL:  # targets share .venv, and two cores
.PHONY: help demo test test-long lint bench examples pictures docs clean

help:
	@echo 'Targets:'
	@sed -n 's/^\([a-z-]*\):.*## */\1@/p' Makefile | awk -F@ '{ printf "  %-10s  %s\n", $$1, $$2 }'

demo: $(VENV)/.installed-demo  ## train a small GPT on real text into runs/char_lm (ARGS=--resume goes on)
	$(PY) examples/char_lm.py $(ARGS)

# One thread a worker: two workers with two threads each would fight over two cores.
test test-long: export OMP_NUM_THREADS = 1

test: $(VENV)/.installed-dev  ## laws, oracles, doctests: minutes
	$(PYTEST) -m "not long"

test-long: export HYPOTHESIS_PROFILE = long
test-long: $(VENV)/.installed-long  ## more draws, real processes, other libraries, a browser, planted faults
	$(PYTEST) -m long
	$(PY) -m tests.mutants

lint: $(VENV)/.installed-dev  ## ruff and mypy
	$(PY) -m ruff check functrain tests examples docs/hooks
	$(PY) -m ruff format --check functrain tests examples docs/hooks
	$(PY) -m mypy

bench: $(VENV)/.installed-dev  ## measured ratios beside their goals
	$(PY) -m tests.benchmarks

examples: $(VENV)/.installed-long  ## every program of examples/ in full, below runs/
	$(PY) -m tests.programs

pictures: $(VENV)/.installed-long  ## draw docs/pictures/ anew, from the pages and the programs that draw
	$(PY) -m tests.pages
	$(PY) -m tests.programs --pictures

docs: $(VENV)/.installed-docs  ## the documentation, into site/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict  # the variable silences what Material says of its successor

clean:  ## remove caches and build outputs; .venv and runs/ stay, since they cost minutes
	rm -rf build dist site *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -prune -exec rm -rf {} +

# A stamp is written last, so an install that broke off is taken up again; so is a .venv made by hand.
$(VENV)/.installed-demo: pyproject.toml constraints.txt
	@$(call install,.[plot$(comma)testing])
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	@$(call install,.[dev])
	@touch $@ $(VENV)/.installed-demo

$(VENV)/.installed-docs: pyproject.toml constraints.txt
	@$(call install,.[docs])
	@touch $@

$(VENV)/.installed-long: pyproject.toml constraints.txt
	@$(call install,.[dev$(comma)interop$(comma)examples$(comma)docs$(comma)browser])
	@touch $@ $(VENV)/.installed-docs $(VENV)/.installed-dev $(VENV)/.installed-demo

comma := ,

define install
set -e; \
if [ -x $(PY) ]; then \
	echo "installing functrain and what it needs into $(VENV) (a few minutes) ..."; \
else \
	found=; \
	for python in $(PYTHON); do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "functrain needs Python 3.11 or later, and found none as: $(PYTHON)." >&2; \
		echo "Install it, or say where it is: make PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi; \
	echo "creating $(VENV) and installing functrain and what it needs (a few minutes) ..."; \
	$$found -m venv --clear $(VENV); \
fi; \
$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip; \
$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '$(1)'
endef
