# Every target installs .venv by itself when pyproject.toml or constraints.txt changed.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DOCS_INSTALLED := .venv/.installed-docs
RELEASE_INSTALLED := .venv/.installed-release
BENCH_INSTALLED := .venv/.installed-bench

# Processes that tests start would compile every module again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test coverage check bench bench-quick full-size gpu-suite soak docs pictures release clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 18

$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing prod9 into .venv (the first time: a few GB to fetch, some minutes)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(BENCH_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	@touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	@touch $@

$(RELEASE_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,release]'
	@touch $@

demo: $(INSTALLED)  ## Train small models on simulated brains and generate new ones, on this machine.
	$(BIN)/prod9 demo

test: $(INSTALLED)  ## Run all tests, a process per core with one thread each.
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

coverage: $(INSTALLED)  ## Run all tests, and ask for the coverage that pyproject.toml names.
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage report --format=total

check: $(INSTALLED)  ## Check style, types and the layers of the package.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports

bench: $(BENCH_INSTALLED)  ## Run every benchmark at its quick size.
	@set -e; for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script --quick; done

bench-quick: $(BENCH_INSTALLED)  ## Compare quick ratios with the committed ones; fails where one fell by more than 25%.
	$(BIN)/python benchmarks/quick.py

full-size: $(INSTALLED)  ## A step and a volume of every BraTS config at real size on the CPU; goes on where it stopped.
	$(BIN)/python benchmarks/full_size.py

gpu-suite: $(BENCH_INSTALLED)  ## Check and measure on a GPU, in eight minutes, all that needs one.
	$(BIN)/python benchmarks/gpu_suite.py --minutes 8

soak: $(INSTALLED)  ## Kill runs and feed changed files to every reader, for hours; goes on where it stopped.
	$(BIN)/python -m tests.soak --folder outputs/soak

docs: $(DOCS_INSTALLED)  ## Regenerate tables and pages from the code, check links, build the site into build/site.
	$(BIN)/python docs/tools/config_tables.py
	$(BIN)/python docs/tools/command_pages.py
	$(BIN)/python docs/tools/gpu_table.py
	$(BIN)/python docs/tools/check_links.py
	$(BIN)/python docs/tools/build_site.py

pictures: $(INSTALLED)  ## Make the pictures of the documentation; needs `prod9 demo` and Chromium.
	$(BIN)/python docs/tools/pictures.py --demo outputs/demo

release: $(RELEASE_INSTALLED)  ## Build wheel and sdist, and try both in fresh environments; uploads nothing.
	$(BIN)/python docs/tools/release.py

clean:  ## Remove caches and build products; .venv, data and outputs stay.
	rm -rf build dist htmlcov .coverage .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks examples docs -type d -name __pycache__ -prune -exec rm -rf {} +
