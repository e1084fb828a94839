# Every target creates .venv if it is missing.
PYTHON ?= python3
PY := .venv/bin/python
# Tests need no network.
TEST := HF_HUB_OFFLINE=1 MPLBACKEND=agg $(PY) -m pytest

.PHONY: setup demo test test-slow check docs gallery bench faults soak format clean

setup: .venv/.ready

.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
	  f"perturblab needs Python 3.11 to 3.13, and $(PYTHON) is {v[0]}.{v[1]}; run make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup
	@$(PY) -m perturblab run --preset quick --results runs/demo/results --work runs/demo
	@$(PY) -m perturblab report runs/demo/results -o runs/demo/report.html

test: setup
	OMP_NUM_THREADS=1 $(TEST) -m "not slow" -n auto --maxprocesses 8 --dist worksteal

test-slow: setup
	$(TEST) -m slow

check: setup
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

# Every warning is an error (--quiet would hide them), except the theme's note about its successor.
SITE ?= build/site
docs: setup
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --site-dir $(SITE)
	@echo "open $(SITE)/index.html"

# Some scripts read real data; one needs a trained run, and its message says how to make it.
gallery: setup
	$(PY) docs/gallery/pages.py --dataroot ../shared/data

bench: setup
	$(PY) -m benchmarks

# Run as root: only root may mount small disks and become another user. The table names skipped faults.
faults: setup
	$(PY) -m faults

soak: setup
	$(PY) -m faults.soak

format: setup
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
