# Everything a user or CI calls. 'make' alone lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV ?= .venv
DATA ?= data
# Test processes.
JOBS ?= $(shell echo $$(($$(nproc) + 1)))  # one more: launches and servers make tests wait
# Fixed, not the number of cores: sums in the same order give the same bits on any machine of one kind. On 8x8 images a
# second thread gains little, and on a busy machine two threads that wait for each other are many times slower than one.
DEMO_THREADS ?= 1

export VENV
export PATH := $(abspath $(VENV))/bin:$(PATH)
export NUMBA_THREADING_LAYER ?= omp
export MLFLOW_DISABLE_TELEMETRY ?= true
export HF_HUB_DISABLE_TELEMETRY ?= 1
export TQDM_DYNAMIC_NCOLS ?= 1
export NO_MKDOCS_2_WARNING ?= 1

STAMP := $(VENV)/.installed
# Said in full, so that neither a user's Accelerate configuration nor its warnings about defaults come in between.
LAUNCH_ONE := accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

# One thread each: the networks of the tests are too small to share out. The tests for a GPU run without one, on the CPU
# under the label "cuda:0": see tests/simulated_cuda/label.py.
PYTEST := HARNESS_GPU_TESTS_DEVICE=label OMP_NUM_THREADS=1 MPLBACKEND=agg python -m pytest
IN_PARALLEL := -n $(JOBS) --dist worksteal

.PHONY: help
help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP)  ## Install system packages, .venv and the project (skips what is there)

$(STAMP): pyproject.toml constraints.txt tools/setup.sh
	@tools/setup.sh

.PHONY: demo
demo: setup  ## Find winning signs on real digits, use them, and show what came out (5 minutes on one core)
	python tools/prepare_data.py digits --out $(DATA)
	$(LAUNCH_ONE) --num_cpu_threads_per_process $(DEMO_THREADS) recipes/demo.py

.PHONY: test
test: lint  ## All checks that need no GPU: ruff, types, tests (about 7 minutes on 2 cores)
	$(PYTEST) -m "not slow" $(IN_PARALLEL) --durations 15 --durations-min 10

.PHONY: test-quick
test-quick: setup  ## While editing: ruff, and the tests that start no process and no server (about 90 seconds on 2 cores)
	python -m ruff check --quiet .
	$(PYTEST) -m "not slow and not long and not gpu" -n $(shell nproc) --dist worksteal

.PHONY: test-slow
test-slow: setup  ## Every figure and table at full size, two nodes that lose each other (needs root), server faults, 20 kills of a search
	$(PYTEST) -m slow
	python tools/crashtest.py --kills 20

.PHONY: test-gpu
test-gpu: setup  ## The tests that need a CUDA device
	python -m pytest tests/gpu -m gpu

.PHONY: lint
lint: setup  ## Ruff and the type checker
	python -m ruff check .
	python -m ruff format --check .
	python -m mypy

.PHONY: format
format: setup  ## Let ruff lay the code out
	python -m ruff check --fix .
	python -m ruff format .

.PHONY: wheel-check
wheel-check: setup  ## Build the wheel, install it alone in an empty environment, and use it (6 minutes, 7 GB for a while)
	python tools/wheel_check.py

REV ?= HEAD
.PHONY: same-bits
same-bits: setup  ## Prove that the working tree computes the same bits as REV (default HEAD; 3 minutes on 2 cores)
	python tools/same_bits.py --rev $(REV)

.PHONY: examples
examples: setup  ## AWS in PyTorch, Accelerate, Lightning and Hugging Face's Trainer on real digits (2 minutes on 2 cores)
	@mkdir -p build/examples
	cd build/examples && python ../../recipes/examples/plain_loop.py
	cd build/examples && $(LAUNCH_ONE) ../../recipes/examples/accelerate_loop.py
	cd build/examples && python ../../recipes/examples/lightning_callback.py
	cd build/examples && python ../../recipes/examples/hf_trainer_callback.py

# The kernel talks over a file instead of a port.
EXECUTE := --log-level ERROR --to notebook --inplace --execute --KernelManager.transport=ipc \
	--ExecutePreprocessor.timeout=300

.PHONY: docs
docs: setup  ## The documentation as a site in site/, with its notebook executed (a minute on 2 cores)
	@rm -rf build/notebooks && mkdir -p build/notebooks
	cp docs/notebooks/*.ipynb build/notebooks
	cd build/notebooks && MPLBACKEND= jupyter nbconvert $(EXECUTE) *.ipynb
	mkdocs build --strict --quiet

.PHONY: docs-serve
docs-serve: setup  ## Show the documentation at http://127.0.0.1:8000 while you edit it
	mkdocs serve --livereload

.PHONY: bench
bench: setup  ## Measure against plain PyTorch, stock FFCV and the goals
	python tools/bench.py

.PHONY: constraints
constraints: setup  ## Write constraints.txt anew from .venv (after changing versions in it on purpose)
	@head -n 2 constraints.txt >constraints.new
	@python -m pip freeze --all --exclude-editable | grep -E '^[A-Za-z0-9._-]+==' | sort -f >>constraints.new
	@mv constraints.new constraints.txt

.PHONY: clean
clean:  ## Remove caches and build leftovers (never data, runs or .venv)
	rm -rf build site *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find harness recipes tools tests -name __pycache__ -type d -prune -exec rm -rf {} +
