# Every target makes the virtual environment it needs by itself; a second run does not install again.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
NATIVE := $(wildcard kernels/cpu/native/*.[ch]) kernels/cpu/build.py
PACKAGES := -p quire.engine -p quire.kernels -p quire.server -p quire.clients -p quire.benchmarks -p quire.models -p quire.simulator

.PHONY: help install check test test-gpu triton-aot sanitize bench soak chaos simulate mutants serve clean

help:
	@echo "make serve      serve the starter model on http://127.0.0.1:8000   (ARGS='MODEL --port 9000 ...')"
	@echo "make test       the test suite                                     (ARGS='tests/server -k stream')"
	@echo "make check      ruff format, ruff, mypy --strict"
	@echo "make test-gpu   the tests that need a GPU"
	@echo "make triton-aot every Triton kernel of the settings table, compiled for sm_80 and sm_90, without a GPU"
	@echo "make bench-gpu  the goals of kernels and engine on a GPU, under eight minutes"
	@echo "make sanitize   the compiled CPU kernels under ASan and UBSan"
	@echo "make simulate   20 million steps of the scheduler in the simulator, resumable   (ARGS='--total 1M')"
	@echo "make mutants    every fault planted in the core must be caught by the simulator"
	@echo "make soak       an hour of mixed load with faults, a report        (ARGS='--minutes 10')"
	@echo "make chaos      the fault cases in full: kills, overload, readers that stall"
	@echo "make bench      host time of an engine step, time from start to first token"
	@echo "make install    only the virtual environment"
	@echo "make clean      remove it, and caches"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "error: $(PYTHON) is older than Python 3.11; install it, or make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "making $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml setup.py | $(BIN)/python
	@echo "installing Quire and its dependencies into $(VENV)"
	@$(PIP) --editable .
	@touch $@ $(VENV)/kernels

$(VENV)/installed-dev: pyproject.toml setup.py | $(BIN)/python
	@echo "installing Quire, its dependencies and the development tools into $(VENV)"
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/installed $(VENV)/kernels

# Installing compiles them; this is for sources that changed since. Without a compiler PyTorch serves.
$(VENV)/kernels: $(NATIVE) | $(VENV)/installed
	@if [ ! -e $@ ] || [ -n "$$(find $(NATIVE) -newer $@)" ]; then \
	    echo "compiling the CPU kernels"; $(BIN)/python -P kernels/cpu/build.py || true; touch $@; fi

install: $(VENV)/installed $(VENV)/kernels

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(PACKAGES)

test: $(VENV)/installed-dev $(VENV)/kernels
	PYTHONSAFEPATH=1 $(BIN)/pytest $(or $(ARGS),--numprocesses 2 --dist loadfile)

test-gpu: $(VENV)/installed-dev
	PYTHONSAFEPATH=1 $(BIN)/pytest -m gpu $(ARGS)
	@if command -v nvidia-smi >/dev/null; then PYTHONSAFEPATH=1 $(BIN)/pytest tests/e2e --serve-on cuda; fi

triton-aot: $(VENV)/installed-dev
	PYTHONSAFEPATH=1 $(BIN)/python -m quire.kernels.triton.ahead $(ARGS)

bench-gpu: $(VENV)/installed
	PYTHONSAFEPATH=1 $(BIN)/python -m quire.benchmarks.gpu_goals $(ARGS)

# ASAN_OPTIONS: threads of OpenMP outlive main, and what they hold with them.
sanitize: $(VENV)/installed
	@ASAN_OPTIONS=detect_leaks=0 $(BIN)/python -P tests/kernels/sanitize.py

bench: $(VENV)/installed $(VENV)/kernels
	PYTHONSAFEPATH=1 $(BIN)/python -m quire.benchmarks.engine_step
	PYTHONSAFEPATH=1 $(BIN)/python -m quire.benchmarks.startup

# It goes on where it stopped; to begin anew, remove build/simulate.json. Then every allocation of 20 lives fails once (G18).
simulate: $(VENV)/installed
	PYTHONSAFEPATH=1 $(BIN)/quire simulate --total 20M --resume build/simulate.json $(ARGS)
	PYTHONSAFEPATH=1 $(BIN)/quire simulate --sweep --seeds 20 --steps 60

mutants: $(VENV)/installed
	PYTHONSAFEPATH=1 $(BIN)/quire simulate --mutants --seeds 200 --steps 2000 $(ARGS)

soak: $(VENV)/installed-dev $(VENV)/kernels
	PYTHONSAFEPATH=1 $(BIN)/quire bench soak --minutes 60 $(ARGS)

chaos: $(VENV)/installed-dev $(VENV)/kernels
	PYTHONSAFEPATH=1 $(BIN)/pytest -m chaos
	PYTHONSAFEPATH=1 $(BIN)/quire bench soak --parts overload kills disconnects slow-readers --kills 1000 \
	    --disconnects 10000 --slow-readers 500 --overload-seconds 600 --result-dir build/chaos $(ARGS)

serve: $(VENV)/installed $(VENV)/kernels
	@PYTHONSAFEPATH=1 exec $(BIN)/quire serve $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
