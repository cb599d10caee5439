# Everything a fresh machine needs is set up by the first target that needs it, in .venv.
#   make demo     see what it does
#   make test     every check there is
#   make test PYTHON=python3.13 VENV=.venv-3.13     the same with another Python
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

RUN := $(VENV)/bin/python
# Installs the project with what these extras need; the extensions are built by their own rule.
INSTALL := FASTPOOL_BARE=1 $(RUN) -m pip install --quiet --disable-pip-version-check
SOURCES := $(wildcard csrc/*.c csrc/*.h fastpool/*.pyx fastpool/*.pxd)

.DEFAULT_GOAL := help
.PHONY: help build demo test test-full docs lint types ctest models bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

build: $(VENV)/.built ## set up .venv and build the extensions in place

demo: $(VENV)/.built ## fastpool beside a plain loop
	$(RUN) -m fastpool demo $(ARGS)

test: $(VENV)/.built ## every check: format, lint, types, documentation, C tests, models, Python tests
	$(RUN) tools/check.py $(ARGS)

test-full: $(VENV)/.built ## the same, with the long tests and the counts
	$(RUN) tools/check.py --full $(ARGS)

lint types docs ctest models: $(VENV)/.built
	$(RUN) tools/check.py $@

lint: ## format and lint of Python, Cython and C
types: ## mypy, stubs against the extensions, a user's program under mypy and pyright
docs: ## the user guide and the reference, into site/; warnings are errors
ctest: ## the C core alone, plain and under the sanitizers
models: ## the protocols, model-checked with spin

bench: $(VENV)/.built $(VENV)/.peers ## fastpool beside its peers, figures and plots in benchmarks/results (ARGS=--quick)
	$(RUN) -m benchmarks --plots --json benchmarks/results/results.json $(ARGS)

clean: ## remove what was built, keep .venv
	rm -rf build dist site fastpool.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f fastpool/*.so $(VENV)/.built
	find fastpool benchmarks tests tools -name __pycache__ -prune -exec rm -rf {} +

# Stamps: each is as new as what it stands for. The first is only made where the machine can build.
$(VENV)/.created:
	@sh tools/doctor.sh "$(PYTHON)"
	"$(PYTHON)" -m venv --clear "$(VENV)"
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml setup.py
	$(INSTALL) -e '.[dev]'
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	$(RUN) setup.py --quiet build_ext --inplace --parallel $$(nproc)
	@touch $@

$(VENV)/.peers: $(VENV)/.installed
	$(INSTALL) -e '.[bench]'
	@touch $@
