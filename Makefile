# Every target sets up what it needs. PYTHON=python3.12 picks another interpreter, EXTRAS=dev,joblib more extras.
PYTHON ?= python3
EXTRAS ?= dev
VENV := .venv
BIN := $(VENV)/bin
# Fewer than all cores' threads in each of two test processes: tiny models lose time to threads.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo reproduce install test test-all test-clusters check bench bench-neighbours clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e $(if $(filter run,$*),.,".[$(EXTRAS)]")
	touch $@

install: $(VENV)/installed-run  ## a virtual environment in .venv with influx in it

demo: $(VENV)/installed-run  ## the main job on real data: influx validate
	$(BIN)/influx validate

reproduce: $(VENV)/installed-run  ## the published studies, claim by claim, at their quick scale
	$(BIN)/influx reproduce study=all

test: $(VENV)/installed-dev  ## the tests, in under five minutes on two cores
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(VENV)/installed-dev  ## the slow tests too
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not network"

test-clusters: $(VENV)/installed-dev  ## retraining on a real two-node ray cluster and a dask cluster of this machine
	$(BIN)/python -m pip install --quiet -e ".[dev,ray,dask]"
	$(BIN)/python -m pytest tests/test_workers.py -m "ray or dask"

check: $(VENV)/installed-dev  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/installed-dev  ## the benchmarks: ratios against the plain way, in one run
	$(BIN)/python benchmarks/retraining.py
	$(BIN)/python benchmarks/solvers.py
	$(BIN)/python benchmarks/hypergradient.py

bench-neighbours: $(VENV)/installed-dev  ## estimators against kronfluence, captum, dattri, traker and pyDVL
	$(BIN)/python -m pip install --quiet -e ".[neighbours]" traker
	$(BIN)/python -m pip install --quiet --no-deps pydvl
	$(BIN)/python -m pip install --quiet pyDeprecate more-itertools cloudpickle psutil dask distributed "zarr>=3" numcodecs cvxpy
	$(BIN)/python benchmarks/estimators.py

clean:  ## remove the environment and every run
	rm -rf $(VENV) outputs/train outputs/estimate outputs/validate outputs/reproduce outputs/report outputs/store
